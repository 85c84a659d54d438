"""
Exports a finished model: `python -m training.export FOLDER OUT --format onnx`.

onnx              for onnxruntime: waveform or features in, any number of clips of any length
int8              the same with the weights of the Linear layers in 8 bits, for CPUs
torch-export      a torch.export program, model.pt2: torch.export.load runs it with torch alone
safetensors-fp16  a folder of half the size for from_pretrained
transformers-js   a folder for Transformers.js in browsers and Node: float32, int8 and float16
openvino          model.xml for OpenVINO, on Intel's processors and boards
executorch        model.pte for ExecuTorch, on phones and boards: one clip of up to a window at a time

Each export is compared with the model on recordings before it takes its place.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import torch
from transformers import AutoFeatureExtractor, PretrainedConfig
from transformers.utils import logging

from modeling_dual_ssast.configuration_composed import ComposedConfig

from ..base.inference import check_checkpoint, check_folder, explained, load_classifier, load_encoder
from ..console import ArgumentParser, run_program
from ..errors import InputError, short
from ..files import check_writable, complete_folder
from .boards import board_usage
from .comparison import WITH_OPSET
from .forms import FILES, FORMATS, write_graph, write_half
from .graph import FeatureGraph, WaveformGraph, gives_frames, longest_samples, output_name
from .javascript import check_javascript, javascript_usage
from .onnx_graph import NEWEST_OPSET, OLDEST_OPSET
from .recordings import WITH_ACCURACY, labelled_clips, read_recordings

PACKAGES = dict.fromkeys(("onnx", "int8", "transformers-js"), ("onnx", "onnxscript", "onnxruntime"))
PACKAGES |= {"openvino": ("onnx", "onnxscript", "openvino"), "executorch": ("executorch",)}
OLD_NAMES = {"torchscript-free": "torch-export"}  # still accepted as --format
# Format -> why it has no --input features.
ONLY_WAVEFORMS = {
    "transformers-js": "makes features in JavaScript",
    "executorch": "holds the feature extraction, which phones have nowhere else",
    "safetensors-fp16": "is a folder without a graph",
}
REPORT = "export.json"  # marks a folder as an export, which --overwrite may replace
KEPT = "an earlier export is kept, and nothing is left of this one: give the same command again"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m training.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        help="folder or Hub name of a classifier (of clips or time frames), or of an encoder for its embeddings",
    )
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--format", required=True, type=lambda name: OLD_NAMES.get(name, name), help=", ".join(FORMATS))
    parser.add_argument(
        "--input",
        choices=("waveform", "features"),
        default="waveform",
        help="input of the graph: samples and their number, or the feature extractor's output (default: waveform)",
    )
    parser.add_argument("--opset", type=int, help="opset of the ONNX file (default: torch's own)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--verify_with",
        type=Path,
        nargs="+",
        metavar="file-or-folder",
        help="recordings for the comparison (default: those of this project)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="labelled clips, a manifest or a folder, for the accuracy before and after (default: the test clips in "
        "the run's results.json, if they still exist)",
    )
    parser.add_argument("--label_column", help="label column of --data, if it cannot be guessed")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return run_program(lambda words: export(parse(words)), sys.argv[1:] if argv is None else argv, KEPT)


def export(arguments: argparse.Namespace):
    """
    Writes an export to a staging folder, compares it with the model, and renames the folder.

    Raises:
        InputError: bad arguments, or the export differs from the model (it is then deleted).
    """
    check(arguments)
    model, extractor = load(arguments.model)
    check_model(arguments, model, extractor)
    rate = extractor.sampling_rate
    clips = read_recordings(arguments.verify_with, rate)
    labelled = labelled_clips(arguments, model, rate)
    with complete_folder(arguments.output) as staging, torch.no_grad():
        if arguments.format == "safetensors-fp16":
            name = arguments.output.resolve().name
            report = write_half(arguments.model, model, extractor, staging, clips, labelled, name)
        else:
            report = write_graph(arguments, model, extractor, staging, clips, labelled)
        (staging / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, value in report.items():
        print(f"{name}: {value}")
    print(usage(arguments, model, extractor))


# ---- checks ----


def check(arguments: argparse.Namespace):
    """Raises `InputError` for bad arguments, before anything is loaded."""
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
    if arguments.format in ONLY_WAVEFORMS and arguments.input == "features":
        reason = ONLY_WAVEFORMS[arguments.format]
        raise InputError(f"--input features: --format {arguments.format} {reason}; leave it out")
    if arguments.data is not None and arguments.format not in WITH_ACCURACY:
        raise InputError(f"--data: accuracy is reported by --format {', '.join(WITH_ACCURACY)}; leave it out")
    if arguments.label_column is not None and arguments.data is None:
        raise InputError("--label_column: needs --data, the labelled clips; add it")
    output = arguments.output.resolve()
    check_writable(output, is_folder=True)
    if not output.parent.is_dir():
        raise InputError(f"{output}: the folder {output.parent} does not exist; make it or name another")
    for path in (Path(arguments.model), arguments.data, *(arguments.verify_with or ())):
        if path is not None and path.exists() and output in (path.resolve(), *path.resolve().parents):
            raise InputError(f"{output}: is or holds {path}, an input; name another folder")
    if not output.exists():
        return
    if not arguments.overwrite:
        raise InputError(f"{output}: exists already; add --overwrite or name another folder")
    if not (output / REPORT).is_file():
        raise InputError(f"{output}: is not an export, and is not overwritten; name another folder")


def check_opset(arguments: argparse.Namespace):
    if arguments.format not in WITH_OPSET:
        raise InputError(f"--opset: --format {arguments.format} has none; leave it out")
    if not OLDEST_OPSET <= arguments.opset <= NEWEST_OPSET:
        raise InputError(f"--opset: {arguments.opset} is not possible; give {OLDEST_OPSET} to {NEWEST_OPSET}")


def load(name: str):
    """Loads the model in float32 on the CPU, ready for inference, and its feature extractor."""
    check_checkpoint(name)
    with explained(name, "not a model that can be loaded", "name a folder or a Hub model"):
        architectures = PretrainedConfig.get_config_dict(name)[0].get("architectures") or [""]
        if architectures[0].endswith(("Model", "ForPreTraining")):
            check_folder(name)
            model, extractor = load_encoder(name), AutoFeatureExtractor.from_pretrained(name)
        else:
            model, extractor = load_classifier(name, of_frames=True)
    return model.eval().to("cpu", torch.float32).requires_grad_(False), extractor


def check_model(arguments: argparse.Namespace, model, extractor):
    """Raises `InputError` if the format does not suit the model."""
    architecture = (model.config.architectures or [""])[0]
    if arguments.format == "safetensors-fp16" and architecture.endswith("ForPreTraining"):
        raise InputError(
            f"{arguments.model}: the heads of the pretraining would be left out; export a fine-tuned model, or load it "
            "with dtype=torch.float16"
        )
    if arguments.format == "transformers-js":
        check_javascript(arguments.model, model, extractor)
    if arguments.format == "int8" and isinstance(model.config, ComposedConfig):
        raise InputError(
            f"{arguments.model}: a {model.config.model_type} consists of convolutions, and int8 is for Linear layers; "
            "choose --format onnx"
        )


def usage(arguments: argparse.Namespace, model, extractor) -> str:
    """Returns the code that calls the export."""
    output, rate = arguments.output, extractor.sampling_rate
    if arguments.format == "safetensors-fp16":
        kind = "AudioFrameClassification" if gives_frames(model) else "AudioClassification"
        auto_class = f"AutoModelFor{kind}" if hasattr(model, "classifier") else "AutoModel"
        return f"\nmodel = {auto_class}.from_pretrained({str(output)!r}, trust_remote_code=True)"
    if arguments.format == "transformers-js":
        return javascript_usage(str(output), model, extractor)
    path = str(output / FILES[arguments.format])
    is_waveform = arguments.input == "waveform"
    made = (
        f"waveform: float32 (batch, samples) at {rate} Hz, shorter clips padded at the end; lengths: int64 (batch,)"
        if is_waveform
        else "input_values, attention_mask: from AutoFeatureExtractor.from_pretrained(FOLDER, trust_remote_code=True)"
    )
    first, second = WaveformGraph.inputs if is_waveform else FeatureGraph.inputs
    lines = ["", made]
    if arguments.format in ("openvino", "executorch"):
        lines = ["", *board_usage(arguments.format, path, model, extractor, made, (first, second))]
    elif arguments.format == "torch-export":
        lines += [f"{output_name(model)} = torch.export.load({path!r}).module()({first}, {second})"]
    else:
        lines += [f"session = onnxruntime.InferenceSession({path!r})"]
        lines += [f'{output_name(model)} = session.run(None, {{"{first}": {first}, "{second}": {second}}})[0]']
    lines += decision_lines(model)
    if gives_frames(model):
        lines += [
            f"logits: float32 (batch, time frames, labels), one frame every {model.config.frame_hop_s:g} s. Frames "
            "after a clip's end hold no audio: ignore them."
        ]
    longest, place = longest_samples(model, extractor), " where they overlap" if gives_frames(model) else ""
    if longest is not None:
        lines += [
            f"The model takes at most {longest / rate:.2f} s at once. Cut longer clips into windows of {longest} "
            f"samples, half a window apart, the last one ending with the clip, and average their outputs{place}."
        ]
    if arguments.format == "int8":
        lines += [
            "int8 shares one scale among the clips of a batch, so they change each other a little: give one at a time."
        ]
    return "\n".join(lines)


def decision_lines(model) -> list[str]:
    """Returns how a calibrated classifier's logits become scores, and above which scores it predicts a label."""
    problem = model._problem_type() if hasattr(model, "classifier") else "regression"
    if problem == "regression":
        return []
    function = "softmax" if problem == "single_label_classification" else "sigmoid"
    temperature, thresholds = model.config.calibration_temperature, model.config.decision_thresholds
    lines = [] if temperature == 1.0 else [f"scores = {function}(logits / {temperature!r})  # the calibration"]
    if function == "sigmoid" and thresholds is not None:
        values = short(", ".join(f"{value:.4g}" for value in thresholds))
        lines += [f"A label is predicted above its threshold (decision_thresholds in config.json): {values}"]
    return lines


if __name__ == "__main__":
    sys.exit(main())
