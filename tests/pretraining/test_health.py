"""Tests the measurements of the features during a pretraining, the alarm, and the norms of the gradients."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from tiny_pretrainings import HEADS, SIZES, TASKS, train

from modeling_dual_ssast import (
    ASiTConfig,
    ASiTForPreTraining,
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForPreTraining,
    DualSSASTModel,
)
from training.base.geometry import effective_rank
from training.pretraining import health
from training.pretraining.batches import batches_of
from training.pretraining.watch import random_encoder

CONFIG = DualSSASTConfig(**SIZES, max_length=48)


@pytest.fixture(scope="module")
def features():
    """Log-mels of 12 clips of 20 to 48 frames."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(20 + 4 * (index % 8), 128, generator=generator) for index in range(12)]


def test_measurements_are_those_of_the_features_clip_by_clip(features):
    """With padding and in batches the same as the formulas on each clip alone."""
    torch.manual_seed(0)
    encoder = DualSSASTForPreTraining(CONFIG).eval().dual_ssast
    batches = batches_of(DualSSASTFeatureExtractor(max_length=48), features, 5, torch.device("cpu"))
    found = health.measure(encoder, batches)
    assert list(found) == ["layer0", "layer1", "layer2", "fused"] and "token_std" not in found["fused"]
    whole = DualSSASTModel(CONFIG).eval()
    whole.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        outputs = [whole(clip[None], output_hidden_states=True) for clip in features]
        patches = [whole.layernorm(output.hidden_states[1])[0, CONFIG.num_prefix_tokens :] for output in outputs]
    vectors = torch.stack([clip.mean(dim=0) for clip in patches])
    fused = torch.cat([output.pooler_output for output in outputs])
    for name, own in (("layer1", vectors), ("fused", fused)):
        units = own / own.norm(dim=1, keepdim=True)
        # Sums of float32 in another order: a few ulp of numbers around 1, and the rank is at most 12.
        assert found[name]["clip_std"] == pytest.approx(float(units.var(dim=0, correction=0).sum().sqrt()), abs=1e-4)
        assert found[name]["effective_rank"] == pytest.approx(effective_rank(own.double().numpy()), abs=1e-3)
    tokens = torch.cat(patches)
    tokens = tokens / tokens.norm(dim=1, keepdim=True)
    assert found["layer1"]["token_std"] == pytest.approx(float(tokens.var(dim=0, correction=0).sum().sqrt()), abs=1e-4)
    assert encoder.fusion is None and not any("fusion" in name for name, _ in encoder.named_modules())


def test_spread_is_one_in_all_directions_and_zero_in_one():
    assert health.spread(torch.cat((torch.eye(4), -torch.eye(4))).mean(dim=0)) == 1
    assert health.spread(torch.tensor([0.6, 0.8])) == pytest.approx(0, abs=1e-3)  # the root of float32's rounding


def test_random_weights_leave_the_generators_as_they_are():
    encoder = DualSSASTForPreTraining(CONFIG).dual_ssast
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first, second = random_encoder(encoder, 7), random_encoder(encoder, 7)
    assert torch.equal(torch.rand(3), expected)
    weights = [part.layers[0].mlp.fc1.weight for part in (first, second, encoder)]
    assert torch.equal(*weights[:2]) and not torch.equal(weights[0], weights[2])


# ---- the alarm ----


def log_of(*ranks: float, clip_std: float = 0.3, encoder: str = "encoder") -> list[dict]:
    """A log with the fused features' effective rank at steps 0, 10, 20 and so on; random weights have 20 and 0.3."""
    log = [{"step": 0, "epoch": 0, "health_random_fused_effective_rank": 20.0, "health_random_fused_clip_std": 0.3}]
    for place, rank in enumerate(ranks):
        entry = {"step": 10 * place, "epoch": place, f"health_{encoder}_fused_effective_rank": rank}
        log += [entry | {f"health_{encoder}_fused_clip_std": clip_std}, {"step": 10 * place, "loss": 1.0}]
    return log


LOW = 0.9 * health.SHARES["effective_rank"] * 20


def test_one_low_measurement_is_no_alarm_and_two_in_a_row_are():
    assert health.alarms(log_of(20, LOW, 20, LOW, 20)) == ([], None)
    raised, current = health.alarms(log_of(20, LOW, LOW, LOW, 20, LOW, LOW))
    assert [alarm.step for alarm in raised] == [20, 60] and current.step == 60
    assert raised[0][1:4] == ("encoder", "fused", "effective_rank") and raised[0].value == LOW
    assert health.alarms(log_of(20, LOW, LOW, 20))[1] is None


