"""Tests benchmarks/gpu.py on a CPU: every table, rows that say why they have no figures, and programs that fail."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from audio_files import ROOT, run_program
from benchmark_scripts import imported

SCRIPT = ROOT / "benchmarks" / "gpu.py"
QUICK = ("--device", "cpu", "--quick", "--repeats", 1, "--calls", 1)
FIGURES = re.compile(r"[0-9.]+ \([0-9.]+-[0-9.]+\)")
MISSING = "needs pip install flash-attn"


@pytest.fixture(scope="module")
def modules():
    """The benchmark and its sides."""
    with imported("gpu", "gpu_sides") as scripts:
        yield scripts.gpu, scripts.gpu_sides


def measure(monkeypatch, folder, *words) -> tuple[str, list[dict]]:
    """Runs the benchmark; returns what it prints, and its tables as `make bench-gpu` reads them."""
    tables = folder / "tables"
    monkeypatch.setenv("BENCH_TABLES", str(tables))
    process = run_program(SCRIPT, *QUICK, *words)
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout, [json.loads(line) for line in tables.read_text().splitlines()]


@pytest.mark.slow
def test_every_table_is_measured_on_a_cpu_and_says_so(monkeypatch, tmp_path):
    words = ("--formats", "float32", "--only", "models", "batches", "attention", "padding", "features")
    text, tables = measure(monkeypatch, tmp_path, *words)
    assert text.splitlines()[0] == "NO GPU: these are figures of a CPU, only to try the program"
    assert text.count("not judged without a GPU") == 3 and "PASS" not in text and "FAIL" not in text
    names = [table["header"][0] for table in tables]
    assert names == [
        "miniature, patch", "miniature, frame", "forward: clips", "pretraining step: clips", "attention",
        "clips of different lengths", "features",
    ]  # fmt: skip
    rows = dict(zip(names, (table["rows"] for table in tables)))
    for name in names[:2]:
        assert [row[:2] for row in rows[name]] == [["forward", "float32"], ["pretraining step", "float32"]]
    for work in ("forward", "pretraining step"):
        assert [row[0] for row in rows[f"{work}: clips"]] == ["1", "2", "4"]
    failed = {}
    for table in tables:
        column = table["header"].index("ms: median (range)")
        for row in table["rows"]:
            if not FIGURES.fullmatch(row[column]):
                failed[row[0]] = row[column]
                assert not any(row[column + 1 :]), row
    for name in ("memory-efficient", "cuDNN"):
        assert "scaled_dot_product_attention" in failed.pop(f"sdpa, only the {name} kernel, a mask of ones")
    assert failed.pop("flash_attention_2, no mask") == MISSING
    assert failed == {f"flash_attention_2, bfloat16, {way}": MISSING for way in ("padded", "packed")}
    # Clips of 26, 102, 179 and 256 frames cover 2, 7, 12 and 16 columns of 8 patches, and have 2 prefix tokens each.
    tokens = {row[0]: row[2] for row in rows["clips of different lengths"]}
    assert tokens["sdpa, bfloat16, padded"] == str(4 * (2 + 8 * 16))
    assert tokens["sdpa, bfloat16, packed"] == str(4 * 2 + 8 * (2 + 7 + 12 + 16))


@pytest.mark.slow
@pytest.mark.skipif("torch.cuda.is_available()")
def test_without_a_gpu_it_stops_with_one_line():
    process = run_program(SCRIPT)
    assert process.returncode == 1 and not process.stdout
    assert process.stderr.strip() == "torch sees no NVIDIA GPU here; --device cpu --quick tries the program without one"


@pytest.fixture
def two_gpus(monkeypatch):
    """Gives torch two GPUs, of which the second one is chosen; returns the numbers of those that are chosen later."""
    chosen = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    return chosen


def options(**values) -> SimpleNamespace:
    return SimpleNamespace(**{"device": "cuda", "quick": False, "clips": None, "formats": ["float32"], **values})


@pytest.mark.parametrize("name, index", [("cuda", 1), ("cuda:0", 0)])
def test_a_gpu_may_have_no_number(modules, two_gpus, monkeypatch, name, index):
    """Programs that it starts see that GPU alone, among those that it sees itself."""
    gpu, sides = modules
    bench = sides.Bench(options(device=name))
    assert two_gpus == [index] and bench.device == torch.device("cuda", index)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu.visible(bench.device) == str(index)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert gpu.visible(bench.device) == "57"[index]
    shows = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
    assert gpu.run(shows, CUDA_VISIBLE_DEVICES="7")[::2] == ["pass", "7"]


def test_goals_are_judged_on_a_gpu_and_for_the_real_sizes(modules, two_gpus):
    _, sides = modules
    bench = sides.Bench(options())
    assert [bench.verdict(figure, 0.5) for figure in (0.4, 0.6)] == ["FAIL", "PASS"]
    assert sides.Bench(options(quick=True)).verdict(0.6, 0.5) == "not judged with --quick"
    assert sides.Bench(options(quick=True, device="cpu")).verdict(0.6, 0.5) == "not judged without a GPU"


@pytest.mark.parametrize("fits", [16, 1 << 20])
def test_a_search_that_does_not_fill_the_memory_says_so(modules, two_gpus, monkeypatch, capsys, fits):
    gpu, sides = modules
    bench = sides.Bench(options(clips=8))

    def compare(requests, sizes, num_clips):
        median = 0.1 if num_clips <= fits else None
        return {name: sides.Outcome(["", "", "", ""], median) for name in requests}

    monkeypatch.setattr(bench, "compare", compare)
    monkeypatch.setattr(bench, "flops", lambda work, sizes: 1.0)
    monkeypatch.setattr(bench, "peak", lambda form: 1e9)
    gpu.batches(bench)
    assert capsys.readouterr().out.count("the search ended at 8192 clips, with memory left") == (0 if fits == 16 else 2)


def test_what_fails_is_a_row_with_its_reason_and_frees_its_memory(modules):
    _, sides = modules
    calls = []

    def full():
        calls.append("full")
        if len(calls) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    side = sides.Side(lambda: full, torch.device("cpu"))
    assert side.reason is None and len(calls) == 4  # three that warm up, and the one whose memory is measured
    side()
    side()
    assert len(calls) == 5 and side.call is None
    assert side.outcome([1.0], 8) == (["out of memory", "", "", ""], None)

    def missing():
        raise ImportError("no kernel. Install one\nor another")

    assert sides.Side(missing, torch.device("cpu")).outcome([], 8).cells[0] == "no kernel"
    fine = sides.Side(lambda: list, torch.device("cpu")).outcome([0.5, 1.0, 4.0], 8, flops=30.0, peak=100.0)
    assert fine == (["1000 (500-4000)", "8.0", "not measured", "30%"], 1.0)


def test_operations_are_those_of_the_matrix_products(modules):
    """Blocks, scores and values of the attention, the patches' projection, and the classifier."""
    _, sides = modules
    patches, width, classes = 8 * 4, 32, 50
    tokens = 2 + patches
    block = 2 * tokens * (4 * width**2 + 2 * width * 64) + 4 * tokens**2 * width
    # The fusion concatenates the vectors of two layers.
    expected = 2 * block + 2 * patches * 256 * width + 2 * (2 * width) * classes
    found = sides.count_forward_flops({**sides.MINIATURE, "fusion_layers": [1, 2]}, 64)
    assert found == expected


