"""Tests attention in bfloat16 on CPUs: its blocks, its numbers beside torch's own, and where the model uses it."""

import pytest
import torch
from tiny_models import batch, make_three_blocks
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from modeling_dual_ssast import DualSSASTForPreTraining, attention_dual_ssast
from modeling_dual_ssast.attention_dual_ssast import block_attention, blocks, has_blocks

# A rounded bfloat16 is up to 2^-8 of the number away from it: 8 bits, of which the first is not stored.
ROUNDING = 2.0**-8
# A sum of n terms rounds by up to n * 2^-53 of its terms; here n is at most a few thousand, of which random
# signs leave about the root.
FLOAT64 = 1e-13
SCALING = 0.37  # not a power of two: rounding must not depend on it
pytestmark = pytest.mark.usefixtures("one_thread")


def make_states(*shape: int, scale: float = 1.0, seed: int = 0) -> list[torch.Tensor]:
    """Draws query, key and value in bfloat16, of the model's layout: (batch, heads, tokens, size), heads inside."""
    batch, heads, tokens, size = shape
    generator = torch.Generator().manual_seed(seed)
    draws = (scale * torch.randn(batch, tokens, heads, size, generator=generator) for _ in range(3))
    return [draw.bfloat16().transpose(1, 2).requires_grad_() for draw in draws]


def draw_mask(clips: int, tokens: int) -> torch.Tensor:
    """Draws a mask whose clips keep at least one token, some of them few."""
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(clips, tokens, generator=generator) < torch.linspace(0.1, 0.9, clips).unsqueeze(1)
    kept[:, 0] = True
    return kept[:, None, None, :]


def doubled(states: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in states]


def run(attend, states: list[torch.Tensor], mask=None, scaling: float = SCALING) -> tuple[torch.Tensor, ...]:
    """Returns the result (batch, tokens, heads, size), and the gradients of the states for a random gradient."""
    if attend is scaled_dot_product_attention:
        attended = attend(*states, attn_mask=mask, scale=scaling).transpose(1, 2)
    else:
        attended = attend(nn.Identity(), *states, mask, scaling=scaling)[0]
    gradient = torch.randn(attended.shape, generator=torch.Generator().manual_seed(2)).bfloat16().to(attended.dtype)
    return attended.detach(), *torch.autograd.grad(attended, states, gradient), gradient


# ---- the function ----


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scores", [1, 37, 300, 37 * 37, 4 * 37 * 37, 2**20])
def test_in_float64_every_size_of_block_equals_torch(monkeypatch, scores, masked):
    """Blocks of a row, of rows, of heads, of clips: result and gradients differ by rounding alone."""
    monkeypatch.setattr(attention_dual_ssast, "BLOCK_SCORES", scores)
    states = doubled(make_states(5, 3, 37, 8))
    mask = draw_mask(5, 37) if masked else None
    *found, _ = run(block_attention, states, mask)
    *expected, _ = run(scaled_dot_product_attention, states, mask)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, atol=FLOAT64 * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize("shape", [(5, 3, 37, 8), (1, 1, 1, 8), (7, 2, 9, 8), (2, 4, 40, 8)])
@pytest.mark.parametrize("scores", [1, 100, 1000, 5000, 2**20])
def test_blocks_hold_every_query_once_and_few_scores(monkeypatch, shape, scores):
    monkeypatch.setattr(attention_dual_ssast, "BLOCK_SCORES", scores)
    counts = torch.zeros(shape)
    for rows in blocks(counts):
        counts[rows] += 1
        clips, heads, queries, _ = counts[rows].shape
        assert clips * heads * queries * shape[2] <= max(scores, shape[2])
        assert clips == 1 or heads == shape[1]
        assert heads == 1 or queries == shape[2]
    assert (counts == 1).all()


