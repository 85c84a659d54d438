"""Tests training/prepare: published layouts become manifests, with the paper's splits and without leaks."""

import re
import shutil
from collections import Counter

import dataset_layouts
import pandas
import pytest
import soundfile
from audio_files import encoded, patched, run_program, tone

from training.data.columns import Columns
from training.data.tables import load_table
from training.errors import InputError
from training.prepare import DATASETS, describe, prepare
from training.prepare.__main__ import main
from training.prepare.common import Clip, files_called, pieces, shared_out

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """name -> the miniature of that data set, made once."""
    made = {}

    def original(name: str):
        maker = getattr(dataset_layouts, name)
        if maker not in made:
            made[maker] = tmp_path_factory.mktemp(name)
            maker(made[maker])
        return made[maker]

    return original


@pytest.fixture
def prepared(originals, tmp_path):
    """Prepares a miniature; manifest -> table of texts."""

    def run(name: str, split: str = "paper", seed: int = 0) -> dict[str, pandas.DataFrame]:
        counts = prepare(name, originals(name), tmp_path / name, split, seed)
        tables = {
            path.stem: pandas.read_csv(path, dtype=str, keep_default_na=False)
            for path in (tmp_path / name).glob("*.csv")
            if path.stem in ("clips", *SPLITS)
        }
        assert {manifest: len(table) for manifest, table in tables.items()} == counts
        return tables

    return run


def parts(tables: dict, column: str) -> list[set]:
    return [set(tables[split][column]) for split in SPLITS if split in tables]


def are_apart(tables: dict, column: str) -> bool:
    sets = parts(tables, column)
    return sum(map(len, sets)) == len(set.union(*sets))


WHOLE = [(name, split) for name, info in DATASETS.items() for split in info.splits if split != "authors"]


@pytest.mark.parametrize(("name", "split"), WHOLE)
def test_every_split_is_whole_and_can_be_read(prepared, tmp_path, name, split):
    tables = prepared(name, split)
    assert "train" in tables and "test" in tables
    for manifest, table in tables.items():
        times = {column: column for column in ("start", "end") if column in table}
        table["clip"] = table[["file_name", *times]].agg(" ".join, axis=1)
        data = load_table(tmp_path / name / f"{manifest}.csv", Columns(**times))
        assert len(data) == len(table) and all(soundfile.info(path).frames for path in set(data["audio"]))
    assert are_apart(tables, "clip"), "a clip lies on two sides"
    labels = parts(tables, "label")
    assert set.union(*labels[1:]) <= labels[0]
    again = prepared(name, split)
    assert all(tables[manifest].drop(columns="clip").equals(again[manifest]) for manifest in tables)


@pytest.mark.parametrize(
    ("name", "split", "column"),
    [
        ("crema_d", "speaker", "speaker"),
        ("ravdess", "paper", "speaker"),
        ("ravdess", "speaker", "speaker"),
        ("emotions", "speaker", "speaker"),
        ("isolated_urban", "recording", "group"),
        ("birdcall", "recording", "group"),
        ("birdcall", "recordist", "speaker"),
        ("urbansound8k", "paper", "group"),
        ("iemocap", "paper", "speaker"),
        ("voxforge", "paper", "group"),
        ("voxforge", "speaker", "speaker"),
        ("voxceleb1", "paper", "group"),
        ("nsynth", "paper", "group"),
        ("surge", "paper", "group"),
        ("speech_commands_v2", "paper", "speaker"),
    ],
)
def test_what_must_be_apart_is_apart(prepared, name, split, column):
    tables = prepared(name, split)
    assert are_apart(tables, column)


def test_crema_d(prepared):
    tables = prepared("crema_d", "speaker")
    assert [len(speakers) for speakers in parts(tables, "speaker")] == [7, 1, 2]
    rows = tables["train"].set_index(tables["train"]["file_name"].str.extract(r"(\d+_\w+)\.wav")[0])
    assert set(rows.filter(like="_FEA_", axis=0)["label"]) == {"fear"}
    paper = prepared("crema_d")
    assert set(paper["test"]["label"]) == {"angry", "disgust", "fear", "happy", "neutral", "sad"}
    assert [len(paper[split]) for split in SPLITS] == [42, 6, 12]


def test_tess_is_tested_on_the_older_speaker_and_other_words_are_for_validation(prepared):
    tables = prepared("tess")
    assert parts(tables, "speaker") == [{"YA"}, {"YA"}, {"OA"}]
    assert not set(tables["train"]["group"]) & set(tables["validation"]["group"])
    assert len(tables["test"]) == 22  # 21 and OA_bite_neutral, but not the second copy
    assert "surprise" in set(tables["test"]["label"]) and "ps" not in set(tables["test"]["label"])
    assert parts(prepared("tess", "random"), "speaker")[2] == {"OA", "YA"}


