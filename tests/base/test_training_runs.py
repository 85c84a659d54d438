"""Tests benchmarks/training_runs.py: a finished run is used only for what it was made with."""

import json

import pytest
from benchmark_scripts import imported

RESULTS = {"metrics": {"test": {"accuracy": 0.5}}, "recipe": {"task": "classification"}}


@pytest.fixture
def runs(monkeypatch):
    """The module, whose runs write their results at once; `calls` has the words of each."""
    with imported("training_runs") as scripts:
        runs = scripts.training_runs
        runs.calls = []

        def run(words: list[str], file):
            folder = runs.Path(words[words.index("--output_dir") + 1])
            folder.mkdir(exist_ok=True)
            (folder / "results.json").write_text(json.dumps(RESULTS))
            runs.calls.append(words)

        monkeypatch.setattr(runs, "_run_here", run)
        yield runs


def test_a_finished_run_is_not_used_for_other_settings(runs, tmp_path):
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "runs" / "one"
    recipe.write_text("task: classification\nlearning_rate: 0.1\n")
    words = ["--num_train_epochs", 1, "--fusion_layers", 6, -1, "--learning_rate", 0.01]
    runs.train_here(folder, recipe, *words)
    runs.train_here(folder, recipe, *map(str, words))
    recipe.write_text("# A comment changes nothing, and the words replace the rate.\ntask: classification\n")
    runs.train_here(folder, recipe, *words)
    assert len(runs.calls) == 1
    with pytest.raises(SystemExit) as stopped:
        runs.train_here(folder, recipe, "--num_train_epochs", 20, *words[2:])
    end = "remove it or name another --output"
    assert str(stopped.value) == f"{folder}: was made with num_train_epochs 1, not 20: {end}"
    with pytest.raises(SystemExit, match="was made with learning_rate 0.01, not unset; fusion_layers 6 -1, not unset:"):
        runs.train_here(folder, recipe, *words[:2])
    recipe.write_text("task: probe\n")
    with pytest.raises(SystemExit, match="was made with task classification, not probe:"):
        runs.train_here(folder, recipe, *words)
    (folder / "results.json").unlink()  # not finished
    runs.train_here(folder, recipe, *words)
    runs.train_here(folder, recipe, *words)
    assert len(runs.calls) == 2


def test_a_run_without_its_words_is_unknown(runs, tmp_path):
    """Those of train_hf.py, with a recipe in their results, are of an earlier version of the benchmarks."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("task: classification\n")
    runs.train_here(tmp_path / "one", recipe)
    (tmp_path / "one.words.json").unlink()
    with pytest.raises(SystemExit, match=r"one: what .* is unknown \(one\.words\.json is missing\); remove it or name"):
        runs.train_here(tmp_path / "one", recipe)
