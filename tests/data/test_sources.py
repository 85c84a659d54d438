"""Tests training/data/sources.py, splits.py and labels.py: the same examples from every kind of source."""

import json
import os
import shutil

import datasets
import pandas
import pytest
from audio_files import write_class_folders, write_tone

from training.classification.labelled_stream import open_streams
from training.data.arguments import DataArguments, EvaluationDataArguments
from training.data.audio import audio_name, read_audio
from training.data.columns import Columns, audio_of, clip_names
from training.data.labels import LabelSet, find_labels, read_label_file, rename_labels
from training.data.screening import check_files
from training.data.sources import choose_split, load_folder, standardise
from training.data.splits import complete_splits, load_splits, load_test_split, warn_of_repeats
from training.data.tables import load_table
from training.data.unlabelled_sources import UnlabelledSource, open_source
from training.errors import InputError


@pytest.fixture
def clips(tmp_path):
    """Three clips and their labels, with paths relative to the folder."""
    labels = {"clips/a.wav": "high", "clips/b.wav": "low", "clips/c.wav": "high"}
    for name in labels:
        write_tone(tmp_path / name, seconds=0.05)
    return tmp_path, labels


def put(path, content: bytes = b"RIFF no audio"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _as_pairs(data) -> dict[str, object]:
    return {audio_name(row["audio"]).rsplit("/", 2)[-1]: row["label"] for row in data}


EXPECTED = {"a.wav": "high", "b.wav": "low", "c.wav": "high"}


@pytest.mark.parametrize("extension", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_table_gives_the_same_examples(clips, extension):
    folder, labels = clips
    table = pandas.DataFrame({"file_name": list(labels), "label": list(labels.values())})
    path = folder / f"clips.{extension}"
    writers = {
        "csv": lambda: table.to_csv(path, index=False),
        "tsv": lambda: table.to_csv(path, index=False, sep="\t"),
        "json": lambda: path.write_text(table.to_json(orient="records")),
        "jsonl": lambda: path.write_text(table.to_json(orient="records", lines=True)),
        "parquet": lambda: table.to_parquet(path),
    }
    writers[extension]()
    data = load_table(path, Columns())
    assert _as_pairs(data) == EXPECTED
    check_files({"train": data})


def test_ssast_json_with_its_label_file(clips):
    folder, labels = clips
    mids = {"high": "/m/1", "low": "/m/2"}
    rows = [{"wav": str(folder / name), "labels": mids[label]} for name, label in labels.items()]
    rows[0]["labels"] = "/m/1,/m/2"
    (folder / "train.json").write_text(json.dumps({"data": rows}))
    (folder / "labels.csv").write_text('index,mid,display_name\n1,/m/2,"low, deep"\n0,/m/1,high\n')
    arguments = DataArguments(train_file=str(folder / "train.json"), label_file=str(folder / "labels.csv"))
    data = load_splits(arguments)["train"]
    assert _as_pairs(data) == {"a.wav": ["high", "low, deep"], "b.wav": ["low, deep"], "c.wav": ["high"]}
    names = tuple(read_label_file(folder / "labels.csv").values())
    found = find_labels(data["label"], None, names)
    assert found == LabelSet(("high", "low, deep"), "multi_label_classification")


def test_class_folders_with_and_without_splits(tmp_path):
    write_class_folders(tmp_path / "flat", 2)
    assert set(load_folder(tmp_path / "flat", Columns())) == {"train"}
    for split in ("train", "dev", "test"):
        write_class_folders(tmp_path / "split" / split, 2)
    splits = load_folder(tmp_path / "split", Columns())
    assert {name: len(data) for name, data in splits.items()} == {"train": 4, "dev": 4, "test": 4}
    chosen = load_splits(DataArguments(dataset_name=str(tmp_path / "split")))
    assert {name: len(data) for name, data in chosen.items()} == {"train": 4, "validation": 4, "test": 4}
    assert set(chosen["test"]["label"]) == {"high", "low"}


def test_a_class_may_be_called_train(tmp_path):
    write_class_folders(tmp_path, 2, classes=("bus", "car", "train"))
    data = load_folder(tmp_path, Columns())
    assert set(data) == {"train"} and set(data["train"]["label"]) == {"bus", "car", "train"}


def test_named_splits_are_taken_by_their_own_names(tmp_path):
    for split, clips in (("train", 4), ("dev", 2), ("val", 3), ("eval", 1)):
        write_class_folders(tmp_path / split, clips)
    arguments = {"dataset_name": str(tmp_path)}
    splits = load_splits(DataArguments(**arguments, validation_split="val", test_split="dev"))
    assert {name: len(data) for name, data in splits.items()} == {"train": 8, "validation": 6, "test": 4}
    with pytest.raises(InputError, match="no split 'tset'; set test_split to one of dev, eval, train, val"):
        load_splits(DataArguments(**arguments, validation_split="val", test_split="tset"))
    with pytest.raises(InputError, match="which is the validation split. Set validation_split to one of dev, val"):
        load_splits(DataArguments(**arguments))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.mkdir(), "it is empty"),
        (lambda path: (path / "deep" / "er").mkdir(parents=True), "it is empty"),
        (lambda path: put(path / ".DS_Store"), "it is empty"),
        (lambda path: [put(path / f"{i}.m4a") for i in range(5)], "5 .m4a files in bird are not readable"),
        (lambda path: put(path / "part 1" / "x.raw"), "1 .raw file in part 1 is not readable"),
        (lambda path: put(path / "x.zip"), "1 .zip file in bird is an archive: unpack it"),
        (lambda path: path.symlink_to("nowhere"), "it is a link to nothing"),
        (
            lambda path: (path.mkdir(), (path / "a.wav").symlink_to("../.git/annex/objects/x.wav")),
            r"1 .wav file in bird is a link to nothing \(git-annex: datalad get\)",
        ),
        (lambda path: os.mkdir(os.fsencode(path) + b"\xe9"), "its name is not UTF-8; rename it"),
    ],
)
@pytest.mark.parametrize("split", ["", "train", "test"])
def test_a_class_that_would_vanish_is_an_error(tmp_path, make, reason, split):
    for name in ("train", "test") if split else ("",):
        write_class_folders(tmp_path / name, 1)
    make(tmp_path / split / "bird")
    with pytest.raises(InputError, match=rf"bird.*: a class folder without clips: {reason}.*; add clips, or remove"):
        load_splits(DataArguments(dataset_name=str(tmp_path)))