def test_a_program_that_fails_or_does_not_end_is_reported(modules, monkeypatch):
    gpu, _ = modules
    verdict, _, line = gpu.run([sys.executable, "-c", "print('first'); raise SystemExit('the reason')"])
    assert (verdict, line) == ("FAIL", "the reason")
    assert gpu.run([sys.executable, "-c", "print('fine')"])[::2] == ["pass", "fine"]
    monkeypatch.setattr(gpu, "MOST_SECONDS", 0.2)
    assert gpu.run([sys.executable, "-c", "import time; time.sleep(60)"]) == ["FAIL", "0.2", "did not end"]


def test_every_recipe_of_accelerate_is_run_or_named_with_the_reason(modules):
    gpu, _ = modules
    recipes = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
    on_cpu = {recipe.stem: gpu.obstacle(recipe, is_gpu=False) for recipe in recipes}
    assert [name for name, reason in on_cpu.items() if reason is None] == ["one_gpu"]
    on_gpu = {recipe.stem: gpu.obstacle(recipe, is_gpu=True) for recipe in recipes}
    assert {name for name, reason in on_gpu.items() if reason is None} >= {"one_gpu", "fsdp2"}
    assert on_gpu["several_gpus"] == "is for several GPUs"


def test_every_test_that_needs_a_gpu_has_the_marker():
    """`make bench-gpu` runs them by it."""
    conditions = [r"skipif\(.*not torch\.cuda", r"if not torch\.cuda\.is_available"]
    words = [word for condition in conditions for word in ("-e", condition)]
    found = subprocess.run(["git", "grep", "-nE", *words], cwd=ROOT / "tests", capture_output=True, text=True)
    own = ("conftest.py:", "base/test_gpu_benchmark.py:")
    assert not [line for line in found.stdout.splitlines() if not line.startswith(own)]


@pytest.mark.slow
def test_compiled_models_and_programs_run_on_a_cpu(monkeypatch, tmp_path):
    _, tables = measure(monkeypatch, tmp_path, "--formats", "compiled", "--only", "models", "programs")
    *measured, programs = tables
    for row in (row for table in measured for row in table["rows"]):
        assert row[1] == "compiled" and FIGURES.fullmatch(row[2]), row
    outcomes = {row[0]: row[1:] for row in programs["rows"]}
    assert outcomes["one_gpu.yaml"][0] == "pass" and outcomes["one_gpu.yaml"][2].endswith("the output folder")
    assert outcomes["fsdp2.yaml"] == ["not run", "", "needs a GPU"]
    assert outcomes["tests that need a GPU"] == ["not run", "", "needs a GPU"]
