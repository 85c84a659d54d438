"""Tests pooling and fusion against loops over clips and tokens."""

import math
import statistics

import pytest
import torch

from modeling_dual_ssast import fusion_dual_ssast
from modeling_dual_ssast.fusion_dual_ssast import (
    LayerFusion,
    TokenAttention,
    align_frames,
    compose_frames,
    masked_max,
    masked_mean,
    masked_min,
    masked_std,
    pool_rows,
    pool_tokens,
    time_frames,
)

REDUCE = {"mean": lambda values: math.fsum(values) / len(values), "max": max, "min": min, "std": statistics.pstdev}
POOLS = {"mean": masked_mean, "max": masked_max, "min": masked_min, "std": masked_std}


def random_tokens(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(3, 7, 4, generator=generator).to(dtype)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [0, 0, 1, 0, 0, 0, 0]]).bool()
    return tokens, mask


def pooled_by_loop(tokens, mask, name):
    clips = []
    for clip, keep in zip(tokens.tolist(), mask.tolist()):
        valid = [token for token, kept in zip(clip, keep) if kept]
        clips.append([REDUCE[name](values) for values in zip(*valid)])
    return torch.tensor(clips, dtype=tokens.dtype)


@pytest.mark.parametrize("name, pool", POOLS.items())
def test_poolings_equal_a_loop(name, pool):
    tokens, mask = random_tokens()
    torch.testing.assert_close(pool(tokens, mask), pooled_by_loop(tokens, mask, name), atol=1e-14, rtol=0)


@pytest.mark.parametrize("poolings", [["mean"], ["max", "min"], ["min", "mean", "max"], ["std", "mean"]])
@pytest.mark.parametrize("combination", ["sum", "mean", "concat"])
def test_combinations_equal_a_loop(poolings, combination):
    tokens, mask = random_tokens()
    parts = [pooled_by_loop(tokens, mask, name) for name in poolings]
    expected = {"sum": sum(parts), "mean": sum(parts) / len(parts), "concat": torch.cat(parts, dim=1)}[combination]
    torch.testing.assert_close(pool_tokens(tokens, mask, poolings, combination), expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*POOLS, "attention"])
@pytest.mark.parametrize("rubbish", [0.0, "largest", "smallest", math.inf, math.nan])
def test_masked_tokens_never_matter(dtype, name, rubbish):
    tokens, mask = random_tokens(dtype)
    bounds = {"largest": torch.finfo(dtype).max, "smallest": torch.finfo(dtype).min}
    dirty = tokens.masked_fill(~mask.unsqueeze(-1), bounds.get(rubbish, rubbish)).requires_grad_()
    attention = random_attention(2).to(dtype)
    pooled = pool_tokens(dirty, mask, [name], "sum", attention)
    assert pooled.dtype == dtype and torch.equal(pooled, pool_tokens(tokens, mask, [name], "sum", attention))
    pooled.float().sum().backward()
    assert (dirty.grad[~mask] == 0).all() and dirty.grad[mask].isfinite().all() and dirty.grad.any()


