"""
Writes the folder that Transformers.js (`@huggingface/transformers`) loads in browsers and Node.

Transformers.js has no classes of this project. It takes the folder for an AST: its `ASTFeatureExtractor` makes the
features, and any graph from `input_values` to `logits` can follow, also one with logits for every time frame, for which
the library has no pipeline. That extractor obeys `sampling_rate`, `num_mel_bins`, `max_length`, `mean`, `std` and
`do_normalize`, and gives no mask, so the graph derives it.
"""

import copy
import json
from pathlib import Path

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from modeling_dual_ssast import DualSSASTFeatureExtractor
from modeling_dual_ssast.feature_extraction_dual_ssast import LOG_FLOOR, LOWEST_MEL_HZ, PREEMPHASIS, frame_sizes

from ..base.event_detection import EventFinder, event_settings
from ..base.label_frames import frame_grid
from ..errors import InputError
from ..inference.overlaps import run_frames
from .comparison import Runner, compare, describe_difference, extract, remedy_of, torch_runner
from .graph import FeatureGraph, gives_frames, quiet
from .onnx_graph import quantise, write_onnx
from .recordings import pieces

WINDOW, SHIFT, NUM_FFT = FRAME_SIZES = (400, 160, 512)  # fixed in Transformers.js, in samples at any rate
DTYPES = {"fp32": "model.onnx", "q8": "model_quantized.onnx", "fp16": "model_fp16.onnx"}  # its names
MODEL_TYPE, ARCHITECTURE = "audio-spectrogram-transformer", "ASTForAudioClassification"


