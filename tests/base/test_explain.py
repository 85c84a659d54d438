"""Tests training/explain.py: the maps of a classification."""

import numpy as np
import pytest
import torch
from audio_files import write_tone
from matplotlib import pyplot
from tiny_models import TINY, save_tiny_classifier

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForAudioFrameClassification
from training import explain
from training.base.label_frames import frame_grid
from training.errors import InputError

pytestmark = pytest.mark.figures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_classifier(tmp_path_factory.mktemp("model"), initializer_range=0.3, fusion_layers=[1, 2])


@pytest.fixture
def model(folder):
    return explain.load(str(folder))[0]


def some_input(frames: int = 64) -> torch.Tensor:
    return torch.randn(1, frames, 128, generator=torch.Generator().manual_seed(0))


def test_maps_lie_on_the_patches_of_the_clip(model):
    found = explain.explain(model, some_input(40))
    assert found["attention"].shape == (2, 8, 3) and found["rollout"].shape == (8, 3)
    assert set(found["relevance"]) == {1, 2}
    assert all(values.shape == (8, 3) and values.min() >= 0 < values.max() for values in found["relevance"].values())
    assert found["label"] == int(model(some_input(40)).logits.argmax())


def test_attention_and_rollout_are_shares(model):
    found = explain.explain(model, some_input())
    shares = found["attention"].sum(axis=(1, 2))
    assert ((shares > 0) & (shares < 1)).all() and 0 < found["rollout"].sum() < 1
    outputs = model(some_input(), output_attentions=True)
    first = outputs.attentions[0][0].mean(dim=0)[:2, 2:].mean(dim=0).detach().numpy()
    np.testing.assert_allclose(found["attention"][0].ravel(), first, rtol=1e-6)


@pytest.mark.parametrize("readout", ["patches", "prefix"])
def test_fused_layers_attend_from_what_is_read_out(tmp_path, readout):
    model, _ = explain.load(str(save_tiny_classifier(tmp_path, readout=readout, fusion_layers=[0, 1, 2])))
    found = explain.explain(model, some_input())["attended"]
    assert set(found) == {1, 2}  # the patch embedding has no attention
    attentions = model(some_input(), output_attentions=True).attentions
    tokens = slice(0, 2) if readout == "prefix" else slice(2, None)
    for layer, values in found.items():
        expected = attentions[layer - 1][0].mean(dim=0)[tokens, 2:].mean(dim=0).detach().numpy()
        np.testing.assert_allclose(values.ravel(), expected, rtol=1e-5)


