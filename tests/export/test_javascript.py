"""Tests the export for Transformers.js: its features, the mask that the graph derives, the folder, and refusals."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from audio_files import ROOT
from tiny_detectors import save_tiny_detector
from tiny_models import save_tiny_classifier, save_tiny_cnn
from transformers import AutoModel
from transformers.models.audio_spectrogram_transformer import feature_extraction_audio_spectrogram_transformer as ast

from modeling_dual_ssast import DualSSASTFeatureExtractor
from training.base.label_frames import frame_grid
from training.data.audio import read_audio
from training.errors import InputError
from training.export import __main__, comparison, javascript

RATE, FRAMES = 16000, 128
WINDOW = (FRAMES - 1) * 160 + 400
RECORDINGS = sorted((ROOT / "data" / "voice_prompts" / "audio").glob("*.flac"))[::100]
NOISE = np.random.default_rng(0).standard_normal(2 * WINDOW).astype(np.float32)
# A tone in noise: of one without, float32 in Python leaves other rounding errors than float64 in JavaScript.
TONE = np.sin(np.arange(9000, dtype=np.float32)) + 1e-2 * NOISE[:9000]
# Silence, a tone, one frame, two frames, an offset, whisper, all frames but one, all
CLIPS = [np.zeros(8000, np.float32), TONE, NOISE[:400], NOISE[:560]]
CLIPS += [0.1 * NOISE[:5000] + 0.5, 1e-4 * NOISE[:9000], NOISE[: WINDOW - 160], NOISE[:WINDOW]]
CLIPS += [read_audio(str(file), RATE)[:WINDOW] for file in RECORDINGS]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folder, model and feature extractor of a tiny classifier."""
    folder = save_tiny_classifier(
        tmp_path_factory.mktemp("js") / "model", max_length=FRAMES, calibration_temperature=1.5
    )
    return folder, *__main__.load(str(folder))


def export(folder, output, *options) -> int:
    words = [folder, output, "--format", "transformers-js", "--verify-with", *RECORDINGS[:2], *options]
    return __main__.main(list(map(str, words)))


def stacked(settings: dict, clips) -> np.ndarray:
    return np.stack([javascript.javascript_features(clip, settings) for clip in clips])


@pytest.mark.parametrize(
    "settings", [{}, {"num_mel_bins": 40, "mean": 1.0, "std": 0.3}, {"do_normalize": False}, {"sampling_rate": 8000}]
)
def test_features_are_those_of_transformers_ast(settings, tiny, monkeypatch):
    """Its path without torchaudio is the one that Transformers.js has copied."""
    made = javascript.features(tiny[1], DualSSASTFeatureExtractor(max_length=FRAMES, **settings))
    monkeypatch.setattr(ast, "is_speech_available", lambda: False)
    extractor = ast.ASTFeatureExtractor.from_dict(made)
    for clip in (CLIPS[1], NOISE):
        expected = extractor(clip, sampling_rate=made["sampling_rate"], return_tensors="np")["input_values"][0]
        assert np.abs(javascript.javascript_features(clip, made) - expected).max() < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attention_over_padding": True},
        {"patch_size": [128, 2], "frequency_stride": 128, "time_stride": 1},
        {"time_stride": 10, "fusion": "weighted", "fusion_norm": "separate"},
    ],
)
@pytest.mark.parametrize("normalisation", [{}, {"mean": 0.0, "std": 0.5}, {"mean": -9.0, "std": 40.0}])
def test_the_graph_finds_where_a_clip_ends(settings, normalisation, tmp_path):
    save_tiny_classifier(tmp_path, max_length=FRAMES, calibration_temperature=1.5, **settings)
    DualSSASTFeatureExtractor(max_length=FRAMES, **normalisation).save_pretrained(tmp_path)
    model, extractor = __main__.load(str(tmp_path))
    graph = javascript.PaddedGraph(model, extractor)
    values = torch.from_numpy(stacked(javascript.features(model, extractor), CLIPS))
    expected = np.concatenate([comparison.torch_runner(model, extractor)([clip]) for clip in CLIPS])
    assert np.ptp(expected, axis=0).max() > 0.01
    exact = extractor._normalize(0.0)  # what Python's AST pads with
    for floor in (values, torch.where(values == values.new_tensor(graph.padding), exact, values)):
        alone = torch.cat([graph(row[None]) for row in floor])
        assert np.abs(alone.numpy() * 1.5 - expected).max() < 1e-4
        assert (graph(floor) - alone).abs().max() < 1e-5


def test_silence_inside_and_at_the_end_is_audio(tiny):
    _, model, extractor = tiny
    settings = javascript.features(model, extractor)
    clip = np.concatenate([NOISE[:4000], np.zeros(6000, np.float32)])
    shorter, whole = (torch.from_numpy(stacked(settings, [part])) for part in (clip[:4000], clip))
    graph = javascript.PaddedGraph(model, extractor)
    assert (graph(shorter) - graph(whole)).abs().max() > 1e-3
    expected = comparison.torch_runner(model, extractor)([clip])
    assert np.abs(graph(whole).numpy() * 1.5 - expected).max() < 1e-4


