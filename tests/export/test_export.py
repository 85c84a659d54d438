"""Tests python -m training.export: every form has the model's outputs, alone and in batches, or is not written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from audio_files import ROOT
from tiny_models import TINY, save_tiny_classifier, save_tiny_cnn
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
)

from modeling_dual_ssast import (
    ASiTConfig,
    ASiTForAudioClassification,
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForPreTraining,
)
from training.data.audio import read_audio
from training.errors import InputError
from training.export import __main__, comparison, forms, onnx_graph
from training.export.graph import FeatureGraph, WaveformGraph, longest_samples, spectrogram_of, trace
from training.export.recordings import labelled_clips
from training.files import complete_folder

RATE = 16000
CLIPS = ROOT / "data" / "voice_prompts" / "audio"
FILES = sorted(CLIPS.glob("*.flac"))[::40]
LENGTHS_S = (0.02, 0.3, 1.0, 2.0, 5.0, 9.99, 15.0)
FAMILIES = {
    "patches": {"frequency_stride": 10, "time_stride": 10},
    "frames": {"patch_size": [128, 2], "frequency_stride": 128, "time_stride": 1},
    "prefix": {"readout": "prefix", "fusion_layers": [-1]},
    "composed": {"readout": "frames", "time_stride": 10},
    "weighted": {"fusion": "weighted", "fusion_norm": "separate"},
    "gated": {"fusion": "gated", "pooling": ["std", "attention"], "num_pooling_heads": 2, "time_stride": 10},
    "prototypes": {"classifier": "prototypes", "fusion": "gated", "frequency_stride": 10},
    "like AST": {"attention_over_padding": True, "time_stride": 10},
    "tokens": {"attention_over_padding": True, "readout": "tokens", "num_token_frames": 20},
    "asit": {},
    "vggish": {"drop_partial_example": False},
    "cnn14": {},
    "panns": {"readout": "panns"},
}
EVENTS = [f"events, {family}" for family in FAMILIES if family != "prefix"]  # classifiers of time frames


@pytest.fixture(scope="module")
def recordings() -> np.ndarray:
    """Real clips end to end: (samples,), 20 s or more."""
    joined = np.concatenate([read_audio(str(file), RATE) for file in FILES])
    return np.tile(joined, -(-20 * RATE // len(joined)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns a tiny classifier of clips up to 15 s, its folder, and its ONNX export of waveforms."""
    folder = tmp_path_factory.mktemp("export")
    save_tiny_classifier(folder / "model", max_length=1504, calibration_temperature=1.5)
    assert run(folder / "model", folder / "onnx", "onnx") == 0
    model, extractor = __main__.load(str(folder / "model"))
    return folder, model, extractor, onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")


def run(model, output, kind, *options) -> int:
    words = [model, output, "--format", kind, "--verify-with", *FILES[:4], *options]
    return __main__.main([str(word) for word in words])


def save_family(folder, family):
    if family.startswith("events, "):
        model = AutoModelForAudioFrameClassification.from_pretrained(save_family(folder, family.split(", ")[1]))
        if model.config.classifier == "linear":
            torch.nn.init.normal_(model.classifier.dense.weight, generator=torch.Generator().manual_seed(1))
        model.save_pretrained(folder)
        return folder
    if family == "asit":
        torch.manual_seed(0)
        model = ASiTForAudioClassification(ASiTConfig(**TINY, id2label=dict(enumerate(["high", "low", "mid"]))))
        torch.nn.init.normal_(model.classifier.dense.weight, std=0.5)
        model.save_pretrained(folder)
        DualSSASTFeatureExtractor(max_length=64).save_pretrained(folder)
        return folder
    if family not in ("vggish", "cnn14", "panns"):
        return save_tiny_classifier(folder, **FAMILIES[family])
    save_tiny_cnn(folder, "vggish" if family == "vggish" else "cnn14", **FAMILIES[family])
    if family == "panns":  # with its small random weights all clips would have the same logits
        model = AutoModelForAudioClassification.from_pretrained(folder)
        for weight in (model.panns_cnn14.embedding.fc1.weight, model.audioset_classifier.weight):
            torch.nn.init.normal_(weight, std=30.0, generator=torch.Generator().manual_seed(1))
        model.save_pretrained(folder)
    return folder


