"""
Tests properties that hold for every folder, table, recording and name, with examples that hypothesis makes: few of them
in every run, a thousand and more in the slow ones. hypothesis also takes constants from modules that other tests have
loaded, so that the examples depend on which tests run in the same process.
"""

import collections
import copy
import csv
import dataclasses
import html.parser
import io
import itertools
import json
import logging
import os
import shutil
import types
from pathlib import Path

import hypothesis
import openpyxl
import pandas
import pytest
import soundfile
from audio_encodings import BLOCK_S, ENCODINGS, WITHOUT_LENGTH, check_reading, encode
from audio_files import num_left_out, tone, write_class_folders
from datasets import Dataset
from huggingface_hub import ModelCard
from hypothesis import strategies as st
from PIL import Image
from tiny_runs import TINY, train

from modeling_dual_ssast import DualSSASTConfig
from training.base import outputs
from training.base.clip_facts import describe_clips
from training.classification import html_report, report
from training.data.columns import Columns
from training.data.labels import LabelSet, class_name
from training.data.listing import list_audio_files
from training.data.tables import load_table
from training.errors import InputError, printable

EXAMPLES = [pytest.param(30, id="few"), pytest.param(1000, id="many", marks=pytest.mark.slow)]
MEANINGFUL = (
    "$", "$x$", "$a_$b", "<b>", "<script>alert(1)</script>", "&amp;", "a\nb", "\r", "accuracy", "x" * 200, "|", "{{x}}",
    "{% x %}", "`", "---", "a,b", '"', '12" ruler', "'", "nan", "None", "\\", "\\$", "日本", "é", "\u202e", "\u2028",
    "=1+1", "_a_", "#", "[x](y)", "probability_a", "%s", "~", "*", "-x", ";", ":", "a: b", "- a", "\t", "\x1b[31m",
    "01", "1", "1.0", "²", "true", "label",
)  # fmt: skip


def check(holds, examples: int):
    """Tries a property."""
    settings = hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate] + [hypothesis.Phase.shrink] * (examples > 30),
    )
    settings(holds)()


# ---- clips found + clips reported = files there ----

ODD_STEMS = (
    "train", "test", ".git", ".hidden", "@eaDir", "__MACOSX", "$RECYCLE.BIN", "a b", "caf\udce9", "é", "-x", "*",
    "a\nb",
)  # fmt: skip
STEMS = st.sampled_from(ODD_STEMS) | st.text(
    st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=8
)
ENDINGS = st.sampled_from(
    ("", ".wav", ".WAV", ".flac", ".m4a", ".txt", ".raw", ".vox", ".xyz", ".wav.part", ".zip", ".aifc")
)
ENTRY_NAMES = st.builds("{}{}".format, STEMS, ENDINGS).filter(lambda name: name not in (".", ".."))
CONTENTS = (
    "wav",
    "text",
    "empty",
    "noise",
    "link to nothing",
    "link to the top",
    "link to itself",
    "link to a file",
    "pipe",
)
TREES = st.dictionaries(
    ENTRY_NAMES,
    st.recursive(
        st.sampled_from(CONTENTS), lambda inner: st.dictionaries(ENTRY_NAMES, inner, max_size=4), max_leaves=12
    ),
    max_size=5,
)


def grow(folder: Path, tree: dict, top: Path):
    """Makes the files, folders and links of a tree: name -> content, or the tree of a folder."""
    folder.mkdir()
    for name, content in tree.items():
        path = folder / name
        if isinstance(content, dict):
            grow(path, content, top)
        elif content == "wav":
            path.write_bytes(WAV)
        elif content == "pipe":
            os.mkfifo(path)
        elif content.startswith("link"):
            target = {"nothing": "gone.wav", "top": top, "itself": path.name, "file": top.parent / "outside.wav"}
            path.symlink_to(target[content.rsplit(" ", 1)[1]])
        else:
            path.write_bytes({"text": b"text", "empty": b"", "noise": bytes(range(256))}[content])


def wav() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(0.01), 16000, format="WAV")
    return buffer.getvalue()


WAV = wav()


