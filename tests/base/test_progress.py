"""Tests the prints of a training: a table row per evaluation, one progress line, and one line after Ctrl-C."""

import json
import sys

import pytest
from audio_files import write_class_folders
from tiny_runs import TINY, write_recipe

import train_hf
from training.base import progress
from training.base.trainer import AudioTrainer


@pytest.fixture
def recipe(tmp_path):
    clips = write_class_folders(tmp_path / "clips", 10)
    return write_recipe(tmp_path, TINY | {"dataset_name": clips})[0]


def rows_of(output: str) -> list[list[str]]:
    """The table: its header, and the words of each row."""
    lines = output.splitlines()
    first = next(number for number, line in enumerate(lines) if line.strip().startswith("epoch"))
    assert lines[first].split("  ")[-1] == "macro f1"
    return [line.split() for line in lines[first + 1 :] if line.startswith("   ")]


def test_a_row_per_evaluation_and_no_dictionaries(recipe, tmp_path, capsys):
    assert train_hf.main([recipe]) == 0
    printed = capsys.readouterr()
    log = json.loads((tmp_path / "run" / "results.json").read_text())["log"]
    keys = ("eval_loss", "eval_accuracy", "eval_unweighted_average_recall", "eval_macro_f1")
    losses = [f"{entry['loss']:.4f}" for entry in log if "loss" in entry]
    evaluations = [[f"{entry[key]:.4f}" for key in keys] for entry in log if "eval_loss" in entry]
    assert rows_of(printed.out) == [[str(k + 1), losses[k], *evaluations[k]] for k in range(2)]
    assert "{" not in printed.out and "\r" not in printed.err and "model shards" not in printed.err


def test_without_evaluations_a_row_per_epoch(recipe, capsys):
    assert train_hf.main([recipe, "--eval_strategy", "no"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(number for number, line in enumerate(lines) if line.split() == ["epoch", "training", "loss"])
    assert [line.split()[0] for line in lines[header + 1 : header + 3]] == ["1", "2"]


def test_a_line_now_and_then_where_there_is_no_terminal(recipe, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    assert train_hf.main([recipe, "--disable_tqdm", "false"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert len(lines) == 6 and lines[0].startswith("step 1 of 6, ") and lines[5].startswith("step 6 of 6, ")
    assert "loss" not in lines[0] and ", loss " in lines[5] and lines[5].count(" left, ") == 1
    assert train_hf.main([recipe, "--overwrite", "true"]) == 0  # the recipe has disable_tqdm
    assert "step " not in capsys.readouterr().err


def test_one_bar_on_a_terminal(recipe, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert train_hf.main([recipe, "--disable_tqdm", "false"]) == 0
    printed = capsys.readouterr()
    assert len(rows_of(printed.out)) == 2
    assert "step 6 of 6, " in printed.err and "learning rate" in printed.err
    training = printed.err.rpartition("step 6 of 6")[0]
    assert "\n" not in training and "\x1b[A" not in training  # no second bar below the first


def test_ctrl_c_ends_with_one_line(recipe, tmp_path, capsys, monkeypatch):
    original = AudioTrainer._save_checkpoint

    def save_and_stop(self, *args):
        original(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(AudioTrainer, "_save_checkpoint", save_and_stop)
    assert train_hf.main([recipe]) == 130
    line = f"interrupted; {tmp_path / 'run' / 'checkpoint-3'} is kept; go on with --resume_from_checkpoint true"
    assert capsys.readouterr().err.strip().splitlines()[-1] == line
    monkeypatch.undo()
    assert train_hf.main([recipe, "--resume_from_checkpoint", "true"]) == 0


def test_ctrl_c_before_the_first_checkpoint(recipe, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(AudioTrainer, "train", stop)
    assert train_hf.main([recipe]) == 130
    assert capsys.readouterr().err.strip().endswith("holds no checkpoint yet; run the same command again")
