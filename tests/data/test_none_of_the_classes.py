"""Tests clips of none of the classes: empty labels, and a label that stands for them, in every kind of source."""

import json

import datasets
import numpy as np
import pandas
import pytest
from audio_files import write_class_folders, write_tone
from tiny_runs import TINY, train

import predict_hf
from training.classification import calibration
from training.data.arguments import DataArguments, EvaluationDataArguments
from training.data.columns import Columns
from training.data.labels import find_labels, without_label
from training.data.sources import standardise
from training.data.splits import load_splits, load_test_split
from training.errors import InputError

MULTI = "multi_label_classification"
LABELS = ["dog", "", "cat", "background"]
WRITERS = {
    "csv": lambda table, path: table.to_csv(path, index=False),
    "xlsx": lambda table, path: table.to_excel(path, index=False),
    "jsonl": lambda table, path: table.replace("", None).to_json(path, orient="records", lines=True),
    "parquet": lambda table, path: table.replace("", None).to_parquet(path),
}


def write_table(folder, ending: str, labels=LABELS):
    files = [write_tone(folder / f"{index}.wav").name for index in range(len(labels))]
    path = folder / f"clips.{ending}"
    WRITERS[ending](pandas.DataFrame({"file_name": files, "label": labels}), path)
    return path


@pytest.mark.parametrize("ending", WRITERS)
def test_a_clip_without_a_label_has_none_of_the_classes(tmp_path, ending):
    path = str(write_table(tmp_path, ending))
    found = load_splits(DataArguments(train_file=path, problem_type=MULTI))["train"]["label"][:]
    assert found == [["dog"], [], ["cat"], ["background"]]
    found = load_splits(DataArguments(train_file=path, none_label="background"))["train"]["label"][:]
    assert found == [["dog"], [], ["cat"], []]
    labels = find_labels(found, DataArguments(train_file=path, none_label="background").problem_type)
    assert labels.names == ("cat", "dog") and labels.is_multi
    np.testing.assert_array_equal(
        np.stack([labels.encode(label, "") for label in found]), [[0, 1], [0] * 2, [1, 0], [0] * 2]
    )
    tested = EvaluationDataArguments(test_file=path, none_label=" background ")
    assert load_test_split(tested, is_multi=True)["label"][:] == found


def test_with_one_label_per_clip_an_empty_label_stays_an_error(tmp_path):
    with pytest.raises(InputError, match=r"row 2 .*has no file_name or no label"):
        load_splits(DataArguments(train_file=str(write_table(tmp_path, "csv"))))


def test_a_folder_of_background_has_none_of_the_classes(tmp_path):
    write_class_folders(tmp_path, 2, ("background", "dog", "cat"))
    found = load_splits(DataArguments(dataset_name=str(tmp_path), none_label="background"))["train"]
    assert sorted(map(tuple, found["label"])) == [(), (), ("cat",), ("cat",), ("dog",), ("dog",)]


@pytest.mark.parametrize("names", [["background", "dog"], None])
def test_a_hidden_label_is_not_none_of_the_classes(names):
    kind = datasets.Value("string") if names is None else datasets.ClassLabel(names=names)
    features = datasets.Features({"audio": datasets.Value("string"), "label": kind})
    columns = Columns(is_multi=True)
    data = datasets.Dataset.from_dict({"audio": ["0.wav"] * 3, "label": ["dog", None, "background"]}, features=features)
    assert standardise("hub", data, columns)["label"][:] == [["dog"], [], ["background"]]
    if names is not None:  # many data sets of the Hub mark the hidden labels of a test split with -1
        data = datasets.Dataset.from_dict({"audio": ["0.wav"] * 2, "label": [1, -1]}, features=features)
        with pytest.raises(InputError, match="1 of 2 clips have no label"):
            standardise("hub", data, columns)


def test_a_split_of_background_alone_can_be_joined_with_others(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    paths = [str(write_table(tmp_path / "a", "csv")), str(write_table(tmp_path / "b", "csv", ["background"] * 2))]
    splits = load_splits(DataArguments(train_file=paths[0], test_file=paths[1], none_label="background"))
    assert splits["test"]["label"][:] == [[], []]
    assert len(datasets.concatenate_datasets(list(splits.values()))) == 6


def test_a_none_label_that_no_clip_has_is_told(tmp_path, caplog):
    """A misspelt one would make a class of background, and change the problem type."""
    path = str(write_table(tmp_path, "csv"))
    with pytest.raises(InputError, match="none_label: no clip has the label 'backgruond'; did you mean background"):
        load_splits(DataArguments(train_file=path, none_label="backgruond"))
    load_test_split(EvaluationDataArguments(test_file=path, none_label="backgruond"), is_multi=True)
    assert "none_label: no clip has the label 'backgruond'; did you mean background?" in caplog.text


def test_none_label_needs_thresholds():
    with pytest.raises(InputError, match="none_label: needs a threshold per class, but problem_type is single_label"):
        DataArguments(train_file="a.csv", none_label="none", problem_type="single_label_classification")


@pytest.mark.parametrize(
    ("label", "kept"),
    [("Bäckground", []), (["a", "background"], ["a", "background"]), ("ba\u0308ckground", ["bäckground"]), ([], [])],
)
def test_the_label_for_none_is_compared_like_every_class_name(label, kept):
    assert without_label(label, "Ba\u0308ckground ") == kept


@pytest.mark.slow
def test_a_training_with_background_gives_thresholds_and_empty_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "MIN_CLIPS", 2)
    clips = write_class_folders(tmp_path / "clips", 10, ("background", "high", "low"))
    settings = TINY | {"dataset_name": str(clips), "none_label": "background", "html_report": False}
    (tmp_path / "recipe.json").write_text(json.dumps(settings))
    train(str(tmp_path / "recipe.json"), "--output_dir", str(tmp_path / "run"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["labels"] == ["high", "low"] and results["problem_type"] == MULTI
    assert len(results["calibration"]["decision_thresholds"]) == 2 and "open_set" not in results
    predicted = pandas.read_csv(tmp_path / "run" / "predictions.csv", keep_default_na=False)
    is_background = predicted["file"].str.contains("background")
    assert is_background.any() and (predicted["label"] == "").equals(is_background)
    words = [str(tmp_path / "run"), str(clips), "--output", str(tmp_path / "scores.csv"), "--dtype", "float32"]
    assert predict_hf.main(words) == 0
    scores = pandas.read_csv(tmp_path / "scores.csv", keep_default_na=False)
    above = scores[["probability_high", "probability_low"]] > results["calibration"]["decision_thresholds"]
    assert (scores["prediction"] == "").equals(~above.any(axis=1))


@pytest.mark.parametrize(("none_label", "names"), [("background", ("", "high", "low")), (None, ("background", "high"))])
def test_clips_of_one_label_are_divided_by_class(tmp_path, none_label, names):
    from training.base.arguments import TrainingArguments
    from training.classification.train import open_splits

    write_class_folders(tmp_path / "clips", 8, [name or "background" for name in names])
    data = DataArguments(
        dataset_name=str(tmp_path / "clips"), none_label=none_label, problem_type=MULTI, test_fraction=0.25,
        validation_fraction=0,
    )  # fmt: skip
    arguments = TrainingArguments(output_dir=str(tmp_path / "run"))
    splits, _, _ = open_splits(None, None, data, None, arguments)
    found = ["".join(label) for label in splits["test"]["label"]]
    assert sorted(found) == sorted([*names, *names])