def test_several_lost_classes_are_counted(tmp_path):
    write_class_folders(tmp_path, 1)
    for name in ("ant", "bee", "cow"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"ant: a class folder .* \(and 2 more such folders: bee, cow\)"):
        load_folder(tmp_path, Columns())


@pytest.mark.parametrize("is_split", [False, True])
def test_folders_of_notes_are_no_classes(tmp_path, warnings, is_split):
    for split in ("train", "TEST") if is_split else ("",):
        write_class_folders(tmp_path / split, 2)
    put(tmp_path / "docs" / "README.md", b"notes")
    put(tmp_path / "README.md", b"notes")
    put(tmp_path / "__MACOSX" / "high" / "._high_0.wav")
    put(tmp_path / ".ipynb_checkpoints" / "a.wav")
    found = load_splits(DataArguments(dataset_name=str(tmp_path)))
    assert set(found) == ({"train", "test"} if is_split else {"train"})
    assert all(set(data["label"]) == {"high", "low"} for data in found.values())
    assert warnings == ([] if is_split else [f"{tmp_path}: 1 folder (docs) is no class: it holds no audio"])


@pytest.mark.parametrize("as_links", [False, True])
@pytest.mark.parametrize("other", ["unlabeled", "noise"])
@pytest.mark.parametrize("splits", [("train", "val", "test"), ("Train", "Dev"), ("train",)])
def test_one_folder_more_beside_splits_is_an_error(tmp_path, splits, other, as_links):
    for split in splits:
        write_class_folders(tmp_path / "there" / split, 1)
    write_tone(tmp_path / "there" / other / "a.wav")
    folder = tmp_path / "there"
    if as_links:
        (folder := tmp_path / "links").mkdir()
        for path in (tmp_path / "there").iterdir():
            (folder / path.name).symlink_to(path)
    with pytest.raises(InputError, match=f"splits or classes.*{splits[0]}.* would be splits.* but {other} would not"):
        load_splits(DataArguments(dataset_name=str(folder)))
    shutil.move(folder / other, tmp_path)  # the remedy
    assert set(load_folder(folder, Columns())) == set(splits)


