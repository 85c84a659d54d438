"""Tests benchmarks/bfloat16.py and bfloat16_losses.py: their tables on a miniature model, counts and kinds."""

import json
import sys

import pytest
import torch
from audio_files import ROOT, run_program
from benchmark_scripts import imported

SCRIPT = ROOT / "benchmarks" / "bfloat16.py"
QUICK = ("--sizes", "miniature", "--clips", 2, "--frames", 64, "--repeats", 1, "--attention_repeats", 1, "--no_compile")
FORWARDS = [
    "float32", "bfloat16 autocast, torch's attention kernel", "bfloat16 autocast",
    "bfloat16 weights, torch's attention kernel", "bfloat16 weights",
]  # fmt: skip


@pytest.fixture(scope="module")
def scripts():
    with imported("bfloat16", "bfloat16_losses") as found:
        yield found


@pytest.mark.slow
def test_every_table_is_measured(monkeypatch, tmp_path):
    tables = tmp_path / "tables"
    monkeypatch.setenv("BENCH_TABLES", str(tables))
    process = run_program(SCRIPT, *QUICK, "--tokens", 10, 300, "--profile")
    assert process.returncode == 0, process.stderr[-2000:]
    models, attention, forward, step = (json.loads(line) for line in tables.read_text().splitlines())
    expected = [f"forward, {name}" for name in FORWARDS] + [f"step, {name}" for name in FORWARDS[:3]]
    assert [row[0] for row in models["rows"]] == expected
    assert [row[2] for row in models["rows"] if row[0].endswith("float32")] == ["1.00", "1.00"]
    assert "left out" not in process.stdout and "limits: " in process.stdout
    lengths = [(51, 10), (1, 300)]  # about as many tokens as 2 clips of 258
    assert [row[0] for row in attention["rows"]] == [
        f"{clips} clips of {tokens} tokens, {work}"
        for clips, tokens in lengths
        for work in ("forward", "forward and backward")
    ]
    for table, has_optimizer in ((forward, False), (step, True)):
        kinds = [row[0] for row in table["rows"]]
        assert ("optimizer" in kinds) == has_optimizer
        assert {"products of the Linears", "layer norm", "GELU", "attention, torch's kernel"} <= {*kinds}
        for column in range(1, len(table["header"])):
            times = [float(row[column].split()[0]) for row in table["rows"]]
            # Each is rounded to 0.1 ms, and their sum to 1 ms.
            assert abs(sum(times[:-1]) - times[-1]) <= 0.05 * len(times) + 0.5


def test_operations_are_those_of_the_matrix_products(scripts):
    """A clip of 64 frames has 8 x 4 patches; the backward pass has twice as many, but none for the spectrogram."""
    width, patches = 32, 8 * 4
    tokens = 2 + patches
    block = 2 * tokens * (4 * width**2 + 2 * width * 64) + 4 * tokens**2 * width
    projection, head = 2 * patches * 256 * width, 2 * width * 35
    sizes = {**scripts.bfloat16.MINIATURE, "fusion_layers": [2]}
    forward, step = scripts.bfloat16.count_flops(sizes, torch.zeros(3, 64, 128))
    assert forward == 3 * (2 * block + projection + head)
    assert step == 3 * forward - 3 * projection


@pytest.mark.parametrize(
    "name, callers, kind",
    [
        ("aten::addmm", ["aten::linear"], "products of the Linears"),
        ("aten::bmm", ["aten::matmul", "BlockAttention"], "attention, products"),
        ("aten::mm", ["aten::matmul", "BlockAttentionBackward"], "attention, products"),
        ("aten::exp_", ["BlockAttention"], "attention, weights and sums"),
        ("aten::copy_", ["aten::scaled_dot_product_attention"], "attention, torch's kernel"),
        ("aten::copy_", ["aten::to"], "casts and copies"),
        ("aten::_fused_adamw_", ["Optimizer.step#AdamW.step"], "optimizer"),
        ("aten::native_layer_norm_backward", [], "layer norm"),
        ("aten::unheard_of", [], "other"),
    ],
)
def test_an_operation_counts_for_one_kind(scripts, name, callers, kind):
    assert scripts.bfloat16.kind_of(name, callers) == kind


def test_own_attention_is_switched_off_only_where_the_row_says_so(scripts):
    benchmark = scripts.bfloat16
    with benchmark.number_format_of("bfloat16 autocast" + benchmark.KERNEL):
        assert not benchmark.attention_dual_ssast.has_blocks(None, None)  # asks for nothing
        assert torch.is_autocast_enabled("cpu")
    with benchmark.number_format_of("bfloat16 weights"):
        assert benchmark.attention_dual_ssast.has_blocks.__name__ == "has_blocks"
        assert not torch.is_autocast_enabled("cpu")


def test_what_cannot_run_is_named_and_left_out(scripts, capsys):
    def missing():
        raise OSError("no compiler\nat all")

    assert list(scripts.bfloat16.warm_up({"plain": list, "compiled": missing})) == ["plain"]
    assert capsys.readouterr().out.strip() == "left out: compiled (OSError: no compiler)"


def test_losses_are_compared_seed_by_seed(scripts):
    runs = {
        ("float32", 0): {"losses": [1.0] * 10, "test": 1.0},
        ("bfloat16", 0): {"losses": [1.5] * 10, "test": 0.5},
        ("float32", 1): {"losses": [3.0] * 10, "test": 3.0},
        ("bfloat16", 1): {"losses": [2.75] * 10, "test": 4.0},
    }
    rows = scripts.bfloat16_losses.compare(runs, range(2))
    assert [row[0] for row in rows] == [*(f"{tenth}/10" for tenth in range(1, 11)), "test"]
    assert rows[0][1:] == ["2.0000", "2.1250", "+0.1250", "0.5000", "2.0000"]
    assert rows[10][1:] == ["2.0000", "2.2500", "+0.2500", "1.0000", "2.0000"]


def test_steps_are_tenths(scripts, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bfloat16_losses.py", "--steps", "15"])
    with pytest.raises(SystemExit, match="^2$"):
        scripts.bfloat16_losses.main()
    message = capsys.readouterr().err.strip()
    assert message.endswith("--steps is a multiple of 10 and --seeds at least 1, got 15 and 3")