class PaddedGraph(FeatureGraph):
    """
    Maps the features of Transformers.js, `input_values` (batch, max_length, mel), to calibrated logits (batch, labels):
    divided by the temperature, because its pipeline knows none. A classifier of time frames gives (batch, time frames,
    labels), as many frames as the longest clip has.

    Padding is what the clip ends with of frames that hold the normalised `LOG_FLOOR` (the extractor floors before the
    logarithm, which it takes of audio only) or the normalised 0 of Python's AST. Silence is the logarithm of the floor.
    """

    inputs = ("input_values",)

    def __init__(self, model, extractor: DualSSASTFeatureExtractor):
        super().__init__(model)
        self.check = NotEmpty(num_frames(model, extractor))
        self.padding = extractor._normalize(LOG_FLOOR)
        self.tolerance = 1e-6 * abs(self.padding) + 2 * abs(self.padding - extractor._normalize(0.0))

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        is_audio = ((input_values - self.padding).abs() > self.tolerance).any(dim=2)  # (batch, frames)
        places = torch.arange(1, input_values.shape[1] + 1)
        mask = places <= (places * is_audio).amax(dim=1, keepdim=True)
        logits = super().forward(input_values.to(self.model.dtype), mask.long())
        return logits.float() / self.model.config.calibration_temperature

    def read_own_frames(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        found = self.read(values, lengths)
        if not gives_frames(self.model):
            return found
        num_frames = self.model.base_model.num_label_frames(lengths).amax(0).item()
        torch._check(num_frames >= 1)
        torch._check(num_frames <= found.shape[1])
        return found.narrow(1, 0, num_frames)


class NotEmpty(torch.nn.Module):
    """Raises an error in every runtime for a clip without a frame, by a look-up out of range."""

    def __init__(self, limit: int):
        super().__init__()
        self.limit = limit
        self.register_buffer("zeros", torch.zeros(limit, dtype=torch.long))

    def forward(self, lengths: torch.Tensor) -> torch.Tensor:
        return lengths + self.zeros[self.limit - lengths]


def check_javascript(name: str, model, extractor):
    """Raises `InputError` for a model whose features or outputs the AST classes of Transformers.js cannot make."""
    remedy = "choose --format onnx"
    architecture = (model.config.architectures or [""])[0]
    if not architecture.endswith(("ForAudioClassification", "ForAudioFrameClassification")):
        raise InputError(f"{name}: is a {architecture}, and this form is for classifiers; {remedy}")
    if model._problem_type() == "regression":
        raise InputError(f"{name}: is a regression, and Transformers.js gives probabilities of classes; {remedy}")
    if not isinstance(extractor, DualSSASTFeatureExtractor):
        raise InputError(f"{name}: Transformers.js has no features of a {type(extractor).__name__}; {remedy}")
    sizes = frame_sizes(extractor.sampling_rate, extractor.frame_length_ms, extractor.frame_shift_ms)
    if sizes != FRAME_SIZES:
        raise InputError(
            f"{name}: its features have windows of {sizes[0]} samples, {sizes[1]} apart, and those of Transformers.js "
            f"{WINDOW}, {SHIFT} apart; {remedy}"
        )
    if extractor.min_samples is not None:
        raise InputError(
            f"{name}: its features lengthen clips to min_samples={extractor.min_samples}, which Transformers.js cannot "
            f"do; {remedy}"
        )


def num_frames(model, extractor) -> int:
    """Returns the frames that every clip is padded to."""
    return min(model.config.max_length, extractor.max_length)


def write_javascript(arguments, model, extractor, staging: Path, clips: list[np.ndarray], labelled, described) -> dict:
    """
    Writes configurations and graphs in float32, int8 and float16, and compares them with the model.

    Args:
        described: facts for the metadata of the graphs

    Returns:
        the report for `export.json`

    Raises:
        InputError: the outputs differ.
    """
    described = described | {"input": "features", "calibration_temperature": 1.0}  # the graph has divided by it
    folder = staging / "onnx"
    folder.mkdir()
    paths = {dtype: folder / name for dtype, name in DTYPES.items()}
    half = copy.deepcopy(model).half()
    for dtype, made in (("fp32", model), ("fp16", half)):
        graph = PaddedGraph(made, extractor)
        write_onnx(trace_padded(graph, extractor), graph, paths[dtype], arguments.opset, described)
    quantise(paths["fp32"], paths["q8"], described)
    for name, settings in (("config", config(model, extractor)), ("preprocessor_config", features(model, extractor))):
        (staging / f"{name}.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
    reference = frames_runner(model, extractor) if gives_frames(model) else torch_runner(model, extractor)
    longest = extractor.num_samples(num_frames(model, extractor))
    batches = pieces(clips, extractor.sampling_rate, longest)
    runners = {dtype: javascript_runner(path, model, extractor) for dtype, path in paths.items()}
    report = {"largest difference": compare(model, runners["fp32"], reference, batches, remedy_of(arguments))}
    compared = [clip for batch in batches for clip in batch]
    for dtype in ("q8", "fp16"):
        found = describe_difference(model, extractor, reference, runners[dtype], compared, labelled)
        report |= {f"{key}, {dtype}": value for key, value in found.items()}
    return report | {f"size, {dtype}": f"{path.stat().st_size / 1e6:.1f} MB" for dtype, path in paths.items()}


def trace_padded(graph: PaddedGraph, extractor) -> torch.export.ExportedProgram:
    """Traces with two clips of different lengths; the batch stays dynamic."""
    frames = num_frames(graph.model, extractor)
    values = torch.full((2, frames, extractor.num_mel_bins), graph.padding)
    values[0], values[1, : frames // 2] = 0, 1
    with quiet():
        return torch.export.export(graph.eval(), (values,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def config(model, extractor) -> dict:
    """
    Returns `config.json`: of an AST for Transformers.js, with what the page of a Space obeys: thresholds, settings of
    events, and of a classifier of time frames their places (see `FrameGrid`).
    """
    names = {str(index): model.config.id2label[index] for index in range(model.config.num_labels)}
    settings = {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "problem_type": model._problem_type(),
        "id2label": names,
        "label2id": {name: int(index) for index, name in names.items()},
        "num_mel_bins": extractor.num_mel_bins,
        "max_length": num_frames(model, extractor),
        "decision_thresholds": model.config.decision_thresholds,
        "event_detection": events(model),
    }
    return settings | ({"time_frames": frame_grid(model, extractor)._asdict()} if gives_frames(model) else {})


def events(model) -> dict[str, list]:
    """Returns the settings of `EventFinder` that the model has for each label."""
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    finder = EventFinder(labels, **event_settings(model.config))
    names = ("high", "low", "min_duration_s", "max_gap_s", "median_steps")
    return {name: getattr(finder, name).tolist() for name in names}


def features(model, extractor) -> dict:
    """Returns `preprocessor_config.json` with the settings that the extractor of Transformers.js obeys."""
    names = ("sampling_rate", "num_mel_bins", "mean", "std", "do_normalize")
    return {
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "padding_value": 0.0,
        "return_attention_mask": False,
        **{name: getattr(extractor, name) for name in names},
        "max_length": num_frames(model, extractor),
    }


def javascript_features(clip: np.ndarray, settings: dict) -> np.ndarray:
    """
    Computes the features of Transformers.js: (samples,) -> float32 (max_length, mel), normalised.

    Args:
        settings: those of `features`
    """
    rate, longest = settings["sampling_rate"], settings["max_length"]
    sizes = (NUM_FFT // 2 + 1, settings["num_mel_bins"], LOWEST_MEL_HZ, rate // 2, rate)
    with quiet():  # 128 filters are so narrow that the lowest hold no frequency of the Fourier transform
        filters = mel_filter_bank(*sizes, mel_scale="kaldi", triangularize_in_mel_space=True)
    log_mel = np.full((longest, settings["num_mel_bins"]), LOG_FLOOR)
    if len(clip) >= WINDOW:
        audio = spectrogram(
            clip,
            window_function(WINDOW, "hann", periodic=False),
            WINDOW,
            SHIFT,
            NUM_FFT,
            power=2.0,
            center=False,
            preemphasis=PREEMPHASIS,
            mel_filters=filters,
            log_mel="log",
            mel_floor=LOG_FLOOR,
            remove_dc_offset=True,
        ).T[:longest]
        log_mel[: len(audio)] = audio
    if settings["do_normalize"]:
        log_mel = (log_mel - settings["mean"]) / (2 * settings["std"])
    return log_mel.astype(np.float32)


def javascript_runner(path: Path, model, extractor) -> Runner:
    """Returns a runner of a graph on the features of Transformers.js; it gives logits before the calibration."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # onnxruntime warns that it folds no constants in float16
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    settings = features(model, extractor)

    def run(clips):
        values = np.stack([javascript_features(clip, settings) for clip in clips])
        return session.run(None, {"input_values": values})[0] * model.config.calibration_temperature

    return run


def frames_runner(model, extractor) -> Runner:
    """Returns a runner of the model on single clips, which leaves out the time frames after their end."""

    def run(clips):
        with torch.no_grad():
            logits, counts = run_frames(model, extract(extractor, clips))
        return logits[:, : int(counts.max())].numpy()

    return run


def javascript_usage(folder: str, model, extractor) -> str:
    """Returns the code that calls the export in JavaScript."""
    rate = extractor.sampling_rate
    page = "A page that does all this in the browser: python -m hub push-space --static"
    if gives_frames(model):
        grid = frame_grid(model, extractor)
        return "\n".join(
            [
                "",
                "Transformers.js has no pipeline for time frames, so the model is called itself:",
                'import { AutoModelForAudioClassification, AutoProcessor } from "@huggingface/transformers";',
                f"const folder = {json.dumps(folder)};",
                "const processor = await AutoProcessor.from_pretrained(folder);",
                'const model = await AutoModelForAudioClassification.from_pretrained(folder, { dtype: "fp32" });',
                "const { logits } = await model(await processor(samples)); // [1, time frames, labels]",
                f"// samples: Float32Array, mono at {rate} Hz, up to {grid.length}; dtype: {', '.join(DTYPES)}",
                f"A frame begins every {grid.step} samples. config.json has their places (time_frames), and how events "
                "are found in the scores (event_detection).",
                page,
            ]
        )
    lines = [
        "",
        'import { pipeline } from "@huggingface/transformers";',
        f'const classify = await pipeline("audio-classification", {json.dumps(folder)}, {{ dtype: "fp32" }});',
        f"await classify(samples); // Float32Array, mono at {rate} Hz; dtype: {', '.join(DTYPES)}",
        f"Clips are cut after {extractor.num_samples(num_frames(model, extractor)) / rate:.2f} s.",
    ]
    if model._problem_type() == "multi_label_classification":
        lines.append("The pipeline takes the softmax over all labels. Take the sigmoid of each of the model's logits.")
    return "\n".join([*lines, page])
