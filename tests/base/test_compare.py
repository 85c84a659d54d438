"""Tests training.compare: the clips that runs share, the statistics, and the tables."""

import json

import numpy as np
import pandas
import pytest
from audio_files import write_class_folders
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score
from tiny_models import save_tiny_classifier
from tiny_runs import TINY, train

from training import tasks
from training.base.paired_tests import NOT_TOLD_APART
from training.base.predictions import as_text, score_table
from training.classification.metrics import DIRECTIONS
from training.compare import __main__ as program
from training.compare import comparison
from training.compare import runs as reading
from training.data.labels import LabelSet
from training.embeddings import probe

SINGLE, MULTI, NUMBERS = "single_label_classification", "multi_label_classification", "regression"
CLASSES = ("a", "b,c", "007")


def write_run(folder, rows: list[dict], metric="accuracy", task="evaluation", split="test"):
    folder.mkdir(parents=True)
    pandas.DataFrame(rows).to_csv(folder / "predictions.csv", index=False)
    metrics = {"metric": metric} if task == "probe" else {"metrics": {split: {metric: 0.5}}}
    (folder / "results.json").write_text(json.dumps({"recipe": {"task": task}, **metrics}))
    return folder


def rows_of(predictions, labels, classes=CLASSES, prefix="clips/", **others) -> list[dict]:
    return [
        {"file": f"{prefix}{clip}.wav", "label": label, "prediction": prediction,
         **{f"probability_{name}": float(name == prediction) for name in classes}, **others}
        for clip, (prediction, label) in enumerate(zip(predictions, labels))
    ]  # fmt: skip


def guesses(num_clips: int, skill: float, seed: int, classes=CLASSES) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    labels = [classes[index] for index in np.random.default_rng(99).integers(len(classes), size=num_clips)]
    return [label if rng.random() < skill else classes[rng.integers(len(classes))] for label in labels], labels


def run(*words, status: int = 0, capsys=None) -> str:
    assert program.main([str(word) for word in words]) == status
    printed = capsys.readouterr()
    return printed.err if status else printed.out


# ---- statistics ----


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_comparison_is_scipys(tmp_path, seeds):
    """Score, difference, bootstrap and permutation of the accuracy; the score of several seeds is their mean."""
    folders, right = [], []
    for name, skill in (("one", 0.8), ("two", 0.5)):
        rows, own = [], []
        for seed in range(seeds):
            predictions, labels = guesses(50, skill, seed + 10 * len(folders))
            rows += rows_of(predictions, labels, seed=seed, fold=1)
            own.append(np.array(predictions) == np.array(labels))
        folders.append(write_run(tmp_path / name, rows, task="cross_validation"))
        right.append(np.mean(own, axis=0))
    runs = [reading.read_runs(folder, folder.name)[0] for folder in folders]
    found = comparison.compare(reading.align(runs), "accuracy", [(0, 1)])
    assert [row["accuracy"] for row in found["scores"]] == pytest.approx([own.mean() for own in right])
    assert [row["seeds"] for row in found["scores"]] == [seeds] * 2
    (row,) = found["differences"]
    assert row["difference"] == pytest.approx(right[0].mean() - right[1].mean()) and row["better"] == "one"
    expected = stats.permutation_test(
        right, lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=9999
    )
    assert row["p"] == row["p_holm"] == pytest.approx(expected.pvalue, abs=0.01)
    expected = stats.bootstrap(
        right, lambda x, y, axis: np.mean(x - y, axis=axis), paired=True, method="percentile", n_resamples=9999
    )
    assert (row["lower"], row["upper"]) == pytest.approx(tuple(expected.confidence_interval), abs=0.03)


