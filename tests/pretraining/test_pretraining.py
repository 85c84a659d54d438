"""Tests the tasks mspm and asit of train_hf.py: outputs, bad input, resumption, several processes."""

import json
import os

import numpy as np
import pytest
import soundfile
import torch
import yaml
from audio_files import ROOT, kill_after, launch, run_program, write_class_folders, write_tone
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny_pretrainings import HEADS, OWN, SIZES, TASKS, train
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, AutoModelForPreTraining

from modeling_dual_ssast import (
    ASiTConfig,
    ASiTForPreTraining,
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForPreTraining,
)
from training import tasks
from training.base.arguments import EncoderArguments
from training.classification import train as classification
from training.data.unlabelled_sources import open_source, parse_sources
from training.errors import InputError
from training.pretraining import asit, mspm, trainer
from training.pretraining import train as pretraining

METHODS = {"mspm": mspm.MspmTrainer, "asit": asit.AsitTrainer}
THROUGHPUT = ("clips_per_second", "audio_hours_per_second", "audio_hours", "model_flops_utilisation")


def losses(output) -> dict[int, float]:
    log = json.loads((output / "results.json").read_text())["log"]
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


@pytest.mark.figures
@pytest.mark.parametrize("task", TASKS)
def test_a_run_leaves_a_whole_folder(clips, recipe, task, capsys):
    path, output = recipe(task, train_sources=[str(clips)])
    train(path)
    printed = capsys.readouterr().out
    assert "6 steps" in printed and "36 clips" in printed and f"everything is in {output}" in printed
    names = {entry.name for entry in output.iterdir()}
    assert names >= {"README.md", "config.json", "learning_curves.png", "model.safetensors", "preprocessor_config.json"}
    assert names >= {
        "training_data.json",
        "reconstruction.png",
        "reconstructions",
        "results.json",
        "checkpoint-3",
        "checkpoint-6",
    }
    assert not names & {"unfinished-outputs", "unfinished-checkpoint", "training_args.bin", "unreadable_clips.jsonl"}
    assert sorted(os.listdir(output / "reconstructions")) == ["step-0000003.png", "step-0000006.png"]
    results = json.loads((output / "results.json").read_text())
    parts = [name for name in METHODS[task].components if "contrast" not in name]  # off by default
    components = [*parts, *THROUGHPUT, "loss"]
    steps = [entry for entry in results["log"] if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, 7))
    assert all(np.isfinite(entry[name]) for entry in steps for name in components)
    assert results["log"][-1]["epoch"] == pytest.approx(6 / 9)  # 36 clips in batches of 4
    validation = results["metrics"]["validation"]
    assert set(validation) == {"loss", *parts}
    assert results["training"]["audio_hours"] == pytest.approx(steps[-1]["audio_hours"])
    num_crops = METHODS[task].config_class().num_pretraining_crops
    assert 0 < results["training"]["audio_hours"] < 24 * 0.48 * num_crops / 3600
    assert results["sources"][0]["name"] == clips.name and results["sources"][0]["training_clips"] == 36
    card = str(ModelCard.load(output / "README.md"))
    assert str(ROOT) not in card and str(clips) not in card and clips.name in card
    model = AutoModelForPreTraining.from_pretrained(output)
    assert type(model).__name__ == METHODS[task].model_class.__name__
    assert model.config.padding_value == AutoFeatureExtractor.from_pretrained(output).padding_value == 6 / 8


@pytest.mark.slow
@pytest.mark.parametrize(("task", "name"), [("mspm", "generative_loss"), ("asit", "reconstruction_loss")])
def test_the_model_learns_to_paint(clips, recipe, task, name):
    rate = {"mspm": 3e-3, "asit": 0.3}[task]
    path, output = recipe(
        task, train_sources=[str(clips)], max_steps=60, eval_steps=30, save_steps=60, learning_rate=rate
    )
    train(path)
    log = json.loads((output / "results.json").read_text())["log"]
    curve = [entry[name] for entry in log if name in entry]
    assert np.mean(curve[-10:]) < 0.8 * np.mean(curve[:5])