def test_relevance_is_that_of_the_class_that_is_asked_for(model):
    """On the last layer, pooled by the mean, it is the positive part of state times gradient, patch by patch."""
    maps = [explain.explain(model, some_input(), label)["relevance"][2] for label in range(3)]
    assert not np.allclose(maps[0], maps[1]) and not np.allclose(maps[1], maps[2])
    outputs = model(some_input(), output_hidden_states=True)
    state = outputs.hidden_states[2]
    (gradient,) = torch.autograd.grad(outputs.logits[0, 1], state)
    expected = (state * gradient)[0, 2:].sum(dim=-1).clamp(min=0).detach().numpy()
    np.testing.assert_allclose(maps[1].ravel(), expected, rtol=1e-5, atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("readout", ["patches", "frames"])
def test_learned_readouts_are_those_that_the_model_applies(tmp_path, readout):
    settings = {"readout": readout, "fusion": "gated", "fusion_layers": [0, 2], "initializer_range": 0.3}
    shape = (8, 3) if readout == "patches" else (1, 3)
    pooled = {"pooling": [["mean"], ["attention"]], "num_pooling_heads": 2}
    model, _ = explain.load(str(save_tiny_classifier(tmp_path / "attention", **settings, **pooled)))
    model.dual_ssast.fusion.fusion.layer_weights[0] = 3.0
    with torch.enable_grad():
        found = explain.explain(model, some_input(40))
    assert set(found["pooled"]) == {2} and found["likeness"] is None and found["weights"][0] > found["weights"][2]
    weights = found["pooled"][2]
    assert weights.shape == (8, 3) and np.ptp(weights) > 0
    assert weights.sum() == pytest.approx(1 if readout == "patches" else 8, rel=1e-5)  # a time step: all its rows

    settings["classifier"] = "prototypes"
    model, extractor = explain.load(str(save_tiny_classifier(tmp_path / "prototypes", **settings)))
    with torch.enable_grad():
        found = explain.explain(model, some_input(40))
    label, likeness = found["label"], torch.from_numpy(found["likeness"][: shape[0]])
    assert not found["pooled"] and likeness.shape == shape
    tokens = model.dual_ssast.label_tokens(model.dual_ssast(some_input(40), output_hidden_states=True))
    cosines = model.classifier.cosines(tokens)[0, :, :, label].amax(dim=-1)  # (columns, rows)
    torch.testing.assert_close(likeness, cosines.T)
    explain.draw(model, extractor, some_input(40), found, "title", tmp_path / "x.png")
    assert pyplot.imread(tmp_path / "x.png").std() > 0.05


def test_a_file_becomes_one_picture(folder, tmp_path, capsys):
    write_tone(tmp_path / "clip.wav", seconds=3.0, rate=8000)
    assert explain.main([str(folder), str(tmp_path / "clip.wav"), "--output", str(tmp_path / "out" / "x.png")]) == 0
    picture = pyplot.imread(tmp_path / "out" / "x.png")
    assert picture.shape[1] == 1200 and picture.std() > 0.05
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.png"]
    assert str(tmp_path / "out" / "x.png") in capsys.readouterr().out
    words = [str(folder), str(tmp_path / "clip.wav"), "--label", "low", "--output", str(tmp_path / "y.png")]
    assert explain.main(words) == 0 and capsys.readouterr().out.startswith("low: ")
    words[-1] = str(tmp_path / "z.pdf")
    assert explain.main(words) == 0 and (tmp_path / "z.pdf").read_bytes().startswith(b"%PDF")
    assert not (tmp_path / "z.png").exists()


# ---- Classifiers of time frames ----


def save_frames(folder, **settings):
    torch.manual_seed(0)
    names = {"id2label": {0: "high", 1: "low"}, "label2id": {"high": 0, "low": 1}, "initializer_range": 0.3}
    model = DualSSASTForAudioFrameClassification(
        DualSSASTConfig(**{**TINY, **names, "fusion_layers": [1, 2], **settings})
    )
    torch.nn.init.normal_(model.classifier.dense.weight, std=0.5)
    model.save_pretrained(folder)
    DualSSASTFeatureExtractor(max_length=model.config.max_length).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def of_frames(tmp_path_factory):
    return save_frames(tmp_path_factory.mktemp("frames"), time_stride=8)


def test_frames_have_the_relevance_of_their_mean_logit(of_frames):
    model, _ = explain.load(str(of_frames))
    found = explain.explain(model, some_input(), 1, (2, 4))
    outputs = model(some_input(), output_hidden_states=True, output_attentions=True)
    logits = outputs.logits[0, 2:5].mean(dim=0)
    torch.testing.assert_close(found["logits"], logits.detach())
    state = outputs.hidden_states[1]
    (gradient,) = torch.autograd.grad(logits[1], state, retain_graph=True)
    expected = (state * gradient)[0, 2:].sum(dim=-1).clamp(min=0).detach().numpy()
    np.testing.assert_allclose(found["relevance"][1].ravel(), expected, rtol=1e-4, atol=1e-6)
    # Attention is that of the patches in the columns 2 to 4.
    weights = outputs.attentions[0][0].mean(dim=0)[2:, 2:].detach().numpy()  # (from, to)
    columns = np.arange(weights.shape[0]) % found["rollout"].shape[1]
    read = weights[(columns >= 2) & (columns <= 4)].mean(axis=0)
    np.testing.assert_allclose(found["attention"][0].ravel(), read, rtol=1e-5)
    np.testing.assert_allclose(found["attended"][1].ravel(), read, rtol=1e-5)


def test_without_a_time_it_is_the_likeliest_one(of_frames):
    model, _ = explain.load(str(of_frames))
    logits = model(some_input()).logits[0].detach().numpy()
    frame, label = np.unravel_index(logits.argmax(), logits.shape)
    found = explain.explain(model, some_input())
    assert (found["frames"], found["label"]) == ((frame, frame), label)
    frame = int(logits[:, 1 - label].argmax())
    assert explain.explain(model, some_input(), 1 - int(label))["frames"] == (frame, frame)


@torch.no_grad()
def test_the_attention_of_frames_is_a_share_of_each_column(tmp_path):
    settings = {"pooling": "attention", "num_pooling_heads": 2}
    model, _ = explain.load(str(save_frames(tmp_path, **settings)))
    attention = model.dual_ssast.fusion.attention[1]
    torch.nn.init.normal_(attention.pooling_query)
    with torch.enable_grad():
        found = explain.explain(model, some_input())
    weights = torch.from_numpy(found["pooled"][2])  # (rows, columns)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(weights.shape[1]))
    outputs = model.dual_ssast(some_input(), output_hidden_states=True)
    tokens = model.dual_ssast.fusion.frame_tokens(model.dual_ssast.fused_states(outputs.hidden_states)[1])[0, 1]
    pooled = attention(tokens[None], torch.ones(1, len(tokens), dtype=torch.bool))[0]
    by_head = tokens.unflatten(1, (2, -1))
    expected = attention.weights(tokens[None], torch.ones(1, len(tokens), dtype=torch.bool))[0]
    torch.testing.assert_close(weights[:, 1], expected.mean(dim=1))
    torch.testing.assert_close((expected[..., None] * by_head).sum(dim=0).flatten(), pooled)


@pytest.mark.parametrize("at_s", [[0.0], [0.31], [4.0], [8.123], [9.99], [10.0], [3.0, 3.2], [7.95, 8.4]])
def test_the_frames_around_a_time_in_a_long_file(of_frames, tmp_path, at_s):
    model, extractor = explain.load(str(of_frames))
    path = write_tone(tmp_path / "clip.wav", seconds=10.0)
    waveform, start, (first, last) = explain.read_part(model, extractor, str(path), at_s)
    grid, rate = frame_grid(model, extractor), extractor.sampling_rate
    assert len(waveform) == grid.length and 0 <= start <= 10 * rate - grid.length
    assert explain.explain(
        model, extractor([torch.from_numpy(waveform)], rate, return_tensors="pt").input_values, 0, (first, last)
    )
    edges_s = start / rate + grid.edges_s(grid.frames, grid.length)
    assert edges_s[first] <= at_s[0] + 1e-6 and edges_s[last + 1] >= at_s[-1] - 1e-6
    assert edges_s[last] < max(at_s[-1], at_s[0] + 1e-6) and (first == grid.frames - 1 or edges_s[first + 1] > at_s[0])


@pytest.mark.parametrize("at_s", [[0.31], [4.0], [8.123], [9.85], [3.0, 3.2], [7.95, 8.4]])
def test_the_frames_are_those_of_a_classification(of_frames, tmp_path, at_s):
    """An event of some frames, as predict_hf.py writes it, is explained in the same ones."""
    model, extractor = explain.load(str(of_frames))
    path, grid = write_tone(tmp_path / "clip.wav", seconds=10.0), frame_grid(model, extractor)
    edges = grid.edges_s(124, 160000)
    touched = [int(np.searchsorted(edges, second, "right")) - 1 for second in at_s]
    times = [round(float(edges[touched[0]]), 6), round(float(edges[touched[-1] + 1]), 6)]
    for given in (at_s if len(at_s) == 1 else times, times):
        _, start, frames = explain.read_part(model, extractor, str(path), given)
        assert start % grid.step == 0
        assert [start // grid.step + frame for frame in frames] == [touched[0], touched[-1]]


def test_the_last_frame_is_marked_to_the_end_of_the_file(of_frames, tmp_path, monkeypatch):
    marked = []
    monkeypatch.setattr(
        explain, "edges_of", lambda *args, real=explain.edges_of: marked.append(real(*args)) or marked[-1]
    )
    path, output = str(write_tone(tmp_path / "clip.wav", seconds=3.0)), str(tmp_path / "x.png")
    assert explain.main([str(of_frames), path, "--output", output, "--at_s", "2.99"]) == 0
    assert explain.main([str(of_frames), path, "--output", output, "--at_s", "1.5"]) == 0
    (begin, end), (middle, after) = marked
    assert begin < end == pytest.approx(0.64) and after - middle == pytest.approx(0.08)  # of 64 spectrogram frames
    model, extractor = explain.load(str(of_frames))
    assert explain.edges_of(model, extractor, (6, 6), 64, False) == pytest.approx((0.52, 0.6))
    assert explain.edges_of(model, extractor, (0, 6), 64, True) == pytest.approx((0.0, 0.64))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"readout": "frames"},
        {"readout": "tokens", "num_token_frames": 16, "frame_hop_s": 0.04, "attention_over_padding": True},
    ],
)
def test_a_moment_of_a_file_becomes_a_picture(tmp_path, capsys, settings):
    model, path = save_frames(tmp_path / "model", **settings), write_tone(tmp_path / "clip.wav", seconds=3.0, rate=8000)
    words = [str(model), str(path), "--label", "low", "--output", str(tmp_path / "x.png"), "--at_s"]
    assert explain.main([*words, "2.1", "2.3"]) == 0 and capsys.readouterr().out.startswith("low: ")
    assert pyplot.imread(tmp_path / "x.png").std() > 0.05


