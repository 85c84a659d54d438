"""Tests tuning and its trainer: frozen parts, merged adapters, weight averages, resumption."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from audio_files import launch, write_class_folders
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import TINY, save_tiny_classifier, save_tiny_cnn
from tiny_runs import write_recipe
from transformers import AutoConfig, AutoModelForAudioClassification

from modeling_dual_ssast import DualSSASTConfig, DualSSASTForAudioClassification
from training import tasks
from training.base.tuning import count_parameters, encoder_stages, portable_name, prepare, rate_scales
from training.classification import train as classification
from training.classification.arguments import TuningArguments
from training.classification.trainer import ClassificationTrainer
from training.errors import InputError

EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 20, "load_best_model_at_end": False}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("clips"), 10, seconds=0.4)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Models with three classes, where the clips have two."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "dual_ssast": save_tiny_classifier(folder / "dual_ssast", attention_probs_dropout_prob=0.1),
        "vggish": save_tiny_cnn(folder / "vggish", "vggish"),
        "panns_cnn14": save_tiny_cnn(folder / "panns_cnn14", "panns_cnn14"),
    }


@pytest.fixture
def recipe(clips, checkpoints, tmp_path):
    """Writes a recipe and returns its path and its output folder."""
    settings = {
        "dataset_name": clips, "num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
        "weight_decay": 0.0, "disable_tqdm": True, "validation_fraction": 0.2, "test_fraction": 0.2,
        "html_report": False, "seed": 1,
    }  # fmt: skip
    return lambda name="run", model="dual_ssast", **values: write_recipe(
        tmp_path, settings | {"model_name_or_path": checkpoints[model]} | values, name
    )


@pytest.fixture
def train(recipe):
    def run(*names, **values):
        path, output = recipe(*names, **values)
        classification.run(*tasks.parse([path])[1:])
        return output

    return run


def moved(before, after) -> set[str]:
    """Names of the weights that differ between two folders."""
    before, after = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    return {name for name, value in after.items() if name not in before or not torch.equal(before[name], value)}


def tuned(**settings) -> tuple[DualSSASTForAudioClassification, TuningArguments]:
    config = DualSSASTConfig(**TINY | {"num_hidden_layers": 4}, fusion="weighted")
    return DualSSASTForAudioClassification(config), TuningArguments(**settings)


def test_frozen_blocks_stay_and_the_others_move(train, checkpoints):
    names = moved(checkpoints["dual_ssast"], train(freeze_layers=1))
    assert not any(name.startswith(("dual_ssast.embeddings.", "dual_ssast.layers.0.")) for name in names)
    for part in (
        "dual_ssast.layers.1.attention.q_proj.weight",
        "dual_ssast.layernorm.weight",
        "classifier.dense.weight",
    ):
        assert part in names


def test_a_linear_probe_trains_the_classifier_and_the_fusion(train, checkpoints):
    output = train(freeze_encoder=True, fusion="weighted")
    names = moved(checkpoints["dual_ssast"], output)
    assert names == {
        "classifier.dense.weight", "classifier.dense.bias", "classifier.layernorm.weight", "classifier.layernorm.bias",
        "dual_ssast.fusion.fusion.layer_weights",
    }  # fmt: skip
    training = json.loads((output / "results.json").read_text())["training"]
    assert training["trainable_parameters"] == 16 * 2 + 2 + 16 * 2 + 2
    model = AutoModelForAudioClassification.from_pretrained(output)
    assert training["parameters"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "settings", "learned"),
    [
        (
            "dual_ssast",
            {"pooling": ["std", "attention"], "fusion": "gated", "head_learning_rate": 0.1},
            {"dual_ssast.fusion.attention.0.pooling_query", "dual_ssast.fusion.fusion.layer_weights"},
        ),
        ("dual_ssast", {"classifier": "prototypes", "binary_prototypes": True}, {"classifier.prototypes"}),
        ("vggish", {"pooling": ["attention"], "num_pooling_heads": 1}, {"vggish.attention.pooling_query"}),
        ("panns_cnn14", {"classifier": "prototypes"}, {"composed_classifier.prototypes"}),
    ],
)
@pytest.mark.parametrize("tuning", [{"freeze_encoder": True}, {"lora_rank": 2}])
def test_what_is_learned_of_a_readout_is_trained_beside_a_frozen_encoder(
    train, checkpoints, model, settings, learned, tuning
):
    output = train("run", model, max_steps=4, **settings, **tuning)
    names = moved(checkpoints[model], output)
    assert learned <= names
    adapted = tuple(f"{module}.weight" for module in lora_targets_of(output)) if "lora_rank" in tuning else ()
    heads = ("classifier", "composed_classifier", "dual_ssast.fusion.", "vggish.attention.")
    assert all(name in adapted or name.startswith(heads) for name in names)


def lora_targets_of(folder) -> list[str]:
    return json.loads((folder / "adapter" / "adapter_config.json").read_text())["target_modules"]


@pytest.mark.parametrize("settings", [{"freeze_encoder": True}, {"lora_rank": 2}, {"freeze_layers": 2}])
def test_frozen_batch_norms_keep_their_statistics(train, checkpoints, settings):
    names = moved(checkpoints["panns_cnn14"], train("run", "panns_cnn14", **settings))
    is_kept = ("blocks.0.", "blocks.1.", "bn0.") if "freeze_layers" in settings else ("",)
    kept = {name for name in names if "bn" in name and any(part in name for part in is_kept)}
    assert not kept
    if "freeze_layers" in settings:
        assert "panns_cnn14.blocks.2.bn1.running_mean" in names


def test_frozen_parts_have_no_dropout(clips, checkpoints, train, monkeypatch):
    modes = {}
    original = ClassificationTrainer.compute_loss

    def compute_loss(self, model, *rest, **kwargs):
        loss = original(self, model, *rest, **kwargs)
        if model.training:
            modes.update({name: module.training for name, module in model.named_modules()})
        return loss

    monkeypatch.setattr(ClassificationTrainer, "compute_loss", compute_loss)
    train(freeze_layers=1, max_steps=2)
    dropout = "dual_ssast.layers.{}.dropout"
    assert not modes[dropout.format(0)] and modes[dropout.format(1)] and modes["classifier.dropout"]


def test_layer_decay_is_beits(train, monkeypatch):
    """decay ** (blocks + 1 - number), the embedding being number 0; the last norm and the head have the full rate."""
    model, _ = tuned()
    scales = rate_scales(model, 0.5)
    found = {name: scales.get(id(parameter), 1.0) for name, parameter in model.named_parameters()}
    for name, scale in found.items():
        parts = name.split(".")
        number = 0 if parts[1] == "embeddings" else int(parts[2]) + 1 if parts[1] == "layers" else 5
        assert scale == 0.5 ** (5 - number), name
    groups = []
    monkeypatch.setattr(
        ClassificationTrainer,
        "create_scheduler",
        lambda self, *args, **kwargs: (
            groups.extend((group["lr"], len(group["params"])) for group in self.optimizer.param_groups),
            super(ClassificationTrainer, self).create_scheduler(*args, **kwargs),
        ),
    )
    train(layer_decay=0.5, head_learning_rate=1.0, learning_rate=1e-3, max_steps=1)
    assert {rate for rate, _ in groups} == {1.0, 1e-3, 1e-3 * 0.5, 1e-3 * 0.25, 1e-3 * 0.125}
    assert groups[0][0] == 1e-3  # what the log calls the learning rate


def test_the_blocks_of_every_encoder(checkpoints):
    for name, count in (("dual_ssast", 2), ("vggish", 9), ("panns_cnn14", 6)):
        model = AutoModelForAudioClassification.from_pretrained(checkpoints[name])
        stages = encoder_stages(model.base_model)
        in_use = [parameter for parameter in model.base_model.parameters() if parameter.requires_grad]
        assert len(stages) <= count + 1
        found = {id(parameter) for stage in stages for parameter in stage.parameters()}
        norm = {
            id(parameter) for parameter in getattr(model.base_model, "layernorm", torch.nn.Sequential()).parameters()
        }
        assert {id(parameter) for parameter in in_use} == found | norm


@pytest.mark.slow
@pytest.mark.parametrize("model", ["dual_ssast", "vggish", "panns_cnn14"])
def test_the_merged_model_is_the_base_with_its_adapter(train, checkpoints, model, monkeypatch):
    """Both ways to the adapter give the merged model's logits, and only what is adapted or new has moved."""
    other = {"fusion": "weighted", "max_length": 48, "time_stride": 8} if model == "dual_ssast" else {}
    output = train("run", model, lora_rank=2, lora_dropout=0.1, **other)
    assert sorted(path.name for path in (output / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    merged, config = AutoModelForAudioClassification.from_pretrained(output), AutoConfig.from_pretrained(output)
    base = AutoModelForAudioClassification.from_pretrained(
        checkpoints[model], config=config, ignore_mismatched_sizes=True
    )
    before = {name: value.clone() for name, value in base.state_dict().items()}
    values = torch.randn(3, 48, config.num_mel_bins, generator=torch.Generator().manual_seed(0))
    adapted = PeftModel.from_pretrained(base, output / "adapter")
    stored = json.loads((output / "adapter" / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == checkpoints[model].name  # an absolute path, cut
    monkeypatch.chdir(checkpoints[model].parent)
    automatic = AutoModelForAudioClassification.from_pretrained(
        output / "adapter", config=AutoConfig.from_pretrained(output), ignore_mismatched_sizes=True
    )
    with torch.no_grad():
        expected = merged.eval()(values).logits
        for other_model in (adapted, automatic):
            torch.testing.assert_close(other_model.eval()(values).logits, expected, atol=1e-5, rtol=1e-5)
    targets = {f"{name}.weight" for name in stored["target_modules"]}
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(before[name], value)}
    assert changed >= targets
    assert all(
        name.startswith(("classifier", "composed_classifier", "dual_ssast.fusion")) for name in changed - targets
    )
    results = json.loads((output / "results.json").read_text())["training"]
    assert results["parameters"] == sum(parameter.numel() for parameter in merged.parameters())
    assert (
        results["trainable_parameters"]
        == count_parameters(prepare(base_again(checkpoints[model], config), lora(2)))["trainable_parameters"]
    )
    train("run", model, freeze_encoder=True, overwrite=True, max_steps=1, save_strategy="no")
    assert not (output / "adapter").exists()


def base_again(folder, config):
    return AutoModelForAudioClassification.from_pretrained(folder, config=config, ignore_mismatched_sizes=True)


def lora(rank: int) -> TuningArguments:
    return TuningArguments(lora_rank=rank)


@pytest.mark.slow
def test_the_merged_folder_needs_neither_peft_nor_this_project(train, tmp_path):
    output = train(lora_rank=2)
    program = f"""
import sys
sys.modules["peft"] = None
sys.path = [path for path in sys.path if path]
sys.modules["modeling_dual_ssast"] = None
import torch
from transformers import AutoModelForAudioClassification
model = AutoModelForAudioClassification.from_pretrained({str(output)!r}, trust_remote_code=True).eval()
assert "transformers_modules" in type(model).__module__
print(model(torch.ones(1, 48, 128)).logits.tolist()[0])
"""
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-2000:]
    model = AutoModelForAudioClassification.from_pretrained(output).eval()
    with torch.no_grad():
        expected = model(torch.ones(1, 48, 128)).logits[0]
    np.testing.assert_allclose(json.loads(process.stdout.splitlines()[-1]), expected, atol=1e-5)


def test_lora_adapts_what_it_is_told_to_above_the_frozen_blocks():
    for settings, expected in (
        ({}, [f"layers.{block}.attention.{name}" for block in range(4) for name in ("q_proj", "v_proj")]),
        ({"freeze_layers": 3, "lora_target_modules": ["fc1"]}, ["layers.3.mlp.fc1"]),
        (
            {"freeze_layers": 3, "lora_target_modules": ["mlp.fc1", "o_proj"]},
            ["layers.3.attention.o_proj", "layers.3.mlp.fc1"],
        ),
    ):
        model, tuning = tuned(lora_rank=2, **settings)
        model.name_or_path = "folder/base"
        config = prepare(model, tuning).peft_config["default"]
        assert config.target_modules == [f"dual_ssast.{name}" for name in expected]
        assert config.base_model_name_or_path == "folder/base"


def test_names_of_models_hold_no_path_of_a_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert portable_name("user/model") == "user/model" and portable_name("runs/model") == "runs/model"
    assert portable_name(str(tmp_path / "runs" / "model")) == "runs/model"
    assert portable_name(str(tmp_path.parent / "elsewhere" / "model")) == "model"


def test_the_average_is_the_average(train):
    """Compares with the checkpoints' weights after every step; evaluations and the final model have the average."""
    output = train(**EVERY_STEP, ema_decay=0.75, num_train_epochs=2, eval_strategy="steps", eval_steps=1)
    average = None
    for step in range(1, 7):
        folder = output / f"checkpoint-{step}"
        weights, stored = load_file(folder / "trained_weights.safetensors"), load_file(folder / "model.safetensors")
        if average is None:
            average = weights
        average = {name: 0.75 * average[name] + 0.25 * value for name, value in weights.items()}
        for name, value in average.items():
            torch.testing.assert_close(stored[name], value, atol=1e-6, rtol=1e-5)
    final = load_file(output / "model.safetensors")
    assert all(torch.equal(final[name], value) for name, value in stored.items())
    assert not torch.equal(final["classifier.dense.weight"], weights["classifier.dense.weight"])
    results = json.loads((output / "results.json").read_text())
    evaluated = [entry["eval_loss"] for entry in results["log"] if "eval_loss" in entry]
    assert evaluated[-1] == pytest.approx(results["metrics"]["validation"]["loss"], abs=1e-6)


def test_the_mean_is_of_the_ends_of_epochs(train):
    """Averages the second and third of three epochs of three steps; before, the weights are the trained ones."""
    output = train(**EVERY_STEP, model="panns_cnn14", average_from_epoch=2)
    trained, stored = [
        {step: load_file(output / f"checkpoint-{step}" / name) for step in range(1, 10)}
        for name in ("trained_weights.safetensors", "model.safetensors")
    ]
    for step, weights in trained.items():
        ends = [trained[end] for end in (6, 9) if end <= step] or [weights]
        for name, value in weights.items():
            if value.is_floating_point():
                expected = torch.stack([end[name] for end in ends]).mean(dim=0)
                torch.testing.assert_close(stored[step][name], expected, atol=1e-6, rtol=1e-5)
    final = load_file(output / "model.safetensors")
    assert all(torch.equal(final[name], value) for name, value in stored[9].items())
    assert any(not torch.equal(final[name], value) for name, value in trained[9].items())


def test_the_rate_is_lowered_epoch_by_epoch(train):
    """SSAST's schedule: MultiStepLR with the milestones lr_decay_start, lr_decay_start + lr_decay_every, ..."""
    schedule = {"lr_scheduler_type": "constant_with_warmup", "lr_decay": 0.5, "lr_decay_start": 2, "lr_decay_every": 2}
    settings = {"num_train_epochs": 7, "warmup_steps": 2, "logging_strategy": "steps", "logging_steps": 1}
    output = train(**settings, **schedule, save_strategy="no", eval_strategy="no", head_learning_rate=2e-2)
    log = json.loads((output / "results.json").read_text())["log"]
    rates = {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry}
    parameter = torch.nn.Parameter(torch.zeros(1))
    reference = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([parameter], 1e-2), [2, 4, 6], gamma=0.5)
    for epoch in range(7):
        for step in range(3 * epoch + 1, 3 * epoch + 4):
            warmup = min((step - 1) / 2, 1)
            assert rates[step] == pytest.approx(reference.get_last_lr()[0] * warmup)
        reference.optimizer.step()
        reference.step()


def test_the_best_average_is_kept(train):
    output = train(ema_decay=0.5, num_train_epochs=4, learning_rate=0.05, metric_for_best_model="loss")
    state = json.loads((output / "checkpoint-12" / "trainer_state.json").read_text())
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert state["best_metric"] == min(losses)
    results = json.loads((output / "results.json").read_text())
    assert results["metrics"]["validation"]["loss"] == pytest.approx(min(losses), abs=1e-6)
    best = load_file(output / f"checkpoint-{state['best_global_step']}" / "model.safetensors")
    final = load_file(output / "model.safetensors")
    assert all(torch.equal(best[name], value) for name, value in final.items())


RESUMED = {
    "average": {"ema_decay": 0.8},
    "mean": {"average_from_epoch": 1, "lr_scheduler_type": "constant", "lr_decay": 0.5},
    "lora": {"lora_rank": 2, "lora_dropout": 0.2, "ema_decay": 0.8},
    "probe": {"freeze_encoder": True, "fusion": "weighted"},
    "decay": {"layer_decay": 0.7, "freeze_layers": 1, "head_learning_rate": 2e-2},
    "order": {"sampler": "balanced", "train_sampling_strategy": "group_by_length", "loss": "focal", "mixup_rate": 0.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RESUMED)
def test_a_resumed_run_ends_with_the_same_weights(train, kind):
    """From the middle of the second epoch, with another number of workers where the order is what matters."""
    whole = train("whole", **EVERY_STEP, **RESUMED[kind])
    resumed = whole.parent / "resumed"
    shutil.copytree(whole / "checkpoint-4", resumed / "checkpoint-4")
    workers = {"dataloader_num_workers": 1} if kind == "order" else {}
    train("resumed", **EVERY_STEP, **RESUMED[kind], **workers, resume_from_checkpoint=True)
    assert (resumed / "checkpoint-9").exists()
    for name in ("model.safetensors", "checkpoint-9/optimizer.pt"):
        assert (resumed / name).exists()
    expected, weights = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)


def test_a_run_is_not_resumed_in_another_way(train):
    train(lora_rank=2)
    for settings, told in (
        ({"lora_rank": 3}, "was made with lora_rank 2, now 3; resume with the same"),
        ({}, "was made with lora_rank 2, now None; resume with the same"),
        ({"lora_rank": 2, "ema_decay": 0.5}, "was made with ema_decay None, now 0.5; resume with the same"),
    ):
        with pytest.raises(InputError, match=told):
            train(**settings, resume_from_checkpoint=True)


KINDS = {
    "all": {},
    "lora": {"lora_rank": 2, "lora_target_modules": ["q_proj", "fc1"]},
    "probe": {"freeze_encoder": True},
    "frozen": {"freeze_layers": 1, "layer_decay": 0.5},
    "average": {"ema_decay": 0.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_nothing(train, kind):
    plain, checkpointed = (
        train(name, **KINDS[kind], gradient_checkpointing=flag, max_steps=3, save_strategy="no")
        for name, flag in (("plain", False), ("checkpointed", True))
    )
    expected, weights = load_file(plain / "model.safetensors"), load_file(checkpointed / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_trains(train, checkpoints, kind):
    output = train(**KINDS[kind], bf16=True, max_steps=3, save_strategy="no")
    stored = load_file(output / "model.safetensors")
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in stored.values())
    assert "classifier.dense.weight" in moved(checkpoints["dual_ssast"], output)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_models_train_alike(train, kind):
    torch._dynamo.reset()  # of the models before this one
    still = {"max_steps": 3, "save_strategy": "no"}
    still["config_overrides"] = {"attention_probs_dropout_prob": 0.0}  # drawn otherwise in compiled code
    plain, compiled = (
        train(name, **KINDS[kind], **still, torch_compile=flag) for name, flag in (("plain", False), ("compiled", True))
    )
    expected, weights = load_file(plain / "model.safetensors"), load_file(compiled / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(recipe):
    """A balanced order by length, a weighted focal loss, an adapter and an average."""
    settings = KINDS["lora"] | RESUMED["order"] | {"ema_decay": 0.5, "class_weights": "balanced", "max_steps": 6}
    settings |= {"logging_strategy": "steps", "logging_steps": 1, "save_strategy": "no"}
    settings["config_overrides"] = {"attention_probs_dropout_prob": 0.0}
    path, one = recipe("one", **settings)
    first = launch(1, "train_hf.py", path)
    path, two = recipe("two", **settings, per_device_train_batch_size=2, use_cpu=True)
    second = launch(2, "train_hf.py", path)
    assert first.returncode == second.returncode == 0, first.stderr[-2000:] + second.stderr[-3000:]
    losses = [
        [entry["loss"] for entry in json.loads((folder / "results.json").read_text())["log"] if "loss" in entry]
        for folder in (one, two)
    ]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(*losses, atol=1e-5)
    expected, weights = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-4)
    assert (two / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("model", "settings", "pattern"),
    [
        ("dual_ssast", {"freeze_layers": 3}, "freeze_layers: 3 are more than the 2 blocks in use; set fewer"),
        ("dual_ssast", {"freeze_layers": -1}, "freeze_layers: must be 0 or more, got -1"),
        ("dual_ssast", {"layer_decay": 1.5}, "layer_decay: must be above 0 and at most 1, got 1.5"),
        ("dual_ssast", {"ema_decay": 1.0}, "ema_decay: must be above 0 and below 1, got 1.0"),
        ("dual_ssast", {"ema_decay": 0.9, "average_from_epoch": 2}, "average_from_epoch: ema_decay is another average"),
        ("dual_ssast", {"average_from_epoch": 0}, "average_from_epoch: must be 1 or more, got 0"),
        ("dual_ssast", {"lr_decay": 0.85}, "lr_decay: lowers a constant rate, but lr_scheduler_type is linear"),
        ("dual_ssast", {"lr_decay": 1.5, "lr_scheduler_type": "constant"}, "lr_decay: must be above 0 and at most 1"),
        ("dual_ssast", {"lr_decay_every": 0}, "lr_decay_every: must be 1 or more, got 0"),
        ("dual_ssast", {"lora_rank": 2, "freeze_encoder": True}, "lora_rank: has nothing to train"),
        ("dual_ssast", {"lora_rank": 2, "lora_target_modules": ["dance"]}, "a layer called .*dance.*; they have .*fc1"),
        ("dual_ssast", {"lora_rank": 2, "model_name_or_path": None}, "lora_rank: an adapter needs the checkpoint"),
        ("dual_ssast", {"lora_target_modules": ["fc1"]}, "lora_target_modules: has no effect without lora_rank"),
        ("vggish", {"gradient_checkpointing": True}, "gradient_checkpointing: a .* model does not support it"),
        ("panns_cnn14", {"gradient_checkpointing": True}, "gradient_checkpointing: a .* model does not support it"),
    ],
)
def test_what_cannot_be_is_told_before_training(train, tmp_path, model, settings, pattern):
    with pytest.raises(InputError, match=pattern):
        train("run", model, **settings)
    assert not (tmp_path / "run").exists()


def test_a_missing_peft_is_told(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="lora_rank: needs the package peft, which is not installed; pip install peft"):
        train(lora_rank=2)


def test_settings_without_effect_are_told(clips, checkpoints, tmp_path, caplog):
    recipe = {
        "dataset_name": str(clips), "model_name_or_path": str(checkpoints["dual_ssast"]), "mean": -6.0, "std": 4.0,
        "output_dir": str(tmp_path / "run"), "num_train_epochs": 1, "max_steps": 1, "disable_tqdm": True,
        "validation_fraction": 0.2, "test_fraction": 0.0,
    }  # fmt: skip
    smoothed = {"problem_type": "multi_label_classification", "label_smoothing": 0.1}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe | smoothed | {"average_from_epoch": 6}))
    classification.run(*tasks.parse([str(tmp_path / "recipe.json")])[1:])
    assert "label_smoothing: has no effect, for it needs one label per clip" in caplog.text
    assert "average_from_epoch: 6 is beyond the 1 epochs of this run: nothing is averaged" in caplog.text
