"""Tests the measurement of a pretraining's speed, on clocks that the tests set."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_pretrainings import train

from training.pretraining import report, throughput
from training.pretraining.throughput import Meter, measure_peak_flops, product_dtype


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def make_meter(peaks: list[float], num_processes: int = 1) -> Meter:
    """A meter of 1000 operations per clip; the last peak is measured again and again."""
    left = list(peaks)
    return Meter(("loss",), lambda frames: 1000.0, lambda: left.pop(0) if left[1:] else left[0], 0.01, 1, num_processes)


def one_line(meter: Meter, clock: Clock, seconds: float) -> dict[str, float]:
    """The figures of a log line of one step with two clips."""
    meter.add(SimpleNamespace(loss=torch.tensor(3.0)), torch.zeros(2, 100, 4), None)
    clock.now += seconds
    return meter.read(lambda vector: vector)


def test_the_fastest_product_of_all_sizes_is_the_peak(monkeypatch):
    """The first product of a size warms up, and does not count."""
    seconds = iter([0.001, 4.0, 2.0, 8.0, 0.001, 8.0, 32.0, 16.0])
    times = iter([part for span in seconds for part in (0.0, span)])
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    for name, value in (("CPU_SIZES", (4, 8)), ("REPEATS", 3), ("MOST_SECONDS", 1000.0)):
        monkeypatch.setattr(throughput, name, value)
    assert measure_peak_flops(torch.device("cpu"), torch.float32) == max(2 * 4**3 / 2.0, 2 * 8**3 / 8.0)


def test_slow_products_are_not_repeated_for_long(monkeypatch):
    times = iter([0.0, 0.3, 0.0, 0.3])  # a third product would raise StopIteration
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    monkeypatch.setattr(throughput, "CPU_SIZES", (4,))
    assert measure_peak_flops(torch.device("cpu"), torch.float32) == pytest.approx(128 / 0.3)


def test_a_value_above_one_measures_the_peak_again(clock):
    meter = make_meter([100.0, 50.0, 400.0])
    assert one_line(meter, clock, 40.0)["model_flops_utilisation"] == 0.5  # 50 of 100 operations per second
    figures = one_line(meter, clock, 10.0)  # 200 per second; the second measurement is even slower
    assert "model_flops_utilisation" not in figures and meter.peak_flops == 100.0
    assert one_line(meter, clock, 10.0)["model_flops_utilisation"] == 0.5
    totals = meter.totals()
    assert totals["model_flops_utilisation"] == pytest.approx(6000 / 60 / 400) and "mfu_note" not in totals
    assert totals["peak_flops"] == 400.0


def test_a_measure_that_fails_is_never_printed_as_a_number(clock):
    meter = make_meter([100.0])
    for _ in range(2 * throughput.MOST_MEASUREMENTS):
        figures = one_line(meter, clock, 2.0)
        assert "model_flops_utilisation" not in figures and figures["clips_per_second"] == 1.0
    assert meter.measurements == throughput.MOST_MEASUREMENTS
    one_line(meter, clock, 1000.0)  # the mean is below the peak, but the peak is known to be wrong
    totals = meter.totals()
    assert "model_flops_utilisation" not in totals
    assert totals["mfu_note"].startswith("not known: the run did 1e+03 operations per second and process, more than")
    results = {
        "training": {"steps": 1, "epochs": 1.0, "seconds": 1.0, **totals},
        "sources": [{"training_clips": 2, "name": "clips"}],
        "metrics": {},
        "unreadable": {"clips": 0},
    }
    printed = report.summary(results, "folder")
    assert "model FLOPs utilisation: not known" in printed and "%" not in printed


def test_utilisation_is_that_of_all_processes(clock):
    assert one_line(make_meter([100.0], num_processes=4), clock, 40.0)["model_flops_utilisation"] == 0.5


def test_the_format_of_products_follows_the_autocast():
    device = torch.device("cpu")
    for dtype in (torch.bfloat16, torch.float16):
        assert product_dtype(lambda dtype=dtype: torch.autocast("cpu", dtype), device) == dtype
    assert product_dtype(lambda: torch.autocast("cpu", enabled=False), device) == torch.float32


@pytest.mark.parametrize(("bf16", "emulated"), [(False, False), (True, False), (True, True)])
def test_the_peak_is_that_of_the_runs_precision(clips, recipe, monkeypatch, bf16, emulated):
    """Measured before the first step and after the last one; a processor without bfloat16 trains in float32."""
    measured = []
    monkeypatch.setattr("training.base.arguments.is_emulated", lambda dtype, device: emulated)

    def measure(device, dtype):
        measured.append(dtype)
        return 1e15

    monkeypatch.setattr(throughput, "measure_peak_flops", measure)
    path, output = recipe("mspm", train_sources=[str(clips)], max_steps=2, health_clips=0, bf16=bf16, picture_clips=0)
    train(path)
    assert measured == [torch.bfloat16 if bf16 and not emulated else torch.float32] * 2
    training = json.loads((output / "results.json").read_text())["training"]
    assert 0 < training["model_flops_utilisation"] < 1 and training["peak_flops"] == 1e15