def test_an_unreadable_folder_beside_splits_is_an_error(tmp_path):
    for split in ("train", "test"):
        write_class_folders(tmp_path / split, 1)
    put(tmp_path / "phone" / "a.m4a")
    with pytest.raises(InputError, match="splits or classes.* but phone would not"):
        load_folder(tmp_path, Columns())
    (tmp_path / "phone" / "a.m4a").unlink()
    assert set(load_folder(tmp_path, Columns())) == {"train", "test"}  # an empty folder is nothing


def test_classes_called_like_splits_stay_classes(tmp_path):
    write_class_folders(tmp_path, 1, classes=("bus", "train", "test"))
    write_tone(tmp_path / "bus" / "deep" / "a.wav")
    write_tone(tmp_path / "train" / "deep" / "a.wav")
    data = load_folder(tmp_path, Columns())
    assert set(data) == {"train"} and set(data["train"]["label"]) == {"bus", "train", "test"}


def test_an_empty_split_is_an_error(tmp_path):
    for split in ("train", "test"):
        write_class_folders(tmp_path / split, 1)
    (tmp_path / "validation").mkdir()
    with pytest.raises(InputError, match=r"validation: no audio files \(it is empty\); name another folder"):
        load_folder(tmp_path, Columns())


def test_a_clip_beside_the_splits_is_an_error(tmp_path):
    write_class_folders(tmp_path / "train", 1)
    write_tone(tmp_path / "a.wav")
    with pytest.raises(InputError, match="a.wav: lies beside the splits train; move it into one"):
        load_folder(tmp_path, Columns())


@pytest.mark.parametrize("kind", ["folders", "tables", "metadata"])
@pytest.mark.parametrize("pair", [("validation", "valid"), ("test", "eval"), ("Test", "test")])
def test_two_candidates_for_a_split_are_an_error(tmp_path, kind, pair):
    names = ("train", *pair)
    rows = []
    for name in names:
        write_class_folders(tmp_path / name, 1)
        own = [f"{name}/{label}/{label}_0.wav,{label}\n" for label in ("high", "low")]
        rows += own
        if kind == "tables":
            (tmp_path / f"{name}.csv").write_text("file_name,label\n" + "".join(own))
    if kind == "metadata":
        (tmp_path / "metadata.csv").write_text("file_name,label\n" + "".join(rows))
    split = "validation" if "valid" in pair else "test"
    other = next(name for name in pair if name != split)
    with pytest.raises(InputError, match=f"which is the {split} split. Set {split}_split to {other}, or move all but"):
        load_splits(DataArguments(dataset_name=str(tmp_path)))
    chosen = {f"{split}_split": other}
    assert len(load_splits(DataArguments(dataset_name=str(tmp_path), **chosen))[split]) == 2


def test_splits_of_the_hub_keep_their_names(warnings):
    """They cannot be moved: the split with the default name is taken, and the others are told."""
    assert choose_split("org/name", {"test": 0, "eval": 0}, "test", "test") == "test"
    assert warnings == ["org/name: the test split is test, and eval is left out; test_split may name another"]


