"""Tests half-size number formats on processors with and without instructions for them."""

from types import SimpleNamespace

import pytest
import torch

from training import tasks
from training.base import arguments, number_formats
from training.errors import InputError
from training.inference.precision import HardwareArguments, choose_hardware

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["emulated", "native"])
def emulated(request, monkeypatch) -> bool:
    """Whether the processor has no instructions for half-size formats."""
    for check in number_formats.SUPPORTS.values():
        monkeypatch.setattr(torch.ops.mkldnn, check, lambda: not request.param)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.delenv(arguments.LAUNCHED_FORMAT, raising=False)
    return request.param


def parse(tmp_path, *words: str):
    """Returns the arguments of a training."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("task: classification\ndataset_name: x\noutput_dir: run\n")
    return next(part for part in tasks.parse([str(recipe), *words]) if hasattr(part, "bf16"))


def test_only_half_sizes_on_a_cpu_are_emulated(emulated):
    for dtype in (torch.bfloat16, torch.float16):
        assert number_formats.is_emulated(dtype, CPU) == emulated
        assert not number_formats.is_emulated(dtype, torch.device("cuda"))
    assert not number_formats.is_emulated(torch.float32, CPU)


def test_a_build_that_reports_nothing_is_not_slow(monkeypatch):
    monkeypatch.setattr(number_formats, "SUPPORTS", {torch.bfloat16: "_is_unheard_of"})
    assert not number_formats.is_emulated(torch.bfloat16, CPU)


@pytest.mark.parametrize("words", [["--bf16", "true"], ["--bf16_full_eval", "true"], []])
def test_a_training_is_in_float32_where_bfloat16_is_emulated(emulated, tmp_path, monkeypatch, caplog, words):
    """By an option, or by `accelerate launch` where there is none."""
    if not words:
        monkeypatch.setenv(arguments.LAUNCHED_FORMAT, "bf16")
    parsed = parse(tmp_path, *words)
    assert (parsed.bf16 or parsed.bf16_full_eval) == (bool(words) and not emulated)
    assert parsed.mixed_precision == ("no" if emulated or "--bf16_full_eval" in words else "bf16")
    assert emulated == ("bf16: this processor has no instructions for bfloat16" in caplog.text)


@pytest.mark.parametrize("launched", ["bf16", "fp16", "no"])
def test_deepspeed_gets_the_format_of_the_launcher(tmp_path, monkeypatch, launched):
    """In both places where it looks: it refuses that they differ."""
    found = []
    plugin = SimpleNamespace(set_mixed_precision=found.append, set_deepspeed_weakref=list)
    monkeypatch.setattr("accelerate.utils.DeepSpeedPlugin", lambda: plugin)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr(arguments.TrainingArguments, "_validate_args", lambda self: None)
    monkeypatch.setenv(arguments.LAUNCHED_DEEPSPEED, "true")
    monkeypatch.setenv(arguments.LAUNCHED_FORMAT, launched)
    parsed = parse(tmp_path)
    assert found == [launched] and (parsed.bf16, parsed.fp16) == (launched == "bf16", launched == "fp16")
    parsed = parse(tmp_path, "--bf16", "true")
    assert found[1:] == ["bf16"] and (parsed.bf16, parsed.fp16) == (True, False)


def test_a_training_in_float32_has_no_remark(emulated, tmp_path, caplog):
    assert parse(tmp_path).mixed_precision == "no" and not caplog.text


def test_float16_is_refused_with_what_the_processor_can_do(emulated, tmp_path):
    with pytest.raises(InputError) as caught:
        parse(tmp_path, "--fp16", "true")
    assert ("or take bf16" in str(caught.value)) == (not emulated)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_inference_keeps_the_format_and_says_that_it_is_slow(emulated, capsys, dtype):
    assert choose_hardware(HardwareArguments(dtype=dtype, device="cpu")).dtype == getattr(torch, dtype)
    assert (f"dtype {dtype}: this processor has no instructions" in capsys.readouterr().err) == emulated
    choose_hardware(HardwareArguments(dtype="float32", device="cpu"))
    assert not capsys.readouterr().err
