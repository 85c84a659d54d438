"""Compares an exported model with the original, in outputs, accuracy and speed."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from modeling_dual_ssast.embedding_dual_ssast import window_and_hop, window_starts

from ..errors import InputError
from .graph import gives_frames, output_name

TOLERANCE = 1e-4
TIMED_CLIPS, TIMED_ROUNDS = 8, 5
WITH_OPSET = ("onnx", "int8", "transformers-js", "openvino")  # formats with a choice
WITH_FEATURES = ("onnx", "int8", "torch-export", "openvino")
OTHER_FORMAT = "other recordings as --verify_with, or --format safetensors-fp16"
Runner = Callable[[list[np.ndarray]], np.ndarray]  # clips (samples,) -> (clips, outputs) or (clips, frames, labels)


def extract(extractor, clips: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Returns `input_values` (batch, frames, mel) and `attention_mask` (batch, frames) of clips (samples,)."""
    features = extractor(
        clips,
        sampling_rate=extractor.sampling_rate,
        padding="longest",
        return_attention_mask=True,
        return_tensors="pt",
    )
    return dict(features)


def torch_runner(model, extractor) -> Runner:
    """Returns a runner of the model itself, in its own precision."""

    def run(clips):
        with torch.no_grad():
            features = extract(extractor, clips)
            features["input_values"] = features["input_values"].to(model.dtype)
            return model(**features, return_dict=True)[output_name(model)].float().numpy()

    return run


def inputs_of(kind: str, clips: list[np.ndarray], extractor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the inputs of a graph: features and mask, or padded waveforms (batch, samples) and lengths (batch,)."""
    if kind == "features":
        features = extract(extractor, clips)
        return features["input_values"], features["attention_mask"]
    waveform = torch.zeros(len(clips), max(map(len, clips)))
    for row, clip in zip(waveform, clips):
        row[: len(clip)] = torch.from_numpy(clip)
    return waveform, torch.tensor([len(clip) for clip in clips])


def onnx_runner(path: Path, kind: str, extractor) -> Runner:
    """Returns a runner of an ONNX file, with onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(clips):
        values = [value.numpy() for value in inputs_of(kind, clips, extractor)]
        return session.run(None, dict(zip(names, values)))[0]

    return run


def program_runner(path: Path, kind: str, extractor) -> Runner:
    """Returns a runner of a file of `torch.export.save`."""
    module = torch.export.load(path).module()
    return lambda clips: module(*inputs_of(kind, clips, extractor)).detach().numpy()


def compare(
    model, run: Runner, reference: Runner, batches: list[list[np.ndarray]], remedy: str = OTHER_FORMAT
) -> float:
    """
    Returns the largest difference between the export on batches and the model on single clips (to detect influence
    among the clips of a batch). For embeddings it is relative to the largest number if that is above 1. Time frames
    after the end of a clip are not compared.

    Args:
        remedy: what the user can try, for the error

    Raises:
        InputError: the difference exceeds `TOLERANCE`.
    """
    differences = []
    for batch in batches:
        expected = [reference([clip])[0] for clip in batch]  # (outputs,) or (time frames, labels) each
        scale = 1.0 if hasattr(model, "classifier") else max(1.0, float(np.abs(expected).max()))
        for got, wanted in zip(run(batch), expected, strict=True):
            is_whole = got[: len(wanted)].shape == wanted.shape
            differences.append(np.abs(got[: len(wanted)] - wanted).max() / scale if is_whole else np.inf)
    largest = float(np.max(differences))  # NaN if any is NaN
    if not largest <= TOLERANCE:
        raise InputError(
            f"the export differs from the model by {largest:.2g}, more than {TOLERANCE:g}, and is not kept; try "
            f"{remedy}"
        )
    return largest


def remedy_of(arguments) -> str:
    """Returns what the user can try if an export differs from the model: what its format has."""
    found = ["another --opset"] if arguments.format in WITH_OPSET else []
    if arguments.format in WITH_FEATURES and arguments.input == "waveform":
        found.append("--input features")
    return ", ".join([*found, OTHER_FORMAT])


def describe_int8(model, extractor, sides: dict[str, Runner], batches: list[list[np.ndarray]], labelled) -> dict:
    """Compares int8 with torch in outputs and accuracy, and with torch and ONNX in speed."""
    clips = [clip for batch in batches for clip in batch]
    report = describe_difference(model, extractor, sides["torch"], sides["int8"], clips, labelled)
    for other, seconds in time_sides(sides, clips[:TIMED_CLIPS]).items():
        if other != "int8":
            report[f"speed, {other} float32 / int8"] = seconds
    return report


def describe_difference(model, extractor, exact: Runner, small: Runner, clips: list[np.ndarray], labelled) -> dict:
    """
    Compares outputs: the largest difference; for a classifier also the share of equal predictions for clips or time
    frames, and the accuracy of both on labelled clips.

    Raises:
        InputError: an output is NaN or infinite.
    """
    before, after = (over_windows(model, extractor, run, clips) for run in (exact, small))
    if not np.isfinite(after).all():
        raise InputError("the export gives NaN or infinite outputs, and is not kept; choose --format onnx")
    report = {"largest difference": float(np.abs(after - before).max())}
    if not hasattr(model, "classifier") or model._problem_type() == "regression":
        return report
    if labelled:
        targets = np.asarray([label for _, label in labelled])
        before, after = (over_windows(model, extractor, run, [clip for clip, _ in labelled]) for run in (exact, small))
        for name, logits in (("before", before), ("after", after)):
            report[f"accuracy {name}"] = float((logits.argmax(axis=1) == targets).mean())
    answers = [map(str, model.predict_labels(torch.from_numpy(logits))) for logits in (before, after)]
    noun = "time frames" if gives_frames(model) else "clips"
    report["same answer"] = f"{sum(map(str.__eq__, *answers))} of {len(before)} {noun}"
    return report


def over_windows(model, extractor, run: Runner, clips: list[np.ndarray]) -> np.ndarray:
    """
    Runs clip by clip, in windows where a clip is longer than the model's input: their mean (clips, outputs), or the
    time frames of all (frames, labels).
    """
    window, hop = window_and_hop(getattr(model, "base_model", model), extractor)
    outputs = []
    for clip in clips:
        parts = [run([clip[start : start + window]]) for start in window_starts(len(clip), window, hop)]
        outputs += [part[0] for part in parts] if gives_frames(model) else [np.concatenate(parts).mean(axis=0)[None]]
    return np.concatenate(outputs)


def time_sides(sides: dict[str, Runner], clips: list[np.ndarray]) -> dict[str, float]:
    """Returns each side's time divided by the last side's: medians over rounds of alternating sides."""
    ratios = {name: [] for name in sides}
    last = list(sides)[-1]
    for round_ in range(TIMED_ROUNDS + 1):
        seconds = dict.fromkeys(sides, 0.0)
        for clip in clips:
            for name, run in sides.items():
                start = time.perf_counter()
                run([clip])
                seconds[name] += time.perf_counter() - start
        if round_:  # the first warms up
            for name in sides:
                ratios[name].append(seconds[name] / seconds[last])
    return {name: round(statistics.median(values), 2) for name, values in ratios.items()}