def test_the_line_of_an_alarm_names_place_value_threshold_and_remedy():
    (alarm,), _ = health.alarms(log_of(20, LOW, LOW, encoder="teacher"))
    text = str(alarm)
    assert "\n" not in text and "step 20: the features collapse: effective rank of the fused features (teacher)" in text
    assert f"{LOW:.3g}, below {LOW / 0.9:.3g}" in text and "lower learning_rate" in text


def test_features_without_a_number_are_collapsed():
    """The effective rank of zeros is not defined."""
    raised, _ = health.alarms(log_of(20, math.nan, math.nan, clip_std=0.0))
    assert len(raised) == 1


def test_without_a_baseline_there_is_no_alarm():
    assert health.alarms(log_of(20, LOW, LOW)[1:]) == ([], None)


def make_constant(monkeypatch, from_step: int):
    """Lets the encoder give every clip the same features, but for a little noise, from a step on."""
    original, steps = health.measure, []

    def measure(encoder, batches):
        steps.append(1)
        if len(steps) <= from_step:
            return original(encoder, batches)
        handle = encoder.layernorm.register_forward_hook(lambda module, inputs, output: 1 + 1e-6 * output)
        try:
            return original(encoder, batches)
        finally:
            handle.remove()

    monkeypatch.setattr(health, "measure", measure)


@pytest.mark.figures
@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_healthy_run_raises_no_alarm(clips, recipe, task, capsys):
    values = {"health_steps": 2, "save_strategy": "no", "figure_format": "pdf"}
    path, output = recipe(task, train_sources=[str(clips)], learning_rate=1e-3, **values)
    train(path)
    results = json.loads((output / "results.json").read_text())
    assert results["health"]["alarms"] == 0 and results["training"]["steps"] == 6
    encoders = {"mspm": {"encoder"}, "asit": {"student", "teacher"}}[task] | {"random"}
    assert set(results["health"]["fused"]) == encoders
    with open(output / "health.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["place"] for row in rows} == {"layer0", "layer1", "layer2", "fused"}
    for encoder in encoders:
        own = {int(row["step"]) for row in rows if row["encoder"] == encoder}
        assert own == ({0} if encoder == "random" else {0, 2, 4, 6})
    # The run began with random weights: they are the baseline.
    assert len({row["effective_rank"] for row in rows if row["step"] == "0" and row["place"] == "fused"}) == 1
    assert (output / "health.png").stat().st_size > 20_000 and (output / "health.pdf").exists()
    page = (output / "report.html").read_text()
    assert page.count('<img class="plot"') == 3 and "alarm" not in page
    assert "effective rank of the fused features" in capsys.readouterr().out
    assert [entry["step"] for entry in results["log"] if "loss" in entry] == list(range(1, 7))


@pytest.mark.slow
@pytest.mark.parametrize("stops", [False, True])
def test_a_planted_collapse_raises_the_alarm_once(clips, recipe, monkeypatch, capsys, caplog, stops):
    make_constant(monkeypatch, from_step=2)  # step 0, whose random weights are the baseline too, and step 1 are healthy
    values = {"health_steps": 1, "save_steps": 100, "stop_on_collapse": stops, "load_best_model_at_end": False}
    path, output = recipe("mspm", train_sources=[str(clips)], max_steps=5, **values)
    train(path)
    results = json.loads((output / "results.json").read_text())
    assert results["health"]["alarms"] == 1 and results["health"]["raised"][0]["step"] == 3
    assert results["training"]["steps"] == (3 if stops else 5)
    assert (output / "checkpoint-3").is_dir() == stops
    assert caplog.text.count("the features collapse") == 1 and "1 alarm" in capsys.readouterr().out
    assert "the features collapse" in (output / "report.html").read_text()
    assert "The features collapsed" in (output / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("eval_strategy", ["no", "steps"])
def test_a_resumed_run_goes_on_with_its_measurements(clips, recipe, eval_strategy):
    """Without validation clips those of the training are measured, once an epoch."""
    values = {"epoch_steps": 3, "eval_strategy": eval_strategy, "lr_scheduler_type": "constant"}
    path, output = recipe("mspm", train_sources=[str(clips)], **values)
    train(path, "--max_steps", "3")
    first = (output / "health.csv").read_text().splitlines()
    train(path, "--resume_from_checkpoint", "true")
    rows = (output / "health.csv").read_text().splitlines()
    assert rows[: len(first)] == first
    assert {row.partition(",")[0] for row in rows[len(first) :]} == {"6"}
    train(path, "--overwrite", "true", "--health_clips", "0")
    assert not (output / "health.csv").exists() and not (output / "health.png").exists()


@pytest.mark.slow
def test_a_start_from_a_checkpoint_is_compared_with_random_weights(clips, recipe, tmp_path):
    path, first = recipe("mspm", "first", train_sources=[str(clips)], learning_rate=0.05, picture_clips=0)
    train(path)
    path, second = recipe("mspm", "second", train_sources=[str(clips)], model_name_or_path=first, max_steps=1)
    train(path)
    tables = [health.table_of(json.loads((one / "results.json").read_text())["log"]) for one in (first, second)]
    fused = [table[table["place"] == "fused"].set_index(["encoder", "step"])["effective_rank"] for table in tables]
    assert fused[1]["encoder", 0] == pytest.approx(fused[0]["encoder", 6])
    assert fused[1]["random", 0] != pytest.approx(fused[1]["encoder", 0])


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"stop_on_collapse": True, "health_clips": 0}, "stop_on_collapse: needs measurements, but health_clips is 0"),
        ({"health_clips": -1}, "health_clips: must be 0 or more, got -1"),
        ({"health_steps": 0}, "health_steps: must be 1 or more, got 0"),
    ],
)
def test_impossible_settings_stop_with_one_line(clips, recipe, values, pattern):
    path, _ = recipe("mspm", train_sources=[str(clips)], **values)
    with pytest.raises(Exception, match=pattern):
        train(path)


