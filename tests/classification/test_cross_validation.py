"""Tests the task cross_validation: one test per clip and seed, no repeated runs, and a correct table."""

import json
import re
import shutil
from pathlib import Path

import pandas
import pytest
from audio_files import write_class_folders, write_tone
from scipy.stats import norm
from tiny_runs import TINY, write_recipe

import train_hf
from training.classification import train
from training.classification.cross_validation import summarise


@pytest.fixture
def recipe(tmp_path, clips):
    settings = TINY | {"task": "cross_validation", "dataset_name": clips, "num_folds": 3, "num_train_epochs": 1}
    return lambda **values: write_recipe(tmp_path, settings | values)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("clips"), 9)


@pytest.mark.slow
def test_every_clip_is_tested_once_per_seed(recipe, clips, capsys):
    path, output = recipe(num_seeds=2)
    assert train_hf.main([path]) == 0
    table = pandas.read_csv(output / "cross_validation.csv")
    assert table[["seed", "fold"]].values.tolist() == [[s, k] for s in (1, 2) for k in (1, 2, 3)]
    assert table["clips"].tolist() == [6] * 6
    predictions = pandas.read_csv(output / "predictions.csv")
    names = sorted(map(str, clips.rglob("*.wav")))
    for _, own in predictions.groupby("seed"):
        assert sorted(own["file"]) == names
    for (seed, fold), own in predictions.groupby(["seed", "fold"]):
        row = table[(table["seed"] == seed) & (table["fold"] == fold)]
        assert (own["label"] == own["prediction"]).mean() == pytest.approx(row["accuracy"].item())
        results = json.loads((output / f"seed-{seed}-fold-{fold}" / "results.json").read_text())
        assert results["clips"] == {"train": 9, "validation": 3, "test": 6}  # validation clips are no test clips
        assert not list((output / f"seed-{seed}-fold-{fold}").glob("checkpoint-*"))
    results = json.loads((output / "results.json").read_text())["metrics"]["accuracy"]
    assert results["mean"] == pytest.approx(table["accuracy"].mean())
    assert results["standard_deviation"] == pytest.approx(table["accuracy"].std())
    assert results["deviation_of_seeds"] == pytest.approx(table.groupby("seed")["accuracy"].mean().std())
    assert "standard_deviation" in capsys.readouterr().out
    # The folds of both seeds are the same, another seed divides otherwise.
    by_seed = [own.groupby("fold")["file"].apply(set).tolist() for _, own in predictions.groupby("seed")]
    assert by_seed[0] == by_seed[1]


@pytest.mark.slow
def test_what_is_finished_is_not_repeated(recipe, monkeypatch, capsys):
    path, output = recipe()
    done = []
    original = train.run

    def run(*parts, **options):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(parts)
        original(*parts, **options)

    monkeypatch.setattr(train, "run", run)
    assert train_hf.main([path]) == 130
    told = capsys.readouterr().err.strip()
    assert told == f"interrupted; 2 finished runs in {output} are kept; go on with --resume_from_checkpoint true"
    monkeypatch.undo()
    assert train_hf.main([path]) == 1 and "holds a cross-validation already" in capsys.readouterr().err
    times = {
        folder: (output / folder / "results.json").stat().st_mtime_ns for folder in ("seed-1-fold-1", "seed-1-fold-2")
    }
    assert train_hf.main([path, "--resume_from_checkpoint", "true"]) == 0
    assert all((output / folder / "results.json").stat().st_mtime_ns == time for folder, time in times.items())
    whole = pandas.read_csv(output / "cross_validation.csv")
    assert train_hf.main([path, "--overwrite", "true"]) == 0  # an uninterrupted run gives the same table
    pandas.testing.assert_frame_equal(whole, pandas.read_csv(output / "cross_validation.csv"))


def test_own_folds_and_groups(recipe, clips, tmp_path):
    files = sorted(clips.rglob("*.wav"))
    rows = [
        {"file_name": str(file), "label": file.parent.name, "fold": index % 2 + 1, "speaker": index % 6}
        for index, file in enumerate(files)
    ]
    pandas.DataFrame(rows).to_csv(tmp_path / "clips.csv", index=False)
    path, output = recipe(
        dataset_name=None, train_file=str(tmp_path / "clips.csv"), fold_column="fold", group_column="speaker",
        validation_fraction=0.34,
    )  # fmt: skip
    assert train_hf.main([path]) == 0
    predictions = pandas.read_csv(output / "predictions.csv")
    folds = {str(row["file_name"]): row["fold"] for row in rows}
    assert all(folds[row["file"]] == row["fold"] for _, row in predictions.iterrows()) and len(predictions) == 18
    assert len(pandas.read_csv(output / "cross_validation.csv")) == 2


@pytest.mark.parametrize(("name", "value"), [("num_folds", "1"), ("num_seeds", "0")])
def test_bad_settings_are_one_line(recipe, name, value, capsys):
    path, _ = recipe()
    assert train_hf.main([path, f"--{name}", value]) == 1
    assert re.fullmatch(f"error: {name}: .*got {value}.*\n", capsys.readouterr().err)


