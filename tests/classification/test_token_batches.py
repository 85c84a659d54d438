"""Tests batches by tokens: bounded, every clip once, the same in every process, and each clip of the same weight."""

import json
import shutil
import types

import accelerate
import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from audio_files import launch, write_tone
from safetensors.torch import load_file
from tiny_runs import TINY, train

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor
from training.classification.arguments import TuningArguments
from training.classification.samplers import make_sampler
from training.classification.token_batches import TokenBatches, clip_tokens
from training.data.labels import LabelSet
from training.errors import InputError

LABELS = LabelSet(("a", "b"), "single_label_classification")


def batches(tokens, budget: int, epoch: int = 0, seed: int = 0, multiple: int = 1) -> TokenBatches:
    return TokenBatches(list(tokens), budget, seed, torch.tensor([epoch]), multiple)


@pytest.mark.parametrize("seed", range(20))
def test_batches_hold_every_clip_once_and_never_more_than_the_budget(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 200, size=rng.integers(40, 400))
    budget, multiple = int(tokens.max() * rng.uniform(2, 8)), int(rng.integers(1, 4))
    counts = set()
    for epoch in range(4):
        drawn = batches(tokens, budget, epoch, seed, multiple)
        found = list(drawn)
        assert sorted(index for batch in found for index in batch) == list(range(len(tokens)))
        assert all(0 < tokens[batch].sum() <= budget for batch in found)
        assert len(found) == len(drawn) and len(found) % multiple == 0
        counts.add(len(found))
    assert len(counts) == 1  # Trainer computes the number of steps once