def rounding_bounds(states: list[torch.Tensor], mask, scaling: float, gradient: torch.Tensor) -> list[torch.Tensor]:
    """
    Bounds the errors of result and gradients, in float64, from what `block_attention` rounds to bfloat16.

    A weight exp(d) / sum has a relative error of |d| + 1 roundings, d being the difference from the largest score, and
    its sum the mean of these. Every product, and every rounded factor, adds one.
    """
    query, key, value = (tensor.detach().double() for tensor in states)
    gradient = gradient.transpose(1, 2).double()
    scores = scaling * query @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(dim=-1)
    own = torch.where(weights > 0, (scores.amax(dim=-1, keepdim=True) - scores) + 1, 0.0)  # roundings of exp(d)
    own = own + (weights * own).sum(dim=-1, keepdim=True)
    attended = weights @ value
    of_attended = (weights * own) @ value.abs() + 2 * attended.abs()
    of_value = (weights * (own + 1)).mT @ gradient.abs() + 2 * (weights.mT @ gradient).abs()
    difference = (gradient @ value.mT) - (gradient * attended).sum(dim=-1, keepdim=True)
    of_difference = gradient.abs() @ value.abs().mT + (gradient.abs() * of_attended).sum(dim=-1, keepdim=True)
    of_scores = weights * ((own + 2) * difference.abs() + of_difference)
    of_query = scaling * (of_scores @ key.abs() + 2 * ((weights * difference) @ key).abs())
    of_key = scaling * (of_scores.mT @ query.abs() + ((weights * difference).mT @ query).abs())
    # A tenth for products of two roundings: a weight of |d| = 20 has 21 of them, 8 %, and less by far counts.
    return [1.1 * ROUNDING * bound for bound in (of_attended.transpose(1, 2), of_query, of_key, of_value)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_bfloat16_rounds_no_more_than_its_operations_do(scale, masked):
    """Scores of up to 60 are among them: their own rounding would be a hundred times that of the weights."""
    states, mask = make_states(2, 3, 130, 64, scale=scale), draw_mask(2, 130) if masked else None
    *found, gradient = run(block_attention, states, mask, 64**-0.5)
    *expected, _ = run(scaled_dot_product_attention, doubled(states), mask, 64**-0.5)
    for one, other, bound in zip(found, expected, rounding_bounds(states, mask, 64**-0.5, gradient)):
        assert one.dtype == torch.bfloat16
        assert ((one.double() - other).abs() <= bound).all()


# ---- where the model uses it ----


@pytest.fixture
def fast(monkeypatch):
    """A CPU with AVX512-BF16 and without AMX, on which few scores are enough; the dictionary can make another one."""
    features = {"avx512_bf16": True, "amx_tile": False}
    monkeypatch.setattr(attention_dual_ssast, "LEAST_SCORES", {False: 0, True: 0})
    monkeypatch.setattr(attention_dual_ssast, "cpu_has", features.__getitem__)
    return features


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """Collects the shapes of the queries that `block_attention` gets from a model."""
    shapes = []

    def counted(module, query, *states, **settings):
        shapes.append((*query.shape,))
        return block_attention(module, query, *states, **settings)

    monkeypatch.setattr(attention_dual_ssast, "block_attention", counted)
    return shapes


def test_blocks_are_for_bfloat16_without_amx(fast):
    query = torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16)
    assert has_blocks(query, 0.0)
    assert not has_blocks(query, 0.1)
    assert not has_blocks(query.float(), 0.0) and not has_blocks(query.half(), 0.0)
    assert not has_blocks(query.to("meta"), 0.0)
    with sdpa_kernel(SDPBackend.MATH):
        assert not has_blocks(query, 0.0)
    with sdpa_kernel([SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]):
        assert has_blocks(query, 0.0)
    fast["amx_tile"] = True
    assert not has_blocks(query, 0.0)
    fast.update(amx_tile=False, avx512_bf16=False)
    assert not has_blocks(query, 0.0)