@pytest.mark.slow
def test_the_learning_rate_rises_and_then_waits_for_the_plateau(clips, recipe):
    path, output = recipe("mspm", train_sources=[str(clips)], eval_steps=1, lr_patience=0, max_steps=8)
    train(path)
    log = json.loads((output / "results.json").read_text())["log"]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    accuracies = [entry["eval_discriminative_accuracy"] for entry in log if "eval_loss" in entry]
    assert rates[:3] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
    expected, best = 1e-2, max(accuracies[:3])
    for rate, accuracy in zip(rates[3:], accuracies[3:]):
        assert rate == pytest.approx(expected) or rate == pytest.approx(expected / 2)
        expected, best = rate, max(best, accuracy)
    assert rates[-1] < 1e-2


def test_asit_follows_its_schedules(clips, recipe, monkeypatch):
    path, _ = recipe("asit", train_sources=[str(clips)], max_steps=8, epoch_steps=2, eval_strategy="no")
    seen = []
    original = asit.Schedules.on_optimizer_step

    def watch(self, args, state, control, model, **kwargs):
        groups = self.trainer.optimizer.param_groups
        norms = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
        seen.append(
            (
                groups[0]["lr"],
                groups[0]["weight_decay"],
                groups[1]["weight_decay"],
                float(model.teacher_temperature),
                max(norms),
            )
        )
        original(self, args, state, control, model=model, **kwargs)

    monkeypatch.setattr(asit.Schedules, "on_optimizer_step", watch)
    train(path, "--max_parameter_grad_norm", "0.01")
    rates, decays, spared, temperatures, norms = zip(*seen)
    highest = 0.5 * 4 / 256
    assert rates[:3] == pytest.approx([0.0, highest, highest]) and rates[-1] < rates[3] < highest
    assert decays[0] == pytest.approx(0.04) and list(decays) == sorted(decays) and decays[-1] < 0.4 and not any(spared)
    assert temperatures == pytest.approx([ASiTConfig().teacher_temperature_at(step // 2) for step in range(8)])
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_last_layers_stay_frozen_on_request(clips, recipe):
    path, output = recipe(
        "asit",
        train_sources=[str(clips)],
        max_steps=4,
        save_steps=2,
        epoch_steps=2,
        eval_strategy="no",
        freeze_last_layer_epochs=1,
    )
    train(path)
    weights = [load_file(output / f"checkpoint-{step}" / "model.safetensors") for step in (2, 4)]
    frozen, moved = (
        [not torch.equal(weights[0][name], weights[1][name]) for name in weights[0] if pattern in name]
        for pattern in ("student_heads.class_layer.direction", "student_heads.mlp")
    )
    torch.manual_seed(1)
    assert all(frozen) and all(moved)
    fresh = pretraining.load_model(  # the same seed gives the same random weights
        asit.AsitTrainer,
        EncoderArguments(config_overrides=OWN["asit"]["config_overrides"], max_length=48),
        None,
        AutoFeatureExtractor.from_pretrained(output),
    )
    name = "student_heads.class_layer.direction"
    assert fresh.state_dict()[name].shape == weights[0][name].shape


@pytest.mark.parametrize("task", TASKS)
def test_a_pretraining_becomes_a_classifier(clips, recipe, task, tmp_path):
    """One key loads the encoder, at another length and stride."""
    path, output = recipe(task, train_sources=[str(clips)], max_steps=1)
    train(path)
    labelled = write_class_folders(tmp_path / "labelled", 6)
    fine_tuning = tmp_path / "fine_tuning.json"
    fine_tuning.write_text(
        json.dumps(
            {
                "model_name_or_path": str(output),
                "dataset_name": str(labelled),
                "max_length": 64,
                "time_stride": 10,
                "frequency_stride": 10,
                "num_train_epochs": 1,
                "output_dir": str(tmp_path / "classifier"),
                "disable_tqdm": True,
                "validation_fraction": 0.2,
                "test_fraction": 0,
                "learning_rate": 0.0,
            }
        )
    )
    _, *parts = tasks.parse([str(fine_tuning)])
    classification.run(*parts)
    encoder = load_file(output / "model.safetensors")
    tuned = AutoModelForAudioClassification.from_pretrained(tmp_path / "classifier")
    name = "dual_ssast.layers.1.mlp.fc1.weight"
    assert torch.equal(tuned.state_dict()[name], encoder[name])
    assert tuned.config.max_length == 64 and tuned.config.time_stride == 10
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "classifier").mean == -6.0


def test_masks_belong_to_their_place_in_the_training(clips):
    """The same masks whatever the batch; the counts follow the clip's own length; padding is never masked."""
    config = DualSSASTConfig(**SIZES, max_length=48, mask_ratio=0.5)
    extractor = DualSSASTFeatureExtractor(max_length=48)
    examples_of = mspm.MspmExamples(extractor, config)
    make, collate = examples_of.make, examples_of.collate
    waveforms = [np.random.default_rng(i).normal(0, 0.1, n).astype(np.float32) for i, n in enumerate((3200, 12800))]
    examples = [make(waveform, np.random.default_rng(index)) for index, waveform in enumerate(waveforms)]
    batch = collate(examples)
    assert batch["input_values"].shape == (2, 48, 128) and batch["attention_mask"].sum(dim=1).tolist() == [18, 48]
    columns = [2, 3]
    assert batch["bool_masked_pos"].sum(dim=1).tolist() == [8 * column // 2 for column in columns]
    grid = batch["bool_masked_pos"].unflatten(1, (8, 3))
    assert not grid[0, :, 2].any()
    alone = collate(examples[:1])
    assert "attention_mask" not in alone  # nothing is padded, so nothing has to be masked
    assert torch.equal(alone["bool_masked_pos"].unflatten(1, (8, 2)), grid[:1, :, :2])
    two = mspm.MspmExamples(extractor, DualSSASTConfig(**SIZES, max_length=48, shared_mask=False))
    assert two.make(waveforms[0], np.random.default_rng(0))["bool_masked_pos"].shape == (2, 8, 2)


@pytest.mark.parametrize("clustered", [True, False])
def test_squares_or_single_patches_are_masked(clustered):
    """Half of the patches: pairs of neighbours are both masked in a quarter of the places, and in squares in more."""
    config = DualSSASTConfig(**SIZES, max_length=512, mask_ratio=0.5, clustered_mask=clustered)
    examples_of = mspm.MspmExamples(DualSSASTFeatureExtractor(max_length=512), config)
    waveform = np.random.default_rng(0).normal(0, 0.1, 82000).astype(np.float32)
    masks = [examples_of.make(waveform, np.random.default_rng(seed))["bool_masked_pos"] for seed in range(100)]
    torch.manual_seed(0)
    drawn = DualSSASTForPreTraining(config).sample_mask(torch.zeros(100, 512, 128)).unflatten(1, config.grid_shape)
    for grid in (torch.cat(masks), drawn):
        pairs = (grid[..., 1:] & grid[..., :-1]).float().mean()
        assert pairs > 0.3 if clustered else pairs == pytest.approx(0.25, abs=0.02)


def test_a_contrast_reads_two_crops_of_each_clip(clips, recipe):
    """Each has its own place, mask and, in a batch, the padding of the clip; the log has the losses of both crops."""
    config = DualSSASTConfig(**SIZES, max_length=48, mask_ratio=0.5, clip_contrast_weight=2.0)
    examples_of = mspm.MspmExamples(DualSSASTFeatureExtractor(max_length=48), config)
    waveforms = [np.random.default_rng(i).normal(0, 0.1, n).astype(np.float32) for i, n in enumerate((3200, 12800))]
    examples = [examples_of.make(waveform, np.random.default_rng(1)) for waveform in waveforms]
    batch = examples_of.collate(examples)
    assert batch["input_values"].shape == (2, 2, 48, 128) and batch["attention_mask"].sum(dim=1).tolist() == [18, 48]
    first, second = batch["input_values"].unbind(1)
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])  # the first clip is one crop
    masks = batch["bool_masked_pos"]
    assert masks.sum(dim=2).tolist() == [[8, 8], [12, 12]] and not torch.equal(masks[1, 0], masks[1, 1])
    path, output = recipe("mspm", train_sources=[str(clips)], config_overrides=SIZES | {"clip_contrast_weight": 2.0})
    train(path)
    results = json.loads((output / "results.json").read_text())
    steps = [entry for entry in results["log"] if "loss" in entry]
    for entry in steps:
        parts = entry["discriminative_loss"] + 10 * entry["generative_loss"] + 2 * entry["clip_contrast_loss"]
        assert entry["loss"] == pytest.approx(parts, rel=1e-4)  # the log rounds
    assert 0 <= results["metrics"]["validation"]["clip_contrast_accuracy"] <= 1
    assert (output / "reconstructions" / "step-0000006.png").exists() and (output / "health.csv").exists()
    assert len(DualSSASTForPreTraining.from_pretrained(output).contrast_head) == 3


def test_asit_corrupts_its_own_audio_only():
    config = ASiTConfig(**SIZES | HEADS, max_length=48)
    extractor = DualSSASTFeatureExtractor(max_length=48)
    examples_of = asit.AsitExamples(extractor, config)
    make, collate = examples_of.make, examples_of.collate
    waveforms = [np.random.default_rng(i).normal(0, 0.1, n).astype(np.float32) for i, n in enumerate((1, 3200, 12800))]
    examples = [make(waveform, np.random.default_rng(index)) for index, waveform in enumerate(waveforms)]
    batch = collate(examples)
    assert batch["input_values"].shape == (3, 2, 48, 128)
    mask, attention = batch["corruption_mask"].bool(), batch["attention_mask"].bool()
    assert not (mask & ~attention[:, None, :, None]).any() and mask.any(dim=(2, 3)).all()
    assert torch.equal(batch["corrupted_values"][~mask], batch["input_values"][~mask])
    again = collate([make(waveform, np.random.default_rng(index)) for index, waveform in enumerate(waveforms)])
    assert all(torch.equal(batch[name], again[name]) for name in batch)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"shared_mask": False},
        {"num_decoder_layers": 1},
        {"pretraining_objective": "generative"},
        {"clip_contrast_weight": 1.0},
    ],
)
def test_mspm_flops_are_those_of_the_step(shape):
    settings = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=128, max_length=256)
    config = DualSSASTConfig(**settings, **shape)
    model = AutoModelForPreTraining.from_config(config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        crops = (2,) if config.clip_contrast_weight else ()
        model(torch.randn(2, *crops, 256, 128)).loss.backward()
    assert isinstance(model, DualSSASTForPreTraining)
    assert 2 * mspm.MspmTrainer.flops_per_clip(config, 256) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_asit_flops_are_those_of_the_step():
    settings = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=128, max_length=256)
    config = ASiTConfig(**settings, **HEADS)
    model = AutoModelForPreTraining.from_config(config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 2, 256, 128)).loss.backward()
    assert isinstance(model, ASiTForPreTraining)
    assert 2 * asit.AsitTrainer.flops_per_clip(config, 256) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_unreadable_clips_are_skipped_counted_and_listed(clips, recipe, tmp_path, capsys):
    folder = tmp_path / "clips"
    folder.mkdir()
    for path in clips.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "text.wav").write_text("this is not audio")
    write_tone(folder / "nan.wav", seconds=0.5, subtype="FLOAT")
    samples = soundfile.read(folder / "nan.wav", dtype="float32")[0]
    samples[100] = np.nan
    soundfile.write(folder / "nan.wav", samples, 16000, subtype="FLOAT")
    path, output = recipe("mspm", train_sources=[str(folder)], max_steps=12, eval_steps=12, max_unreadable_share=0.1)
    train(path)
    printed = capsys.readouterr().out
    assert "2 unreadable clips were skipped" in printed
    assert f"{folder / 'text.wav'}: not readable as audio" in printed and "nan.wav: holds 1 NaN" in printed
    results = json.loads((output / "results.json").read_text())
    assert results["unreadable"]["clips"] == 2
    lines = (output / "unreadable_clips.jsonl").read_text().splitlines()
    assert {os.path.basename(json.loads(line)["clip"]) for line in lines} == {"text.wav", "nan.wav"}
    path, output = recipe("mspm", name="strict", train_sources=[str(folder)], max_unreadable_share=0.01)
    with pytest.raises(InputError, match=r"1 of 42 clips are unreadable \(max_unreadable_share is 0\.01\)"):
        train(path)


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({}, "train_sources: is not set; name folders, manifests or Hub data sets"),
        ({"train_sources": ["nowhere"]}, "nowhere"),
        (
            {"train_sources": ["CLIPS"], "metric_for_best_model": "accuracy"},
            "metric_for_best_model: 'accuracy' is unknown",
        ),
        ({"train_sources": ["CLIPS"], "eval_strategy": "no"}, "reduce_lr_on_plateau watches the evaluations"),
        ({"train_sources": ["CLIPS"], "eval_strategy": "epoch"}, "eval_strategy: must be no or steps, got 'epoch'"),
        ({"train_sources": ["CLIPS"], "epoch_steps": 0}, "epoch_steps: must be 1 or more, got 0"),
        ({"train_sources": ["CLIPS"], "fusion_layers": [1]}, "fusion_layers: is no option of task mspm; leave it out"),
        (
            {"train_sources": ["CLIPS"], "validation_sources": ["nowhere"], "eval_strategy": "no"}
            | {"lr_scheduler_type": "constant"},
            "validation_sources: have no effect with eval_strategy: no; leave one of them out",
        ),
        ({"train_sources": ["CLIPS"], "data_seed": 7}, "data_seed: has no effect here, for seed decides the order too"),
        ({"train_sources": ["CLIPS"], "max_unreadable_share": 2}, "max_unreadable_share: must be from 0 to 1, got 2"),
        (
            {"train_sources": ["CLIPS"], "config_overrides": {"time_stride": 10}},
            "pretraining needs patches side by side",
        ),
        ({"train_sources": ["CLIPS"], "config_overrides": {"hidden_sise": 10}}, "did you mean 'hidden_size'"),
        ({"train_sources": ['{"path": "CLIPS", "wait": 2}']}, "unknown key wait"),
    ],
)
def test_bad_recipes_stop_with_one_line(clips, recipe, values, pattern):
    sources = [entry.replace("CLIPS", str(clips)) for entry in values.get("train_sources", [])]
    path, output = recipe("mspm", **{**values, **({"train_sources": sources} if sources else {})})
    with pytest.raises(InputError, match=pattern):
        train(path)
    assert not (output / "results.json").exists()


