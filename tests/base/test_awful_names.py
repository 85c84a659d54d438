"""Tests that any text may be the name of a class or a file: in tables, pictures, pages, cards and configurations."""

import csv
import html
import json
import re
import warnings
import xml.dom.minidom
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from audio_files import write_tone
from awful_names import AWFUL_NAMES
from huggingface_hub import ModelCard
from tiny_models import save_tiny_classifier
from tiny_runs import TINY, train
from transformers import AutoConfig

import app
import predict_hf
from model_cards import card
from model_cards.card import code, markdown, quoted
from training import explain
from training.base.figures import plain
from training.base.outputs import write_results
from training.base.plots import plot_confusion
from training.base.predictions import score_table
from training.classification.plots import confusion_table
from training.console import print_table
from training.data.audio import read_audio
from training.data.labels import LabelSet
from training.data.unreadable import UnreadableLog
from training.embeddings.embed import ClipEmbedder, write
from training.errors import UNPRINTABLE, InputError, printable
from training.files import storable, write_csv, write_json
from training.inference.inputs import open_inputs
from training.inference.shards import Part, Segment, Shards
from training.inference.tables import unreadable_path, write_unreadable

pytestmark = pytest.mark.figures

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
# A file name that is not UTF-8 cannot stand in a text file: its odd bytes are escaped there.
STORED = tuple(map(storable, AWFUL_NAMES))
# Tables lose empty names and spaces at the ends of labels.
IN_MANIFESTS = tuple(name for name in AWFUL_NAMES if name == name.strip() and name == storable(name))
FOLDER = 'run "<b>$5_$10'


def read_text_table(path) -> pandas.DataFrame:
    return pandas.read_csv(path, dtype=str, keep_default_na=False)


def test_printed_names_are_one_line():
    assert UNPRINTABLE == card.UNPRINTABLE  # cards import nothing of this project
    assert printable("a\nb\x1b[0m é caf\udce9.wav") == "a\\nb\\x1b[0m é caf\\udce9.wav"


# ---- tables and JSON ----


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_names_survive_a_table_of_scores(tmp_path, problem_type):
    labels = LabelSet(AWFUL_NAMES, problem_type)
    scores = np.full((len(AWFUL_NAMES), len(AWFUL_NAMES)), 0.25, dtype=np.float32)
    np.fill_diagonal(scores, 0.75)
    write_csv(score_table(list(AWFUL_NAMES), labels, scores), tmp_path / "scores.csv")
    table = read_text_table(tmp_path / "scores.csv")
    assert tuple(table["file"]) == STORED
    assert tuple(table.columns) == ("file", "prediction", *(f"probability_{name}" for name in STORED))
    predicted = STORED if problem_type == SINGLE else tuple(map(as_row, STORED))
    assert tuple(table["prediction"]) == predicted
    assert (table.iloc[:, 2:].astype(np.float32).to_numpy() == scores).all()


def as_row(name: str) -> str:
    """The name of a single label: between quotes if a comma, a quote or a line break could end it."""
    return '"' + name.replace('"', '""') + '"' if re.search('[,"\n\r]', name) else name


def test_several_labels_of_a_clip_can_be_told_apart(tmp_path):
    labels = LabelSet(("a, b", "c", 'd"'), MULTI)
    table = score_table(["x"], labels, np.asarray([[0.9, 0.9, 0.9]], dtype=np.float32))
    assert table["prediction"].tolist() == ['"a, b",c,"d"""']


def test_names_survive_a_table_of_confusions(tmp_path):
    table = confusion_table(np.arange(len(AWFUL_NAMES)), np.arange(len(AWFUL_NAMES)), LabelSet(AWFUL_NAMES, SINGLE))
    write_csv(table, tmp_path / "confusion.csv", index=True)
    found = read_text_table(tmp_path / "confusion.csv")
    assert tuple(found.iloc[:, 0]) == STORED and (np.diag(found.iloc[:, 1:]) == "1").all()
    header = (tmp_path / "confusion.csv").open(newline="", encoding="utf-8")
    with header:
        assert tuple(next(csv.reader(header))) == ("label", *STORED)  # pandas renames a second column label


@pytest.mark.parametrize("name", AWFUL_NAMES)
def test_names_survive_json(tmp_path, name):
    value = {"labels": [name], name: 1}
    write_results(value, tmp_path)
    write_json(tmp_path / "a.json", value)
    for path in tmp_path.iterdir():
        assert json.loads(path.read_text(encoding="utf-8")) == value
    log = UnreadableLog(tmp_path / "log.jsonl")
    log.add(name, name)
    assert UnreadableLog(tmp_path / "log.jsonl").entries() == {name: name}