@pytest.mark.slow
def test_what_is_resumed_is_the_same(recipe, capsys):
    """Or the table would mix folds of several trainings; more seeds are no other training."""
    path, output = recipe(num_folds=3)
    assert train_hf.main([path]) == 0
    before = (output / "cross_validation.csv").read_text()
    for option, value, name in (
        ("--num_folds", "2", "clips and folds"), ("--learning_rate", "0.5", "learning_rate"),
        ("--readout", "frames", "readout"),
    ):  # fmt: skip
        assert train_hf.main([path, "--resume_from_checkpoint", "true", option, value]) == 1
        assert f"cross_validation.json: was made with {name} " in capsys.readouterr().err
        assert (output / "cross_validation.csv").read_text() == before
    assert train_hf.main([path, "--resume_from_checkpoint", "true", "--num_seeds", "2"]) == 0
    assert len(pandas.read_csv(output / "cross_validation.csv")) == 6


def trained(*parts, splits, label_names):
    """Writes what a run of a fold leaves."""
    folder = Path(parts[-1].output_dir)
    folder.mkdir(parents=True)
    (folder / "predictions.csv").write_text("file,label\n1.wav,007\n")
    results = {"clips": {"test": len(splits["test"])}, "metrics": {"test": {"accuracy": 0.5}}}
    (folder / "results.json").write_text(json.dumps(results))


def test_a_replaced_recording_and_a_lost_table_are_told(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "run", trained)
    clips = write_class_folders(tmp_path / "clips", 3)
    path, output = recipe(dataset_name=str(clips), eval_strategy="steps", load_best_model_at_end=False)
    words = [path, "--resume_from_checkpoint", "true"]
    assert train_hf.main(words) == 0 and train_hf.main(words) == 0
    (output / "seed-1-fold-2" / "predictions.csv").unlink()
    assert train_hf.main(words) == 1
    error = capsys.readouterr().err
    assert "predictions.csv" in error and f"remove {output}/seed-1-fold-2, which is then trained anew" in error
    write_tone(clips / "low" / "low_0.wav", hz=901)
    assert train_hf.main(words) == 1
    assert "cross_validation.json: was made with data.all.sha256" in capsys.readouterr().err
    stored = json.loads((output / "cross_validation.json").read_text())
    del stored["data"]  # an earlier version has stored none, and what it derived from the recipe
    assert stored["eval_steps"] is None
    stored["eval_steps"] = 500
    (output / "cross_validation.json").write_text(json.dumps(stored))
    shutil.rmtree(output / "seed-1-fold-2")
    assert train_hf.main(words) == 0


def test_overwriting_leaves_nothing_of_an_earlier_run(recipe, monkeypatch, capsys):
    monkeypatch.setattr(train, "run", trained)
    path, output = recipe()
    staging = output / "unfinished-outputs"
    staging.mkdir(parents=True)
    for folder in (output, staging):  # of a killed run
        (folder / "calibration.png").write_text("")
    (output / "mine.txt").write_text("")
    results = {"recipe": {"task": "classification"}}
    (output / "results.json").write_text(json.dumps(results))
    assert train_hf.main([path, "--overwrite", "true"]) == 1  # its model would stay
    assert "run: holds the run of another task; remove it, or choose" in capsys.readouterr().err
    assert json.loads((output / "results.json").read_text()) == results
    (output / "results.json").write_text("{}")
    assert train_hf.main([path, "--overwrite", "true"]) == 0
    written = {"results.json", "cross_validation.json", "cross_validation.csv", "predictions.csv", "mine.txt"}
    assert {path.name for path in output.iterdir() if path.is_file()} == written and not staging.exists()


def test_every_fold_is_of_one_kind(recipe, clips, tmp_path):
    """The only clip with two labels lies in one fold; the others still are several labels per clip."""
    files = sorted(clips.rglob("*.wav"))
    rows = [{"file_name": str(file), "label": [file.parent.name]} for file in files]
    rows[0]["label"] = ["high", "low"]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path, output = recipe(dataset_name=None, train_file=str(tmp_path / "clips.jsonl"), num_folds=3)
    assert train_hf.main([path]) == 0
    assert "mean_average_precision" in pandas.read_csv(output / "cross_validation.csv").columns


def test_a_metric_that_some_runs_lack_says_so_and_a_perfect_fold_counts():
    """AUC 1 and 0.9: d' is that of their mean, 0.95, and not the 1.81 of the second fold alone."""
    rows = [
        {"seed": 0, "fold": 1, "clips": 5, "mean_auc": 1.0, "d_prime": None, "r2": 0.5},
        {"seed": 0, "fold": 2, "clips": 5, "mean_auc": 0.9, "d_prime": 1.8124, "r2": 0.7},
    ]
    summary = summarise(pandas.DataFrame(rows))
    assert summary["runs"].to_dict() == {"mean_auc": 2, "d_prime": 1, "r2": 2}
    assert summary.loc["d_prime", "mean"] == pytest.approx(2**0.5 * norm.ppf(0.95))
    assert pandas.isna(summary.loc["d_prime", "standard_deviation"])
    assert summary.loc["r2", "mean"] == pytest.approx(0.6)
    assert "runs" not in summarise(pandas.DataFrame(rows).assign(d_prime=[2.0, 1.8]))
