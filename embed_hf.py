"""Embeds audio: `python embed_hf.py MODEL FILES-FOLDERS-MANIFESTS-OR-DATA-SETS --output embeddings.parquet`."""

import argparse
import datetime
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import ASTConfig, AutoConfig, AutoModel, PretrainedConfig
from transformers.utils import logging

import modeling_dual_ssast  # noqa: F401  registers the Auto classes
from modeling_dual_ssast.embedding_dual_ssast import window_and_hop
from training.base.inference import check_encoder_weights
from training.data.unreadable import UnreadableLog
from training.embeddings.embed import (
    EXTENSIONS,
    LEVELS,
    ClipSequence,
    columns_of,
    encode,
    open_inputs,
    unreadable_path,
    weights_fingerprint,
    write,
)
from training.embeddings.shards import Shards
from training.errors import InputError, one_line

LONGEST_WAIT = datetime.timedelta(days=7)  # for the other processes, whose clips may be longer
PRINTED_FAILURES = 20


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="embed_hf.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("model", help="folder or Hub name of a model of this project")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="input",
        help='audio files, folders, manifests, Hub data sets, or \'{"path": ..., "split": ..., "audio_column": ...}\'',
    )
    parser.add_argument("--output", type=Path, required=True, help="OUT.parquet or OUT.npz")
    parser.add_argument(
        "--level",
        choices=LEVELS,
        default="clip",
        help="a row per clip, a row per time frame, or a row per clip with a column per layer (default: %(default)s)",
    )
    parser.add_argument(
        "--batch_size", "--batch-size", type=int, default=8, help="clips per forward pass (default: %(default)s)"
    )
    parser.add_argument(
        "--num_workers", "--num-workers", type=int, default=2, help="threads that decode (default: %(default)s)"
    )
    parser.add_argument(
        "--window_s", "--window-s", type=float, help="seconds per window of long clips (default: the model's own)"
    )
    parser.add_argument("--readout", help="instead of the model's: patches, prefix or frames")
    parser.add_argument(
        "--fusion_layers", "--fusion-layers", type=int, nargs="+", help="instead of the model's; 0 is the embedding"
    )
    parser.add_argument("--pooling", nargs="+", help="instead of the model's: some of mean, max, min")
    parser.add_argument(
        "--pooling_combination", "--pooling-combination", help="instead of the model's: sum, mean or concat"
    )
    parser.add_argument("--streaming", action="store_true", help="stream the data sets instead of downloading them")
    parser.add_argument(
        "--shard_clips",
        "--shard-clips",
        type=int,
        default=128,
        help="clips that a stopped run may lose per process (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew, whatever is there")
    arguments = parser.parse_args(argv)
    for name, lowest in (("batch_size", 1), ("num_workers", 0), ("shard_clips", 1)):
        if getattr(arguments, name) < lowest:
            parser.error(f"--{name} must be {lowest} or more, got {getattr(arguments, name)}")
    return arguments


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)
    try:
        run(arguments, state)
    except InputError as error:
        if state.is_main_process:
            print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        state.destroy_process_group()  # a thread that is left running can abort the process as it ends
    return 0


def run(arguments: argparse.Namespace, state: PartialState):
    """
    Every process loads the model and encodes its shards; the main one joins them. The shards lie in OUT.shards until
    then, where a stopped run finds them.
    """
    output = arguments.output
    process = (state.process_index, state.num_processes)
    together(state, lambda: check_output(output, arguments.overwrite))
    model, extractor, overrides = together(state, lambda: load(arguments))
    clips = together(state, lambda: ClipSequence(open_inputs(arguments.inputs, arguments.streaming)))
    folder = output.with_name(f"{output.name}.shards")
    shards = Shards(
        folder,
        clips.num_clips,
        arguments.shard_clips,
        {
            "model": arguments.model,
            "weights": weights_fingerprint(model),
            "settings": overrides | {"window_s": arguments.window_s},
            "level": arguments.level,
            "clips": clips.fingerprint(),
        },
    )
    together(state, lambda: shards.prepare(arguments.overwrite) if state.is_main_process else None)
    log = UnreadableLog(folder / "unreadable.jsonl")
    model = model.eval().to(state.device)
    together(
        state,
        lambda: encode(
            model,
            extractor,
            clips,
            shards,
            log,
            arguments.level,
            arguments.batch_size,
            arguments.num_workers,
            arguments.window_s,
            process,
        ),
    )
    together(state, lambda: finish(model, shards, log, arguments) if state.is_main_process else None)