def test_numbers_of_a_table_are_exact(tmp_path):
    rng = np.random.default_rng(0)
    numbers = np.concatenate([rng.random(1000), [0.0, 1.0, 1e-30, 1e30, -1e-5]])
    table = pandas.DataFrame({"d": numbers, "f": numbers.astype(np.float32), "i": np.arange(len(numbers)), "t": "x"})
    table.loc[3, "d"] = np.nan
    write_csv(table, tmp_path / "x.csv")
    found = pandas.read_csv(tmp_path / "x.csv", float_precision="round_trip")
    np.testing.assert_array_equal(found["d"], table["d"])
    np.testing.assert_array_equal(found["f"].astype(np.float32), table["f"])
    assert found["i"].tolist() == table["i"].tolist() and (tmp_path / "x.csv").read_text().startswith("d,f,i,t\n")


# ---- pictures ----


@pytest.mark.slow
@pytest.mark.parametrize("figure_format", ["png", "svg", "pdf"])
@pytest.mark.parametrize("first", range(0, len(AWFUL_NAMES), 12))
def test_names_are_drawn_letter_by_letter(tmp_path, figure_format, first):
    names = AWFUL_NAMES[first : first + 12]
    table = confusion_table(np.arange(len(names)), np.arange(len(names)), LabelSet(names, SINGLE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a letter without a font, or names that leave no room
        plot_confusion(table, "test split", tmp_path / "x.png", figure_format)
    if figure_format == "svg":
        text = (tmp_path / "x.svg").read_text(encoding="utf-8")
        xml.dom.minidom.parseString(text.encode())
        drawn = [html.unescape(comment) for comment in re.findall("<!-- (.*?) -->", text, re.DOTALL)]
        # matplotlib writes what it draws as a comment, in which -- may not stand.
        shown = [plain(name).replace(r"\$", "$") for name in names if "--" not in name and name.strip()]
        assert set(shown) <= set(drawn)


def test_a_long_name_keeps_both_ends():
    assert plain("x" * 20 + "y" * 20 + "z" * 20, 30) == f"{'x' * 20}…{'z' * 9}"
    assert plain("$1\n$2") == r"\$1\n\$2"


def test_a_file_s_explanation_has_any_title(tmp_path, capsys):
    folder = save_tiny_classifier(tmp_path / "model", labels=AWFUL_NAMES)
    clip = write_tone(tmp_path / "take_$1_$\n<b>.wav", seconds=0.3)
    for suffix in ("PNG", "svg"):
        output = tmp_path / f"x.{suffix}"
        assert explain.main([str(folder), str(clip), "--output", str(output), "--label", "$5_$10"]) == 0
        assert capsys.readouterr().out == f"$5_$10: {output}\n"
    assert (tmp_path / "x.PNG").read_bytes().startswith(b"\x89PNG")
    assert r"take_$1_$\n&lt;b&gt;.wav: $5_$10 (logit" in (tmp_path / "x.svg").read_text()
    assert sorted(path.name for path in tmp_path.iterdir() if path.stem == "x") == ["x.PNG", "x.svg"]


# ---- Markdown and HTML ----


@pytest.mark.parametrize("name", AWFUL_NAMES)
def test_markdown_shows_a_name_letter_by_letter(name):
    """In a cell of a table, in a sentence and as code."""
    name_ = markdown(name)
    text = f"# {name_}\n\n{code(name)}\n\n| a | b |\n|---|---|\n| {name_} | x |\n\nis {name_}, x\n"
    text.encode()
    parser = pytest.importorskip("markdown_it", reason="comes with gradio").MarkdownIt("commonmark")
    tokens = parser.enable(["table", "strikethrough"]).parse(text)
    shown = [
        "".join(part.content for part in token.children if part.type in ("text", "text_special", "code_inline"))
        for token in tokens
        if token.type == "inline"
    ]
    markup = {part.type for token in tokens for part in token.children or ()}
    assert markup <= {"text", "text_special", "code_inline"}
    expected = printable(name)
    assert shown[0] == expected.strip() and shown[1].strip() == expected.strip()
    assert shown[4:6] == [expected.strip(), "x"] and shown[-1] == f"is {expected}, x"
    assert eval(quoted(name)) == name


@pytest.mark.parametrize("name", AWFUL_NAMES)
def test_the_page_and_the_terminal_show_a_name_letter_by_letter(name, capsys):
    table = app.table_of_scores([name], {"score": np.asarray([0.5])}, [name], None)
    shown = table[table.index("<tbody>") :] + app.answer_html([name], is_number=False)
    assert re.findall(">([^<]+)<", shown) == [html.escape(printable(name)), "50.0 %", html.escape(printable(name))]
    shown.encode()
    print_table([(name, 1)], ("name", "number"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith(printable(name))


# ---- whole programs ----


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training of a step, whose classes, files and folder have awful names."""
    root = tmp_path_factory.mktemp("awful")
    clips = [write_tone(root / "wav" / f"{i} take_$1_$ <b>\n.wav", seconds=0.1, hz=200 + 100 * i) for i in range(4)]
    for split in ("train", "validation", "test"):
        rows = [{"file_name": str(clips[i % 4]), "label": name} for i, name in enumerate(IN_MANIFESTS)]
        (root / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    tables = {f"{split}_file": str(root / f"{split}.jsonl") for split in ("train", "validation", "test")}
    recipe = {
        **TINY,
        **tables,
        "validation_fraction": 0,
        "test_fraction": 0,
        "output_dir": str(root / FOLDER),
    }
    recipe |= {"max_steps": 1, "save_strategy": "no", "eval_strategy": "no", "report_clips": 1}
    (root / "recipe.json").write_text(json.dumps(recipe))
    train(str(root / "recipe.json"))
    return root / FOLDER


def test_names_survive_a_training(run):
    results = json.loads((run / "results.json").read_text())
    names = results["labels"]
    assert set(names) == set(IN_MANIFESTS) == set(results["per_class"])
    assert list(AutoConfig.from_pretrained(run).id2label.values()) == names
    table = read_text_table(run / "predictions.csv")
    assert table["label"].tolist() == list(IN_MANIFESTS)
    assert [column.removeprefix("probability_") for column in table.columns[3:]] == names
    assert all(name.endswith(" take_$1_$ <b>\n.wav") for name in table["file"])
    assert {"learning_curves.png", "confusion_matrix.png", "calibration.png"} <= {path.name for path in run.iterdir()}


def test_the_page_of_a_training_shows_its_names(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    rows = page[page.index("<h2>Classes</h2>") :].split("</tbody>")[0]
    shown = [html.unescape(name) for name in re.findall("<tr><td>(.*?)</td>", rows, re.DOTALL)]
    assert set(shown) == {printable(name) for name in IN_MANIFESTS}
    assert page.count("<script>") == 1 and "take_$1_$ &lt;b&gt;\\n.wav" in page and "alert(1)&lt;/script&gt;" in page
    assert 'from_pretrained("run \\"<b>$5_$10"' in html.unescape(page)


def test_the_card_of_a_training_shows_its_names(run):
    card = ModelCard.load(run / "README.md")
    assert "<script" not in card.text and "<b>" not in card.text.replace('repository = "run \\"<b>$5_$10"', "")
    rows = {line.rsplit(" | ", 4)[0] for line in card.text.split("\n")}
    assert {f"| {markdown(name)}" for name in IN_MANIFESTS} <= rows
    assert card.data.model_name == FOLDER


def test_a_prediction_names_every_file(run, tmp_path, capsys):
    names = [name for name in AWFUL_NAMES if not {"/", "\0"} & set(name) and len(name) < 240 and name == storable(name)]
    clip = write_tone(tmp_path / "clip.wav", seconds=0.3).read_bytes()
    (tmp_path / "clips").mkdir()
    for name in names:
        (tmp_path / "clips" / f"{name}.wav").write_bytes(clip)
    words = [str(run), *(str(tmp_path / "clips" / f"{name}.wav") for name in names)]
    output, windows = tmp_path / "scores.csv", tmp_path / "windows.csv"
    assert predict_hf.main([*words, "--output", str(output), "--windows", str(windows)]) == 0
    for table in map(read_text_table, (output, windows)):
        assert table["file"].tolist() == [storable(word) for word in words[1:]]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [printable(word) for word in words[1:]]


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_names_survive_embeddings(tmp_path, suffix):
    embedder = object.__new__(ClipEmbedder)
    embedder.level, embedder.model = "clip", SimpleNamespace(config=SimpleNamespace(fused_size=2))
    segments = [
        Segment(index, name, *((0, 0, True, "no such file") if index % 2 else (1, 1)))
        for index, name in enumerate(AWFUL_NAMES)
    ]
    part = Part(segments, {"embedding": np.ones((len(AWFUL_NAMES[::2]), 2), np.float32)})
    shards = Shards(tmp_path / "shards", len(AWFUL_NAMES), len(AWFUL_NAMES), {"model": "<caf\udce9>"})
    shards.prepare()
    shards.prepare()  # compares with what is stored
    shards.save(0, 0, 1, part)
    output, errors = tmp_path / f"x{suffix}", shards.summary()[1]
    write(embedder, shards.parts, set(errors), None, {}, output)
    write_unreadable(output, list(errors.values()))
    found = pandas.read_parquet(output)["file_name"] if suffix == ".parquet" else np.load(output)["file_name"]
    assert list(found) == list(STORED[::2])
    assert read_text_table(unreadable_path(output))["file_name"].tolist() == list(STORED[1::2])


def test_a_file_whose_name_is_not_utf8_is_embedded(tmp_path):
    names = [str(tmp_path / name) for name in ("caf\udce9.wav", "ok.wav", "gone\udce9.wav")]
    for name in names[:2]:
        write_tone(tmp_path / "clip.wav", seconds=0.1).rename(name)
    (clips,) = open_inputs(names, streaming=False)
    assert clips.names() == [clips.name_of(index, clips[index]) for index in range(3)] == names
    assert [len(read_audio(clips[index], 16000)) for index in range(2)] == [1600, 1600]
    with pytest.raises(InputError, match="gone"):
        read_audio(clips[2], 16000)
