"""
A finished model in another form: `python -m training.export FOLDER OUT --format onnx`.

onnx              for onnxruntime: waveform or features in, any number of clips of any length
int8              the same with the weights of the Linear layers in 8 bits, for CPUs
torchscript-free  a torch.export program, model.pt2: what torch.jit.save was for, without the deprecated TorchScript;
                  torch.export.load runs it with torch alone
safetensors-fp16  a folder for from_pretrained of half the size

Each is compared with the model on recordings before it takes its place.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import logging as python_logging
import re
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoFeatureExtractor, AutoModel, PretrainedConfig
from transformers.utils import logging

import modeling_dual_ssast
from modeling_dual_ssast.configuration_composed import ComposedConfig
from modeling_dual_ssast.embedding_dual_ssast import window_and_hop, window_starts

from ..base.inference import check_encoder_weights, check_folder, labels_of, load_classifier
from ..data.audio import audio_name, find_audio_files, read_audio
from ..data.sources import Columns, audio_of, load_folder, load_table
from ..errors import InputError, one_line
from .graph import FeatureGraph, WaveformGraph

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "int8": ("onnx", "onnxscript", "onnxruntime")}
FILES = {"onnx": "model.onnx", "int8": "model_int8.onnx", "torchscript-free": "model.pt2"}
FORMATS = (*FILES, "safetensors-fp16")
REPORT = "export.json"  # by which an earlier export is known
TOLERANCE = 1e-4
LENGTHS_S = (0.3, 1.0, 2.5, 5.0, 10.0, 15.0)
BATCH_SIZES = (1, 2, 4, 8)
TIMED_CLIPS, TIMED_ROUNDS = 8, 5
RECORDINGS = Path(__file__).parent.parent.parent / "data"
# The oldest of torch's exporter; from 23 on it writes an Attention node that onnxruntime refuses with a mask per clip.
OLDEST_OPSET, NEWEST_OPSET = 18, 22


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="folder or Hub name of a classifier, or of an encoder for its embeddings")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--format", required=True, help=", ".join(FORMATS))
    parser.add_argument(
        "--input",
        choices=("waveform", "features"),
        default="waveform",
        help="what the graph hears: samples and their number, or what the feature extractor gives (default: waveform)",
    )
    parser.add_argument("--opset", type=int, help="of the ONNX file (default: torch's own)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--verify_with",
        "--verify-with",
        type=Path,
        nargs="+",
        metavar="file-or-folder",
        help="recordings to compare by (default: those of this project)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="labelled clips, a manifest or a folder, for the accuracy before and after (default: the test clips that "
        "the run's results.json names, if they are there)",
    )
    parser.add_argument("--label_column", "--label-column", help="of --data, where it cannot be told")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        export(arguments)
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def export(arguments: argparse.Namespace):
    """
    Writes the folder under another name, compares, and moves it to its place.

    Raises:
        InputError: a bad argument, or an export that is not what the model is; nothing is left of it.
    """
    check(arguments)
    model, extractor = load(arguments.model)
    check_model(arguments, model)
    rate = extractor.sampling_rate
    clips = read_recordings(arguments.verify_with, rate)
    labelled = labelled_clips(arguments, model, rate)
    output = arguments.output.resolve()
    staging = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        with torch.no_grad():
            if arguments.format == "safetensors-fp16":
                report = write_half(arguments.model, model, extractor, staging, clips, labelled, output.name)
            else:
                report = write_graph(arguments, model, extractor, staging, clips, labelled)
        (staging / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        replace_folder(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for name, value in report.items():
        print(f"{name}: {value}")
    print(usage(arguments, model, extractor))


# ---- what is asked for ----


def check(arguments: argparse.Namespace):
    """Before anything is loaded."""
    if arguments.format not in FORMATS:
        raise InputError(f"--format: {arguments.format!r} is unknown; choose one of {', '.join(FORMATS)}")
    missing = [name for name in PACKAGES.get(arguments.format, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"--format {arguments.format}: needs {', '.join(missing)}, which is not installed; pip install "
            f"{' '.join(PACKAGES[arguments.format])}"
        )
    if arguments.opset is not None:
        check_opset(arguments)
    output = arguments.output.resolve()
    if not output.parent.is_dir():
        raise InputError(f"{output}: the folder {output.parent} does not exist; make it or name another")
    for path in (Path(arguments.model), arguments.data, *(arguments.verify_with or ())):
        if path is not None and path.exists() and output in (path.resolve(), *path.resolve().parents):
            raise InputError(f"{output}: is or holds {path}, which is read; name another folder")
    if not output.exists():
        return
    if not arguments.overwrite:
        raise InputError(f"{output}: exists already; add --overwrite or name another folder")
    if not (output / REPORT).is_file():
        raise InputError(f"{output}: is no export, and is not overwritten; name another folder")


def check_opset(arguments: argparse.Namespace):
    if arguments.format not in PACKAGES:
        raise InputError(f"--opset: --format {arguments.format} has none; leave it out")
    if not OLDEST_OPSET <= arguments.opset <= NEWEST_OPSET:
        raise InputError(f"--opset: {arguments.opset} is not possible; give {OLDEST_OPSET} to {NEWEST_OPSET}")


def load(name: str):
    """The model in float32 on the CPU, ready for inference, and its feature extractor."""
    try:
        architectures = PretrainedConfig.get_config_dict(name)[0].get("architectures") or [""]
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{name}: no model that can be loaded ({reason}); name a folder or a Hub model") from error
    is_encoder = architectures[0].endswith(("Model", "ForPreTraining"))
    model, extractor = load_encoder(name) if is_encoder else load_classifier(name)
    return model.eval().to("cpu", torch.float32).requires_grad_(False), extractor


def load_encoder(name: str):
    try:
        check_folder(name)
        extractor = AutoFeatureExtractor.from_pretrained(name)
        model, loading = AutoModel.from_pretrained(name, output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{name}: not a model that can be loaded ({reason}); name a folder or a Hub model") from error
    check_encoder_weights(name, loading)
    return model, extractor


def check_model(arguments: argparse.Namespace, model):
    architecture = (model.config.architectures or [""])[0]
    if arguments.format == "safetensors-fp16" and architecture.endswith("ForPreTraining"):
        raise InputError(
            f"{arguments.model}: the heads of the pretraining would be left out; export a fine-tuned model, or load it "
            "with dtype=torch.float16"
        )
    if arguments.format == "int8" and isinstance(model.config, ComposedConfig):
        raise InputError(
            f"{arguments.model}: a {model.config.model_type} is made of convolutions, and int8 is for Linear layers; "
            "choose --format onnx"
        )


# ---- recordings ----


def read_recordings(inputs: list[Path] | None, rate: int) -> list[np.ndarray]:
    """Clips (samples,) to compare by, at least as long together as the longest piece."""
    if inputs is None:
        files = [path for name in ("voice_prompts", "instruments") for path in find_audio_files(RECORDINGS / name)]
        files = files[::16]
    else:
        files = [file for path in inputs for file in (find_audio_files(path) if path.is_dir() else [path])]
    if not files:
        raise InputError(
            f"--verify_with: {', '.join(map(str, inputs or [RECORDINGS]))} holds no audio files; name recordings"
        )
    return [read_audio(str(file), rate) for file in files]


def labelled_clips(arguments: argparse.Namespace, model, rate: int) -> list[tuple[np.ndarray, object]] | None:
    """Clips and what they are, indices or texts as the model's label set has them; `None` where none are known."""
    path, columns = arguments.data, Columns(label=arguments.label_column)
    if path is None and arguments.format in ("int8", "safetensors-fp16"):
        path, columns = test_clips_of(Path(arguments.model))
    if path is None:
        return None
    if not hasattr(model, "classifier"):
        raise InputError(f"--data: {arguments.model} is an encoder, which has no labels; leave it out")
    labels = labels_of(arguments.model, model.config)
    if labels.problem_type != "single_label_classification":
        raise InputError(f"--data: accuracy is for one label per clip, not {labels.problem_type}; leave it out")
    data = read_labelled(path, columns)
    clips = []
    for example in data:
        source = audio_of(example)
        clips.append((read_audio(source, rate), labels.encode(example["label"], audio_name(source))))
    return clips