def test_a_stream_needs_an_epoch_and_clips_for_validation(clips, recipe):
    source = json.dumps({"path": str(clips), "streaming": True})
    path, _ = recipe("mspm", train_sources=[source])
    with pytest.raises(InputError, match="validation_sources: is not set, and streamed sources have no clips"):
        train(path)
    with pytest.raises(InputError, match="epoch_steps: is not set, and a streamed source has no known end"):
        train(path, "--validation_sources", str(clips))
    train(path, "--validation_sources", str(clips), "--epoch_steps", "3")


@pytest.mark.parametrize(
    ("task", "values", "pattern"),
    [
        ("mspm", {"head_learning_rate": 1e-3}, "head_learning_rate: is no option of task mspm; leave it out"),
        ("mspm", {"optim": "adafactor"}, "optim: has no effect on this pretraining"),
        ("asit", {"lr_scheduler_type": "constant"}, "lr_scheduler_type: has no effect on this pretraining"),
        ("asit", {"warmup_steps": 10}, "warmup_steps: has no effect on this pretraining"),
        ("mspm", {"early_stopping_patience": 1}, "early_stopping_patience: needs evaluations, and load_best"),
        ("mspm", {"report_to": "pigeon"}, "report_to: pigeon is unknown or not installed"),
        ("mspm", {"picture_clips": -1}, "picture_clips: must be 0 or more, got -1"),
        ("mspm", {"per_device_train_batch_size": 0}, "per_device_train_batch_size: must be 1 or more, got 0"),
        ("mspm", {"num_train_epochs": 0, "max_steps": -1}, "num_train_epochs: must be above 0"),
        ("mspm", {"sampling_rate": 0}, "sampling_rate: must be from 1 to"),
        (
            "mspm",
            {
                "config_overrides": SIZES | {"pretraining_objective": "generative"},
                "metric_for_best_model": "discriminative_loss",
            },
            "'discriminative_loss' is unknown; known are generative_loss, loss",
        ),
        (
            "asit",
            {"config_overrides": SIZES | HEADS | {"corruption_align": 16}},
            "corruption_align: must be below 14",
        ),
    ],
)
def test_what_has_no_effect_or_cannot_be_stops_with_one_line(clips, recipe, task, values, pattern):
    path, _ = recipe(task, train_sources=[str(clips)], **values)
    with pytest.raises(InputError, match=pattern):
        train(path)