def test_the_ranks_of_two_models_are_exchanged_and_not_their_scores():
    """A model whose scores are another's, on a different scale, is never told apart from it."""
    rng = np.random.default_rng(0)
    targets = (rng.random((40, 3)) < 0.4).astype(float)
    scores = 0.5 * targets + rng.random((40, 3))
    labels, clips = LabelSet(CLASSES, MULTI), [(str(clip), 0) for clip in range(40)]
    runs = [
        reading.Run(name, labels, clips, targets, {"": targets}, {"": own}, None)
        for name, own in (("plain", scores), ("sure", scores**9 / 1e3), ("other", rng.random((40, 3))))
    ]
    found = comparison.compare(runs, "mean_average_precision", [(0, 1), (0, 2)])
    expected = average_precision_score(targets, scores, average="macro")
    assert found["scores"][0]["mean_average_precision"] == pytest.approx(expected)
    same, other = found["differences"]
    assert same["p"] == 1 and same["difference"] == same["lower"] == same["upper"] == 0
    assert other["better"] == "plain" and same["better"] == NOT_TOLD_APART


def test_smaller_errors_are_better():
    targets = np.arange(30.0)
    rng = np.random.default_rng(0)
    clips = [(str(clip), 0) for clip in range(30)]
    runs = [
        reading.Run(name, LabelSet(("value",), NUMBERS), clips, targets, {"": targets + rng.normal(0, s, 30)}, {}, None)
        for name, s in (("rough", 5), ("exact", 0.5))
    ]
    (row,) = comparison.compare(runs, "mean_squared_error", [(0, 1)])["differences"]
    assert row["difference"] > 0 and row["better"] == "exact"


def test_clips_of_a_group_are_exchanged_together():
    """Four groups can be exchanged in 16 ways: two models that differ in all of them are not told apart."""
    targets, groups = np.zeros(80, dtype=int), np.repeat(list("abcd"), 20)
    clips = [(str(clip), 0) for clip in range(80)]
    labels = LabelSet(CLASSES, SINGLE)
    good, bad = np.zeros(80, dtype=int), np.ones(80, dtype=int)
    runs = [reading.Run(name, labels, clips, targets, {"": own}, {}, groups) for name, own in (("x", good), ("y", bad))]
    (row,) = comparison.compare(runs, "accuracy", [(0, 1)])["differences"]
    assert row["p"] == pytest.approx(2 / 16) and row["better"] == NOT_TOLD_APART
    runs[0].groups = runs[1].groups = None
    assert comparison.compare(runs, "accuracy", [(0, 1)])["differences"][0]["better"] == "x"


def test_a_single_group_proves_nothing(tmp_path, capsys, caplog):
    """Its clips are not independent: there are no intervals and no p-values, not those of single clips."""
    for name, skill in (("good", 1.0), ("bad", 0.2)):
        write_run(tmp_path / name, rows_of(*guesses(40, skill, 0), group="one speaker"))
    output = tmp_path / "out"
    printed = run(tmp_path / "good", tmp_path / "bad", "--output_dir", output, capsys=capsys)
    assert "all shared clips are of one group, one speaker (group in predictions.csv)" in caplog.text
    found = json.loads((output / "comparison.json").read_text())
    assert found["scores"][0]["accuracy"] == 1 and found["scores"][0]["lower"] is None
    (row,) = found["differences"]
    assert [row[key] for key in ("lower", "upper", "p", "p_holm")] == [None] * 4 and row["better"] == NOT_TOLD_APART
    assert found["resampled"] == "groups" and "nan" not in printed


@pytest.mark.slow
def test_equal_models_are_told_apart_as_often_as_the_level_says(monkeypatch):
    """1,000 pairs of the same skill: in 5 % at most, up to three standard deviations of that count."""
    monkeypatch.setattr(comparison, "NUM_PERMUTATIONS", 199)
    monkeypatch.setattr(comparison, "NUM_RESAMPLES", 1)
    rng, labels, clips = np.random.default_rng(0), LabelSet(("a", "b"), SINGLE), [(str(clip), 0) for clip in range(40)]
    apart = 0
    for seed in range(1000):
        targets, *pair = rng.integers(2, size=40), *(rng.random((2, 40)) < 0.3)
        runs = [reading.Run(str(wrong), labels, clips, targets, {"": targets ^ wrong}, {}, None) for wrong in pair]
        (row,) = comparison.compare(runs, "accuracy", [(0, 1)], seed)["differences"]
        apart += row["better"] != NOT_TOLD_APART
    assert 10 < apart <= 1000 * 0.05 + 3 * (1000 * 0.05 * 0.95) ** 0.5