def test_impossible_times_are_told_in_one_line(folder, of_frames, tmp_path, capsys):
    path = str(write_tone(tmp_path / "clip.wav", seconds=3.0))
    for model, times, message in (
        (folder, ["1"], "at_s: DualSSASTForAudioClassification classifies clips, not time frames; leave it out"),
        (of_frames, ["3.1"], "ends at 3 s, before 3.1 s; name an earlier time"),
        (of_frames, ["0.5", "2.5"], "less than [0.5, 2.5]; name a shorter part"),
        (of_frames, ["2", "1"], "at_s: must be one time, or an onset and an offset after it, got [2.0, 1.0]"),
        (of_frames, ["1", "2", "3"], "at_s: must be one time"),
        (of_frames, ["-1"], "at_s: must be"),
    ):
        assert explain.main([str(model), path, "--output", str(tmp_path / "x.png"), "--at_s", *times]) == 1
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_bad_input_is_told_in_one_line(folder, tmp_path, capsys):
    write_tone(tmp_path / "clip.wav", seconds=0.5)
    for words, message in (
        (["nowhere", "clip.wav"], "nowhere: not a classifier that can be loaded"),
        ([str(folder), "nowhere.wav"], "nowhere.wav: no such file"),
        ([str(folder), str(tmp_path / "clip.wav"), "--label", "dog"], "--label: 'dog' is no class of the model"),
        ([str(folder), str(tmp_path / "clip.wav"), "--label", "hihg"], "of the model; did you mean high?"),
        (
            [str(folder), str(tmp_path / "clip.wav"), "--output", "x.jpg"],
            "output: x.jpg must end in .png, .pdf or .svg",
        ),
        ([str(folder)], "usage: python -m training.explain MODEL FILE"),
    ):
        assert explain.main(words) == 1
        error = capsys.readouterr().err.strip().splitlines()
        assert error[-1].startswith("error: ") and message in error[-1]
    with pytest.raises(InputError, match="can be loaded"):
        explain.load("nowhere")