def test_ravdess_without_songs(prepared):
    tables = prepared("ravdess")
    assert parts(tables, "speaker")[2] == {"04", "05", "06", "18", "22"}
    assert sum(map(len, tables.values())) == 64
    test = tables["test"]
    assert set(test[test["file_name"].str.contains("03-01-02-")]["label"]) == {"calm"}


def test_missing_test_speakers_are_named(tmp_path):
    for emotion in range(1, 9):
        dataset_layouts.write_tone(tmp_path / "Actor_01" / f"03-01-0{emotion}-01-01-01-01.wav", seconds=0.1)
    with pytest.raises(InputError, match="the test speakers 04, 05, 06, 18, 22 or all others are missing"):
        prepare("ravdess", tmp_path, tmp_path / "out")


def test_emotions_of_four_corpora(prepared, originals, caplog):
    tables = prepared("emotions")
    table = pandas.concat(tables.values())
    corpora = Counter(table["speaker"].str.rsplit("_", n=1).str[0])
    assert corpora == {"crema_d": 60, "tess": 43, "ravdess": 57, "savee": 7}  # one song, no calm, no copy
    assert set(table["label"]) == {"angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"}
    assert set(table[table["speaker"] == "savee_KL"]["label"]) == {"neutral"}
    listed = originals("emotions") / "fold1_test.csv"
    listed.write_text("wav\tlabels\n./data/Emotions/Angry/1001_DFA_ANG_XX.wav\tAngry\n")
    try:
        tables = prepared("emotions")
    finally:
        listed.unlink()
    assert [name.rsplit("/", 1)[-1] for name in tables["test"]["file_name"]] == ["1001_DFA_ANG_XX.wav"]
    assert "validation" in tables and "missing" not in caplog.text  # the list's header is no clip


def test_isolated_urban_events_are_parts_of_recordings(prepared):
    tables = prepared("isolated_urban", "recording")
    table = pandas.concat(tables.values())
    assert Counter(table["label"]) == {"bird": 10, "citycar": 10, "step": 20}  # two parts of 0.4 s in each second
    assert all(parts(tables, "label")[index] == {"bird", "citycar", "step"} for index in (0, 2))
    assert set(zip(table["start"], table["end"])) == {("0.0", "0.4"), ("0.4", "0.8")}


def test_birdcall_leaves_out_what_is_short_or_damaged(prepared, caplog):
    tables = prepared("birdcall", "recordist")
    table = pandas.concat(tables.values())
    assert Counter(table["label"]) == {"aldfly": 10, "ameavo": 10}  # two parts of 10 s of each recording
    assert "somebody" not in set(table["speaker"])


@pytest.mark.parametrize(
    ("name", "folds", "last"), [("esc50", 5, "5"), ("urbansound8k", 10, "10"), ("iemocap", 5, "5")]
)
def test_folds_are_the_data_sets_own(prepared, name, folds, last):
    tables = prepared(name)
    assert len(set(tables["clips"]["fold"])) == folds
    assert set(tables["test"]["fold"]) == {last} and last not in set(tables["train"]["fold"])
    assert len(tables["clips"]) == len(tables["train"]) + len(tables["test"])


def test_iemocap_joins_excited_and_happy(prepared):
    table = prepared("iemocap")["clips"]
    assert Counter(table["label"]) == {"neutral": 10, "happy": 20, "sad": 10, "angry": 10}
    assert len(set(table["speaker"])) == 10


def test_audioset_finds_its_files_whatever_they_are_called(prepared, tmp_path):
    tables = prepared("audioset20k")
    assert [len(tables[split]) for split in ("train", "test")] == [8, 8]
    assert set(tables["train"]["label"]) == {"/m/09x0r", "/m/09x0r,/m/068hy", "/m/09x0r,/m/068hy,/t/dd00088"}
    assert len(prepared("audioset")["train"]) == 16
    assert (tmp_path / "audioset" / "class_labels_indices.csv").exists()