def test_folders_without_a_split_beside_those_of_metadata(tmp_path):
    rows = [("train/a.wav", "x"), ("test/b.wav", "y"), ("noise/c.wav", "x")]
    for name, _ in rows:
        write_tone(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    with pytest.raises(InputError, match="its metadata has clips in test, as for a split, and in noise; move one"):
        load_folder(tmp_path, Columns())
    (tmp_path / "metadata.csv").write_text(
        "file_name,label\n" + "".join(f"{name},{name.split('/')[0]}\n" for name, _ in rows)
    )
    assert set(load_folder(tmp_path, Columns())["train"]["label"]) == {"train", "test", "noise"}


def test_clips_that_a_table_does_not_list_are_counted(tmp_path, warnings, monkeypatch):
    write_class_folders(tmp_path / "data", 3)
    for name in ("metadata", "train"):
        (tmp_path / "data" / f"{name}.csv").write_text("file_name,label\nhigh/high_0.wav,x\n./low/low_0.wav,y\n")
    monkeypatch.chdir(tmp_path)
    load_splits(DataArguments(dataset_name="data"))
    (tmp_path / "data" / "train.csv").unlink()
    load_splits(DataArguments(dataset_name=str(tmp_path / "data")))
    assert warnings == [
        "data: 4 files of audio in high, low are not listed in its tables, such as high_1.wav",
        f"{tmp_path / 'data'}: 4 files of audio in high, low are not listed in metadata.csv, such as high_1.wav",
    ]
    (tmp_path / "data" / "metadata.jsonl").write_text("{}")
    with pytest.raises(InputError, match="has metadata.csv and metadata.jsonl; keep one of them"):
        load_folder(tmp_path / "data", Columns())


def test_what_is_left_out_is_told_before_a_training(tmp_path, warnings):
    write_class_folders(tmp_path, 2)
    for index in range(3):
        put(tmp_path / "high" / f"{index}.m4a")
    put(tmp_path / "low.zip")
    load_splits(DataArguments(dataset_name=str(tmp_path)))
    assert warnings[0] == f"{tmp_path}: 1 .zip file in {tmp_path.name} is an archive: unpack it"
    assert warnings[1].startswith(f"{tmp_path}: 3 .m4a files in high are not readable") and len(warnings) == 2


def test_splits_inside_of_classes_are_told(tmp_path, warnings):
    for name in ("high/train", "high/test", "low/train", "low/Dev"):
        write_tone(tmp_path / name / "a.wav")
    assert set(load_folder(tmp_path, Columns())) == {"train"}
    reason = "not a split, since class folders hold no splits: all clips are taken together"
    assert warnings == [f"{tmp_path}: 2 folders (high/test, low/Dev) are {reason}"]


def test_a_data_set_of_links_loads_as_its_files(tmp_path):
    """As git-annex lays it out: keys in a hidden folder, and links in class folders of splits."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            key = write_tone(tmp_path / ".git" / "annex" / "objects" / f"{split}-{name}.wav")
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "a.wav").symlink_to(os.path.relpath(key, tmp_path / split / name))
    found = load_splits(DataArguments(dataset_name=str(tmp_path)))
    assert {split: data["label"][:] for split, data in found.items()} == {
        "train": ["cat", "dog"],
        "test": ["cat", "dog"],
    }
    shutil.rmtree(tmp_path / ".git")
    with pytest.raises(InputError, match=r"holds no audio \(4 .wav files in .* links to nothing \(git-annex"):
        load_splits(DataArguments(dataset_name=str(tmp_path)))


def test_metadata_above_split_folders_is_divided_by_them(tmp_path):
    rows = ["file_name,label"]
    for split, name in (("train", "a"), ("train", "b"), ("test", "c")):
        write_tone(tmp_path / split / f"{name}.wav", seconds=0.05)
        rows.append(f"{split}/{name}.wav,{name}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    assert {name: data["label"][:] for name, data in load_folder(tmp_path, Columns()).items()} == {
        "train": ["a", "b"],
        "test": ["c"],
    }


def test_a_file_called_test_is_no_split(tmp_path):
    write_class_folders(tmp_path, 3)
    (tmp_path / "low" / "low_0.wav").rename(tmp_path / "low" / "mic_test.wav")
    assert len(load_folder(tmp_path, Columns())["train"]) == 6


@pytest.mark.parametrize("extension", ["csv", "jsonl"])
def test_folder_with_metadata(clips, extension):
    folder, labels = clips
    table = pandas.DataFrame({"file_name": list(labels), "label": list(labels.values())})
    text = table.to_csv(index=False) if extension == "csv" else table.to_json(orient="records", lines=True)
    (folder / f"metadata.{extension}").write_text(text)
    assert _as_pairs(load_folder(folder, Columns())["train"]) == EXPECTED


def test_parquet_folder_of_the_hub(tmp_path, clips, monkeypatch):
    """Laid out as a Hub repository, audio as bytes, a ClassLabel, no torchcodec."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder, labels = clips
    names = ["high", "low"]
    rows = {
        "audio": [{"bytes": (folder / name).read_bytes(), "path": name} for name in labels],
        "category": [names.index(label) for label in labels.values()],
    }
    from training.data.audio import datasets_without_torchcodec

    features = datasets.Features({"audio": datasets.Audio(), "category": datasets.ClassLabel(names=names)})
    (tmp_path / "hub" / "data").mkdir(parents=True)
    with datasets_without_torchcodec():
        data = datasets.Dataset.from_dict(rows, features=features)
        data.to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    loaded = load_splits(DataArguments(dataset_name=str(tmp_path / "hub"), label_column="category"))["train"]
    assert _as_pairs(loaded) == EXPECTED
    check_files({"train": loaded})


def test_a_data_set_that_cannot_be_had_is_one_line():
    with pytest.raises(InputError, match="neither a local folder nor a data set") as caught:
        load_splits(DataArguments(dataset_name="nobody/nothing"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_local_parquet_has_no_revision_and_names_its_configurations(tmp_path, streaming):
    """The first line of the library's message did not name them; a revision was ignored in silence."""
    rows = {"audio": [{"bytes": b"RIFF", "path": "x.wav"}], "label": ["a"]}
    for name in ("noisy", "clean"):
        (tmp_path / name).mkdir()
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / name / "train.parquet")
    configs = [{"config_name": name, "data_files": f"{name}/train.parquet"} for name in ("noisy", "clean")]
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    load = open_streams if streaming else load_splits
    with pytest.raises(InputError, match=r"'noisy', 'clean'.*dataset_config_name"):
        load(DataArguments(dataset_name=str(tmp_path), streaming=streaming))
    arguments = {"dataset_name": str(tmp_path), "dataset_config_name": "clean", "streaming": streaming}
    with pytest.raises(InputError, match="revision: v9 has no effect on"):
        load(DataArguments(**arguments, dataset_revision="v9"))
    assert "train" in load(DataArguments(**arguments))


def test_an_unlabelled_split_is_told():
    names = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"audio": datasets.Value("string"), "label": names})
    data = datasets.Dataset.from_dict({"audio": ["x.wav", "y.wav"], "label": [1, -1]}, features=features)
    with pytest.raises(InputError, match=r"hub\[test\]: 1 of 2 clips have no label, first row 2; name another split"):
        standardise("hub[test]", data, Columns())