def random_attention(heads, size=4):
    attention = TokenAttention(size, heads).double()
    torch.nn.init.normal_(attention.pooling_query, generator=torch.Generator().manual_seed(1))
    return attention


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_equals_a_loop(heads):
    tokens, mask = random_tokens()
    attention = random_attention(heads)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for clip in range(3):
        valid = tokens[clip, mask[clip]].tolist()
        for channel in range(4):
            query = attention.pooling_query[channel // (4 // heads)].tolist()
            scores = [math.exp(math.fsum(q * x for q, x in zip(query, token)) / math.sqrt(4)) for token in valid]
            total = math.fsum(score * token[channel] for score, token in zip(scores, valid))
            expected[clip, channel] = total / math.fsum(scores)
    torch.testing.assert_close(attention(tokens, mask), expected, atol=1e-14, rtol=0)
    assert (attention.weights(tokens, mask)[~mask] == 0).all()


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_queries_of_zeros_give_the_mean(heads):
    tokens, mask = random_tokens()
    torch.testing.assert_close(TokenAttention(4, heads)(tokens, mask), masked_mean(tokens, mask), atol=1e-14, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_token_has_no_deviation_and_a_finite_gradient(dtype):
    tokens = torch.tensor([[[3.0, -60000.0]], [[1e-4, 0.0]]], dtype=dtype, requires_grad=True)
    deviation = masked_std(tokens, torch.ones(2, 1, dtype=torch.bool))
    deviation.float().sum().backward()
    assert (deviation == 0).all() and (tokens.grad == 0).all()


@pytest.mark.parametrize("name", ["mean", "std", "attention"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_numbers_do_not_overflow_half_precision(name, dtype):
    tokens = torch.tensor([60000.0, -60000.0, 0.0, 20000.0], dtype=dtype).repeat(1, 512, 1)
    tokens[:, ::2] = 0
    pooled = pool_tokens(tokens, torch.ones(1, 512, dtype=torch.bool), [name], "sum", random_attention(1).to(dtype))
    assert pooled.isfinite().all()


@pytest.mark.parametrize("poolings", [["std"], ["attention"], ["mean", "std", "attention"]])
def test_gradients_of_poolings_are_their_finite_differences(poolings):
    tokens, mask = random_tokens()
    attention = random_attention(2)

    def pool(tokens, query):
        return torch.func.functional_call(Pool(poolings, attention), {"attention.pooling_query": query}, (tokens, mask))

    assert torch.autograd.gradcheck(pool, (tokens.requires_grad_(), attention.pooling_query.detach().requires_grad_()))


class Pool(torch.nn.Module):
    def __init__(self, poolings, attention):
        super().__init__()
        self.poolings, self.attention = poolings, attention

    def forward(self, tokens, mask):
        return pool_tokens(tokens, mask, self.poolings, "concat", self.attention)


def test_attention_over_frequency_pools_each_column():
    feature_map, attention = torch.randn(2, 4, 3, 5, dtype=torch.float64), random_attention(2)
    pooled = pool_rows(feature_map, ["std", "attention"], "concat", attention)  # (batch, columns, 8)
    mask = torch.ones(2, 3, dtype=torch.bool)
    for column in range(5):
        rows = feature_map[..., column].mT  # (batch, rows, size)
        torch.testing.assert_close(pooled[:, column, :4], masked_std(rows, mask))
        torch.testing.assert_close(pooled[:, column, 4:], attention(rows, mask))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_many_large_tokens_do_not_overflow(dtype):
    tokens = torch.full((1, 2048, 2), 1000.0, dtype=dtype)
    assert masked_mean(tokens, torch.ones(1, 2048, dtype=torch.bool)).tolist() == [[1000.0, 1000.0]]


def test_time_frames_keep_frequency_and_channel_of_every_step():
    feature_map = torch.randn(2, 3, 4, 5)  # (batch, channels, rows, columns)
    frames = time_frames(feature_map)
    assert frames.shape == (2, 5, 12)
    for channel in range(3):
        for row in range(4):
            assert torch.equal(frames[:, :, channel * 4 + row], feature_map[:, channel, row])


def test_composed_frames_are_maxima_over_time_side_by_side():
    fine, coarse = torch.randn(2, 3, 4, 13), torch.randn(2, 5, 2, 3)  # (batch, channels, rows, columns)
    frames = compose_frames([fine, coarse], [2, 8], 8)
    assert frames.shape == (2, 3, 3 * 4 + 5 * 2)  # the thirteenth fine column fills no frame
    for column in range(3):
        for channel in range(3):
            for row in range(4):
                expected = fine[:, channel, row, 4 * column : 4 * column + 4].amax(dim=-1)
                assert torch.equal(frames[:, column, channel * 4 + row], expected)
        assert torch.equal(frames[:, column, 12:], coarse[..., column].flatten(1))


def test_fusions_equal_their_formulas():
    vectors = [torch.randn(2, 4, dtype=torch.float64) for _ in range(3)]
    assert torch.equal(LayerFusion("concat", 3)(vectors), torch.cat(vectors, dim=1))
    torch.testing.assert_close(LayerFusion("sum", 3)(vectors), vectors[0] + vectors[1] + vectors[2])
    weighted = LayerFusion("weighted", 3).double()
    torch.testing.assert_close(weighted(vectors), sum(vectors) / 3)  # equal weights at the start
    scalars = [0.5, -1.0, 2.0]
    weighted.layer_weights.data = torch.tensor(scalars, dtype=torch.float64)
    total = sum(math.exp(scalar) for scalar in scalars)
    expected = sum(math.exp(scalar) / total * vector for scalar, vector in zip(scalars, vectors))
    torch.testing.assert_close(weighted(vectors), expected)


def test_gates_are_a_convex_combination():
    vectors = [torch.randn(2, 4, dtype=torch.float64) for _ in range(3)]
    gated = LayerFusion("gated", 3).double()
    torch.testing.assert_close(gated(vectors), sum(vectors) / 3)  # equal weights at the start
    scalars = [0.5, -1.0, 2.0]
    gated.layer_weights.data = torch.tensor(scalars, dtype=torch.float64)
    gates = [1 / (1 + math.exp(-scalar)) for scalar in scalars]
    expected = sum(gate / sum(gates) * vector for gate, vector in zip(gates, vectors))
    torch.testing.assert_close(gated(vectors), expected)
    assert gated.weights.tolist() == pytest.approx([gate / sum(gates) for gate in gates])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", range(3))
def test_one_open_gate_gives_that_layer_alone(layer, dtype):
    vectors = [torch.randn(2, 4).to(dtype) for _ in range(3)]
    gated = LayerFusion("gated", 3).to(dtype)
    gated.layer_weights.data = torch.full((3,), -2000.0, dtype=dtype)
    torch.testing.assert_close(gated(vectors), (sum(vectors) / 3).to(dtype), atol=2e-2, rtol=2e-2)  # all are closed
    gated.layer_weights.data[layer] = 5.0
    assert torch.equal(gated(vectors), vectors[layer])


@pytest.mark.parametrize("mode", ["weighted", "gated"])
def test_gradients_of_fusions_are_their_finite_differences(mode):
    def fuse(scalars, *vectors):
        return torch.func.functional_call(LayerFusion(mode, 3), {"layer_weights": scalars}, (vectors,))

    inputs = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((3,), (2, 4), (2, 4), (2, 4))]
    assert torch.autograd.gradcheck(fuse, inputs)


@pytest.mark.parametrize("mode", ["weighted", "gated"])
def test_weights_of_the_layers_learn(mode):
    fusion = LayerFusion(mode, 3)
    fusion([torch.full((1, 2), float(i)) for i in range(3)]).sum().backward()
    assert fusion.layer_weights.grad.abs().max() > 0.05
    assert not list(LayerFusion("concat", 3).parameters()) and not list(LayerFusion("sum", 3).parameters())


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("marks", [[[1] * 7, [1] * 4 + [0] * 3], [[0, 0, 1, 1, 0, 1, 0], [1] * 2 + [0] * 5]])
def test_aligned_audio_comes_first(monkeypatch, marks, in_graph):
    """Audio that comes first already takes a shorter way, except in a graph; both write the padding."""
    monkeypatch.setattr(fusion_dual_ssast, "in_graph", lambda: in_graph)
    values, mask = torch.arange(1.0, 29.0).reshape(2, 7, 2), torch.tensor(marks)
    expected = torch.full_like(values, -5.0)
    for clip, own, kept in zip(expected, values, mask.bool()):
        clip[: kept.sum()] = own[kept]
    torch.testing.assert_close(align_frames(values, mask, -5.0), expected, atol=0, rtol=0)