@pytest.mark.slow
def test_a_start_from_an_encoder_that_does_not_fit_is_refused(clips, recipe):
    """A method's heads may be new; a partly random encoder would go unnoticed."""
    path, output = recipe("mspm", train_sources=[str(clips)], max_steps=1)
    train(path)
    path, _ = recipe("asit", "other", train_sources=[str(clips)], max_steps=1, model_name_or_path=output)
    for values in ({"num_hidden_layers": 3}, {"hidden_size": 32}):
        with pytest.raises(InputError, match="has no weights that fit"):
            train(path, "--config_overrides", json.dumps(HEADS | values))
    train(path, "--config_overrides", json.dumps(HEADS))


@pytest.mark.slow
@pytest.mark.parametrize("largest", [0.0, 1.0])
def test_gradients_are_unscaled_once(clips, recipe, largest, monkeypatch):
    """Trainer does it to measure their norm; in half precision on a GPU a second time is an error."""
    calls = []
    monkeypatch.setattr("accelerate.Accelerator.unscale_gradients", lambda self, optimizer=None: calls.append(self))
    path, _ = recipe("asit", train_sources=[str(clips)], max_steps=3, max_grad_norm=largest)
    train(path)
    assert len(calls) == 3


def evaluations(output) -> dict[int, dict]:
    log = json.loads((output / "results.json").read_text())["log"]
    return {entry["step"]: entry for entry in log if "eval_loss" in entry}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_lowest_loss_is_the_best_and_its_figures_are_told(clips, recipe, task):
    """Every step is worse than the one before: the rate is far too high."""
    path, output = recipe(
        task,
        train_sources=[str(clips)],
        metric_for_best_model="loss",
        load_best_model_at_end=True,
        learning_rate={"mspm": 0.3, "asit": 500.0}[task],
        eval_steps=1,  # and the checkpoints, which are left open, with it
        save_steps=None,
        save_total_limit=1,
    )
    train(path)
    evaluated = evaluations(output)
    best = min(evaluated, key=lambda step: evaluated[step]["eval_loss"])
    assert len(evaluated) == 6 and best != 6
    results = json.loads((output / "results.json").read_text())
    assert results["metrics"]["validation"]["loss"] == evaluated[best]["eval_loss"]
    pictures = {path.name: path.read_bytes() for path in (output / "reconstructions").iterdir()}
    assert (output / "reconstruction.png").read_bytes() == pictures[f"step-{best:07d}.png"]
    kept, saved = (load_file(f / "model.safetensors") for f in (output, output / f"checkpoint-{best}"))
    assert all(torch.equal(kept[name], saved[name]) for name in saved)


