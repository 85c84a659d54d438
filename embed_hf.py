"""Embeds audio: `python embed_hf.py MODEL FILES-FOLDERS-MANIFESTS-OR-DATA-SETS --output embeddings.parquet`."""

import datetime
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from training.console import run_program
from training.data.unreadable import UnreadableLog
from training.embeddings.embed import (
    EXTENSIONS,
    LEVELS,
    ClipSequence,
    Embedder,
    encode,
    load,
    open_inputs,
    unreadable_path,
    weights_fingerprint,
    write,
)
from training.embeddings.shards import Shards
from training.errors import InputError, one_line, printable
from training.files import check_writable
from training.recipe import Arguments, described, name_positionals, parse_words, show_help

USAGE = "embed_hf.py MODEL INPUT ... --output OUT.parquet|OUT.npz [--key value ...]"
LONGEST_WAIT = datetime.timedelta(days=7)  # for other processes, because their clips may be longer
KEPT = "finished shards are kept in OUTPUT.shards; give the same command again to go on"
PRINTED_FAILURES = 20


@dataclass
class EmbedArguments(Arguments):
    """Defines the options of embed_hf.py."""

    model: str | None = described(None, "Folder or Hub name of a model of this project; the first word.")
    inputs: list[str] | None = described(
        None,
        'Audio files, folders, manifests, Hub data sets, or \'{"path": ..., "split": ..., "audio_column": ...}\'; the '
        "words after MODEL.",
    )
    output: Path | None = described(None, "OUT.parquet or OUT.npz.")
    level: str = described(
        "clip", "Rows of the output: one per clip, per time frame, or per clip with a column per layer.", choices=LEVELS
    )
    batch_size: int = described(8, "Clips per forward pass.", at_least=1)
    num_workers: int = described(2, "Threads that decode.", at_least=0)
    window_s: float | None = described(
        None, "Seconds per window of long clips; unset: the model's longest input.", above=0
    )
    readout: str | None = described(None, "Readout, if not the model's: patches, prefix or frames.")
    fusion_layers: list[int] | None = described(None, "Layers, if not the model's; 0 is the embedding.")
    pooling: list[str] | None = described(None, "Poolings, if not the model's: some of mean, max, min.")
    pooling_combination: str | None = described(None, "Combination, if not the model's: sum, mean or concat.")
    streaming: bool = described(False, "Stream the data sets instead of downloading them.")
    shard_clips: int = described(128, "Clips per shard; a stopped run may lose as many per process.", at_least=1)
    overwrite: bool = described(False, "Begin anew, and replace an earlier output.")

    def __post_init__(self):
        super().__post_init__()
        if not self.model or not self.inputs:
            raise InputError(f"usage: {USAGE}")
        if not self.output:
            raise InputError("output: is not set; name OUT.parquet or OUT.npz")


def main(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        show_help((EmbedArguments,), USAGE)
    return run_program(embed, argv, KEPT)


def embed(argv: list[str]) -> int:
    """Embeds what the command line names, as one of several processes; returns the exit status."""
    words = name_positionals(argv, EmbedArguments, "model", "inputs")
    (arguments,) = parse_words((EmbedArguments,), words, USAGE, "command line")
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)
    try:
        run(arguments, state)
    except InputError:
        if state.is_main_process:
            raise
        return 1  # the main process prints the message
    finally:
        state.destroy_process_group()  # a remaining thread can abort the process at its end
    return 0


def run(arguments: EmbedArguments, state: PartialState):
    """
    Encodes the shards of this process; the main process joins all shards. They stay in OUTPUT.shards until then, so
    that a stopped run continues.
    """
    output = arguments.output
    together(state, lambda: check_output(output, arguments.overwrite))
    embedder = together(
        state,
        lambda: load(
            arguments.model,
            arguments.level,
            arguments.batch_size,
            arguments.window_s,
            readout=arguments.readout,
            fusion_layers=arguments.fusion_layers,
            pooling=arguments.pooling,
            pooling_combination=arguments.pooling_combination,
        ),
    )
    clips = together(state, lambda: ClipSequence(open_inputs(arguments.inputs, arguments.streaming)))
    folder = output.with_name(f"{output.name}.shards")
    shards = Shards(
        folder,
        clips.num_clips,
        arguments.shard_clips,
        {
            "model": arguments.model,
            "weights": weights_fingerprint(embedder.model),
            "settings": embedder.overrides | {"window_s": arguments.window_s},
            "level": arguments.level,
            "clips": clips.fingerprint(),
        },
    )
    together(state, lambda: shards.prepare(arguments.overwrite) if state.is_main_process else None)
    log = UnreadableLog(folder / "unreadable.jsonl")
    embedder.model.to(state.device)
    process = (state.process_index, state.num_processes)
    together(state, lambda: encode(embedder, clips, shards, log, arguments.num_workers, process))
    together(state, lambda: finish(embedder, shards, log, output) if state.is_main_process else None)


def together(state: PartialState, work: Callable):
    """Does `work` in every process and waits for all; raises an `InputError` of one process in all of them."""
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
    """
    Checks the path to write to, before hours of encoding.

    Raises:
        InputError: the extension is unknown, the disk refuses the file, or it may not be overwritten.
    """
    if path.suffix not in EXTENSIONS:
        raise InputError(f"{path}: unknown kind of output; name a file that ends in {' or '.join(EXTENSIONS)}")
    for place in (path, unreadable_path(path)):
        check_writable(place)
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; add --overwrite or name another --output")


def finish(embedder: Embedder, shards: Shards, log: UnreadableLog, output: Path):
    """Joins the shards, removes them, and prints a summary with the first unreadable clips."""
    columns = embedder.columns()
    num_readable, unreadable = write(shards, log, output, columns)
    shutil.rmtree(shards.folder)
    for name, reason in list(unreadable.items())[:PRINTED_FAILURES]:
        print(printable(f"unreadable: {name}: {reason}"), file=sys.stderr)
    if unreadable:
        print(
            f"{len(unreadable)} of {num_readable + len(unreadable)} clips are unreadable; "
            f"{unreadable_path(output)} lists them",
            file=sys.stderr,
        )
    print(f"{num_readable} clips: {', '.join(f'{name} ({size})' for name, size in columns.items())}")
    print(f"everything is in {output}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
