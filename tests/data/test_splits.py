"""Tests training/data/splits.py: folds and held-out clips, by class and by group."""

import datasets
import numpy as np
import pytest

from training.data import splits as splits_module
from training.data.arguments import DataArguments, EvaluationDataArguments
from training.data.splits import complete_splits, load_splits, make_folds, sample_splits
from training.errors import InputError


def table(num_clips: int = 60, **columns) -> datasets.Dataset:
    """Three classes; the audio is never read."""
    labels = [("a", "b", "c")[index % 3] for index in range(num_clips)]
    return datasets.Dataset.from_dict({"audio": [f"{i}.wav" for i in range(num_clips)], "label": labels, **columns})


def speakers(num_clips: int = 60, num_speakers: int = 12) -> list[str]:
    return [f"speaker {index // 3 % num_speakers}" for index in range(num_clips)]


def test_own_folds_are_used_in_their_order():
    clips = table(12, fold=["10", "9", "2"] * 4)
    assert [test.tolist()[0] for _, test in make_folds(clips, 5, True, 0)] == [2, 1, 0]
    with pytest.raises(InputError, match="all clips are in fold x"):
        make_folds(table(6, fold=["x"] * 6), 5, True, 0)


def test_folds_keep_the_share_of_every_class():
    clips = table()
    folds = make_folds(clips, 4, True, 0)
    for training, test in folds:
        assert sorted([*training, *test]) == list(range(60))
        assert [clips["label"][index] for index in test].count("a") == 5
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(60))
    again, other = make_folds(clips, 4, True, 0), make_folds(clips, 4, True, 1)
    assert all((one[1] == two[1]).all() for one, two in zip(folds, again))
    assert any((one[1] != two[1]).any() for one, two in zip(folds, other))
    with pytest.raises(InputError, match="num_folds: 30 do not fit the data"):
        make_folds(clips, 30, True, 0)


@pytest.mark.parametrize("stratify", [True, False])
def test_folds_do_not_divide_groups(stratify):
    clips = table(group=speakers())
    folds = make_folds(clips, 4, stratify, 0)
    for training, test in folds:
        assert not {clips["group"][index] for index in training} & {clips["group"][index] for index in test}
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(60))
    with pytest.raises(InputError, match="num_folds: 13 do not fit the data"):
        make_folds(clips, 13, stratify, 0)


@pytest.mark.parametrize("stratify", [True, False])
def test_clips_are_set_aside_in_whole_groups(stratify):
    arguments = DataArguments(train_file="x.csv", validation_fraction=0.2, test_fraction=0.25)
    splits = complete_splits({"train": table(group=speakers())}, arguments, stratify, seed=3)
    groups = {split: set(data["group"]) for split, data in splits.items()}
    assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 12
    assert {split: len(data) for split, data in splits.items()} == {"train": 36, "validation": 9, "test": 15}
    few = {"train": table(12, group=["one"] * 6 + ["two"] * 6)}
    with pytest.raises(
        InputError,
        match="the training clips are of one group, which cannot be divided into training and validation split",
    ):
        complete_splits(few, arguments, stratify, seed=3)


@pytest.mark.parametrize("seed", range(4))
def test_a_class_of_one_group_stays_in_the_training_split(seed, warnings):
    """The fold whose size is nearest to the fraction held out all clips of b, and nobody was told."""
    groups = [f"site {number}" for number, size in enumerate([15] * 5 + [5] * 4) for _ in range(size)]
    labels = ["a"] * len(groups) + ["b"] * 10
    groups += ["site of b"] * 10
    data = datasets.Dataset.from_dict({"audio": list(map(str, range(105))), "label": labels, "group": groups})
    splits = complete_splits({"train": data}, DataArguments(train_file="x.csv"), True, seed=seed)
    assert set(splits["train"]["label"]) == {"a", "b"} and not any("takes all" in line for line in warnings)
    own = datasets.Dataset.from_dict({"audio": list("1234"), "label": list("aabb"), "group": list("xxyy")})
    arguments = DataArguments(train_file="x.csv", test_fraction=0.4, validation_fraction=0.0)
    complete_splits({"train": own}, arguments, True, seed=seed)
    assert "the test split takes all training clips of some classes, such as" in warnings[-1]