def test_many_pairs_are_corrected(tmp_path):
    names = [f"run {index}" for index in range(6)]
    for index, name in enumerate(names):
        write_run(tmp_path / name, rows_of(*guesses(60, 0.9 if index == 0 else 0.55, index)))
    runs = [reading.read_runs(tmp_path / name, name)[0] for name in names]
    found = comparison.compare(runs, "accuracy", program.choose_pairs(runs, None))
    p, corrected = (np.array([row[key] for row in found["differences"]]) for key in ("p", "p_holm"))
    assert len(p) == 15 and (corrected >= p).all() and corrected[p.argmin()] == pytest.approx(15 * p.min())
    assert {row["better"] for row in found["differences"]} == {"run 0", NOT_TOLD_APART}
    assert len(program.choose_pairs(runs, "run 3")) == 5


def test_several_labels_per_clip_are_read_as_they_are_written(tmp_path):
    labels = LabelSet(CLASSES, MULTI)
    rng = np.random.default_rng(0)
    given = [[name for name in CLASSES if rng.random() < 0.5] for _ in range(20)]
    scores = rng.random((20, 3)).astype(np.float32)
    table = score_table([f"{clip}.wav" for clip in range(20)], labels, scores, [0.2, 0.5, 0.9])
    table.insert(1, "label", list(map(as_text, given)))
    write_run(tmp_path / "one", table.to_dict("records"), "mean_average_precision")
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    results["metrics"] = {"test": dict.fromkeys(DIRECTIONS[MULTI], 0.5)}  # as a classification: also a macro_f1
    (tmp_path / "one" / "results.json").write_text(json.dumps(results))
    (read,) = reading.read_runs(tmp_path / "one", "one")
    np.testing.assert_array_equal(read.targets, [[name in names for name in CLASSES] for names in given])
    np.testing.assert_array_equal(read.decisions[""], scores > [0.2, 0.5, 0.9])
    np.testing.assert_allclose(read.scores[""], scores, rtol=1e-6)
    (row, _) = comparison.compare([read, read], "micro_f1", [(0, 1)])["scores"]
    assert row["micro_f1"] == pytest.approx(f1_score(read.targets, scores > [0.2, 0.5, 0.9], average="micro"))


@pytest.mark.parametrize("task", ["evaluation", "probe"])
def test_the_baseline_is_named_as_its_run_is(tmp_path, capsys, monkeypatch, task):
    """By its folder, also where two have the same last name, or a probe has one method; and by its name."""
    own = {"method": "linear"} if task == "probe" else {}
    for name, seed in (("a/run", 0), ("b/run", 1), ("c/other", 2)):
        write_run(tmp_path / name, rows_of(*guesses(20, 0.7, seed), **own), task=task)
    shown = "a/run, linear" if task == "probe" else "a/run"
    monkeypatch.chdir(tmp_path)
    for baseline in ("a/run", "./a/run/", tmp_path / "a" / "run", "b/../a/run", shown):
        printed = run("a/run", "b/run", "c/other", "--baseline", baseline, capsys=capsys)
        rows = printed[printed.index("corrected for 2 pairs") :].splitlines()[2:]
        assert len(rows) == 2 and all(f"  {shown}  " in row for row in rows)
    line = run("a/run", "b/run", "--baseline", "elsewhere/run", status=1, capsys=capsys)
    assert "baseline: elsewhere/run is several runs; name one of them: a/run" in line
    if task == "probe":
        rows = [row | {"method": name} for name in ("linear", "mlp") for row in rows_of(*guesses(20, 0.7, 0))]
        write_run(tmp_path / "two", rows, task=task)
        line = run("two", "c/other", "--baseline", "two", status=1, capsys=capsys)
        assert "baseline: two is several runs; name one of them: two, linear; two, mlp" in line


# ---- which clips ----