@pytest.mark.slow
def test_the_best_checkpoint_survives_a_new_name_of_the_folder(clips, recipe):
    values = {"learning_rate": 1e-3, "eval_steps": 1, "save_steps": 1, "metric_for_best_model": "loss"}
    path, output = recipe("mspm", train_sources=[str(clips)], load_best_model_at_end=True, **values)
    train(path, "--max_steps", "2")
    renamed = output.with_name("renamed")
    output.rename(renamed)
    # A rate that spoils the model: the best of all evaluations is one from before the renaming.
    train(path, "--output_dir", str(renamed), "--resume_from_checkpoint", "true", "--learning_rate", "5.0")
    evaluated = evaluations(renamed)
    best = min(evaluated, key=lambda step: evaluated[step]["eval_loss"])
    assert best in (1, 2) and max(evaluated) == 6 and (renamed / f"checkpoint-{best}").exists()
    results = json.loads((renamed / "results.json").read_text())
    assert results["metrics"]["validation"]["loss"] == evaluated[best]["eval_loss"]


@pytest.mark.slow
def test_early_stopping(clips, recipe):
    path, output = recipe(
        "mspm",
        train_sources=[str(clips)],
        learning_rate=0.0,
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        early_stopping_patience=2,
    )
    train(path)
    assert json.loads((output / "results.json").read_text())["training"]["steps"] == 3