def test_speech_commands(prepared, originals):
    tables = prepared("speech_commands_v2")
    assert set(tables["train"]["label"]) == set(dataset_layouts.WORDS)
    assert [len(tables[split]) for split in SPLITS] == [30, 5, 5]
    tables = prepared("speech_commands_v1")
    assert Counter(tables["train"]["label"]) == {"yes": 6, "no": 6, "stop": 6, "_unknown_": 12, "_silence_": 3}
    assert [Counter(tables[split]["label"])["_silence_"] for split in SPLITS] == [3, 3, 3]
    test_set = originals("speech_commands_v1") / "speech_commands_test_set_v0.01"
    for label in ("yes", "_silence_", "_unknown_"):
        dataset_layouts.write_tone(test_set / label / "00000009_nohash_0.wav", seconds=0.1)
    try:
        tables = prepared("speech_commands_v1")
        assert len(tables["test"]) == 3 and {tuple(table) for table in tables.values()} == {tuple(tables["train"])}
    finally:
        for path in sorted(test_set.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        test_set.rmdir()


def test_voxforge_takes_the_anonymous_for_different_people(prepared):
    table = pandas.concat(prepared("voxforge", "speaker").values())
    assert len(set(table["speaker"])) == 6 * 7 and len(set(table["group"])) == 6 * 8


def test_lists_decide_where_they_are(prepared, originals):
    assert [len(prepared("gtzan")[split]) for split in SPLITS] == [10, 4, 4]
    assert sum(map(len, prepared("gtzan", "random").values())) == 20
    listed = originals("surge") / "dataset_surge_tone_splits.csv"
    names = ("train", "train", "valid", "test")
    listed.write_text("tone,split\n" + "".join(f"surge-patches-{i}-velocity64,{s}\n" for i, s in enumerate(names)))
    try:
        assert [len(prepared("surge")[split]) for split in SPLITS] == [6, 3, 3]
    finally:
        listed.unlink()


def test_gtzan_without_lists_names_them(tmp_path):
    dataset_layouts.gtzan(tmp_path / "gtzan")
    for path in (tmp_path / "gtzan" / "GTZAN_split").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"train_filtered.txt.*music_dataset_split.*or choose --split random"):
        prepare("gtzan", tmp_path / "gtzan", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", DATASETS)
def test_another_layout_names_what_is_missing_and_where_to_get_it(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        prepare(name, tmp_path / "empty", tmp_path / "out")
    message, info = str(caught.value), DATASETS[name]
    assert message.startswith(str(tmp_path / "empty")) and info.layout in message and info.source in message
    assert "\n" not in message and not (tmp_path / "out").exists()


def test_a_missing_file_is_named(tmp_path):
    dataset_layouts.esc50(tmp_path / "esc50")
    (tmp_path / "esc50" / "audio" / "2-000-A-0.wav").unlink()
    with pytest.raises(
        InputError, match=r"2-000-A-0.wav: is listed but missing, and 0 more of 15. ESC-50 is expected as"
    ):
        prepare("esc50", tmp_path / "esc50", tmp_path / "out")
    (tmp_path / "esc50" / "meta" / "esc50.csv").write_text("file,fold\n")
    with pytest.raises(InputError, match="esc50.csv: has no column filename"):
        prepare("esc50", tmp_path / "esc50", tmp_path / "out")


def test_manifests_of_another_split_go(originals, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "clips.csv").write_text("file_name,label\n")
    prepare("tess", originals("tess"), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train.csv", "validation.csv", "test.csv"}


def test_nothing_of_the_users_is_replaced(originals, tmp_path):
    folder = tmp_path / "birdcall"
    shutil.copytree(originals("birdcall"), folder)
    before = (folder / "train.csv").read_text()
    with pytest.raises(InputError, match="--output .*birdcall: is the folder of the data set"):
        prepare("birdcall", folder, folder)
    assert (folder / "train.csv").read_text() == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "test.csv").write_text("row_id,site\n")
    with pytest.raises(InputError, match="test.csv: is no manifest of this program"):
        prepare("birdcall", folder, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["test.csv"]


@pytest.mark.parametrize("name", ["clips.csv", "validation.csv"])
@pytest.mark.parametrize(
    "text", ["file_name,label,notes\n/a.wav,dog,a week of work\n", "file_name,label\na.wav,dog\n", "file_name\n\n", ""]
)
def test_tables_that_look_like_manifests_stay(originals, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: is no manifest of this program and would be replaced; name another"):
        prepare("tess", originals("tess"), tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, text)]


def test_own_manifests_are_replaced_and_other_lists_stay(originals, tmp_path):
    prepare("audioset20k", originals("audioset20k"), tmp_path)
    prepare("audioset20k", originals("audioset20k"), tmp_path)
    (tmp_path / "class_labels_indices.csv").write_text("mine")
    with pytest.raises(InputError, match="class_labels_indices.csv: is not that of .*; name another --output"):
        prepare("audioset20k", originals("audioset20k"), tmp_path)
    assert (tmp_path / "class_labels_indices.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("esc50", "meta/esc50.csv", b"", "esc50.csv: cannot be used here (No columns"),
        ("esc50", "meta/esc50.csv", b"filename,fold,category,src_file\nx.wav,1\n", "esc50.csv: row 1 has no category"),
        ("nsynth", "nsynth-train/examples.json", b'{"bass_1": {"instru', "examples.json: is damaged (Unterminated"),
        ("nsynth", "nsynth-train/examples.json", b'{"bass_1": {}}', "examples.json: cannot be used here ('instrum"),
        ("voxceleb1", "iden_split.txt", b"3 id10003/ddd/00001.wav\n1\n", "iden_split.txt: '1' is no line like '3 id"),
        ("speech_commands_v2", "testing_list.txt", b"bed/\xff.wav", "testing_list.txt: cannot be used here ('utf-8'"),
        (
            "audioset20k",
            "eval_segments.csv",
            b"_-Y20bcdefg, 0.0, 10.0\n",
            "eval_segments.csv: '_-Y20bcdefg, 0.0, 10.0'",
        ),
        ("audioset20k", "eval_segments.csv", b'_-Y20bcdefg, 0, 10, "/m/0', "eval_segments.csv: '_-Y20bcdefg, 0, 10,"),
        ("surge", "dataset_surge_tone_splits.csv", b"tone,split\nsurge-pat", "splits.csv: 'surge-pat' is no line like"),
    ],
)
def test_files_that_were_cut_off_are_named(originals, tmp_path, name, file, content, message):
    shutil.copytree(originals(name), tmp_path / name)
    (tmp_path / name / file).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        prepare(name, tmp_path / name, tmp_path / "out")
    assert "it may be cut off: unpack or download it again. " in str(caught.value) and "\n" not in str(caught.value)


def test_hidden_files_are_no_clips_and_no_lists(originals, tmp_path):
    folder = tmp_path / "words"
    shutil.copytree(originals("speech_commands_v2"), folder)
    (folder / "bed" / "._0_nohash_0.wav").write_bytes(b"of macOS")
    assert all(clip.speaker != "." for clip in DATASETS["speech_commands_v2"].read(folder))
    (tmp_path / ".Trash-1000").mkdir()
    (tmp_path / ".Trash-1000" / "fold1_test.csv").touch()
    assert files_called(tmp_path, "fold1_test.csv") == []


def test_pieces_end_with_the_recording_and_not_with_its_header(tmp_path):
    content = encoded(tone(2.0), 16000, "AU", "PCM_16")
    (tmp_path / "a.au").write_bytes(patched(content, 8, (16000).to_bytes(4, "big")))  # bytes of half a second
    assert [(piece.start, piece.end) for piece in pieces(Clip(tmp_path / "a.au", "x"), 1.0)] == [(0.0, 1.0), (1.0, 2.0)]
    (tmp_path / "a.au").write_bytes(b"nothing")
    with pytest.raises(InputError, match="a.au: not readable as audio"):
        pieces(Clip(tmp_path / "a.au", "x"), 1.0)


def test_damaged_and_missing_recordings_are_told(tmp_path, caplog):
    """One recording of GTZAN on Kaggle is damaged; a second download beside it does not count twice."""
    genres = tmp_path / "genres"
    dataset_layouts.gtzan(tmp_path)
    (genres / "jazz" / "jazz.00005.wav").write_bytes(b"no audio")
    (genres / "blues" / "blues.00003.wav").unlink()
    shutil.copytree(genres, tmp_path / "copy")
    counts = prepare("gtzan", tmp_path, tmp_path / "out")
    assert counts == {"train": 8, "validation": 4, "test": 4}
    told = caplog.text
    assert "1 recordings of the lists are missing and are left out, such as blues.00003" in told
    assert "1 recordings cannot be read and are left out, such as" in told and "jazz.00005.wav" in told
    assert sum(prepare("gtzan", tmp_path, tmp_path / "out", "random").values()) == 18


def test_the_list_of_the_emotions_must_fit(originals, tmp_path, caplog):
    folder = tmp_path / "emotions"
    shutil.copytree(originals("emotions"), folder)
    names = [path.stem for path in sorted((folder / "CREMA-D").rglob("*.wav"))[:9]]
    (folder / "fold1_test.csv").write_text("".join(f"/data/{name}.wav\t3\n" for name in (*names, "DC_a01", "gone")))
    counts = prepare("emotions", folder, tmp_path / "out")
    assert counts["test"] == 10  # SAVEE's DC/a01.wav among them
    assert "1 test clips of the lists are missing and are left out, such as gone" in caplog.text
    (folder / "fold1_test.csv").write_text("/data/other.wav\t3\n")
    with pytest.raises(InputError, match="all its clips are train clips by the fold1_test.csv"):
        prepare("emotions", folder, tmp_path / "out")
    (folder / "TESS" / "fold1_test.csv").write_text("x\t3\n")
    with pytest.raises(InputError, match="holds several fold1_test.csv"):
        prepare("emotions", folder, tmp_path / "out")


def test_another_seed_is_another_draw(prepared):
    first, second = prepared("crema_d"), prepared("crema_d", seed=1)
    assert set(first["test"]["file_name"]) != set(second["test"]["file_name"])


@pytest.mark.parametrize("count", range(1, 12))
def test_small_classes_are_shared_out_too(count):
    clips = [Clip(path=str(index), label="a") for index in range(count)]
    splits = shared_out()(clips, 0)
    assert sum(map(len, splits.values())) == count and splits["train"]
    assert ("test" in splits) == (count > 1) and ("validation" in splits) == (count > 2)


def test_what_belongs_together_stays_together_and_classes_keep_their_shares():
    clips = [Clip(str(index), label=f"class {index % 4 // 2}", group=f"{index % 40}") for index in range(400)]
    splits = shared_out("group")(clips, 0)
    for members in splits.values():
        assert {label: count / len(members) for label, count in Counter(c.label for c in members).items()} == {
            "class 0": 0.5,
            "class 1": 0.5,
        }
    assert {split: len({clip.group for clip in members}) for split, members in splits.items()} == {
        "train": 28,
        "validation": 4,
        "test": 8,
    }


def test_every_data_set_says_where_it_comes_from():
    for name, info in DATASETS.items():
        assert info.name == name and info.num_classes > 1 and next(iter(info.splits)) == "paper"
        assert info.source.startswith("http") and info.licence and info.citation and info.leaks
        assert info.source in describe(info)


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs the program in this process: status, what it printed, and its errors."""

    def run(*words) -> tuple:
        monkeypatch.setattr("sys.argv", ["prepare", *map(str, words)])
        return main(), *capsys.readouterr()

    return run


def test_the_program_lists_and_describes(program):
    _, table, _ = program("--list")
    assert [line.split()[0] for line in table.splitlines()] == ["name", *DATASETS]
    assert "CC BY-NC 3.0" in program("esc50")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["esc51", "--from", "x"], "esc51: is no known data set; known are crema_d"),
        (["esc50", "--from", "no"], "no/meta/esc50.csv: no such file or folder. ESC-50 is expected as"),
        (["esc50", "--from", "x", "--split", "speaker"], "--split speaker: is unknown; esc50 has paper"),
    ],
)
def test_the_program_stops_with_one_line(program, words, message):
    status, _, errors = program(*words)
    assert status == 1 and errors.startswith(f"error: {message}") and errors.count("\n") == 1


@pytest.mark.slow
def test_the_program_prepares_in_a_fresh_process(originals, tmp_path):
    process = run_program("-m", "training.prepare", "esc50", "--from", originals("esc50"), "--output", tmp_path / "out")
    assert process.returncode == 0, process.stderr[-2000:]
    assert "clips.csv with 15 clips, train.csv with 12 clips, test.csv with 3 clips" in process.stdout
    assert "15 of 2000 clips; the download of ESC-50 is incomplete" in process.stderr


@pytest.mark.parametrize("name", ["tess", "ravdess", "emotions"])
def test_the_authors_choose_the_epoch_on_the_test_clips(originals, prepared, name):
    listed = originals(name) / "fold1_test.csv"
    if name == "emotions":
        with pytest.raises(InputError, match="needs the authors' list fold1_test.csv"):
            prepared(name, "authors")
        names = [path.name for path in originals(name).rglob("OAF_*_angry.wav")]
        listed.write_text("".join(f"{called}\t/m/07rwj00\n" for called in names))
    try:
        tables = prepared(name, "authors")
    finally:
        listed.unlink(missing_ok=True)
    assert tables["validation"].equals(tables["test"]) and len(tables["test"])
    assert not set(tables["train"]["file_name"]) & set(tables["test"]["file_name"])
    if name == "ravdess":
        assert set(tables["test"]["speaker"]) == {"04", "05", "06", "18", "22"}
        assert len(tables["test"]) == 5 * 8 and len(tables["train"]) == 3 * 8
    else:
        assert all(path.rsplit("/", 1)[-1].startswith("OA") for path in tables["test"]["file_name"])
