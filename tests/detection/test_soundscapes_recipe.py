"""Tests recipes/soundscapes.yaml: a shorter training finds the events of unseen clips."""

import json

import pytest
from audio_files import run_program

from training.prepare.soundscapes import program


@pytest.mark.slow
def test_a_short_training_finds_events_in_unseen_clips(tmp_path):
    mixtures, output = tmp_path / "mixtures", tmp_path / "run"
    program(["--output", str(mixtures), "--recordings", "100"])
    words = ("--train_annotations", mixtures, "--output_dir", output, "--num_train_epochs", "12")
    process = run_program("train_hf.py", "recipes/soundscapes.yaml", *words, timeout=1500)
    assert process.returncode == 0, process.stderr[-3000:]
    metrics = json.loads((output / "results.json").read_text())["metrics"]["test"]
    print(metrics)
    assert metrics["event_f1_micro"] >= 0.6 and metrics["psds1"] >= 0.45