@pytest.mark.parametrize(("prefix", "shared"), [("data/test/", 30), ("", 29)])
def test_clips_are_found_by_the_ends_of_their_paths(tmp_path, capsys, prefix, shared):
    """One path is the end of the other; not so if two clips of a run end like that."""
    rows = rows_of(*guesses(40, 0.7, 0), prefix=prefix)
    write_run(tmp_path / "one", rows)
    moved = [row | {"file": f"mnt/x/{row['file']}"} for row in np.random.default_rng(0).permutation(rows[:30])]
    write_run(tmp_path / "two", [*moved, rows[0] | {"file": "mnt/x/other/0.wav", "prediction": "007"}])
    out = run(tmp_path / "one", tmp_path / "two", capsys=capsys)
    assert f"accuracy on {shared} clips that all 2 runs have tested" in out and NOT_TOLD_APART in out
    first, second = reading.align([reading.read_runs(tmp_path / name, name)[0] for name in ("one", "two")])
    np.testing.assert_array_equal(first.decisions[""], second.decisions[""])


def test_what_is_left_out_is_said(tmp_path, caplog):
    write_run(tmp_path / "one", rows_of(*guesses(20, 0.7, 0)))
    rows = [row | {"seed": seed} for seed in (0, 1) for row in rows_of(*guesses(25, 0.7, seed))]
    write_run(tmp_path / "two", rows, task="cross_validation")
    runs = [reading.read_runs(tmp_path / name, name)[0] for name in ("one", "two")]
    assert [len(part.decisions) for part in reading.align(runs)] == [1, 1]
    assert "two: 5 of its 25 clips are left out, which another run has not tested" in caplog.text
    assert "two: 1 of its 2 seeds are left out" in caplog.text


def test_clips_of_one_name_count_if_all_runs_have_as_many(tmp_path):
    rows = rows_of(*guesses(12, 0.7, 0))
    for row in rows[:3]:
        row["file"] = "x.wav"
    for row in rows[3:5]:
        row["file"] = "y.wav"
    write_run(tmp_path / "one", rows)
    write_run(tmp_path / "two", [*rows[5:], *rows[:4]])
    runs = [reading.read_runs(tmp_path / name, name)[0] for name in ("one", "two")]
    first, second = reading.align(runs)
    assert len(first.clips) == 10 and first.clips[:3] == [("x.wav", 0), ("x.wav", 1), ("x.wav", 2)]
    np.testing.assert_array_equal(first.targets, second.targets)