def alone(model, extractor, clips) -> np.ndarray:
    """Returns the model's logits of single clips."""
    return np.concatenate([comparison.torch_runner(model, extractor)([clip]) for clip in clips])


def check_same(model, extractor, run, clips):
    """Compares the logits of a batch with those of single clips, whose time frames are all of a clip's own."""
    for got, clip in zip(run(clips), clips, strict=True):
        (expected,) = alone(model, extractor, [clip])
        assert np.abs(got[: len(expected)] - expected).max() < 1e-4
    assert len(got) == len(expected)  # the last clip is the longest


def padded(clips, value=0.0) -> dict[str, np.ndarray]:
    lengths = np.array([len(clip) for clip in clips])
    waveform = np.full((len(clips), max(lengths)), value, dtype=np.float32)
    for row, clip in zip(waveform, clips):
        row[: len(clip)] = clip
    return {"waveform": waveform, "lengths": lengths}


def test_onnx_is_the_model_at_any_length_and_batch(exported, recordings):
    _, model, extractor, session = exported
    clips = [recordings[: round(seconds * RATE)] for seconds in LENGTHS_S]
    expected = alone(model, extractor, clips)
    assert np.ptp(expected, axis=0).max() > 0.01  # the clips do differ
    for size in (1, 2, 4, len(clips)):
        for first in range(0, len(clips), size):
            batch = clips[first : first + size]
            (logits,) = session.run(None, padded(batch))
            assert np.abs(logits - expected[first : first + size]).max() < 1e-4