def test_repeated_files_are_warned_of(warnings):
    data = datasets.Dataset.from_dict({"audio": ["x.wav", "x.wav", "y.wav"], "label": ["a", "a", "b"]})
    warn_of_repeats({"train": data})
    warn_of_repeats({"train": data.select([0, 2])})
    assert warnings == ["1 files are listed more than once, such as x.wav: is that meant?"]
    other = datasets.Dataset.from_dict({"audio": ["./a/../x.wav", "z.wav"], "label": ["a", "b"]})
    warn_of_repeats({"train": data.select([0, 2]), "test": other})
    assert warnings[1:] == [warnings[0], "1 files are in several splits, such as x.wav in train and test"]


def test_bad_folders_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no audio files"):
        load_folder(tmp_path / "empty", Columns())
    write_tone(tmp_path / "loose" / "a.wav")
    with pytest.raises(InputError, match="a.wav: lies in no class folder"):
        load_folder(tmp_path / "loose", Columns())
    write_class_folders(tmp_path / "no_train" / "test", 1)
    with pytest.raises(InputError, match="no split 'train'; set train_split to one of test"):
        load_splits(DataArguments(dataset_name=str(tmp_path / "no_train")))


def test_damaged_files_are_told_with_their_number(tmp_path):
    write_class_folders(tmp_path, 3)
    for name in ("low_0", "low_1"):
        (tmp_path / "low" / f"{name}.wav").write_bytes(b"")
    with pytest.raises(InputError, match=r"low_0.wav: the file is empty; .* \(and 1 more damaged files\)"):
        check_files(load_folder(tmp_path, Columns()))