@pytest.mark.slow
def test_the_figures_count_every_step(clips, recipe):
    """Whatever the steps between the log lines, and over a resumption; a finished run takes no step more."""
    path, whole = recipe("mspm", "whole", train_sources=[str(clips)])
    train(path)
    path, resumed = recipe("mspm", "resumed", train_sources=[str(clips)], logging_steps=100)
    train(path, "--max_steps", "3")
    first = json.loads((resumed / "results.json").read_text())["training"]
    assert first["clips_per_second"] > 0 and first["audio_hours"] > 0
    for _ in range(2):
        train(path, "--resume_from_checkpoint", "true")
    expected, actual = (json.loads((f / "results.json").read_text())["training"] for f in (whole, resumed))
    assert actual["steps"] == 6 and not (resumed / "checkpoint-7").exists()
    assert actual["audio_hours"] == pytest.approx(expected["audio_hours"])


@pytest.mark.slow
def test_a_new_run_forgets_the_pictures_of_the_old_one(clips, recipe):
    path, output = recipe("mspm", train_sources=[str(clips)])
    train(path)
    train(path, "--overwrite", "true", "--max_steps", "3")
    assert os.listdir(output / "reconstructions") == ["step-0000003.png"]
    picture = output / "reconstructions" / "step-0000003.png"
    assert (output / "reconstruction.png").read_bytes() == picture.read_bytes()