def test_a_single_clip_is_not_measured(clips, recipe, caplog):
    path, output = recipe("mspm", train_sources=[str(clips)], validation_clips=1, max_steps=2, eval_steps=2)
    train(path)
    assert "health_clips: the features are not measured" in caplog.text
    assert "health" not in json.loads((output / "results.json").read_text())


# ---- gradients ----


@pytest.mark.parametrize(
    ("model", "absent"),
    [
        (DualSSASTForPreTraining(DualSSASTConfig(**SIZES | {"num_hidden_layers": 6}, num_decoder_layers=1)), set()),
        (ASiTForPreTraining(ASiTConfig(**SIZES | HEADS | {"num_hidden_layers": 6})), {"decoder"}),
    ],
)
def test_the_parts_make_up_the_whole_gradient(model, absent):
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.01 * number) if parameter.requires_grad else None
    norms = health.gradient_norms(model.named_parameters(), 6)
    assert set(norms) == {f"grad_norm_{part}" for part in set(health.PARTS) - absent}
    whole = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert math.hypot(*map(float, norms.values())) == pytest.approx(float(whole), rel=1e-5)


def test_blocks_are_divided_into_thirds():
    parts = [health.part_of(f"student.layers.{index}.mlp.fc1.weight", 12) for index in range(12)]
    assert parts == ["lower_blocks"] * 4 + ["middle_blocks"] * 4 + ["upper_blocks"] * 4
    assert health.part_of("student.layernorm.weight", 12) == "upper_blocks"
    assert health.part_of("student_heads.mlp.0.weight", 12) == health.part_of("generative_head.0.bias", 12) == "heads"


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_log_lines_hold_the_norms_of_the_parts(clips, recipe, task):
    """Measured before the gradients are clipped: together they are Trainer's norm. Not at other steps."""
    values = {"logging_steps": 2, "eval_strategy": "no", "save_strategy": "no", "health_clips": 0}
    values |= {"mspm": {"lr_scheduler_type": "constant"}, "asit": {}}[task]
    path, output = recipe(task, train_sources=[str(clips)], **values)
    train(path)
    log = json.loads((output / "results.json").read_text())["log"]
    lines = [entry for entry in log if "loss" in entry]
    assert [entry["step"] for entry in lines] == [2, 4, 6]
    for entry in lines:
        parts = [value for name, value in entry.items() if name.startswith("grad_norm_")]
        assert len(parts) >= 4 and np.isfinite(parts).all()
        assert math.hypot(*parts) == pytest.approx(entry["grad_norm"], rel=1e-4)