def test_splits_are_set_aside_with_the_share_of_every_class():
    data = datasets.Dataset.from_dict(
        {"audio": [f"{i}.wav" for i in range(100)], "label": ["a"] * 70 + ["b"] * 29 + ["alone"]}
    )
    arguments = DataArguments(train_file="x.csv", validation_fraction=0.2, test_fraction=0.2)
    splits = complete_splits({"train": data}, arguments, stratify=True, seed=0)
    sizes = {name: len(split) for name, split in splits.items()}
    assert sizes == {"train": 64, "validation": 16, "test": 20}
    assert sorted(name for split in splits.values() for name in split["audio"]) == sorted(data["audio"])
    assert splits["test"]["label"][:].count("b") == 6 and "alone" in splits["train"]["label"]
    again = complete_splits({"train": data}, arguments, stratify=True, seed=0)
    assert again["test"]["audio"][:] == splits["test"]["audio"][:]


@pytest.mark.parametrize("num_clips", [1, 3])
def test_too_few_clips_for_a_split_are_told(num_clips):
    data = datasets.Dataset.from_dict({"audio": ["x.wav"] * num_clips, "label": ["a", "b", "a"][:num_clips]})
    with pytest.raises(InputError, match=r"the \d training clips are too few .* (test|validation)_fraction to 0"):
        complete_splits({"train": data}, DataArguments(train_file="x.csv"), stratify=True, seed=0)


def test_one_class_is_told():
    with pytest.raises(InputError, match="all 4 training clips have the label 'dog'; a classifier needs at least two"):
        find_labels(["dog"] * 4, None)


def test_a_label_outside_the_set_names_the_clip_and_the_nearest():
    labels = find_labels(["dog", "cat"], None)
    assert labels == LabelSet(("cat", "dog"), "single_label_classification")
    with pytest.raises(InputError, match="x.wav: label 'dgo' is not in the label set .*; did you mean dog"):
        labels.encode("dgo", "x.wav")
    with pytest.raises(InputError, match=r"x.wav: has 2 labels"):
        labels.encode(["dog", "cat"], "x.wav")


def test_kinds_of_problems_are_told_apart():
    assert find_labels([10, 9, 2], None).names == ("2", "9", "10")
    multi = find_labels([["a", "b"], ["b"], []], None)
    assert multi.problem_type == "multi_label_classification"
    assert multi.is_multi and not multi.is_single and not multi.is_regression
    assert multi.encode(["b"], "x").tolist() == [0.0, 1.0]
    regression = find_labels([0.5, 1.5], "regression")
    assert regression.encode(0.5, "x") == 0.5 and len(regression.names) == 1
    with pytest.raises(InputError, match="label 'high' is no finite number, but problem_type is regression"):
        regression.encode("high", "x.wav")
    with pytest.raises(InputError, match="label 'nan' is no finite number"):
        regression.encode("nan", "x.wav")
    with pytest.raises(InputError, match="problem_type: 'foo' is unknown"):
        find_labels(["a", "b"], "foo")
    assert rename_labels(["/m/1", "z"], {"/m/1": "one"}) == ["one", "z"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "bytes"])
def test_parts_of_recordings_from_every_kind_of_source(tmp_path, kind):
    """Two parts of one file, by times in the table; an empty cell is the recording's own end."""
    path = write_tone(tmp_path / "long.wav", seconds=1.0)
    audio = [{"path": "long.wav", "bytes": path.read_bytes()}] * 2 if kind == "bytes" else ["long.wav"] * 2
    columns = {"audio": audio, "label": ["high", "low"], "onset": [0.0, 0.25], "offset": [0.5, None], "speaker": [1, 2]}
    wanted = Columns(start="onset", end="offset", group="speaker")
    if kind == "bytes":
        data = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio(decode=False))
        data = standardise("hub[train]", data, wanted)
    else:
        table = pandas.DataFrame(columns)
        table.to_csv(tmp_path / "a.csv", index=False) if kind == "csv" else table.to_parquet(tmp_path / "a.parquet")
        data = load_table(tmp_path / f"a.{kind}", wanted)
    assert [len(read_audio(audio_of(row), 16000)) for row in data] == [8000, 12000]
    assert [name.rsplit("/", 1)[-1] for name in clip_names(data)] == ["long.wav#t=0,0.5", "long.wav#t=0.25"]
    assert data["group"][:] == ["1", "2"]
    check_files({"train": data})