@pytest.mark.parametrize("examples", EXAMPLES)
def test_every_file_of_a_folder_is_a_clip_or_reported(examples, tmp_path):
    (tmp_path / "outside.wav").write_bytes(WAV)
    top = tmp_path / "top"

    @hypothesis.given(TREES)
    def holds(tree):
        shutil.rmtree(top, ignore_errors=True)
        grow(top, tree, top)
        listing = list_audio_files(top)
        there = [Path(place, name) for place, _, names in os.walk(top) for name in names]
        assert len(listing.files) + num_left_out(listing) == len(there)
        told = {*listing.files, *listing.left_out}
        assert len(told) == len(listing.files) + len(listing.left_out)
        for path in there:
            assert len({path, *path.parents} & told) == 1, path
        for path in listing.files:
            assert path.is_file()
        for reason in listing.left_out.values():
            assert reason.strip()

    check(holds, examples)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_links_to_folders_lose_nothing(examples, tmp_path):
    """A link may lead to a folder within the tree or beside it, and that one to others."""
    folders = [tmp_path / name for name in ("top", "top/a", "top/a/b", "top/c", "beside", "beside/d")]
    links = st.lists(st.tuples(*[st.integers(0, len(folders) - 1)] * 2), max_size=5)

    @hypothesis.given(links)
    def holds(links):
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        for folder in folders:
            folder.mkdir()
            (folder / "clip.wav").write_bytes(WAV)
        for number, (place, target) in enumerate(links):
            (folders[place] / f"link{number}").symlink_to(folders[target])
        listing = list_audio_files(folders[0])
        found = {os.path.realpath(path) for path in listing.files}
        reachable, left = set(), [os.path.realpath(folders[0])]
        while left:
            place = left.pop()
            if place not in reachable:
                reachable.add(place)
                left += [os.path.realpath(entry.path) for entry in os.scandir(place) if entry.is_dir()]
        assert found == {os.path.join(place, "clip.wav") for place in reachable}
        for path in listing.left_out:  # nothing but links in circles, and what another link has shown
            assert os.path.realpath(path) in reachable
        assert len(listing.files) == len(set(listing.files))

    check(holds, examples)


# ---- rows read + rows reported = rows there ----

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)
CELLS = st.sampled_from(MEANINGFUL) | TEXTS
# What every format can hold.
TAME = st.text("abcé日 _-.'/$<>&", min_size=1, max_size=12).map(str.strip).filter(bool)


def rows_of(cells):
    """Returns a strategy for rows: audio, label, notes. A backslash in a path may be Windows' for a slash."""
    return st.lists(st.tuples(cells.filter(lambda cell: "\\" not in cell), cells, cells), min_size=1, max_size=6)


def by_csv(rows, path: Path, draw):
    quoting = draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    if any("\r" in cell for cell in itertools.chain(*rows)):
        quoting = csv.QUOTE_ALL  # Python before 3.13 writes a single \r without quotes, which ends a line
    delimiter, end = draw(st.sampled_from(",;\t")), draw(st.sampled_from(("\n", "\r\n")))
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)
    path.write_bytes(buffer.getvalue().encode(draw(st.sampled_from(("utf-8", "utf-8-sig", "utf-16")))))


def by_tsv(rows, path: Path, draw):
    """Writes as Common Voice does: quotes are characters like others."""
    text = "".join("\t".join(" ".join(cell.split()) for cell in row) + "\n" for row in rows)
    path.write_bytes(text.encode(draw(st.sampled_from(("utf-8", "utf-8-sig", "utf-16")))))


def by_pandas(write):
    def by_write(rows, path: Path, draw):
        table = pandas.DataFrame(rows[1:], columns=rows[0])
        if draw(st.booleans()):
            table = table.set_index(pandas.Index([f"x{index}" for index in range(len(table))]))
        write(table, path)

    return by_write


def by_xlsx(rows, path: Path, draw):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for cell in itertools.chain(*book.active):
        cell.data_type = "s"  # a text that begins with = is a text
    book.save(path)


