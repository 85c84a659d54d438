"""Tests training/data/sources.py, splits.py and labels.py: the same examples from every kind of source."""

import json

import datasets
import pandas
import pytest
from audio_files import write_class_folders, write_tone

from training.data import splits as splits_module
from training.data.arguments import DataArguments
from training.data.audio import audio_name, read_audio
from training.data.columns import Columns, audio_of, clip_names
from training.data.labels import LabelSet, find_labels, read_label_file, rename_labels
from training.data.screening import check_files
from training.data.sources import load_folder, standardise
from training.data.splits import complete_splits, load_splits
from training.data.tables import load_table
from training.errors import InputError


@pytest.fixture
def clips(tmp_path):
    """Three clips and their labels, with paths relative to the folder."""
    labels = {"clips/a.wav": "high", "clips/b.wav": "low", "clips/c.wav": "high"}
    for name in labels:
        write_tone(tmp_path / name, seconds=0.05)
    return tmp_path, labels


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


def test_an_unlabelled_split_is_told():
    names = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"audio": datasets.Value("string"), "label": names})
    data = datasets.Dataset.from_dict({"audio": ["x.wav", "y.wav"], "label": [1, -1]}, features=features)
    with pytest.raises(InputError, match=r"hub\[test\]: 1 of 2 clips have no label, first row 2; name another split"):
        standardise("hub[test]", data, Columns())


def test_repeated_files_are_warned_of(monkeypatch):
    messages = []
    monkeypatch.setattr(splits_module.logger, "warning", messages.append)
    data = datasets.Dataset.from_dict({"audio": ["x.wav", "x.wav", "y.wav"], "label": ["a", "a", "b"]})
    splits_module.warn_of_repeats({"train": data})
    splits_module.warn_of_repeats({"train": data.select([0, 2])})
    assert messages == ["1 files are listed more than once, such as x.wav: is that meant?"]


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