@pytest.mark.parametrize("name", ["audio", "label", "group", "fold", "start", "end"])
def test_class_folders_have_no_columns(tmp_path, name):
    write_class_folders(tmp_path)
    with pytest.raises(InputError, match=f"{name}_column: .* has class folders and no columns; use a table"):
        load_folder(tmp_path, Columns(**{name: "speaker"}))


@pytest.mark.parametrize("kind", ["text", "struct", "bytes"])
def test_paths_of_a_folder_of_parquet_are_relative_to_its_files(tmp_path, monkeypatch, kind):
    """They were relative to the folder from which the program was started."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    audio = ["../../clips/a.wav", "../../clips/b.wav"]
    for name in audio:
        write_tone(tmp_path / "clips" / name[-5:], seconds=0.05)
    if kind != "text":
        read = lambda name: (tmp_path / "clips" / name[-5:]).read_bytes() if kind == "bytes" else None  # noqa: E731
        audio = [{"path": name, "bytes": read(name)} for name in audio]
    (tmp_path / "set" / "data").mkdir(parents=True)
    table = pandas.DataFrame({"audio": audio, "label": ["high", "low"]})
    table.to_parquet(tmp_path / "set" / "data" / "train.parquet")
    data = load_splits(DataArguments(dataset_name=str(tmp_path / "set")))["train"]
    check_files({"train": data})
    assert data["label"][:] == ["high", "low"] and clip_names(data)[0].endswith("clips/a.wav")
    source = open_source(UnlabelledSource(str(tmp_path / "set")))
    assert len(read_audio(source[1], 16000)) == 800


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_parts_of_recordings_in_a_folder_of_parquet(tmp_path, monkeypatch, streaming, is_stored):
    """Each would count as its whole recording; times beside stored audio are those of another recording."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    content = write_tone(tmp_path / "set" / "data" / "a.wav", seconds=0.5).read_bytes()
    (tmp_path / "set" / "data" / "a.wav").unlink()  # else the folder is one of audio files
    rows = {"audio": [{"path": "a.wav", "bytes": content if is_stored else None}] * 2, "start": [0.0, 0.2]}
    datasets.Dataset.from_dict(rows | {"end": [0.2, 0.4]}).to_parquet(tmp_path / "set" / "data" / "train.parquet")
    source = UnlabelledSource(str(tmp_path / "set"), streaming=streaming)
    if is_stored:
        open_source(source)
    else:
        with pytest.raises(InputError, match="set: lists parts of recordings; .* rename its columns start and end if"):
            open_source(source)
        open_source(source, reads_times=True)


@pytest.mark.parametrize(
    "name", ["train.tsv", "train.jsonl", "Train.CSV", "metadata.tsv", "Metadata.csv", "train.parquet"]
)
def test_tables_of_a_folder_have_any_kind_and_case(tmp_path, name):
    """Only .csv was read, and the folders of the recordings became the classes."""
    labels = _write_recordings(tmp_path, name)
    data = load_splits(DataArguments(dataset_name=str(tmp_path)))["train"]
    assert data["label"][:] == labels


@pytest.mark.parametrize("name", ["labels.csv", "test.csv", "train.json", "labels.xlsx", "clips.parquet"])
def test_a_table_that_is_not_used_must_not_give_other_classes(tmp_path, name):
    _write_recordings(tmp_path, name)
    pattern = rf"{name}: gives \S+a.wav the label 'high', and its folder is rec_1; name the table as train_file"
    with pytest.raises(InputError, match=pattern):
        load_splits(DataArguments(dataset_name=str(tmp_path)))