def test_few_scores_stay_with_torch(fast, monkeypatch):
    """2 clips, 2 heads, 3 x 3 tokens: 36 scores."""
    query = torch.zeros(2, 2, 3, 8, dtype=torch.bfloat16)
    for least, expected in (({False: 36, True: 37}, True), ({False: 37, True: 36}, False)):
        monkeypatch.setattr(attention_dual_ssast, "LEAST_SCORES", least)
        assert has_blocks(query, 0.0) == expected
        assert has_blocks(query.clone().requires_grad_(), 0.0) != expected
        with torch.no_grad():
            assert has_blocks(query.clone().requires_grad_(), 0.0) == expected


def test_a_version_of_torch_that_reports_no_features_has_no_blocks(monkeypatch):
    monkeypatch.setattr(attention_dual_ssast, "LEAST_SCORES", {False: 0, True: 0})
    for feature in ("avx512_bf16", "amx_tile"):
        monkeypatch.delattr(torch.cpu, f"_is_{feature}_supported", raising=False)
    assert not has_blocks(torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16), 0.0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_in_bfloat16_uses_blocks_with_sdpa_alone(fast, calls, attention):
    model = make_three_blocks(attn_implementation=attention)
    input_values, mask = batch(100, 100)
    with torch.no_grad():
        model(input_values, mask)
        assert not calls  # float32
        with torch.autocast("cpu", torch.bfloat16):
            model(input_values, mask)
        assert len(calls) == (3 if attention == "sdpa" else 0)
        model.bfloat16()(input_values, mask)
        assert len(calls) == (6 if attention == "sdpa" else 0)
        fast["amx_tile"] = True
        model(input_values, mask)
        assert len(calls) == (6 if attention == "sdpa" else 0)


def test_dropout_of_weights_stays_with_torch(fast, calls):
    model = make_three_blocks(attn_implementation="sdpa", attention_probs_dropout_prob=0.5).bfloat16()
    input_values, mask = batch(100, 100)
    model.train()(input_values, mask)
    assert not calls
    model.eval()(input_values, mask)  # drops nothing
    assert len(calls) == 3


def logits_and_gradients(model, input_values, mask) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logits = model(input_values, mask).logits
    (logits * torch.arange(logits.numel()).view_as(logits)).sum().backward()
    return {"logits": logits.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("pack", [False, True])
def test_in_float64_a_model_differs_by_rounding_alone(monkeypatch, calls, pack, checkpointing):
    """Padded, with a mask, or packed, clip by clip; its logits and the gradients of all weights."""
    model = make_three_blocks(attn_implementation="sdpa", pack_tokens=pack).double().train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    input_values, mask = batch(128, 40, 70)
    expected = logits_and_gradients(model, input_values.double(), mask)
    assert not calls
    monkeypatch.setattr(attention_dual_ssast, "has_blocks", lambda query, dropout: True)
    found = logits_and_gradients(model, input_values.double(), mask)
    assert len(calls) == 3 * (3 if pack else 1) * (2 if checkpointing else 1)
    assert {shape[0] for shape in calls} == {1 if pack else 3}
    for name, other in expected.items():
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(found[name], other, atol=FLOAT64 * scale, rtol=0, msg=name)


def test_pretraining_in_bfloat16_uses_blocks(fast, calls):
    model = make_three_blocks(DualSSASTForPreTraining, attn_implementation="sdpa")
    with torch.autocast("cpu", torch.bfloat16):
        model(batch(128, 128)[0]).loss.backward()
    assert calls
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_graphs_keep_the_attention_of_torch(fast, calls):
    """Compiled and exported models have no function that only Python can run."""
    model = make_three_blocks(attn_implementation="sdpa").bfloat16()
    input_values = batch(100, 100)[0].bfloat16()
    program = torch.export.export(model, (input_values,), strict=False)
    targets = [str(node.target) for node in program.graph.nodes]
    assert sum("scaled_dot_product_attention" in target for target in targets) == 3
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        compiled(input_values)
    assert not calls