def test_parts_of_a_recording_on_both_sides_are_warned_of(warnings):
    """Parts that may overlap were training and test clips without a word."""
    data = table(60, start=[float(index) for index in range(60)], end=[index + 5.0 for index in range(60)])
    arguments = DataArguments(train_file="x.csv")
    complete_splits({"train": data}, arguments, True, seed=0)
    make_folds(data, 4, True, 0)
    complete_splits({"train": table()}, arguments, True, seed=0)
    assert warnings == []
    names = ["one.wav", "two.wav", "three.wav"]
    data = data.remove_columns("audio").add_column("audio", [names[index // 20] for index in range(60)])
    complete_splits({"train": data}, arguments, True, seed=0)
    make_folds(data, 4, True, 0)
    line = "parts of 3 recordings, such as one.wav, are divided among splits or folds; set group_column to keep each"
    assert len(warnings) == 2 and all(warning.startswith(line) for warning in warnings)
    complete_splits({"train": data, "test": data, "validation": data}, arguments, True, seed=0)
    grouped = data.add_column("group", speakers())
    complete_splits({"train": grouped}, arguments, True, seed=0)
    make_folds(grouped, 4, True, 0)
    assert len(warnings) == 2


def test_splits_have_labels_of_one_kind(tmp_path):
    """A row without label makes lists of one split's labels, and the splits could not be joined."""
    for split, rows in {"train": "1.wav,owl\n2.wav,\n3.wav,jay\n", "test": "4.wav,owl\n"}.items():
        (tmp_path / f"{split}.csv").write_text("file,label\n" + rows)
    files = {f"{split}_file": str(tmp_path / f"{split}.csv") for split in ("train", "test")}
    arguments = DataArguments(**files, problem_type="multi_label_classification")
    splits = load_splits(arguments)
    assert splits["train"]["label"][:] == [["owl"], [], ["jay"]] and splits["test"]["label"][:] == [["owl"]]
    assert len(datasets.concatenate_datasets(list(splits.values()))) == 4


def test_a_recipe_is_tried_out_on_a_sample():
    splits = {"train": table(), "validation": table(12), "test": table(5)}
    arguments = DataArguments(train_file="x.csv", max_train_clips=20, max_eval_clips=6)
    sampled = sample_splits(splits, arguments, seed=0)
    assert {split: len(data) for split, data in sampled.items()} == {"train": 20, "validation": 6, "test": 5}
    places = [splits["train"]["audio"][:].index(name) for name in sampled["train"]["audio"]]
    assert places == sorted(set(places)) and places != list(range(20))
    assert sample_splits(splits, arguments, seed=0)["train"]["audio"][:] == sampled["train"]["audio"][:]
    with pytest.raises(InputError, match="max_train_clips: must be 1 or more, got 0"):
        DataArguments(train_file="x.csv", max_train_clips=0)


def test_few_groups_set_at_least_one_aside(warnings):
    """Warns; a single group cannot be divided."""
    data = table(12, group=[str(index // 4) for index in range(12)])
    arguments = DataArguments(train_file="x.csv", test_fraction=0.1, validation_fraction=0)
    splits = splits_module.complete_splits({"train": data}, arguments, stratify=True, seed=0)
    assert len(set(splits["test"]["group"])) == 1 and not set(splits["test"]["group"]) & set(splits["train"]["group"])
    assert warnings == ["3 groups are too few for test_fraction 0.1: the test split is a whole group"]
    with pytest.raises(InputError, match="the training clips are of one group"):
        splits_module.complete_splits({"train": data.select(range(4))}, arguments, stratify=True, seed=0)


def test_a_folder_with_tables_and_a_folder_without_audio(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        rows = "".join(f"{split}_{i}.wav,a\n" for i in range(count))
        (tmp_path / f"{split}.csv").write_text(f"file_name,label\n{rows}")
    found = splits_module.load_splits(DataArguments(dataset_name=str(tmp_path)))
    assert {split: len(data) for split, data in found.items()} == {"train": 3, "test": 2}
    assert found["train"]["audio"][0] == str(tmp_path / "train_0.wav")
    assert len(splits_module.load_test_split(EvaluationDataArguments(dataset_name=str(tmp_path)))) == 2
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("nothing")
    with pytest.raises(InputError, match="notes: holds no audio, no train.csv or metadata.csv, and no Parquet"):
        splits_module.load_splits(DataArguments(dataset_name=str(tmp_path / "notes")))
