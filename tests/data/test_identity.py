"""Tests that nothing that orders or names classes depends on the process: it hashes texts with a seed of its own."""

import itertools
import json
import os
import re
import subprocess
import sys

import pytest
from audio_files import ROOT, write_tone
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import TINY

from training.data.labels import find_labels, sort_key

NAMES = ("7", "07", "007", "²", "³", "٣", "03", "3", "é", "dog", "Dog", "dog_", "10", "9" * 5000, "$5_$10", "accuracy")


def test_no_two_names_have_one_key():
    assert sorted(("10", "9", "b", "a", "²", "٣", "3", "007", "07", "7"), key=sort_key) == [
        "3", "٣", "007", "07", "7", "9", "10", "a", "b", "²",
    ]  # fmt: skip
    keys = [sort_key(name) for name in NAMES]
    assert len(set(keys)) == len(NAMES)
    orders = itertools.islice(itertools.permutations(NAMES[:6]), 0, None, 7)
    assert len({find_labels(list(names), None).names for names in orders}) == 1


@given(st.lists(st.text(st.characters(categories=("N", "L")), max_size=4), max_size=5), st.randoms())
@settings(max_examples=100, deadline=None)
def test_any_names_have_one_order(names, random):
    other = random.sample(names, len(names))
    assert sorted(names, key=sort_key) == sorted(other, key=sort_key)


# Prints everything that orders names, then trains; run with two seeds of the hashes.
PROGRAM = """
import json, sys
import datasets, numpy as np
from pathlib import Path
from tiny_runs import train
from training.base.arguments import TrainingArguments
from training.check import CheckArguments, check, find_similar_names
from training.classification.cross_validation import describe_folds
from training.classification.labelled_stream import LabelledStream
from training.classification.samplers import class_weights, clip_weights
from training.classification.plots import confusion_table
from training.data.arguments import DataArguments
from training.data.augmentation import AugmentationArguments
from training.data.columns import Columns
from training.data.dataset import find_backgrounds
from training.data.labels import find_labels
from training.data.screening import classes_of
from training.data.splits import complete_splits, load_splits, make_folds
from training.embeddings.sweep import candidates
from training.errors import InputError

fractions = {"test_fraction": 0.3, "validation_fraction": 0.3}
arguments = DataArguments(train_file="clips.csv", fold_column="fold", group_column="group", **fractions)
data = load_splits(arguments)["train"]
labels = find_labels(data["label"], None)
indices = np.array([labels.encode(label, "") for label in data["label"]])
matrix = np.eye(len(labels.names), dtype=bool)[indices]
whole = data.remove_columns("fold")
described = {"label": datasets.ClassLabel(names=sorted(classes_of(data["label"]), reverse=True))}
stored = datasets.Dataset.from_dict({"audio": ["x"], "label": [0]}, features=datasets.Features(
    {"audio": datasets.Value("string"), **described}))
errors = []
for names in (["b", "a", "c", "none"], ["zz"]):
    try:
        TrainingArguments(output_dir="x", report_to=names)
    except InputError as error:
        errors.append(str(error))
folds = make_folds(data, 3, True, 0)
print(json.dumps({
    "classes": labels.names,
    "folds": [[part.tolist() for part in fold] for fold in folds],
    "drawn": [[part.tolist() for part in fold] for fold in make_folds(whole, 3, True, 0)],
    "fingerprint": describe_folds(data, folds),
    "splits": {name: own["audio"][:] for name, own in complete_splits({"train": whole}, arguments, True, 0).items()},
    "plain": {name: own["audio"][:] for name, own in complete_splits(
        {"train": whole.remove_columns("group")}, arguments, True, 0).items()},
    "backgrounds": find_backgrounds(AugmentationArguments(background_folder="noise", background_rate=0.5)),
    "weights": [class_weights(matrix).tolist(), clip_weights(matrix).tolist()],
    "stream": LabelledStream("hub", stored.to_iterable_dataset(), Columns()).class_names(),
    "similar": find_similar_names({name: 1 + index for index, name in enumerate(labels.names)}),
    "check": check(CheckArguments(train_file="clips.csv", group_column="group"), 1),
    "confused": confusion_table(indices, np.roll(indices, 3), labels).to_csv(),
    "sweep": [str(candidate) for candidate in candidates([0, 1, 2], ["patches"])],
    "errors": errors,
}))
train("recipe.yaml", "--train_file", "clips.csv", "--output_dir", "run")
"""


@pytest.mark.slow
def test_two_processes_agree_on_everything(tmp_path):
    """Two processes of one distributed training with other class numbers would train on noise, without a word."""
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / seed / "clips"
        rows = ["file_name,label,fold,group"]
        for index, name in enumerate(NAMES * 9):
            write_tone(folder / f"{index}.wav", seconds=0.1, hz=200 + 40 * (index % len(NAMES)), seed=index)
            rows.append(f"{index}.wav,{name},{NAMES[index % 5]},{NAMES[index % 7]}")
        for name in NAMES[:7]:
            write_tone(folder / "noise" / f"{name}.wav", seconds=0.1)
        (folder / "clips.csv").write_text("\n".join(rows), encoding="utf-8")
        (folder / "recipe.yaml").write_text(json.dumps({"task": "classification", **TINY, "group_column": "group"}))
        paths = (ROOT, ROOT / "tests" / "helpers", ROOT / "tests")
        process = subprocess.run(
            [sys.executable, "-c", PROGRAM], cwd=folder, capture_output=True, text=True,
            env=os.environ | {
                "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1",
            },
        )  # fmt: skip
        assert process.returncode == 0, process.stderr[-3000:]
        facts = json.loads(next(line for line in process.stdout.splitlines() if line.startswith('{"classes"')))
        results = json.loads((folder / "run" / "results.json").read_text())
        facts |= {name: results[name] for name in ("metrics", "clips_per_class", "per_class")}
        for name in ("predictions.csv", "config.json", "README.md"):
            facts[name] = re.sub(r"\b\d+ s\b", "", (folder / "run" / name).read_text())  # the time that it took
        found.append(facts)
    for name in found[0]:
        assert found[0][name] == found[1][name], name