WRITERS = {
    "csv": by_csv,
    "tsv": by_tsv,
    "json": by_pandas(lambda table, path: path.write_text(table.to_json(orient="records"))),
    "jsonl": by_pandas(lambda table, path: path.write_text(table.to_json(orient="records", lines=True))),
    "columns.json": by_pandas(lambda table, path: path.write_text(table.to_json(orient="columns"))),
    "parquet": by_pandas(lambda table, path: table.to_parquet(path)),
    "xlsx": by_xlsx,
}


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("cells", [TAME, CELLS], ids=["tame cells", "any cells"])
def test_every_row_of_a_table_is_read_as_it_is_written(examples, cells, tmp_path):
    @hypothesis.given(st.data(), rows_of(cells))
    def holds(data, rows):
        kind = data.draw(st.sampled_from(list(WRITERS)))
        path = tmp_path / f"table.{kind}"
        try:
            WRITERS[kind]([("file_name", "label", "notes"), *rows], path, data.draw)
        except openpyxl.utils.exceptions.IllegalCharacterError:
            hypothesis.reject()
        if kind == "tsv":
            rows = [[" ".join(cell.split()) for cell in row] for row in rows]
        elif kind == "csv":  # texts have one kind of line end
            rows = [[cell.replace("\r\n", "\n").replace("\r", "\n") for cell in row] for row in rows]
        try:
            table = load_table(path, Columns())
        except InputError as error:
            assert cells is not TAME, error
            assert str(path) in str(error)
            return
        rows = [row for row in rows if any(cell.strip() for cell in row)]  # the others are left out with a warning
        found = [(os.path.relpath(audio, tmp_path), label) for audio, label in zip(table["audio"], table["label"])]
        assert found == [(os.path.relpath(tmp_path / audio, tmp_path), class_name(label)) for audio, label, _ in rows]

    check(holds, examples)


LINES = st.lists(
    st.lists(st.sampled_from(("a.wav", "low", "", '"', '""', 'said "x"', '"x', 'x"', "x\ty", " ")), max_size=5),
    max_size=8,
)


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_no_row_of_a_damaged_table_is_lost(examples, ending, tmp_path):
    path, separator = tmp_path / f"table.{ending}", {"csv": ",", "tsv": "\t"}[ending]

    @hypothesis.given(LINES)
    def holds(lines):
        lines = [["file_name", "label"], *lines]
        text = "".join(separator.join(line) + "\n" for line in lines)
        path.write_text(text)
        try:
            table = load_table(path, Columns())
        except InputError as error:
            assert str(path) in str(error)
            return
        # Lines without a text are no rows, whichever way a reader defines that.
        tests = (
            bool,
            any,
            lambda line: any(cell.strip() for cell in line),
            lambda line: any(cell.strip(' "') for cell in line),
            lambda line: line and line != [""],
        )
        counts = {sum(1 for line in lines if is_row(line)) - 1 for is_row in tests}
        if ending == "csv" and text.count('"') % 2 == 0:
            counts |= {sum(1 for line in csv.reader(io.StringIO(text)) if is_row(line)) - 1 for is_row in tests}
        assert len(table) in counts, text

    check(holds, examples)


# ---- what is decoded is what is in the file ----

RATES = (8000, 11025, 16000, 22050, 44100, 48000)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_a_recording_is_decoded_as_a_second_decoder_does(examples, tmp_path, caplog):
    numbers = itertools.count()  # a warning about a file comes once

    @hypothesis.given(
        st.sampled_from(ENCODINGS),
        st.sampled_from(RATES),
        st.sampled_from((1, 2)),
        st.just(1) | st.integers(1, 20000),
        st.sampled_from(("whole", "whole", "cut", "joined")),
        st.floats(0, 1),
    )
    def holds(encoding, rate, channels, length, change, place):
        rate, channels = encoding.rate or rate, encoding.channels or channels
        try:
            content = encode(tone(length / rate, rate, channels=channels).reshape(-1, channels), rate, encoding)
        except (soundfile.LibsndfileError, OSError, ValueError):  # a rate that the codec lacks
            hypothesis.reject()
        seconds = None if encoding.container in WITHOUT_LENGTH else length / rate
        joined = change == "joined" and encoding.container in ("MP3", "OGG", "mp3", "ogg")
        if joined:
            content, seconds = 2 * content, 2 * seconds
        elif change == "cut":
            content = content[: int(place * (len(content) - 1))]
        path = tmp_path / f"clip{next(numbers)}.{encoding.extension}"
        path.write_bytes(content)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            try:
                check_reading(str(path), seconds, cut=change == "cut" and encoding.declares, warnings=caplog.records)
            except InputError as error:
                assert str(path) in str(error)
                assert change == "cut" or seconds is None or seconds < BLOCK_S, error
        path.unlink()
        if change == "whole":
            assert not caplog.messages

    check(holds, examples)


