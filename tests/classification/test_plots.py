"""Tests the figures of a run: any number of classes, any class name, and the formats of papers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from audio_files import ROOT, write_class_folders
from matplotlib.figure import Figure
from tiny_runs import TINY, train

from training.base import plots
from training.classification.plots import confusion_table
from training.classification.report import per_class
from training.data.labels import LabelSet

pytestmark = pytest.mark.figures

SINGLE = "single_label_classification"
MANY = """
import re
from pathlib import Path
import numpy as np
from training.base.plots import plot_confusion
from training.classification.plots import confusion_table
from training.data.labels import LabelSet

labels = LabelSet(tuple(f"class {index} of $very$ many" for index in range(1500)), "single_label_classification")
rng = np.random.default_rng(0)
targets, predictions = rng.integers(1500, size=(2, 30_000))
for figure_format in ("png", "pdf", "svg"):
    plot_confusion(confusion_table(targets, predictions, labels), "test", Path("confusion_matrix.png"), figure_format)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, with the formats that were asked for."""
    found = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path, figure_format: found.append((figure, figure_format)))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of the memory from Linux")
def test_a_confusion_matrix_of_1500_classes_is_bounded(tmp_path):
    """A tick label per class took 99 s and 9.6 GB for 309 classes."""
    process = subprocess.run(
        [sys.executable, "-c", MANY], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-2000:]
    assert int(process.stdout) < 1e6  # kB at the peak
    assert {path.name for path in tmp_path.iterdir()} == {f"confusion_matrix.{e}" for e in ("png", "pdf", "svg")}
    assert all(path.stat().st_size < 2_000_000 for path in tmp_path.iterdir())


def test_pairs_that_are_confused_most_often_are_named(drawn, tmp_path):
    labels = LabelSet(tuple(f"${index}$" for index in range(100)), SINGLE)
    targets = np.array([5, 5, 5, 7, 7, *range(100)])
    predictions = np.array([6, 6, 6, 8, 8, *range(100)])
    table = confusion_table(targets, predictions, labels)
    assert table.loc["$5$", "$6$"] == 3 and table.to_numpy().sum() == 105
    plots.plot_confusion(table, "test split", tmp_path / "x.png", "pdf")
    figure, figure_format = drawn[0]
    bars = figure.axes[1]
    assert [text.get_text() for text in bars.get_yticklabels()] == [r"\$5\$ as \$6\$", r"\$7\$ as \$8\$"]
    assert [bar.get_width() for bar in bars.patches] == [3, 2] and figure_format == "pdf"


def test_the_chosen_checkpoint_and_the_reason_of_another_loss_are_marked(drawn, tmp_path):
    log = [{"epoch": 1, "loss": 2.0}, {"epoch": 1, "eval_loss": 1.0, "eval_accuracy": 0.5, "eval_runtime": 3.0}]
    settings = {
        "mixup_rate": 0.5, "frequency_mask_bins": 0, "time_mask_frames": 10, "noise": False, "loss": "cross_entropy",
        "background_folder": None, "random_resized_crop": False, "class_weights": "none",
    }  # fmt: skip
    note = plots.loss_note(settings)
    assert note == "not comparable: only the training loss contains mixup, SpecAugment"
    assert plots.loss_note(settings | {"mixup_rate": 0.0, "time_mask_frames": 0}) == ""
    plots.plot_learning_curves(log, tmp_path / "x.png", "png", 1.0, note)
    figure: Figure = drawn[0][0]
    losses, scores = figure.axes
    assert "mixup, SpecAugment" in losses.get_title() and scores.get_title() == "validation metrics"
    for axes, names in ((losses, ["training", "validation"]), (scores, ["accuracy"])):
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [*names, "chosen checkpoint"]


def test_a_class_may_be_called_accuracy():
    labels = LabelSet(("accuracy", "macro avg"), SINGLE)
    found = per_class(np.array([0, 0, 1]), np.array([0, 1, 1]), labels)
    assert found["accuracy"] == {"precision": 1.0, "recall": 0.5, "f1-score": pytest.approx(2 / 3), "support": 2.0}
    assert found["macro avg"] == {"precision": 0.5, "recall": 1.0, "f1-score": pytest.approx(2 / 3), "support": 1.0}


def test_figures_for_papers_and_a_table_of_many_classes(tmp_path, monkeypatch):
    from training.classification import report

    monkeypatch.setattr(report, "MOST_NAMED", 1)
    clips = write_class_folders(tmp_path / "clips", 10, ("a $1", "b $2"))
    output, path = tmp_path / "run", tmp_path / "recipe.json"
    path.write_text(json.dumps({**TINY, "dataset_name": str(clips), "output_dir": str(output), "num_train_epochs": 1}))
    train(str(path), "--figure_format", "svg")
    figures = {"learning_curves", "confusion_matrix"}
    assert {p.stem for p in output.glob("*.svg")} == {p.stem for p in output.glob("*.png")} == figures
    table = pandas.read_csv(output / "confusion_matrix.csv", index_col="label")
    assert list(table.index) == list(table.columns) == ["a $1", "b $2"] and table.to_numpy().sum() == 4
    monkeypatch.undo()
    train(str(path), "--overwrite", "true")
    assert not list(output.glob("*.svg")) and not (output / "confusion_matrix.csv").exists()