def test_an_epoch_depends_on_seed_and_epoch_alone():
    tokens = np.random.default_rng(0).integers(1, 50, size=100)
    orders = [list(batches(tokens, 200, epoch, seed)) for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    torch.rand(3)  # the global generators do not matter
    assert list(batches(tokens, 200)) == orders[0]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_get_the_same_number_of_different_batches(processes):
    tokens = np.random.default_rng(1).integers(1, 50, size=100)
    whole = list(batches(tokens, 200, multiple=processes))
    shares = [
        list(BatchSamplerShard(batches(tokens, 200, multiple=processes), processes, index))
        for index in range(processes)
    ]
    assert {len(share) for share in shares} == {len(whole) // processes}
    assert [batch for step in zip(*shares) for batch in step] == whole


def test_a_resumed_epoch_goes_on_with_the_next_batch():
    tokens = np.random.default_rng(1).integers(1, 50, size=60)
    loader = torch.utils.data.DataLoader(range(60), batch_sampler=batches(tokens, 200), collate_fn=list)
    assert list(accelerate.skip_first_batches(loader, 3)) == list(loader)[3:]


def test_tokens_are_those_of_the_model():
    extractor = DualSSASTFeatureExtractor(max_length=100)
    config = DualSSASTConfig(frequency_stride=10, time_stride=10, max_length=100)
    lengths = [1, 399, 400, 8000, 16000, 10**6]
    dataset = types.SimpleNamespace(
        feature_extractor=extractor, num_samples=lambda: [min(length, extractor.max_samples) for length in lengths]
    )
    frames = [extractor(np.ones(length, np.float32), sampling_rate=16000)["input_values"][0] for length in lengths]
    expected = [2 + 12 * config.num_columns(len(clip)) for clip in frames]
    assert clip_tokens(dataset, config) == expected
    config.attention_over_padding = True
    assert clip_tokens(dataset, config) == [2 + config.num_patches] * 6


@pytest.mark.parametrize(
    ("strategy", "budget", "config", "pattern"),
    [
        ("token_budget", None, DualSSASTConfig(), "tokens_per_batch: train_sampling_strategy token_budget needs it"),
        ("random", 500, DualSSASTConfig(), "tokens_per_batch: has no effect unless train_sampling_strategy is token_b"),
        ("token_budget", 500, types.SimpleNamespace(model_type="vggish"), "a vggish model has no tokens; set random"),
    ],
)
def test_settings_that_do_not_fit_are_refused(strategy, budget, config, pattern):
    arguments = types.SimpleNamespace(
        train_sampling_strategy=strategy, tokens_per_batch=budget, seed=0, data_seed=None, world_size=1,
        gradient_accumulation_steps=1,
    )  # fmt: skip
    with pytest.raises(InputError, match=pattern):
        make_sampler(TuningArguments(), LABELS, None, arguments, config)
    if strategy == "token_budget":
        with pytest.raises(InputError, match="balanced draws by chance, but train_sampling_strategy is token_budget"):
            make_sampler(TuningArguments(sampler="balanced"), LABELS, None, arguments, config)


def test_budgets_that_do_not_fit_the_clips_are_refused():
    with pytest.raises(InputError, match="tokens_per_batch: must be at least 100, twice the longest .* got 99"):
        batches([50, 10, 20], 99)
    with pytest.raises(InputError, match="gradient_accumulation_steps: 3 training clips are too few for 8 batches a"):
        batches([50, 10, 20], 100, multiple=8)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Clips of 0.1 to 0.3 s: batches of the same tokens hold different numbers of them."""
    folder = tmp_path_factory.mktemp("clips")
    rows = ["file_name,label,split"]
    for index in range(24):
        name = f"{index}.wav"
        write_tone(folder / name, seconds=0.1 + 0.2 * (index % 5) / 4, hz=300.0 + 40 * index)
        rows.append(f"{name},{'ab'[index % 2]},{'train' if index < 20 else 'test'}")
    for split in ("train", "test"):
        lines = [rows[0], *(row for row in rows if row.endswith(split))]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_recipe(table, folder, name: str, **settings) -> str:
    """Writes a recipe of plain gradient descent, whose steps are linear in the gradients."""
    output = folder / name
    values = TINY | {
        "task": "classification", "train_file": str(table / "train.csv"), "test_file": str(table / "test.csv"),
        "validation_fraction": None, "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0, "num_train_epochs": 2,
        "lr_scheduler_type": "constant", "html_report": False, "open_set": False, "load_best_model_at_end": False,
        "train_sampling_strategy": "token_budget", "tokens_per_batch": 72, "output_dir": str(output),
    }  # fmt: skip
    del values["test_fraction"]
    path = folder / f"{name}.json"
    path.write_text(json.dumps(values | settings))
    return str(path)


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def assert_close(found: dict, expected: dict):
    """Weights are around 1, and a few steps add hundreds of rounding errors of 6e-8."""
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0)


def test_every_clip_has_the_same_weight_in_a_step(table, tmp_path):
    """One step over all clips in several batches of tokens, of different numbers of clips: that of one batch."""
    one = {"train_sampling_strategy": "random", "tokens_per_batch": None, "per_device_train_batch_size": 20}
    train(write_recipe(table, tmp_path, "one", num_train_epochs=1, **one))
    train(write_recipe(table, tmp_path, "budget", num_train_epochs=1, gradient_accumulation_steps=9))
    for name in ("one", "budget"):
        assert (tmp_path / name / "checkpoint-1").is_dir()  # a single step
    assert_close(weights_of(tmp_path / "budget"), weights_of(tmp_path / "one"))


def test_a_run_that_is_resumed_in_an_epoch_gives_the_same_weights(table, tmp_path):
    settings = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 9}
    train(write_recipe(table, tmp_path, "whole", **settings))
    state = json.loads((tmp_path / "whole" / "checkpoint-2" / "trainer_state.json").read_text())
    assert 0 < state["epoch"] < 1
    resumed = write_recipe(table, tmp_path, "resumed", **settings, resume_from_checkpoint="true")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    train(resumed)
    for name, weight in weights_of(tmp_path / "whole").items():
        assert torch.equal(weights_of(tmp_path / "resumed")[name], weight), name


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(table, tmp_path):
    one = write_recipe(table, tmp_path, "one", gradient_accumulation_steps=8, use_cpu=True)
    two = write_recipe(table, tmp_path, "two", gradient_accumulation_steps=4, use_cpu=True)
    for num_processes, path in (1, one), (2, two):
        finished = launch(num_processes, "train_hf.py", path)
        assert finished.returncode == 0, finished.stderr
    assert_close(weights_of(tmp_path / "two"), weights_of(tmp_path / "one"))