def test_onnx_ignores_neighbours_and_padding(exported, recordings):
    _, _, _, session = exported
    clip, other = recordings[: 2 * RATE], recordings[3 * RATE : 10 * RATE]
    (single,) = session.run(None, padded([clip]))
    for value in (0.0, 7.0):
        batch = padded([other, clip, other[: RATE // 2]], value)
        assert np.abs(session.run(None, batch)[0][1] - single[0]).max() < 1e-5
        batch["waveform"] = np.pad(batch["waveform"], ((0, 0), (0, 9 * RATE)), constant_values=value)
        assert np.abs(session.run(None, batch)[0][1] - single[0]).max() < 1e-5


def test_onnx_refuses_what_the_model_cannot_hear(exported):
    _, model, extractor, session = exported
    longest = extractor.num_samples(model.config.max_length)
    session.run(None, padded([np.zeros(longest, dtype=np.float32)]))
    with pytest.raises(Exception, match=str(model.config.max_length + 1)):
        session.run(None, padded([np.zeros(longest + 160, dtype=np.float32)]))


def test_onnx_folder_says_what_a_program_needs(exported):
    folder, _, _, session = exported
    stored = onnx.load(folder / "onnx" / "model.onnx")
    described = {entry.key: json.loads(entry.value) for entry in stored.metadata_props}
    assert described["labels"] == ["high", "low", "mid"]
    assert described["sampling_rate"] == RATE
    assert described["calibration_temperature"] == 1.5
    assert described["normalization"]["mean"] == -4.2677393
    assert described["max_samples"] == 1503 * 160 + 400
    assert [value.shape for value in session.get_inputs()] == [["batch", "samples"], ["batch"]]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("logits", ["batch", 3])]
    assert json.loads((folder / "onnx" / "config.json").read_text())["model_type"] == "dual_ssast"
    assert AutoFeatureExtractor.from_pretrained(folder / "onnx").max_length == 1504


def test_int8_is_near_the_model(exported, recordings, tmp_path):
    folder, model, extractor, _ = exported
    source = folder / "onnx" / "model.onnx"
    onnx_graph.quantise(source, tmp_path / "int8.onnx", {"labels": ["a"]})
    stored = onnx.load(tmp_path / "int8.onnx")
    kinds = [node.op_type for node in stored.graph.node]
    assert kinds.count("MatMulInteger") == 2 * 6 + 1  # of the blocks and of the classifier
    assert {entry.key for entry in stored.metadata_props} >= {"labels", "sampling_rate"}
    clips = [recordings[first : first + 2 * RATE] for first in range(0, 16 * RATE, 2 * RATE)]
    got = np.concatenate(
        [comparison.onnx_runner(tmp_path / "int8.onnx", "waveform", extractor)([clip]) for clip in clips]
    )
    expected = alone(model, extractor, clips)
    assert 0 < np.abs(got - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("family", ["patches", "vggish", "cnn14"])
def test_the_spectrogram_in_the_graph_is_the_extractors(family, recordings, tmp_path):
    extractor = AutoFeatureExtractor.from_pretrained(save_family(tmp_path, family))
    spectrogram = spectrogram_of(extractor)
    clips = [recordings[:length] for length in (1, 399, 400, 559, 560, 4799, 10000)]
    features = comparison.extract(extractor, clips)
    waveform, lengths = comparison.inputs_of("waveform", clips, extractor)
    mask = features["attention_mask"]
    assert torch.equal(spectrogram.num_frames(lengths), mask.sum(dim=1))
    got = spectrogram(waveform, lengths, mask.shape[1], 96)
    # The extractors of SSAST and CNN14 round in float32; CNN14's are decibels, not normalised.
    tolerance = {"patches": 1e-4, "vggish": 1e-6, "cnn14": 5e-2}[family]
    assert ((got - features["input_values"]).abs() * mask.unsqueeze(2)).max() < tolerance


@pytest.mark.parametrize("family", ["patches", "tokens"])
def test_clips_are_lengthened_in_the_graph_as_the_extractor_does(family, recordings, tmp_path):
    """PretrainedSED's padding: zeros that count as audio, in the clip's mean too."""
    extractor = AutoFeatureExtractor.from_pretrained(save_family(tmp_path, family))
    extractor.min_samples = 4000
    extractor.save_pretrained(tmp_path)
    model, extractor = __main__.load(str(tmp_path))
    clips = [recordings[:length] + 0.1 for length in (1, 300, 3999, 4000, longest_samples(model, extractor))]
    features = comparison.extract(extractor, clips)
    waveform, lengths = comparison.inputs_of("waveform", clips, extractor)
    mask = features["attention_mask"]
    spectrogram = spectrogram_of(extractor)
    assert torch.equal(spectrogram.num_frames(lengths), mask.sum(dim=1))
    got = spectrogram(waveform, lengths, mask.shape[1], 96)
    assert ((got - features["input_values"]).abs() * mask.unsqueeze(2)).max() < 1e-4
    module = trace(WaveformGraph(model, extractor), extractor).module()
    for part in (clips[:1], clips[:3], clips):
        check_same(model, extractor, lambda part: module(*comparison.inputs_of("waveform", part, extractor)), part)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("frames", "features"),
        ("vggish", "waveform"),
        ("events, patches", "waveform"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("patches", "waveform"),
                ("like AST", "features"),
                ("cnn14", "features"),
                ("events, vggish", "features"),
                ("events, cnn14", "waveform"),
            )
        ),
    ],
)
def test_traced_graph_is_the_model(family, kind, recordings, tmp_path):
    model, extractor = __main__.load(str(save_family(tmp_path, family)))
    graph = WaveformGraph(model, extractor) if kind == "waveform" else FeatureGraph(model)
    module = trace(graph, extractor).module()
    longest = longest_samples(model, extractor) or 15 * RATE
    clips = [recordings[:length] for length in (200, 2000, 4800, longest // 2, longest)]
    for size in (1, 2, 5):
        check_same(model, extractor, lambda part: module(*comparison.inputs_of(kind, part, extractor)), clips[-size:])
    outputs = alone(model, extractor, [clips[-1], clips[-1][::-1].copy()])
    assert np.ptp(outputs, axis=0).max() > 0.01  # the clips do differ
    if kind == "features":
        check_mask_on_any_side(model, extractor, module, clips[-1])


@pytest.mark.parametrize("family", [*FAMILIES, *EVENTS])
def test_padding_may_be_on_any_side_of_features(family, recordings, tmp_path):
    model, extractor = __main__.load(str(save_family(tmp_path, family)))
    longest = longest_samples(model, extractor) or 3 * RATE
    check_mask_on_any_side(model, extractor, FeatureGraph(model), recordings[:longest])


def check_mask_on_any_side(model, extractor, graph, clip):
    values = comparison.extract(extractor, [clip])["input_values"]
    whole = values.shape[1]
    mask = torch.ones(4, whole, dtype=torch.long)
    mask[:, : whole // 2] = 0  # every clip of the batch is padded on the left
    mask[1, -whole // 4 :] = 0
    mask[2, whole // 2 + 3 :: 2] = 0
    mask[3] = mask[0].flip(0)
    values = torch.where(mask.bool().unsqueeze(2), values, 50.0)
    expected = model(values, mask, return_dict=True).logits
    got = graph(values, mask)
    if expected.ndim == 3:  # the model's output also has the frames of the padding
        length = model.base_model.num_label_frames(mask.sum(dim=1)).max()
        assert got.shape[1] == (expected.shape[1] if model.config.to_dict().get("attention_over_padding") else length)
        is_audio = model.frame_mask(expected, mask)
        got, expected = got[is_audio[:, : got.shape[1]]], expected[is_audio]
    assert (got - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_program_needs_only_torch(exported, recordings, tmp_path):
    folder, model, extractor, _ = exported
    assert run(folder / "model", tmp_path / "out", "torch-export") == 0
    clips = [recordings[: 4 * RATE], recordings[RATE : 2 * RATE]]
    torch.save(comparison.inputs_of("waveform", clips, extractor), tmp_path / "inputs.pt")
    code = """
import json, sys, torch
files = {"labels": ""}
module = torch.export.load("out/model.pt2", extra_files=files).module()
torch.save(module(*torch.load("inputs.pt")), "logits.pt")
assert json.loads(files["labels"]) == ["high", "low", "mid"]
assert not {"transformers", "modeling_dual_ssast", "training"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-I", "-c", code], cwd=tmp_path, check=True)
    assert np.abs(torch.load(tmp_path / "logits.pt").numpy() - alone(model, extractor, clips)).max() < 1e-4


@pytest.mark.parametrize("emulated", [False, True])
def test_half_precision_folder_loads(exported, recordings, tmp_path, capsys, monkeypatch, emulated):
    """Where the processor computes float16 number by number, it does so for one clip."""
    monkeypatch.setattr(forms, "is_emulated", lambda dtype, device: emulated and dtype == torch.float16)
    folder, model, extractor, _ = exported
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("a card")
    assert run(tmp_path / "model", tmp_path / "half", "safetensors-fp16") == 0
    out = capsys.readouterr().out
    assert "largest difference, computed in float16" in out
    assert ("clips computed in float16: 1 of " in out) == emulated
    assert ("same answer, computed in float16: 1 of 1 clips" in out) == emulated
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("model", "half")]
    assert sizes[0] / sizes[1] > 1.8
    card = (tmp_path / "half" / "README.md").read_text()
    assert card.startswith("a card\n## In float16") and "- largest difference, computed in float32: " in card
    assert (tmp_path / "half" / "modeling_dual_ssast.py").exists()
    clip = [recordings[: 2 * RATE]]
    for dtype in ("auto", torch.float32):
        loaded = AutoModelForAudioClassification.from_pretrained(tmp_path / "half", dtype=dtype).eval()
        assert loaded.dtype == (torch.float16 if dtype == "auto" else dtype)
        assert np.abs(alone(loaded, extractor, clip) - alone(model, extractor, clip)).max() < 0.05


@pytest.mark.slow
def test_encoder_gives_embeddings(recordings, tmp_path):
    AutoModel.from_pretrained(save_tiny_classifier(tmp_path / "classifier")).save_pretrained(tmp_path / "encoder")
    shutil.copy(tmp_path / "classifier" / "preprocessor_config.json", tmp_path / "encoder")
    assert run(tmp_path / "encoder", tmp_path / "out", "torch-export", "--input", "features") == 0
    model, extractor = __main__.load(str(tmp_path / "encoder"))
    module = torch.export.load(tmp_path / "out" / "model.pt2").module()
    clip = recordings[:6000]
    got = module(*comparison.inputs_of("features", [clip], extractor))
    assert got.shape == (1, model.config.fused_size)
    assert torch.allclose(got, model.embed(clip, RATE, extractor), atol=1e-4)


def test_an_encoder_in_float16_is_called_an_encoder(tmp_path, capsys):
    AutoModel.from_pretrained(save_tiny_classifier(tmp_path / "classifier")).save_pretrained(tmp_path / "encoder")
    shutil.copy(tmp_path / "classifier" / "preprocessor_config.json", tmp_path / "encoder")
    assert run(tmp_path / "encoder", tmp_path / "out", "safetensors-fp16") == 0
    assert "model = AutoModel.from_pretrained(" in capsys.readouterr().out


def test_a_frame_classifier_in_float16_is_called_one(tmp_path, capsys):
    model = save_family(tmp_path / "model", "events, vggish")
    assert run(model, tmp_path / "out", "safetensors-fp16") == 0
    out = capsys.readouterr().out
    assert "model = AutoModelForAudioFrameClassification.from_pretrained(" in out and "time frames" in out
    half = AutoModelForAudioFrameClassification.from_pretrained(tmp_path / "out", dtype="auto")
    assert half.dtype == torch.float16 and half.config.frame_hop_s == 0.16


@pytest.mark.parametrize("change", [lambda logits: logits[:, :-1], lambda logits: logits + 0.01])
def test_frames_that_differ_or_are_missing_are_refused(change, recordings, tmp_path):
    model, extractor = __main__.load(str(save_family(tmp_path, "events, vggish")))
    exact, clips = comparison.torch_runner(model, extractor), [recordings[: 2 * RATE], recordings[: 4 * RATE]]
    assert comparison.compare(model, exact, exact, [clips]) < 1e-5  # frames after the first clip's end are not compared
    with pytest.raises(InputError, match="differs from the model"):
        comparison.compare(model, lambda part: change(exact(part)), exact, [clips])


@pytest.mark.parametrize("kind", [kind for kind in forms.FORMATS if kind != "safetensors-fp16"])
def test_the_remedy_for_a_difference_is_one_of_the_format(monkeypatch, tmp_path, kind):
    monkeypatch.setattr(__main__, "PACKAGES", {})
    words = ["model", str(tmp_path / "out"), "--format", kind]
    remedy = comparison.remedy_of(__main__.parse(words))
    for name, option in (("another --opset", ["--opset", "18"]), ("--input features", ["--input", "features"])):
        arguments = __main__.parse([*words, *option])
        if name in remedy:
            __main__.check(arguments)
        else:
            with pytest.raises(InputError, match="leave it out"):
                __main__.check(arguments)
    assert remedy.endswith("other recordings as --verify_with, or --format safetensors-fp16")
    arguments = __main__.parse([*words, "--input", "features"])
    assert "--input" not in comparison.remedy_of(arguments)


def test_the_accuracy_is_of_the_parts_that_the_run_tested(tmp_path):
    """The columns of the recipe, its times among them."""
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).standard_normal(4 * RATE) * 0.1, RATE)
    rows = ["sound,what,begin,stop", *(f"long.wav,low,{first},{first + 0.5}" for first in (0, 1, 2))]
    (tmp_path / "test.csv").write_text("\n".join(rows) + "\n")
    columns = {"audio_column": "sound", "label_column": "what", "start_column": "begin", "end_column": "stop"}
    data = {"test_file": str(tmp_path / "test.csv"), **columns}
    results = {"recipe": {"DataArguments": data}, "problem_type": "single_label_classification"}
    model = save_tiny_classifier(tmp_path / "model")
    (model / "results.json").write_text(json.dumps(results))
    arguments = __main__.parse([str(model), str(tmp_path / "out"), "--format", "safetensors-fp16"])
    labelled = labelled_clips(arguments, __main__.load(str(model))[0], RATE)
    assert [(len(clip), label) for clip, label in labelled] == [(RATE // 2, 1)] * 3


def test_the_old_name_of_a_format_is_accepted():
    assert __main__.parse(["model", "out", "--format", "torchscript-free"]).format == "torch-export"
    assert "torchscript" not in " ".join(forms.FORMATS)


# ---- refusals ----


def test_ctrl_c_ends_with_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    model = save_tiny_classifier(tmp_path / "model")
    monkeypatch.setattr(__main__, "write_half", interrupt)
    capsys.readouterr()
    assert run(model, tmp_path / "out", "safetensors-fp16") == 130
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("interrupted; ")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_read_is_not_replaced(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    model = save_tiny_classifier(out / "mine")
    (out / __main__.REPORT).write_text("{}")
    assert "is or holds" in refused(capsys, model, out, "safetensors-fp16", "--overwrite")
    assert (model / "model.safetensors").exists()
    other = save_tiny_classifier(tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    assert "is or holds" in refused(capsys, other, ".", "safetensors-fp16", "--overwrite")


def test_an_earlier_export_comes_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    folder, rename = tmp_path / "out", os.rename
    folder.mkdir()
    (folder / "file").write_text("old")

    def fail(path, target):
        if Path(path).name == "new":
            raise OSError("disk on fire")
        rename(path, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(InputError, match="out: cannot be written"), complete_folder(folder) as staging:
        (staging / "file").write_text("new")
    assert (folder / "file").read_text() == "old"


def test_heads_of_a_pretraining_are_not_left_out_in_silence(tmp_path, capsys):
    config = DualSSASTConfig(**TINY | {"max_length": 64})
    DualSSASTForPreTraining(config).save_pretrained(tmp_path / "model")
    DualSSASTFeatureExtractor(max_length=64).save_pretrained(tmp_path / "model")
    message = refused(capsys, tmp_path / "model", tmp_path / "out", "safetensors-fp16")
    assert "the heads of the pretraining would be left out" in message and not (tmp_path / "out").exists()


def test_options_without_effect_are_refused(exported, tmp_path, capsys):
    model, out = exported[0] / "model", tmp_path / "out"
    for words, message in (
        (("onnx", "--data", CLIPS), "--data: accuracy is reported by --format int8, safetensors-fp16, transformers-js"),
        (("int8", "--label_column", "label"), "--label_column: needs --data, the labelled clips; add it"),
        (("safetensors-fp16", "--input", "features"), "--format safetensors-fp16 is a folder without a graph"),
    ):
        assert message in refused(capsys, model, out, *words) and not out.exists()


def refused(capsys, *words) -> str:
    """The one line that refuses."""
    assert run(*words) == 1
    *earlier, message = capsys.readouterr().err.splitlines()  # the tiny models tell that they are written
    assert message.startswith("error: ") and "Traceback" not in "".join(earlier)
    return message


def test_what_cannot_be_exported_is_told(tmp_path, capsys, monkeypatch):
    model = save_tiny_classifier(tmp_path / "model")
    out = tmp_path / "out"
    assert "'onxx' is unknown" in refused(capsys, model, out, "onxx")
    assert "does not exist" in refused(capsys, model, tmp_path / "no" / "out", "onnx")
    assert "is or holds" in refused(capsys, model, model, "onnx", "--overwrite")
    assert "--opset: 12" in refused(capsys, model, out, "onnx", "--opset", "12")
    assert "--opset: 23" in refused(capsys, model, out, "onnx", "--opset", "23")
    assert "does not exist" in refused(capsys, tmp_path / "nothing", out, "onnx")
    events = save_family(tmp_path / "events", "events, patches")
    assert "labels time frames" in refused(capsys, events, out, "int8", "--data", CLIPS)
    cnn = save_tiny_cnn(tmp_path / "cnn", "cnn14")
    assert "choose --format onnx" in refused(capsys, cnn, out, "int8")
    monkeypatch.setitem(__main__.PACKAGES, "onnx", ("onnx", "no_such_package"))
    assert "pip install onnx no_such_package" in refused(capsys, model, out, "onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cnn", "events", "model"]


def test_an_existing_folder_is_kept_unless_it_is_an_export(tmp_path, capsys):
    model = save_tiny_classifier(tmp_path / "model")
    out = tmp_path / "out"
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    assert "exists already" in refused(capsys, model, out, "safetensors-fp16")
    assert "is not an export" in refused(capsys, model, out, "safetensors-fp16", "--overwrite")
    assert (out / "letter.txt").read_text() == "dear"
    (out / "letter.txt").rename(out / __main__.REPORT)
    assert run(model, out, "safetensors-fp16", "--overwrite") == 0
    assert json.loads((out / __main__.REPORT).read_text())["format"] == "safetensors-fp16"


def test_an_export_that_differs_leaves_nothing(tmp_path, capsys, monkeypatch):
    model = save_tiny_classifier(tmp_path / "model")
    out = tmp_path / "out"
    assert run(model, out, "safetensors-fp16") == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))  # any: its outputs are not looked at
    monkeypatch.setattr(forms, "trace", lambda *_: program)
    monkeypatch.setattr(forms, "program_runner", lambda *_: lambda clips: np.full((len(clips), 3), np.nan))
    assert "not kept" in refused(capsys, model, out, "torch-export", "--input", "features", "--overwrite")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


# ---- the whole way ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind"),
    [(family, kind) for family in FAMILIES for kind in ("waveform", "features")]
    + [(family, ("waveform", "features")[index % 2]) for index, family in enumerate(EVENTS)],
)
def test_every_family_in_onnxruntime(family, kind, recordings, tmp_path):
    model = save_family(tmp_path / "model", family)
    assert run(model, tmp_path / "out", "onnx", "--input", kind) == 0
    model, extractor = __main__.load(str(model))
    runner = comparison.onnx_runner(tmp_path / "out" / "model.onnx", kind, extractor)
    longest = longest_samples(model, extractor) or 15 * RATE
    clips = [recordings[: max(longest * part // 8, 1)] for part in range(9)][1:]
    check_same(model, extractor, runner, clips)


@pytest.mark.slow
def test_a_frame_classifier_says_when_its_frames_are(tmp_path, capsys):
    model = save_family(tmp_path / "model", "events, patches")
    assert run(model, tmp_path / "out", "int8") == 0
    hop_s = AutoModelForAudioFrameClassification.from_pretrained(model).config.frame_hop_s
    out = capsys.readouterr().out
    assert f"one frame every {hop_s:g} s" in out and "average their outputs where they overlap" in out
    stored = onnx.load(tmp_path / "out" / "model_int8.onnx")
    described = {entry.key: json.loads(entry.value) for entry in stored.metadata_props if "onnx" not in entry.key}
    assert described["frame_hop_s"] == hop_s and described["labels"] == ["high", "low", "mid"]
    assert described["problem_type"] == "multi_label_classification" and described["output"] == "logits"
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model_int8.onnx")
    assert [value.shape for value in session.get_outputs()] == [["batch", "time_frames", 3]]
    report = json.loads((tmp_path / "out" / __main__.REPORT).read_text())
    assert report["same answer"].endswith(" time frames")


def test_the_printed_code_has_the_calibration(tmp_path):
    """The logits of a graph are not divided, and nothing said so: sigmoid(logits) was not what predict_hf.py writes."""
    words = [str(tmp_path / "model"), str(tmp_path / "out"), "--format", "onnx"]
    for settings, expected in (
        ({"calibration_temperature": 1.7}, ["scores = softmax(logits / 1.7)  # the calibration"]),
        ({"problem_type": "multi_label_classification"}, []),
        (
            {"problem_type": "multi_label_classification", "calibration_temperature": 1.7,
             "decision_thresholds": [0.25, 0.5, 0.75]},
            ["scores = sigmoid(logits / 1.7)  # the calibration",
             "A label is predicted above its threshold (decision_thresholds in config.json): 0.25, 0.5, 0.75"],
        ),
        ({"problem_type": "regression", "num_labels": 1, "calibration_temperature": 1.7}, []),
    ):  # fmt: skip
        save_tiny_classifier(tmp_path / "model", **settings)
        printed = __main__.usage(__main__.parse(words), *__main__.load(words[0])).splitlines()
        assert [line for line in printed if "calibration" in line or "threshold" in line] == expected


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 22])
def test_other_opsets(opset, exported, tmp_path):
    assert run(exported[0] / "model", tmp_path / "out", "onnx", "--opset", opset) == 0
    assert onnx.load(tmp_path / "out" / "model.onnx").opset_import[0].version == opset


@pytest.mark.slow
def test_int8_reports_accuracy_and_speed(exported, tmp_path, capsys):
    table = tmp_path / "clips.csv"
    rows = [f"{file},{label}" for file, label in zip(FILES, ["high", "low", "mid"] * len(FILES))]
    table.write_text("\n".join(["file_name,label", *rows]) + "\n")
    assert run(exported[0] / "model", tmp_path / "out", "int8", "--data", table) == 0
    report = json.loads((tmp_path / "out" / __main__.REPORT).read_text())
    assert 0 <= report["accuracy after"] <= 1
    assert report["same answer"].endswith(f"of {len(FILES)} clips")
    assert report["speed, torch float32 / int8"] > 0
    assert "int8 shares one scale" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").glob("*.onnx")) == ["model_int8.onnx"]