# ---- names survive every output ----

LABELS = st.sampled_from(MEANINGFUL) | st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=20
)
FILES = LABELS.map(lambda name: name.replace("/", "_"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run with two classes, as `write_outputs` gets it, and its results."""
    kept = {}
    folder = tmp_path_factory.mktemp("run")
    write_class_folders(folder / "data", 5)
    recipe = {
        **TINY,
        "dataset_name": str(folder / "data"),
        "output_dir": str(folder / "out"),
        "num_train_epochs": 1,
        "report_clips": 2,
    }
    (folder / "recipe.json").write_text(json.dumps(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            report, "write_report", lambda staging, run, results, scores: kept.update(run=run, results=results)
        )
        train(str(folder / "recipe.json"))
    return kept["run"], kept["results"]


class Page(html.parser.HTMLParser):
    """Collects the tags and the texts of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts = collections.Counter(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1

    def handle_data(self, text):
        self.texts.append(text)


def write_all(finished, names, files, folder: Path):
    """Writes all outputs of the run, with other names of classes and files."""
    run, results = finished
    config = copy.deepcopy(run.config)
    config.id2label, config.label2id = dict(enumerate(names)), {name: index for index, name in enumerate(names)}
    labels, datasets = LabelSet(tuple(names), run.labels.problem_type), {}
    for split, dataset in run.datasets.items():
        old = dict(zip(run.labels.names, names))
        audio = [str(folder / name) for name in itertools.islice(itertools.cycle(files), len(dataset))]
        examples = Dataset.from_dict({"audio": audio, "label": [old[label] for label in dataset.examples["label"]]})
        datasets[split] = copy.copy(dataset)
        datasets[split].examples, datasets[split].labels = examples, labels
    model = types.SimpleNamespace(config=config, num_parameters=run.model.num_parameters)
    renamed = dataclasses.replace(run, model=model, datasets=datasets, labels=labels)
    results = {**results, "labels": list(names)} | describe_clips(
        renamed.datasets, renamed.labels, renamed.data["group_column"]
    )
    scores = report.write_split(renamed, results, folder)
    report.write_card(renamed, results, folder / "README.md")
    html_report.write_report(folder, renamed, results, scores)
    outputs.write_results(results, folder)
    config.save_pretrained(folder)
    return datasets[run.split]


@pytest.mark.parametrize("examples", [pytest.param(3, id="few"), *EXAMPLES[1:]])
def test_names_survive_every_output(examples, finished, tmp_path, caplog):
    plain = tmp_path / "plain"
    plain.mkdir()
    write_all(finished, ("low", "high"), ["clip.wav"], plain)
    plain_card, plain_page = ((plain / name).read_text(encoding="utf-8") for name in ("README.md", "report.html"))
    folder = tmp_path / "odd"

    @hypothesis.given(
        st.lists(LABELS.map(str.strip).filter(bool), min_size=2, max_size=2, unique=True),
        st.lists(FILES, min_size=1, max_size=3),
    )
    def holds(names, files):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        dataset = write_all(finished, names, files, folder)
        with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert rows[0] == ["file", "label", "prediction", *(f"probability_{name}" for name in names)]
        assert [row[:2] for row in rows[1:]] == [list(pair) for pair in zip(dataset.names(), dataset.examples["label"])]
        assert {row[2] for row in rows[1:]} <= set(names)
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        assert results["labels"] == list(results["per_class"]) == names
        with Image.open(folder / "confusion_matrix.png") as picture:
            picture.verify()
        config = DualSSASTConfig.from_pretrained(folder)
        assert list(config.id2label.values()) == names and config.label2id == dict(zip(names, range(2)))
        card = (folder / "README.md").read_text(encoding="utf-8")
        # No name is a line, a tag or a formula of its own.
        assert ModelCard(card).data.to_dict() == ModelCard(plain_card).data.to_dict()
        assert card.count("\n") == plain_card.count("\n")
        assert [name for name in names if "<" in name and name in card] == []
        page, plain = (Page(text) for text in ((folder / "report.html").read_text(encoding="utf-8"), plain_page))
        assert page.tags == plain.tags
        assert {*map(printable, names)} <= {*page.texts}

    check(holds, examples)
