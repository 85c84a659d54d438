"""Tests several processes and machines: configurations of Accelerate, two addresses, FSDP2."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fresh_process
import fsdp2_program
import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from audio_files import ROOT, free_port, write_class_folders
from tiny_models import save_tiny_classifier
from tiny_runs import TINY
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForAudioClassification

from modeling_dual_ssast import modeling_dual_ssast
from training.base.trainer import AudioTrainer

CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_the_configuration(path):
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "bf16" and config.use_cpu is False
    wrapped = (getattr(config, "fsdp_config", None) or {}).get("fsdp_transformer_layer_cls_to_wrap")
    assert wrapped is None or hasattr(modeling_dual_ssast, wrapped)
    assert f"--config_file recipes/accelerate/{path.name}" in path.read_text()


def start(words: list, **environment) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def start_alone(folder: Path, **settings) -> tuple[Path, subprocess.Popen]:
    """Writes a recipe of six steps, and starts its training in one process, into folder / one."""
    clips = write_class_folders(folder / "clips", 10)
    common = {
        "dataset_name": str(clips), "max_steps": 6, "logging_strategy": "steps", "logging_steps": 1,
        "save_strategy": "no", "use_cpu": True, "bf16": False,
    }  # fmt: skip
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps({**TINY, **common, **settings}))
    return recipe, start(["train_hf.py", recipe, "--output_dir", folder / "one"])


def assert_same_losses(folder: Path):
    losses = [
        [e["loss"] for e in json.loads((folder / name / "results.json").read_text())["log"] if "loss" in e]
        for name in ("one", "two")
    ]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(*losses, atol=1e-4)


@pytest.mark.slow
def test_two_machines_are_one_with_the_doubled_batch(tmp_path):
    """The README's command, once for each machine; the second one finds the first one by its address."""
    recipe, alone = start_alone(tmp_path, validation_fraction=0)
    assert alone.wait(timeout=300) == 0, alone.stdout.read()[-3000:]
    port = free_port()
    machines = [
        start(
            [
                "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/several_machines.yaml",
                "--machine_rank", rank, "--main_process_ip", "127.0.0.1", "--main_process_port", port,
                "--num_machines", 2, "--num_processes", 2, "--mixed_precision", "no", "--dynamo_backend", "no",
                "train_hf.py", recipe, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 2,
            ]
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(text[-2000:] for text in outputs)
    assert "everything is in" in outputs[0] and "everything is in" not in outputs[1]
    assert_same_losses(tmp_path)


@pytest.mark.slow
def test_fsdp2_trains_saves_and_loads(tmp_path):
    """Two processes hold half of the weights each; losses and weights are those of one, the folder an ordinary one."""
    model = save_tiny_classifier(tmp_path / "model")
    process = start(
        ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", free_port(),
         "tests/helpers/fsdp2_program.py", model, tmp_path / "out"],
        PYTHONPATH=str(ROOT),
    )  # fmt: skip
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-3000:]
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["share"] == pytest.approx(0.5, abs=0.05)
    whole = AutoModelForAudioClassification.from_pretrained(model).train()
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for clips, labels in fsdp2_program.batches():
        loss = whole(clips, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    np.testing.assert_allclose(run["losses"], losses, atol=1e-4)
    loaded = AutoModelForAudioClassification.from_pretrained(tmp_path / "out")
    for (name, one), (_, two) in zip(loaded.state_dict().items(), whole.state_dict().items()):
        torch.testing.assert_close(one, two, atol=2e-4, rtol=1e-3, msg=name)


def test_fsdp2_norms_are_checked_and_its_class_keeps_its_module(tmp_path, monkeypatch):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = AutoModelForAudioClassification.from_pretrained(save_tiny_classifier(tmp_path / "model")).train()
        fully_shard(model)
        clips, labels = next(fsdp2_program.batches())
        model(clips, labels=labels).loss.backward()
        trainer = object.__new__(AudioTrainer)
        trainer.model, trainer.is_fsdp_enabled, trainer._loss = model, True, torch.ones(1)
        trainer.args = SimpleNamespace(world_size=1)
        trainer.accelerator = SimpleNamespace(unwrap_model=lambda model, keep_torch_compile: model)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        monkeypatch.setattr("transformers.Trainer._get_grad_norm", lambda self, model, norm: norm)
        assert float(trainer._get_grad_norm(model, norm)) == pytest.approx(float(norm.full_tensor()))
        saved = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        monkeypatch.setattr(
            "transformers.Trainer._save",
            lambda self, folder, weights: model.save_pretrained(folder, state_dict=weights),
        )
        trainer._save(tmp_path / "out", saved)
        others = {"feature_extraction_dual_ssast.py"}
        assert {path.name for path in (tmp_path / "out").glob("*.py")} == fresh_process.SHIPPED - others
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_training_divided_by_fsdp2_is_that_of_one_process(tmp_path):
    """By the recipe's command; its folders carry the model's code, as those of other trainings do."""
    settings = {"max_length": 48, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 3, "save_steps": 3}
    recipe, alone = start_alone(tmp_path, **settings)
    divided = start(
        [
            "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/fsdp2.yaml", "--num_processes", 2,
            "--main_process_port", free_port(), "--mixed_precision", "no", "--dynamo_backend", "no",
            "tests/helpers/fsdp2_training.py", recipe, "--output_dir", tmp_path / "two",
            "--per_device_train_batch_size", 2,
        ],
        PYTHONPATH=str(ROOT),
    )  # fmt: skip
    outputs = [process.communicate(timeout=600)[0] for process in (alone, divided)]
    assert [alone.returncode, divided.returncode] == [0, 0], "\n".join(text[-2000:] for text in outputs)
    assert_same_losses(tmp_path)
    for folder in (tmp_path / "two", tmp_path / "two" / "checkpoint-6"):
        assert {path.name for path in folder.glob("*.py")} == fresh_process.SHIPPED
    loads = "model = load(AutoModelForAudioClassification, sys.argv[1])\nprint(type(model).__name__, model.num_labels)"
    assert "DualSSASTForAudioClassification 2" in fresh_process.run(loads, tmp_path, tmp_path / "two")