def together(state: PartialState, work: Callable):
    """Does `work` in every process and waits for the others; an `InputError` of one is raised in all of them."""
    result = message = None
    try:
        result = work()
    except InputError as error:
        message = one_line(error)
    messages = gather_object([message]) if state.num_processes > 1 else [message]
    if any(messages):
        raise InputError(next(filter(None, messages)))
    return result


def check_output(path: Path, overwrite: bool):
    """Before hours of encoding, not after them."""
    if path.suffix not in EXTENSIONS:
        raise InputError(f"{path}: unknown kind of output; name a file that ends in {' or '.join(EXTENSIONS)}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it or correct --output")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file in --output")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; add --overwrite or name another --output")


def load(arguments: argparse.Namespace):
    """The model as the options want it, its feature extractor, and the settings that the options changed."""
    name = arguments.model
    verbosity = logging.get_verbosity()
    try:
        check_model_type(name)
        overrides = find_overrides(AutoConfig.from_pretrained(name), arguments)
        logging.set_verbosity_error()  # the missing weights are told here
        model, loading = AutoModel.from_pretrained(name, **overrides, output_loading_info=True)
        if not hasattr(model, "embed"):
            raise InputError(f"{name}: {type(model).__name__} has no embeddings; name another model")
        extractor = model.own_feature_extractor()
        window_and_hop(model, extractor, arguments.window_s)  # told before the first clip is read
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{name}: cannot embed ({reason}); correct the options or name another model") from error
    finally:
        logging.set_verbosity(verbosity)
    check_encoder_weights(name, loading)
    return model, extractor, overrides


def check_model_type(name: str):
    model_type = PretrainedConfig.get_config_dict(name)[0].get("model_type")
    if model_type == ASTConfig.model_type:
        raise InputError(
            f"{name}: model_type is {model_type!r}; convert the folder with python -m conversion hf-ast FOLDER OUT"
        )


def find_overrides(config, arguments: argparse.Namespace) -> dict:
    """Fields of the configuration: those of the options, and for the level of layers, all layers side by side."""
    names = ("readout", "fusion_layers", "pooling", "pooling_combination")
    found = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.level == "layers":
        if getattr(config, "fusion_norm", None) == "separate":
            raise InputError(
                f"{arguments.model}: has a norm for each fused layer and none for the others; use --level clip"
            )
        found = {"fusion_layers": list(getattr(config, "layers", ())), **found}
        if hasattr(config, "fusion"):
            found = {"fusion": "concat", **found}
        elif hasattr(config, "readout"):
            found = {"readout": "composed", **found}  # PANNs' own readout has no layers
    if hasattr(config, "temporal_pooling") and "pooling" in found:
        found["temporal_pooling"] = found.pop("pooling")
    unknown = [name for name in found if not hasattr(config, name)]
    if unknown:
        raise InputError(f"{arguments.model}: a {config.model_type} model has no {unknown[0]}; leave it out")
    return found


def finish(model, shards: Shards, log: UnreadableLog, arguments: argparse.Namespace):
    """Joins the shards, tells what was unreadable, and removes the shards."""
    columns = columns_of(model.config, arguments.level, model.frame_size)
    num_readable, unreadable = write(shards, log, arguments.output, columns)
    shutil.rmtree(shards.folder)
    for name, reason in list(unreadable.items())[:PRINTED_FAILURES]:
        print(f"unreadable: {name}: {reason}", file=sys.stderr)
    if unreadable:
        print(
            f"{len(unreadable)} of {num_readable + len(unreadable)} clips are unreadable; "
            f"{unreadable_path(arguments.output)} lists them",
            file=sys.stderr,
        )
    print(f"{num_readable} clips: {', '.join(f'{name} ({size})' for name, size in columns.items())}")
    print(f"everything is in {arguments.output}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