def test_tables_beside_class_folders_that_change_nothing(tmp_path, warnings):
    write_class_folders(tmp_path, 2)
    names = [f"{label}/{label}_{number}.wav" for label in ("high", "low") for number in range(2)]
    table = pandas.DataFrame({"file": names, "label": [name.split("/")[0] for name in names]})
    table.to_csv(tmp_path / "clips.csv")
    pandas.DataFrame({"file": ["elsewhere.wav"], "label": ["x"]}).to_csv(tmp_path / "others.csv")
    (tmp_path / "test.txt").write_text("my notes\n")
    assert set(load_splits(DataArguments(dataset_name=str(tmp_path)))["train"]["label"]) == {"high", "low"}
    assert warnings == []
    table.drop(columns="label").to_csv(tmp_path / "clips.csv")
    load_splits(DataArguments(dataset_name=str(tmp_path)))
    assert warnings == [f"{tmp_path / 'clips.csv'}: lists 4 clips and no label; the folders are the classes"]


@pytest.mark.parametrize("others", [{"high": 7, "low": 8}, {"high": "High", "low": "low"}, {"high": "x", "low": "x"}])
def test_a_table_may_have_other_names_for_the_class_folders(tmp_path, warnings, others):
    """Codes, capitals and coarser classes divide the clips of no folder."""
    write_class_folders(tmp_path, 2)
    names = [f"{label}/{label}_{number}.wav" for label in ("high", "low") for number in range(2)]
    table = pandas.DataFrame({"file": names, "label": [others[name.split("/")[0]] for name in names]})
    table.to_csv(tmp_path / "meta.csv", index=False)
    assert set(load_splits(DataArguments(dataset_name=str(tmp_path)))["train"]["label"]) == {"high", "low"}
    (line,) = warnings
    assert line.startswith(f"{tmp_path / 'meta.csv'}: gives all clips of high the label {others['high']}; the folders")


def test_two_tables_of_one_split_are_an_error(tmp_path):
    for name in ("train.csv", "train.tsv"):
        _write_recordings(tmp_path, name)
    with pytest.raises(InputError, match="has train.csv and train.tsv; keep one of them"):
        load_splits(DataArguments(dataset_name=str(tmp_path)))


def _write_recordings(folder, name: str) -> list[str]:
    """Writes folders of recordings, and a table of any kind with other labels than these folders."""
    path, labels = folder / name, ["high", "low", "high"]
    clips = [write_tone(folder / f"rec_{1 + index // 2}" / f"{'abc'[index]}.wav", seconds=0.05) for index in range(3)]
    table = pandas.DataFrame({"file_name": [os.path.relpath(clip, path.parent) for clip in clips], "label": labels})
    writers = {
        ".csv": lambda: table.to_csv(path, index=False),
        ".tsv": lambda: table.to_csv(path, index=False, sep="\t"),
        ".json": lambda: path.write_text(table.to_json(orient="records")),
        ".jsonl": lambda: path.write_text(table.to_json(orient="records", lines=True)),
        ".xlsx": lambda: table.to_excel(path, index=False),
        ".parquet": lambda: table.to_parquet(path),
    }
    writers[path.suffix.lower()]()
    return labels


def test_tables_beside_a_named_data_set_are_refused(tmp_path):
    """They were ignored, even where no such file existed: the test was of clips of the training folder."""
    write_class_folders(tmp_path / "clips", 2)
    folder, table = str(tmp_path / "clips"), str(tmp_path / "a.csv")
    for name in ("validation_file", "test_file"):
        with pytest.raises(InputError, match=f"{name}: has no effect with dataset_name; leave it out, or name a table"):
            load_splits(DataArguments(dataset_name=folder, **{name: table}))
    for name in ("train_split", "validation_split", "test_split", "dataset_config_name", "dataset_revision"):
        with pytest.raises(InputError, match=f"{name}: has no effect with train_file; leave it out"):
            load_splits(DataArguments(train_file=table, **{name: "x"}))
    with pytest.raises(InputError, match="test_split: has no effect with test_file; leave it out"):
        load_test_split(EvaluationDataArguments(test_file=table, test_split="x"))
    for name in ("dataset_config_name", "dataset_revision"):
        with pytest.raises(InputError, match=f"{name}: has no effect on .*clips, a local folder; leave it out"):
            load_splits(DataArguments(dataset_name=folder, **{name: "x"}))