def test_a_clip_without_a_frame_is_an_error(tiny):
    _, model, extractor = tiny
    empty = torch.from_numpy(stacked(javascript.features(model, extractor), [NOISE[:399]]))
    with pytest.raises(IndexError):
        javascript.PaddedGraph(model, extractor)(empty)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"time_stride": 10},
        {"time_stride": 16, "readout": "tokens", "frame_hop_s": 0.04, "attention_over_padding": True},
        {"patch_size": [128, 2], "frequency_stride": 128, "time_stride": 2},
    ],
)
def test_time_frames_are_those_of_each_clip(settings, tmp_path):
    """As many as the clip has; and what the page reads of the configuration."""
    save_tiny_detector(tmp_path, max_length=FRAMES, calibration_temperature=1.5, scale=0.1, **settings)
    model, extractor = __main__.load(str(tmp_path))
    javascript.check_javascript("model", model, extractor)
    graph, run = javascript.PaddedGraph(model, extractor), javascript.frames_runner(model, extractor)
    values = torch.from_numpy(stacked(javascript.features(model, extractor), CLIPS))
    lengths = []
    for row, clip in zip(values, CLIPS):
        found, expected = graph(row[None])[0].numpy() * 1.5, run([clip])[0]
        assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-4
        lengths.append(len(found))
    assert len(set(lengths)) > 3
    found = javascript.config(model, extractor)
    assert found["time_frames"] == frame_grid(model, extractor)._asdict()
    assert found["event_detection"] == {
        "high": [0.5, 0.55], "low": [0.45, 0.45], "min_duration_s": [0.0, 0.1], "max_gap_s": [0.0, 0.0],
        "median_steps": [1, 3],
    }  # fmt: skip
    assert "has no pipeline for time frames" in javascript.javascript_usage("out", model, extractor)


@pytest.mark.slow
@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_the_folder_is_an_ast_for_transformers_js(problem_type, tmp_path):
    labels = ("<b>a</b>", 'é, "x"', "c")
    folder = save_tiny_classifier(
        tmp_path / "model", labels, max_length=FRAMES, calibration_temperature=1.5, problem_type=problem_type
    )
    assert export(folder, tmp_path / "out") == 0
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    graphs = {"onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/model_fp16.onnx"}
    assert names == {"config.json", "preprocessor_config.json", "export.json", *graphs}
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert config["model_type"] == "audio-spectrogram-transformer"
    assert config["architectures"] == ["ASTForAudioClassification"]
    assert [config["id2label"][str(index)] for index in range(3)] == list(labels)
    assert config["problem_type"] == problem_type
    settings = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert settings["feature_extractor_type"] == "ASTFeatureExtractor" and settings["max_length"] == FRAMES
    model, extractor = __main__.load(str(folder))
    values = stacked(settings, CLIPS)
    expected = np.concatenate([comparison.torch_runner(model, extractor)([clip]) for clip in CLIPS])
    for name, tolerance in (("model.onnx", 1e-4), ("model_fp16.onnx", 0.02), ("model_quantized.onnx", 0.2)):
        path = tmp_path / "out" / "onnx" / name
        session = onnxruntime.InferenceSession(path)
        assert [(value.name, value.type) for value in session.get_inputs()] == [("input_values", "tensor(float)")]
        assert session.get_inputs()[0].shape == ["batch", FRAMES, 128]
        assert [(value.name, value.type) for value in session.get_outputs()] == [("logits", "tensor(float)")]
        alone = np.concatenate([session.run(None, {"input_values": row[None]})[0] for row in values])
        assert np.abs(alone * 1.5 - expected).max() < tolerance
        stored = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert json.loads(stored["labels"]) == list(labels) and stored["calibration_temperature"] == "1.0"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"problem_type": "regression"}, "is a regression"),
        ({"min_samples": 16000}, "min_samples=16000"),
        ({"frame_shift_ms": 20.0}, "windows of 400 samples, 320 apart"),
        ({"sampling_rate": 32000}, "windows of 800 samples, 320 apart"),
        ("vggish", "has no features of a VGGishFeatureExtractor"),
        ("cnn14", "has no features of a PannsCnn14FeatureExtractor"),
        ("encoder", "is a DualSSASTModel"),
    ],
)
def test_what_transformers_js_cannot_run_is_refused(kind, message, tmp_path, capsys):
    folder = tmp_path / "model"
    if kind == "encoder":
        AutoModel.from_pretrained(save_tiny_classifier(tmp_path / "classifier")).save_pretrained(folder)
        DualSSASTFeatureExtractor(max_length=64).save_pretrained(folder)
    elif isinstance(kind, str):
        save_tiny_cnn(folder, kind)
    elif "problem_type" in kind:
        save_tiny_classifier(folder, **kind)
    else:
        save_tiny_classifier(folder)
        DualSSASTFeatureExtractor(max_length=64, **kind).save_pretrained(folder)
    assert export(folder, tmp_path / "out") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and message in line and "choose --format onnx" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["transformers-js", "executorch"])
def test_features_are_no_input_of_these_formats(form, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(__main__, "PACKAGES", {})
    arguments = __main__.parse([str(tiny[0]), str(tmp_path / "out"), "--format", form, "--input", "features"])
    with pytest.raises(InputError, match="--input features: .*leave it out"):
        __main__.check(arguments)


def test_other_rates_of_the_same_frames_are_exported(tmp_path):
    """A window of 400 samples, 160 apart, may be 50 ms at 8 kHz."""
    settings = {"sampling_rate": 8000, "frame_length_ms": 50.0, "frame_shift_ms": 20.0}
    save_tiny_classifier(tmp_path, max_length=FRAMES)
    DualSSASTFeatureExtractor(max_length=FRAMES, **settings).save_pretrained(tmp_path)
    model, extractor = __main__.load(str(tmp_path))
    javascript.check_javascript("model", model, extractor)
    values = torch.from_numpy(stacked(javascript.features(model, extractor), CLIPS[1:]))
    expected = np.concatenate([comparison.torch_runner(model, extractor)([clip]) for clip in CLIPS[1:]])
    assert np.abs(javascript.PaddedGraph(model, extractor)(values).numpy() - expected).max() < 1e-4