class Stopped(Exception):
    """Simulates a machine that goes down."""


@pytest.mark.parametrize("kind", ["local", pytest.param("streamed", marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", ["mspm", pytest.param("asit", marks=pytest.mark.slow)])
def test_a_resumed_run_repeats_the_uninterrupted_one(clips, recipe, task, kind, monkeypatch):
    """Stopped a step after its checkpoint, in the middle of a pass over the data, and resumed without workers."""
    source = json.dumps({"path": str(clips), "streaming": kind == "streamed"})
    values = {"train_sources": [source], "validation_sources": [str(clips)], "epoch_steps": 5, "shuffle_buffer": 7}
    path, whole = recipe(task, "whole", max_steps=12, dataloader_num_workers=2, **values)
    train(path)
    path, resumed = recipe(task, "resumed", max_steps=12, **values)
    original = trainer.PretrainingCallback.on_step_end

    def stop(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if state.global_step == 4:
            raise Stopped

    monkeypatch.setattr(trainer.PretrainingCallback, "on_step_end", stop)
    with pytest.raises(Stopped):
        train(path)
    monkeypatch.undo()
    train(path, "--resume_from_checkpoint", "true")
    check_same_run(whole, resumed)


def check_same_run(whole, resumed, atol: float = 1e-6):
    expected, actual = losses(whole), losses(resumed)
    assert expected.keys() == actual.keys() == set(range(1, 13))
    assert max(abs(expected[step] - actual[step]) for step in expected) < atol
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    for name, value in first.items():
        # Softmax does not see these: their gradients are zero in theory, and Adam makes steps of the rounding noise.
        if not name.endswith(("k_proj.bias", "discriminative_head.2.bias")) or atol < 1e-5:
            torch.testing.assert_close(second[name], value, rtol=0, atol=atol, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "streamed"])
@pytest.mark.parametrize("task", TASKS)
def test_a_killed_run_resumes(clips, recipe, tmp_path, task, kind):
    """SIGKILL at some moment after a checkpoint, with workers; resumed in a fresh process without."""
    source = json.dumps({"path": str(clips), "streaming": kind == "streamed"})
    values = {"train_sources": [source], "validation_sources": [str(clips)], "epoch_steps": 5, "shuffle_buffer": 7}
    path, whole = recipe(task, max_steps=12, **values)
    # In a process like the others: another number of threads would round otherwise.
    uninterrupted = run_program("train_hf.py", path)
    assert uninterrupted.returncode == 0, uninterrupted.stderr[-2000:]
    killed = tmp_path / "killed"
    kill_after(killed / "checkpoint-3", path, "--dataloader_num_workers", 2)
    resumed = run_program("train_hf.py", path, "--output_dir", killed, "--resume_from_checkpoint", "true")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    check_same_run(whole, killed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "overrides"),
    [
        ("mspm", {}),
        ("mspm", {"clip_contrast_weight": 1.0}),
        # Without replacement, which takes its blocks from the clips of a process's own batch.
        ("asit", {"replacement_fraction": 0.0, "drop_path_rate": 0.0}),
    ],
    ids=["mspm", "contrast", "asit"],
)
def test_two_processes_equal_one_with_the_doubled_batch(clips, recipe, tmp_path, task, overrides):
    overrides = OWN[task]["config_overrides"] | overrides
    path, _ = recipe(task, train_sources=[str(clips)], max_steps=12, save_strategy="no", config_overrides=overrides)
    one, two = tmp_path / "one", tmp_path / "two"
    words = ["train_hf.py", path, "--output_dir"]
    first = launch(1, *words, one)
    words = [*words, two, "--use_cpu", "true", "--per_device_train_batch_size", "2"]
    second = launch(2, *words)
    assert first.returncode == second.returncode == 0, second.stderr[-3000:]
    check_same_run(one, two, atol=1e-4)


def test_a_wrong_source_is_refused(recipe):
    path, _ = recipe("mspm", train_sources=["nowhere/clips.csv"])
    with pytest.raises(InputError, match="^nowhere/clips.csv: no such file"):
        train(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(p.stem for p in (ROOT / "recipes").glob("*_*_*.yaml") if p.stem.startswith(("mspm", "asit")))
)
def test_every_recipe_takes_two_steps(clips, tmp_path, name):
    """Its own patches, optimiser and schedules, on a narrow encoder and short clips."""
    values = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())
    values["config_overrides"] |= SIZES | (HEADS if values["task"] == "asit" else {})
    values |= {"per_device_train_batch_size": 2, "max_steps": 2, "eval_steps": 2, "dataloader_num_workers": 0}
    values |= {"validation_clips": 2, "picture_clips": 1, "save_steps": 2, "max_length": 64, "disable_tqdm": True}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({**values, "train_sources": [str(clips)], "output_dir": str(tmp_path / "run")}))
    train(str(path))
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "run")
    assert model.config.patch_shape == ((128, 2) if name.endswith("frame") else (16, 16))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["training"]["steps"] == 2


