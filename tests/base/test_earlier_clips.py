"""Tests training/base/earlier_clips.py: a new draw of the splits does not test learnt clips without a word."""

import json
import logging
from types import SimpleNamespace

import datasets
import pytest

from training.base.earlier_clips import warn_of_learnt_clips
from training.base.reproduction import describe_data
from training.classification.train import open_splits
from training.data.arguments import DataArguments


@pytest.fixture
def said():
    """The warnings of the module, in order."""
    messages, logger = [], logging.getLogger("training.base.earlier_clips")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def table(folder, numbers) -> datasets.Dataset:
    files = [f"{folder}/{number}.wav" for number in numbers]
    return datasets.Dataset.from_dict({"audio": files, "label": [f"class {number % 3}" for number in numbers]})


def write_run(folder, splits: dict, kind: str):
    """Writes what a finished run says of its clips."""
    folder.mkdir()
    counts = {split: len(data) for split, data in splits.items()}
    (folder / "results.json").write_text(json.dumps({"clips": counts, "data": describe_data(splits)}))
    (folder / "predictions.csv").write_text("\n".join(["file,label", *(f"{name},x" for name in splits[kind]["audio"])]))


def test_clips_that_the_earlier_run_did_not_set_aside_are_counted(tmp_path, said):
    """A test on 4 of 5 clips that the weights had learnt had no warning."""
    earlier = {
        "train": table(tmp_path, range(8)),
        "test": table(tmp_path, range(8, 12)),
        "validation": table(tmp_path, [12, 13]),
    }
    run = tmp_path / "run"
    write_run(run, earlier, "test")
    warn_of_learnt_clips(None, earlier)
    warn_of_learnt_clips(str(run), earlier)  # the same draw
    warn_of_learnt_clips("user/name", earlier)
    warn_of_learnt_clips(str(run), {split: table(tmp_path / "other", range(9)) for split in earlier})
    assert said == []
    new = {
        "train": table(tmp_path, range(6, 20)),
        "test": table(tmp_path, [0, 1, 8]),
        "validation": table(tmp_path, [12, 2]),
    }
    warn_of_learnt_clips(str(run / "checkpoint-3"), new)
    assert "set aside now: 2 of 3 test clips and 2 of 2 validation clips were not test clips of" in said[0]
    warn_of_learnt_clips(str(run), new, named=["test"])
    assert "now: 2 of 2 validation clips were not test" in said[1]
    warn_of_learnt_clips(str(run), new, named=["test", "validation"])
    (tmp_path / "link").symlink_to(tmp_path)
    warn_of_learnt_clips(str(run), new | {"test": table(tmp_path / "link", [8, 0])}, named=["validation"])
    assert "now: 1 of 2 test clips were not test" in said[2]
    (run / "predictions.csv").write_text("x\n1")
    warn_of_learnt_clips(str(run), new)
    assert len(said) == 3


def test_a_run_without_a_test_is_known_by_its_validation_clips(tmp_path, said):
    earlier = {"train": table(tmp_path, range(8)), "validation": table(tmp_path, [8, 9])}
    write_run(tmp_path / "run", earlier, "validation")
    warn_of_learnt_clips(str(tmp_path / "run"), {"train": table(tmp_path, [1, 2]), "test": table(tmp_path, [3, 8])})
    assert "1 of 2 test clips were not validation clips of that run" in said[0]


def test_a_training_from_a_run_warns_of_drawn_splits_alone(tmp_path, said):
    rows = [f"{number}.wav,class {number % 3}" for number in range(30)]
    for name in ("all", "test"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["file,label", *rows]))
    own, others = table(tmp_path, range(30)), table(tmp_path, range(3))
    write_run(tmp_path / "run", {"train": own, "test": others, "validation": others}, "test")
    stored = SimpleNamespace(name_or_path=str(tmp_path / "run"), id2label={})
    arguments = SimpleNamespace(output_dir=str(tmp_path / "new"), seed=0)
    data = {"train_file": str(tmp_path / "all.csv"), "check_files": False}
    open_splits(None, None, DataArguments(**data), None, arguments)
    assert said == []
    open_splits(None, None, DataArguments(**data), stored, arguments)
    open_splits(None, None, DataArguments(**data, test_file=str(tmp_path / "test.csv")), stored, arguments)
    assert "of 3 test clips and" in said[0] and "now: 3 of 3 validation clips" in said[1]
    open_splits({"train": own, "test": others}, None, DataArguments(**data), stored, arguments)  # a fold
    assert len(said) == 3
