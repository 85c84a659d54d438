"""Tests the exports for OpenVINO and ExecuTorch, where these are installed."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from audio_files import ROOT
from tiny_models import save_tiny_classifier, save_tiny_cnn

from training.data.audio import read_audio
from training.errors import InputError
from training.export import __main__, boards, comparison

FILES = sorted((ROOT / "data" / "voice_prompts" / "audio").glob("*.flac"))[::100]


def save(folder, family):
    if family == "cnn14":
        return save_tiny_cnn(folder, "cnn14")
    return save_tiny_classifier(folder, max_length=128, attention_over_padding=family == "like AST")


def export(folder, output, *options) -> int:
    return __main__.main([str(word) for word in (folder, output, "--verify-with", *FILES[:2], *options)])


@pytest.mark.parametrize("family", ["patches", "like AST"])
def test_a_window_of_fixed_size_is_the_model(family, tmp_path):
    """The graph for ExecuTorch, before it is lowered: clips of any length up to the window."""
    model, extractor = __main__.load(str(save(tmp_path, family)))
    graph = boards.WindowGraph(model, extractor)
    audio = np.concatenate([read_audio(str(file), extractor.sampling_rate) for file in FILES])
    clips = [audio[:length] for length in (300, 5000, graph.num_samples)]
    expected = np.concatenate([comparison.torch_runner(model, extractor)([clip]) for clip in clips])
    assert np.ptp(expected, axis=0).max() > 0.01
    got = np.concatenate([graph(*graph.inputs_of(clip)).numpy() for clip in clips])
    assert np.abs(got - expected).max() < 1e-4
    waveform, lengths = graph.inputs_of(clips[-1])
    assert torch.equal(graph(waveform, lengths + 1000), graph(waveform, lengths))  # the window ends where it ends


@pytest.mark.slow
@pytest.mark.parametrize("family", ["patches", "cnn14"])
def test_openvino_gives_the_models_scores(family, tmp_path, capsys):
    openvino = pytest.importorskip("openvino")
    folder = save(tmp_path / "model", family)
    assert export(folder, tmp_path / "out", "--format", "openvino") == 0
    assert "openvino.Core().compile_model(" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.xml", "model.bin", "config.json", "preprocessor_config.json", "export.json"} <= names
    assert "model.onnx" not in names
    model, extractor = __main__.load(str(folder))
    clips = [read_audio(str(file), extractor.sampling_rate)[:9000] for file in FILES]
    expected = np.concatenate([comparison.torch_runner(model, extractor)([clip]) for clip in clips])
    run = boards.openvino_runner(tmp_path / "out" / "model.xml", "waveform", extractor)
    assert np.abs(run(clips) - expected).max() < 1e-4
    stored = openvino.Core().read_model(tmp_path / "out" / "model.xml").get_rt_info(["dual_ssast", "labels"])
    assert json.loads(stored.astype(str)) == [*map(model.config.id2label.get, range(model.config.num_labels))]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["patches", "cnn14"])
def test_executorch_gives_the_models_scores(family, tmp_path, capsys):
    pytest.importorskip("executorch.runtime")
    from executorch.runtime import Runtime

    folder = save(tmp_path / "model", family)
    assert export(folder, tmp_path / "out", "--format", "executorch") == 0
    assert "Runtime.get().load_program(" in capsys.readouterr().out
    model, extractor = __main__.load(str(folder))
    graph = boards.WindowGraph(model, extractor)
    clips = [read_audio(str(file), extractor.sampling_rate)[:9000] for file in FILES]
    expected = np.concatenate([comparison.torch_runner(model, extractor)([clip]) for clip in clips])
    got = boards.executorch_runner(tmp_path / "out" / "model.pte", graph)(clips)
    assert np.abs(got - expected).max() < 1e-4
    program = Runtime.get().load_program(tmp_path / "out" / "model.pte")
    numbers = [program.load_method(name).execute([])[0] for name in ("sampling_rate", "num_samples")]
    assert numbers == [extractor.sampling_rate, graph.num_samples]


def test_an_executorch_for_another_torch_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.backends.xnnpack.partition.xnnpack_partitioner", None)
    model, extractor = __main__.load(str(save(tmp_path, "patches")))
    with pytest.raises(InputError, match=r"--format executorch: cannot be loaded with torch .*; install the version"):
        boards.write_executorch(boards.WindowGraph(model, extractor), tmp_path / "model.pte", {})


@pytest.mark.parametrize("form", ["openvino", "executorch"])
def test_a_missing_library_is_told_before_anything_is_loaded(form, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == form else find(name))
    assert export("no-model", tmp_path / "out", "--format", form) == 1
    assert f"--format {form}: needs {form}, which is not installed; pip install" in capsys.readouterr().err