def test_a_resumption_has_the_sources_of_its_run(clips, tmp_path):
    """Other weights, shards or buffers give another sequence of clips."""

    def facts(buffer: int = 1000, **values) -> dict:
        sources = parse_sources("train_sources", [json.dumps({"path": str(clips), "streaming": True} | values)])
        return pretraining.describe_clips(sources, [open_source(source, buffer) for source in sources], None, 1)

    first = facts(weight=2)
    (tmp_path / "training_data.json").write_text(json.dumps(first))
    assert pretraining.check_same_data(str(tmp_path), first) == first
    for other, pattern in (
        (facts(weight=3), r"was made with sources.1 \(.*\).weight 2, now 3; resume with the same clips"),
        (facts(buffer=7, weight=2), r"was made with sources.1 \(.*\).shuffle_buffer 1000, now 7"),
    ):
        with pytest.raises(InputError, match=pattern):
            pretraining.check_same_data(str(tmp_path), other)
    del first["sources"]  # as earlier versions stored it
    (tmp_path / "training_data.json").write_text(json.dumps(first))
    pretraining.check_same_data(str(tmp_path), facts(weight=3))


@pytest.mark.slow
def test_a_run_goes_on_with_another_batch_size_and_only_with_its_own_data(clips, recipe, tmp_path):
    path, output = recipe("mspm", train_sources=[str(clips)], max_steps=3)
    train(path)
    log = json.loads((output / "results.json").read_text())["log"]
    assert [entry["clips"] for entry in log if "clips" in entry] == [4, 8, 12]
    words = ["--resume_from_checkpoint", "true", "--max_steps", "6"]
    for values, pattern in (
        (["--seed", "2"], r"training_data.json: was made with seed 1, now 2; resume with the same clips"),
        (["--validation_clips", "3"], "was made with train_sources."),
    ):
        with pytest.raises(InputError, match=pattern):
            train(path, *words, *values)
    train(path, *words, "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1")
    log = json.loads((output / "results.json").read_text())["log"]
    heard = [entry["clips"] for entry in log if "clips" in entry]
    assert heard == [4, 8, 12, 14, 16, 18]
    epochs = [entry["epoch"] for entry in log if "loss" in entry]
    assert epochs == sorted(epochs)
