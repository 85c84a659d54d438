"""Writes the formats of an export."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import torch

import modeling_dual_ssast

from ..base.finite import check_weights_finite
from ..base.number_formats import is_emulated
from .boards import WindowGraph, executorch_runner, openvino_runner, write_executorch, write_openvino
from .comparison import (
    compare,
    describe_difference,
    describe_int8,
    onnx_runner,
    program_runner,
    remedy_of,
    torch_runner,
)
from .graph import FeatureGraph, WaveformGraph, gives_frames, longest_samples, output_name, trace
from .javascript import write_javascript
from .onnx_graph import quantise, write_onnx
from .recordings import pieces

FILES = {
    "onnx": "model.onnx",
    "int8": "model_int8.onnx",
    "torch-export": "model.pt2",
    "openvino": "model.xml",
    "executorch": "model.pte",
}
FORMATS = (*FILES, "safetensors-fp16", "transformers-js")


def write_graph(arguments, model, extractor, staging: Path, clips: list[np.ndarray], labelled) -> dict:
    """
    Writes the graph and the configurations, and compares the graph with the model.

    Returns:
        the report for `export.json`

    Raises:
        InputError: the outputs differ.
    """
    described = metadata(arguments, model, extractor)
    if arguments.format == "transformers-js":
        report = write_javascript(arguments, model, extractor, staging, clips, labelled, described)
        return {"format": arguments.format, **report, "torch": torch.__version__}
    path = staging / FILES[arguments.format]
    reference = torch_runner(model, extractor)
    batches = pieces(clips, extractor.sampling_rate, longest_samples(model, extractor))
    if arguments.format == "executorch":
        graph = WindowGraph(model, extractor)
        write_executorch(graph, path, described)
        batches = [[clip[: graph.num_samples] for clip in batch] for batch in batches]
        run = executorch_runner(path, graph)
    else:
        graph = WaveformGraph(model, extractor) if arguments.input == "waveform" else FeatureGraph(model)
        program = trace(graph, extractor)
        exact = staging / "model.onnx"
        if arguments.format == "torch-export":
            torch.export.save(program, path, extra_files={key: json.dumps(value) for key, value in described.items()})
            runner = program_runner
        else:
            write_onnx(program, graph, exact, arguments.opset, described)
            runner = onnx_runner
        if arguments.format == "openvino":
            write_openvino(exact, path, described)
            exact.unlink()
            runner = openvino_runner
        run = runner(exact if arguments.format == "int8" else path, arguments.input, extractor)
    report = {"largest difference": compare(model, run, reference, batches, remedy_of(arguments))}
    if arguments.format == "int8":
        quantise(exact, path, described)
        sides = {"torch": reference, "onnx": run, "int8": onnx_runner(path, arguments.input, extractor)}
        report = describe_int8(model, extractor, sides, batches, labelled)
        report["size"] = f"{path.stat().st_size / 1e6:.1f} MB, {exact.stat().st_size / 1e6:.1f} MB in float32"
        exact.unlink()
    model.config.save_pretrained(staging)
    extractor.save_pretrained(staging)
    return {"format": arguments.format, "input": arguments.input, **report, "torch": torch.__version__}


def metadata(arguments, model, extractor) -> dict:
    """Returns the facts that a program needs to use the graph without the configuration files."""
    config = model.config
    settings = extractor.to_dict()
    described = {
        "model_type": config.model_type,
        "input": arguments.input,
        "output": output_name(model),
        "sampling_rate": extractor.sampling_rate,
        "max_samples": longest_samples(model, extractor),
        "normalization": {name: settings[name] for name in ("do_normalize", "mean", "std") if name in settings},
        "modeling_dual_ssast": modeling_dual_ssast.__version__,
    }
    if hasattr(model, "classifier"):
        described["labels"] = [config.id2label[index] for index in range(config.num_labels)]
        described["problem_type"] = model._problem_type()
        described["calibration_temperature"] = config.calibration_temperature
        described["decision_thresholds"] = config.decision_thresholds
    if gives_frames(model):
        described["frame_hop_s"] = config.frame_hop_s
    return described


def write_half(name: str, model, extractor, staging: Path, clips: list[np.ndarray], labelled, folder_name: str) -> dict:
    """Writes the folder with weights in float16; reports its outputs, computed in float16 and in float32."""
    exact = torch_runner(model, extractor)
    kind = type(model)
    if Path(name).is_dir():  # the card and its pictures
        for pattern in ("README.md", "*.png", "results.json"):
            for path in Path(name).glob(pattern):
                shutil.copy(path, staging / path.name)
    half = kind.from_pretrained(name, dtype=torch.float16)
    check_weights_finite(f"{name} in float16", half)
    half.save_pretrained(staging)
    extractor.save_pretrained(staging)
    batches = pieces(clips, extractor.sampling_rate, longest_samples(model, extractor))
    compared = [clip for batch in batches for clip in batch]
    report = {"format": "safetensors-fp16"}
    for dtype in (torch.float16, torch.float32):
        loaded = kind.from_pretrained(staging, dtype=dtype).eval()
        computed = str(dtype).removeprefix("torch.")
        sample, known = compared, labelled
        if is_emulated(dtype, torch.device("cpu")):  # a clip of 10 s takes a base model minutes
            sample, known = compared[:1], None
            report[f"clips computed in {computed}"] = f"1 of {len(compared)}: this processor has no instructions for it"
        found = describe_difference(model, extractor, exact, torch_runner(loaded, extractor), sample, known)
        report |= {f"{key}, computed in {computed}": value for key, value in found.items()}
    card = staging / "README.md"
    if card.is_file():
        pattern = r'(?m)^(repository = )"(?:[^"\\\n]|\\.)*"'
        text = re.sub(pattern, lambda line: line[1] + json.dumps(folder_name), card.read_text("utf-8"))
        lines = [f"- {key}: {value}" for key, value in report.items() if "difference" in key]
        note = (
            "\n## In float16\n\nThe weights of this copy are in float16. Its logits compared with those in float32:\n\n"
        )
        card.write_text(text + note + "\n".join(lines) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in staging.glob("*.safetensors"))
    return report | {"size": f"{size / 1e6:.1f} MB", "torch": torch.__version__}