def test_clips_of(folder: Path) -> tuple[Path | None, Columns | None]:
    """The table of the test clips that a run was told of, if it is still there, and its columns."""
    if not (folder / "results.json").is_file():
        return None, None
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    settings = results.get("recipe", {}).get("DataArguments", {})
    found = Path(settings["test_file"]) if settings.get("test_file") else None
    if results.get("problem_type") != "single_label_classification" or found is None or not found.is_file():
        return None, None
    names = {field.name: settings.get(f"{field.name}_column") for field in dataclasses.fields(Columns)}
    return found, Columns(**names | {"separator": settings.get("label_separator")})


def read_labelled(path: Path, columns: Columns) -> datasets.Dataset:
    if not path.is_dir():
        return load_table(path, columns)
    splits = load_folder(path, columns)
    return splits.get("test") or datasets.concatenate_datasets(list(splits.values()))


def pieces(clips: list[np.ndarray], rate: int, longest: int | None) -> list[list[np.ndarray]]:
    """Batches of pieces of the recordings, laid end to end, of mixed lengths up to what the model hears."""
    joined = np.concatenate(clips)
    lengths = [round(seconds * rate) for seconds in LENGTHS_S]
    lengths = [length for length in lengths if longest is None or length < longest]
    lengths += [longest] if longest is not None and longest <= LENGTHS_S[-1] * rate else []
    joined = np.tile(joined, -(-2 * max(lengths) // len(joined)))
    batches, start, place = [], 0, 0
    for size in BATCH_SIZES:
        batch = []
        for _ in range(size):
            length = lengths[place % len(lengths)]
            start = start if start + length <= len(joined) else 0
            batch.append(joined[start : start + length])
            start, place = start + length, place + 1
        batches.append(batch)
    return batches


# ---- the graph ----


def write_graph(arguments, model, extractor, staging: Path, clips: list[np.ndarray], labelled) -> dict:
    """
    The graph, compared with the model, and the configurations beside it.

    Raises:
        InputError: it differs.
    """
    graph = WaveformGraph(model, extractor) if arguments.input == "waveform" else FeatureGraph(model)
    program = trace(graph, extractor)
    described = metadata(arguments, model, extractor)
    path = staging / FILES[arguments.format]
    reference = torch_runner(model, extractor)
    batches = pieces(clips, extractor.sampling_rate, longest_samples(model, extractor))
    if arguments.format == "torchscript-free":
        files = {name: json.dumps(value) for name, value in described.items()}
        torch.export.save(program, path, extra_files=files)
        difference = compare(model, program_runner(path, arguments.input, extractor), reference, batches)
        report = {"largest difference": difference}
    else:
        exact = staging / "model.onnx"
        write_onnx(program, graph, exact, arguments.opset, described)
        plain = onnx_runner(exact, arguments.input, extractor)
        report = {"largest difference": compare(model, plain, reference, batches)}
        if arguments.format == "int8":
            quantise(exact, path, described)
            sides = {"torch": reference, "onnx": plain, "int8": onnx_runner(path, arguments.input, extractor)}
            report = describe_int8(model, extractor, sides, batches, labelled)
            report["size"] = f"{path.stat().st_size / 1e6:.1f} MB, {exact.stat().st_size / 1e6:.1f} MB in float32"
            exact.unlink()
    model.config.save_pretrained(staging)
    extractor.save_pretrained(staging)
    return {"format": arguments.format, "input": arguments.input, **report, "torch": torch.__version__}


@contextlib.contextmanager
def quiet():
    """The exporters speak to those who develop them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        python_logging.disable(python_logging.WARNING)
        try:
            yield
        finally:
            python_logging.disable(python_logging.NOTSET)


def trace(graph: FeatureGraph, extractor) -> torch.export.ExportedProgram:
    """Of two clips of different lengths, which the graph does not remember."""
    if isinstance(graph, WaveformGraph):
        waveform = torch.zeros(2, extractor.num_samples(40))
        example, axis = (waveform, torch.tensor([waveform.shape[1], waveform.shape[1] // 2])), {0: "batch"}
        dynamic = {"waveform": {0: "batch", 1: "samples"}, "lengths": axis}
    else:
        values, mask = torch.zeros(2, 40, extractor.num_mel_bins), torch.ones(2, 40, dtype=torch.long)
        mask[1, 20:] = 0
        axes = {0: "batch", 1: "frames"}
        example, dynamic = (values, mask), {"input_values": axes, "attention_mask": axes}
    dims = {name: torch.export.Dim(name) for axes in dynamic.values() for name in axes.values()}
    shapes = {name: {axis: dims[dim] for axis, dim in axes.items()} for name, axes in dynamic.items()}
    with quiet():
        return torch.export.export(graph.eval(), example, dynamic_shapes=shapes)


def write_onnx(program, graph: FeatureGraph, path: Path, opset: int | None, described: dict):
    with quiet():
        converted = torch.onnx.export(
            program,
            input_names=list(graph.inputs),
            output_names=[output_name(graph.model)],
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    name_axes(converted.model.graph, graph)
    converted.model.metadata_props.update({name: json.dumps(value) for name, value in described.items()})
    converted.save(path, external_data=False)


def name_axes(onnx_graph, graph: FeatureGraph):
    """Names in the place of the tracer's symbols: they are what a runtime shows."""
    import onnx_ir

    length = "samples" if isinstance(graph, WaveformGraph) else "frames"
    for value in (*onnx_graph.inputs, *onnx_graph.outputs):
        dims = list(value.shape)
        dims[0] = "batch"
        if value.name in graph.inputs and len(dims) > 1:
            dims[1] = length
        value.shape = onnx_ir.Shape(dims)


def output_name(model) -> str:
    return "logits" if hasattr(model, "classifier") else "pooler_output"


def metadata(arguments, model, extractor) -> dict:
    """What a program needs beside the graph, also without the configurations."""
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
    return described


def longest_samples(model, extractor) -> int | None:
    """The longest clip that the model and its feature extractor take; `None`: any."""
    limits = (getattr(model, "base_model", model).max_frames, extractor.max_length)
    limits = [limit for limit in limits if limit is not None]
    return extractor.num_samples(min(limits)) if limits else None


def quantise(source: Path, path: Path, described: dict):
    """
    Weights of the Linear layers in 8 bits, one scale per output; what they read is quantised as it comes. The features,
    in float64, stay as they are, and so do attention and the patches' convolution.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    exact = onnx.load(source)
    del exact.graph.value_info[:]  # of weights that are transposed on the way
    doubles = {value.name for value in exact.graph.initializer if value.data_type == onnx.TensorProto.DOUBLE}
    features = [node.name for node in exact.graph.node if doubles & set(node.input)]
    with quiet():
        quantize_dynamic(
            exact,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=features,
            per_channel=True,
            reduce_range=True,  # 7 bits: sums of products overflow 16 bits on CPUs without VNNI
            weight_type=QuantType.QInt8,
        )
    model = onnx.load(path)
    kept = {entry.key for entry in model.metadata_props}
    for name, value in described.items():
        if name not in kept:
            model.metadata_props.add(key=name, value=json.dumps(value))
    onnx.save(model, path)


# ---- running, comparing and timing ----

Runner = Callable[[list[np.ndarray]], np.ndarray]  # clips (samples,) -> (clips, outputs)


def extract(extractor, clips: list[np.ndarray]) -> dict[str, torch.Tensor]:
    features = extractor(
        clips,
        sampling_rate=extractor.sampling_rate,
        padding="longest",
        return_attention_mask=True,
        return_tensors="pt",
    )
    return dict(features)


def torch_runner(model, extractor) -> Runner:
    def run(clips):
        with torch.no_grad():
            features = extract(extractor, clips)
            features["input_values"] = features["input_values"].to(model.dtype)
            return model(**features, return_dict=True)[output_name(model)].float().numpy()

    return run


def inputs_of(kind: str, clips: list[np.ndarray], extractor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a graph is called with."""
    if kind == "features":
        features = extract(extractor, clips)
        return features["input_values"], features["attention_mask"]
    waveform = torch.zeros(len(clips), max(map(len, clips)))
    for row, clip in zip(waveform, clips):
        row[: len(clip)] = torch.from_numpy(clip)
    return waveform, torch.tensor([len(clip) for clip in clips])


def onnx_runner(path: Path, kind: str, extractor) -> Runner:
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
    module = torch.export.load(path).module()
    return lambda clips: module(*inputs_of(kind, clips, extractor)).detach().numpy()


def compare(model, run: Runner, reference: Runner, batches: list[list[np.ndarray]]) -> float:
    """
    The largest difference of clips in batches from clips that the model hears alone, so that neighbours count too; of
    embeddings, relative to the largest number where that is above 1.

    Raises:
        InputError: more than the tolerance.
    """
    differences = []
    for batch in batches:
        expected = np.concatenate([reference([clip]) for clip in batch])
        scale = 1.0 if hasattr(model, "classifier") else max(1.0, float(np.abs(expected).max()))
        differences.append(np.abs(run(batch) - expected).max() / scale)
    largest = float(np.max(differences))  # NaN if one is
    if not largest <= TOLERANCE:
        raise InputError(
            f"the export differs from the model by {largest:.2g}, more than {TOLERANCE:g}, and is not kept; try "
            "another --opset, or --input features"
        )
    return largest


def describe_int8(model, extractor, sides: dict[str, Runner], batches: list[list[np.ndarray]], labelled) -> dict:
    clips = [clip for batch in batches for clip in batch]
    report = describe_difference(model, extractor, sides["torch"], sides["int8"], clips, labelled)
    for other, seconds in time_sides(sides, clips[:TIMED_CLIPS]).items():
        if other != "int8":
            report[f"speed, {other} float32 / int8"] = seconds
    return report


def describe_difference(model, extractor, exact: Runner, small: Runner, clips: list[np.ndarray], labelled) -> dict:
    """
    How far outputs are apart; of a classifier how often they name the same class, and how often the right one.

    Raises:
        InputError: outputs that are no numbers.
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
    told = [model.predict_labels(torch.from_numpy(logits)) for logits in (before, after)]
    report["same answer"] = f"{sum(map(str.__eq__, *(map(str, answers) for answers in told)))} of {len(before)} clips"
    return report


def over_windows(model, extractor, run: Runner, clips: list[np.ndarray]) -> np.ndarray:
    """Clip by clip; of one longer than the model hears, the mean over its windows: (clips, outputs)"""
    window, hop = window_and_hop(getattr(model, "base_model", model), extractor)
    outputs = []
    for clip in clips:
        parts = [run([clip[start : start + window]]) for start in window_starts(len(clip), window, hop)]
        outputs.append(np.concatenate(parts).mean(axis=0))
    return np.stack(outputs)


def time_sides(sides: dict[str, Runner], clips: list[np.ndarray]) -> dict[str, float]:
    """
    Seconds of each side divided by the last one's, the median over rounds in which the sides take turns clip by clip.
    """
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


# ---- half precision ----


def write_half(name: str, model, extractor, staging: Path, clips: list[np.ndarray], labelled, folder_name: str) -> dict:
    """The folder with weights in float16, loaded again and compared, computing in float16 and in float32."""
    exact = torch_runner(model, extractor)
    kind = type(model)
    if Path(name).is_dir():  # the card and its pictures
        for pattern in ("README.md", "*.png", "results.json"):
            for path in Path(name).glob(pattern):
                shutil.copy(path, staging / path.name)
    half = kind.from_pretrained(name, dtype=torch.float16)
    half.save_pretrained(staging)
    extractor.save_pretrained(staging)
    batches = pieces(clips, extractor.sampling_rate, longest_samples(model, extractor))
    heard = [clip for batch in batches for clip in batch]
    report = {"format": "safetensors-fp16"}
    for dtype in (torch.float16, torch.float32):
        loaded = kind.from_pretrained(staging, dtype=dtype).eval()
        found = describe_difference(model, extractor, exact, torch_runner(loaded, extractor), heard, labelled)
        computed = str(dtype).removeprefix("torch.")
        report |= {f"{key}, computed in {computed}": value for key, value in found.items()}
    card = staging / "README.md"
    if card.is_file():
        text = re.sub(
            r'(?m)^(repository = )"[^"\n]*"', lambda line: f'{line[1]}"{folder_name}"', card.read_text("utf-8")
        )
        lines = [f"- {key}: {value}" for key, value in report.items() if "difference" in key]
        note = "\n## In float16\n\nThe weights of this copy are in float16. The logits beside those in float32:\n\n"
        card.write_text(text + note + "\n".join(lines) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in staging.glob("*.safetensors"))
    return report | {"size": f"{size / 1e6:.1f} MB", "torch": torch.__version__}


# ---- the folder ----


def replace_folder(staging: Path, folder: Path):
    """Moves the complete folder to its place; an earlier export goes when the new one is there."""
    earlier = folder.with_name(f".{folder.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    try:
        if folder.exists():
            folder.rename(earlier)
        staging.rename(folder)
    except OSError as error:
        if earlier.exists() and not folder.exists():
            earlier.rename(folder)
        raise InputError(f"{folder}: cannot be written ({error}); name another folder") from error
    shutil.rmtree(earlier, ignore_errors=True)


def usage(arguments: argparse.Namespace, model, extractor) -> str:
    """How to call what was written."""
    output, rate = arguments.output, extractor.sampling_rate
    if arguments.format == "safetensors-fp16":
        auto_class = "AutoModelForAudioClassification" if hasattr(model, "classifier") else "AutoModel"
        return f"\nmodel = {auto_class}.from_pretrained({str(output)!r}, trust_remote_code=True)"
    path = str(output / FILES[arguments.format])
    is_waveform = arguments.input == "waveform"
    made = (
        f"waveform: float32 (batch, samples) at {rate} Hz, filled up behind the shorter clips; lengths: int64 (batch,)"
        if is_waveform
        else "input_values, attention_mask: of AutoFeatureExtractor.from_pretrained(FOLDER, trust_remote_code=True)"
    )
    first, second = WaveformGraph.inputs if is_waveform else FeatureGraph.inputs
    lines = ["", made]
    if arguments.format == "torchscript-free":
        lines += [f"{output_name(model)} = torch.export.load({path!r}).module()({first}, {second})"]
    else:
        lines += [f"session = onnxruntime.InferenceSession({path!r})"]
        lines += [f'{output_name(model)} = session.run(None, {{"{first}": {first}, "{second}": {second}}})[0]']
    longest = longest_samples(model, extractor)
    if longest is not None:
        lines += [
            f"The model hears at most {longest / rate:.2f} s at once. Cut longer clips into windows of {longest} "
            "samples, half a window apart, the last one ending with the clip, and average their outputs."
        ]
    if arguments.format == "int8":
        lines += [
            "int8 shares one scale among the clips of a batch: they change each other a little; alone they do not."
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
