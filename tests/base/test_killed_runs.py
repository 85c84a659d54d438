"""Tests that a run killed repeatedly, also during a checkpoint, ends with the weights of an undisturbed one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from annotated_tones import write_annotated_tones
from audio_files import ROOT, write_class_folders
from safetensors.torch import load_file
from tiny_runs import TINY
from transformers.trainer_utils import get_last_checkpoint

from training.base.trainer import STAGING_NAME

KILLS = 10
PATIENCE_S = 120


def wait_for(condition, process, log):
    """Until it comes true, which must be before the process ends."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.0005)


def recordings_of(task: str, folder: Path) -> dict:
    """Returns the recipe's keys of a data set for the task, which it writes."""
    if task == "classification":
        return {"dataset_name": str(write_class_folders(folder / "clips", 16))}
    augmentation = {"time_shift_frames": 20, "time_mask_frames": 10, "gain_db": 6, "ema_decay": 0.9}
    return {"train_annotations": str(write_annotated_tones(folder / "tones"))} | augmentation


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "detection"])
def test_ten_kills_change_nothing(tmp_path, task):
    settings = {
        "task": task, **recordings_of(task, tmp_path), "num_train_epochs": 400, "max_steps": 240, "save_steps": 3,
        "save_total_limit": 2, "save_strategy": "steps", "eval_strategy": "no", "logging_strategy": "no",
        "frequency_mask_bins": 16, "mixup_rate": 0.5, "test_fraction": 0.1, "validation_fraction": 0,
    }  # fmt: skip
    settings["config_overrides"] = {**TINY["config_overrides"], "hidden_dropout_prob": 0.1}
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({**TINY, **settings}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}

    def start(folder, *words) -> subprocess.Popen:
        command = [sys.executable, "train_hf.py", recipe, "--output_dir", folder, *words]
        with open(tmp_path / "log.txt", "a") as log:
            return subprocess.Popen(
                list(map(str, command)), cwd=ROOT, env=environment, start_new_session=True, stdout=log, stderr=log
            )

    assert start(tmp_path / "whole").wait(timeout=300) == 0
    killed, rng, while_saving = tmp_path / "killed", random.Random(0), 0
    for attempt in range(KILLS):
        before = get_last_checkpoint(killed) if killed.exists() else None
        process = start(killed, "--resume_from_checkpoint", "true")
        # Progress first, or the run would never end.
        wait_for(
            lambda known=before: killed.exists() and get_last_checkpoint(killed) != known, process, tmp_path / "log.txt"
        )
        if attempt % 2:
            wait_for((killed / STAGING_NAME).exists, process, tmp_path / "log.txt")
            time.sleep(rng.uniform(0, 0.01))
        else:
            time.sleep(rng.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while_saving += (killed / STAGING_NAME).exists()
        last = get_last_checkpoint(killed)
        present = {path.name for path in (killed / last).iterdir()} if last else set()
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "config.json"} <= present
        load_file(os.path.join(last, "model.safetensors"))
        assert not (killed / "results.json").exists(), "too fast: nothing was left to kill"
    assert while_saving >= 2
    assert start(killed, "--resume_from_checkpoint", "true").wait(timeout=300) == 0
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", killed))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6)