def test_the_order_of_the_classes_does_not_matter(tmp_path):
    predictions, labels = guesses(20, 0.7, 0)
    write_run(tmp_path / "one", rows_of(predictions, labels))
    write_run(tmp_path / "two", rows_of(predictions, labels, classes=("b,c", "007", "a")))
    one, two = reading.align([reading.read_runs(tmp_path / name, name)[0] for name in ("one", "two")])
    np.testing.assert_array_equal(one.decisions[""], two.decisions[""])
    np.testing.assert_array_equal(one.targets, two.targets)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (
            lambda rows: [row | {"file": f"other/{row['file']}x"} for row in rows],
            "the runs have no test clip in common",
        ),
        (lambda rows: [row | {"label": "a"} for row in rows], r"two: \d+ of 20 shared clips have another label"),
        (lambda rows: [row | {"probability_d": 0.0} for row in rows], "two: is about a, b,c, 007, d, and one about a,"),
        (lambda rows: [row | {"prediction": "x"} for row in rows], "a clip: label 'x' is not in the label set"),
        (lambda rows: [{"file": "a"}], "is no table of predictions"),
        (lambda rows: pandas.DataFrame(rows)[:0], r"predictions.csv: is no table of predictions \(it has no rows\)"),
        (lambda rows: [row | {"seed": index % 2} for index, row in enumerate(rows)], "seed 1 has other clips"),
    ],
)
def test_other_clips_and_labels_are_refused(tmp_path, capsys, change, pattern):
    rows = rows_of(*guesses(20, 0.7, 0))
    write_run(tmp_path / "one", rows)
    write_run(tmp_path / "two", change(rows))
    error = run(tmp_path / "one", tmp_path / "two", status=1, capsys=capsys)
    assert pandas.Series([error]).str.contains(pattern).all(), error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ([], "usage: python -m training.compare RUN RUN"),
        (["one"], "is a single run; name two or more"),
        (["one", "two", "--metric", "accuracies"], "metric: 'accuracies' is unknown here; did you mean accuracy?"),
        (["one", "two", "--baseline", "three"], "baseline: three is no run"),
        (["one", "missing"], "missing: holds no results.json; name the output folder of a finished run"),
        (["one", "numbers"], "numbers: is about regression, and one about single_label_classification"),
        (["one", "sweep"], "sweep: its task sweep has left no predictions.csv"),
        (["one", "broken"], "results.json: is no record of a run"),
    ],
)
def test_bad_words_stop_with_one_line(tmp_path, capsys, monkeypatch, words, pattern):
    for name, seed in (("one", 0), ("two", 1)):
        write_run(tmp_path / name, rows_of(*guesses(20, 0.7, seed)))
    write_run(tmp_path / "numbers", [{"file": "0.wav", "label": 1.0, "prediction": 2.0, "value": 2.0}], "r2")
    write_run(tmp_path / "sweep", [], task="sweep")
    (tmp_path / "sweep" / "predictions.csv").unlink()
    write_run(tmp_path / "broken", [])
    (tmp_path / "broken" / "results.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    error = run(*words, status=1, capsys=capsys)
    assert pattern in error and error.startswith("error: ") and error.count("\n") == 1


# ---- outputs ----


@pytest.mark.figures
def test_tables_and_figure(tmp_path, capsys):
    for name, skill, seed in (("a_$x$ & <b>", 0.9, 0), ("b|c", 0.4, 1), ("deep/x", 0.5, 2), ("deeper/x", 0.5, 3)):
        write_run(tmp_path / name, rows_of(*guesses(60, skill, seed)), split="validation" if seed == 3 else "test")
    output = tmp_path / "out"
    names = [tmp_path / name for name in ("a_$x$ & <b>", "b|c", "deep/x", "deeper/x")]
    printed = run(*names, "--output-dir", output, "--figure_format", "pdf", capsys=capsys)
    assert "deep/x" in printed and "deeper/x" in printed and f"everything is in {output}" in printed
    files = {path.name for path in output.iterdir()}
    tables = {f"{name}.{ending}" for name in ("scores", "differences") for ending in ("csv", "md", "tex")}
    assert files == tables | {"comparison.json", "comparison.png", "comparison.pdf"}
    found = json.loads((output / "comparison.json").read_text())
    table = pandas.read_csv(output / "differences.csv")
    assert table["difference"].tolist() == [row["difference"] for row in found["differences"]] and len(table) == 6
    markdown, latex = ((output / f"differences.{ending}").read_text() for ending in ("md", "tex"))
    assert len(markdown.splitlines()) == 8 and "| b\\|c |" in markdown and "&lt;b" in markdown
    assert all(line.replace("\\|", "").count("|") == 9 for line in markdown.splitlines())
    assert "\\toprule" in latex and r"a\_\$x\$ \& <b>" in latex and "not told apart" in latex
    assert latex.count(r"\\") == 7


def test_real_runs_are_compared(tmp_path, capsys, monkeypatch):
    """A fine-tuning and a probe of the same data set, both with the test split of their recipe."""
    clips = write_class_folders(tmp_path / "clips", 12)
    tables = {}
    rows = [{"file_name": str(path), "label": path.parent.name} for path in sorted(clips.rglob("*.wav"))]
    for index, split in enumerate(("train", "validation", "test")):
        tables[f"{split}_file"] = str(tmp_path / f"{split}.csv")
        pandas.DataFrame([row | {"speaker": n // 2} for n, row in enumerate(rows[index::3])]).to_csv(
            tables[f"{split}_file"], index=False
        )
    recipe = TINY | tables | {"validation_fraction": 0, "test_fraction": 0, "group_column": "speaker"}
    recipe |= {"max_steps": 1, "report_clips": 0, "html_report": False, "output_dir": str(tmp_path / "tuned")}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    train(str(tmp_path / "recipe.json"))
    encoder = save_tiny_classifier(tmp_path / "model", initializer_range=0.2)
    words = {"task": "probe", "model_name_or_path": str(encoder), "output_dir": str(tmp_path / "probed"), **tables}
    words |= {"methods": ["linear", "neighbours"], "num_seeds": 2, "num_epochs": 5, "group_column": "speaker"}
    (tmp_path / "probe.json").write_text(json.dumps(words))
    probe.run(*tasks.parse([str(tmp_path / "probe.json")])[1:])
    output = tmp_path / "out"
    capsys.readouterr()
    printed = run(tmp_path / "tuned", tmp_path / "probed", "--output_dir", output, capsys=capsys)
    found = json.loads((output / "comparison.json").read_text())
    assert [row["run"] for row in found["scores"]] == ["tuned", "probed, linear", "probed, neighbours"]
    tuned, probed = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("tuned", "probed"))
    assert found["scores"][0]["accuracy"] == pytest.approx(tuned["metrics"]["test"]["accuracy"])
    summary = {row["method"]: row["test"] for row in probed["summary"]}
    assert found["scores"][2]["accuracy"] == pytest.approx(summary["neighbours"])
    assert found["clips"] == 8 and found["resampled"] == "groups" and "accuracy on 8 clips" in printed


# ---- runs of several seeds ----


def test_runs_in_folders_of_seeds_are_one_run(tmp_path, capsys):
    """They give the numbers of one table with all seeds, in the order of their numbers and not of their names."""
    seeds, joined = (2, 10), []
    for seed in seeds:
        predictions, labels = guesses(40, 0.7, seed)
        rows = rows_of(predictions, labels)
        write_run(tmp_path / "apart" / f"seed-{seed}", rows[::-1] if seed == 2 else rows)
        joined += [row | {"seed": seed, "fold": 1} for row in rows]
    write_run(tmp_path / "together", joined, task="cross_validation")
    others = [row | {"seed": seed, "fold": 1} for seed in seeds for row in rows_of(*guesses(40, 0.4, seed + 1))]
    write_run(tmp_path / "other", others, task="cross_validation")
    (tmp_path / "apart" / "seed-2.log").write_text("what the training printed")
    (run_of_seeds,) = reading.read_runs(tmp_path / "apart", "apart")
    assert list(run_of_seeds.decisions) == ["seed-2", "seed-10"]
    run(*(tmp_path / name for name in ("apart", "together", "other")), "--output_dir", tmp_path / "out", capsys=capsys)
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    first, second = ({key: value for key, value in row.items() if key != "run"} for row in found["scores"][:2])
    assert first == second and first["seeds"] == 2 and first["deviation_of_seeds"] > 0
    rows = {(row["first"], row["second"]): row["p"] for row in found["differences"]}
    assert rows[("apart", "other")] == rows[("together", "other")]


def test_seeds_of_other_clips_and_several_runs_are_refused(tmp_path, capsys):
    write_run(tmp_path / "apart" / "seed-0", rows_of(*guesses(20, 0.7, 0)))
    write_run(tmp_path / "apart" / "seed-1", rows_of(*guesses(21, 0.7, 1)))
    line = run(tmp_path / "apart", tmp_path / "apart", status=1, capsys=capsys)
    assert "seed-0 and seed-1 have tested different clips" in line
    rows = [row | {"seed": seed, "fold": 1} for seed in range(2) for row in rows_of(*guesses(20, 0.7, seed))]
    write_run(tmp_path / "nested" / "seed-0", rows, task="cross_validation")
    assert "holds several runs" in run(tmp_path / "nested", status=1, capsys=capsys)


def test_unfinished_seeds_are_left_out_and_named(tmp_path, capsys, caplog):
    write_run(tmp_path / "apart" / "seed-0", rows_of(*guesses(20, 0.7, 0)))
    (write_run(tmp_path / "apart" / "seed-1", rows_of(*guesses(20, 0.7, 1))) / "results.json").unlink()
    (found,) = reading.read_runs(tmp_path / "apart", "apart")
    assert list(found.decisions) == ["seed-0"]
    assert "1 of its 2 seeds are left out, which are not finished" in caplog.text
    (tmp_path / "apart" / "seed-0" / "results.json").unlink()
    assert "apart: holds no results.json" in run(tmp_path / "apart", status=1, capsys=capsys)
