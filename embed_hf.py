"""
Embeds audio: `python embed_hf.py MODEL FILES-FOLDERS-MANIFESTS-OR-DATA-SETS --output embeddings.parquet`.

MODEL is a folder or a Hub name, or the word log-mel: statistics of the log-mels, which need no model.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from training.console import run_program
from training.embeddings.embed import EXTENSIONS, LEVELS, ClipEmbedder, load, write
from training.embeddings.log_mel import LOG_MEL, require_float32
from training.errors import InputError, printable
from training.files import check_apart, check_writable
from training.inference.engine import Engine
from training.inference.inputs import HELP, ClipSequence, open_inputs
from training.inference.precision import HardwareArguments, choose_hardware, place
from training.inference.processes import Processes, start_processes
from training.inference.shards import Shards, weights_fingerprint
from training.inference.tables import unreadable_path, write_unreadable, written_beside
from training.recipe import described, parse_program

USAGE = "embed_hf.py MODEL INPUT ... --output OUT.parquet|OUT.npz [--key value ...]"
KEPT = "finished shards are kept in OUTPUT.shards; give the same command again, without --overwrite, to go on"
PRINTED_FAILURES = 20


@dataclass
class EmbedArguments(HardwareArguments):
    """Defines the options of embed_hf.py."""

    model: str | None = described(
        None,
        "Folder or Hub name of a model of this project; or log-mel: mean, deviation and change of each mel bin over "
        "time, which need no model. The first word.",
    )
    inputs: list[str] | None = described(None, HELP)
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
    pooling: list[str] | None = described(None, "Poolings, if not the model's: some of mean, max, min, std.")
    pooling_combination: str | None = described(None, "Combination, if not the model's: sum, mean or concat.")
    streaming: bool = described(False, "Stream the data sets instead of downloading them.")
    shard_clips: int = described(128, "Clips per shard of what is stored while a run goes on.", at_least=1)
    share: str | None = described(
        None, "I/N: compute only this share, on one of N machines that share a folder; then run once without."
    )
    overwrite: bool = described(False, "Begin anew, and replace an earlier output.")

    def __post_init__(self):
        super().__post_init__()
        if not self.model or not self.inputs:
            raise InputError(f"usage: {USAGE}")
        if not self.output:
            raise InputError("output: is not set; name OUT.parquet or OUT.npz")
        check_apart({"output": self.output, **written_beside(self.output, [])}, self.inputs)
        if self.model == LOG_MEL:
            require_float32(self)


def main(argv: list[str]) -> int:
    return run_program(embed, argv, KEPT)


def embed(argv: list[str]) -> int:
    """Embeds what the command line names, as one of several processes; returns the exit status."""
    arguments = parse_program(argv, EmbedArguments, USAGE, "model", "inputs")
    processes = start_processes(arguments.share, arguments.device, arguments.overwrite)
    try:
        run(arguments, processes)
    except InputError:
        if processes.is_main:
            raise
        return 1  # the main process prints the message
    return 0


def run(arguments: EmbedArguments, processes: Processes):
    """Does the work of one process."""
    output = arguments.output
    processes.together(lambda: check_output(output, arguments.overwrite, bool(arguments.share)))
    hardware = processes.together(lambda: choose_hardware(arguments, processes.device))
    embedder = processes.together(
        lambda: load(
            arguments.model,
            arguments.level,
            arguments.window_s,
            readout=arguments.readout,
            fusion_layers=arguments.fusion_layers,
            pooling=arguments.pooling,
            pooling_combination=arguments.pooling_combination,
        )
    )
    weights = weights_fingerprint(embedder.model)
    place(embedder.model, hardware)
    clips = processes.together(lambda: ClipSequence(open_inputs(arguments.inputs, arguments.streaming)))
    shards = Shards(
        shards_of(output),
        clips.num_clips,
        arguments.shard_clips,
        {
            "model": arguments.model,
            "weights": weights,
            "settings": embedder.overrides | {"window_s": arguments.window_s, "dtype": hardware.dtype_name},
            "level": arguments.level,
            "clips": clips.fingerprint(),
        },
        {"hardware": str(hardware)},
    )
    processes.together(lambda: shards.prepare(arguments.overwrite) if processes.is_main else None)
    if processes.is_main:
        print(f"{LOG_MEL if arguments.model == LOG_MEL else 'weights'}: {hardware}", file=sys.stderr)
    engine = Engine(embedder, clips, shards, arguments.batch_size, arguments.num_workers, processes)
    processes.together(engine.fill)
    if processes.num_shares > 1:
        if processes.is_main:
            print(f"share {arguments.share} is done; run once without --share when all are", file=sys.stderr)
        return
    processes.together(lambda: finish(embedder, shards, clips, output) if processes.is_main else None)


def shards_of(output: Path) -> Path:
    """Returns the folder of what is stored while a run goes on."""
    return output.with_name(f"{output.name}.shards")


def check_output(path: Path, overwrite: bool, is_shared: bool = False):
    """
    Checks the path to write to, before hours of encoding.

    Raises:
        InputError: the extension is unknown, the disk refuses the file, or it may not be overwritten.
    """
    if path.suffix not in EXTENSIONS:
        raise InputError(f"{path}: unknown kind of output; name a file that ends in {' or '.join(EXTENSIONS)}")
    for written in (path, unreadable_path(path)):
        check_writable(written)
    # With shards beside it, the run that wrote it, or that is to replace it, has been killed.
    if path.exists() and not overwrite and not shards_of(path).exists():
        remedy = "move it away" if is_shared else "add --overwrite"
        raise InputError(f"{path}: exists already; {remedy} or name another --output")


def finish(embedder: ClipEmbedder, shards: Shards, clips: ClipSequence, output: Path):
    """
    Joins the shards, removes them, and prints a summary with the first unreadable clips.

    Raises:
        InputError: no clip is readable.
    """
    num_clips, errors = shards.summary()
    if len(errors) == num_clips:
        shards.remove()  # the same command must not find the same errors when the clips are repaired
        name, reason = next(iter(errors.values()))
        raise InputError(f"none of {num_clips} clips is readable; {name}: {reason}; name other inputs")
    write(embedder, shards.parts, set(errors), clips.own("file_name"), shards.about, output)
    write_unreadable(output, list(errors.values()))
    shards.remove()
    for name, reason in list(errors.values())[:PRINTED_FAILURES]:
        print(printable(f"unreadable: {name}: {reason}"), file=sys.stderr)
    if errors:
        print(
            f"{len(errors)} of {num_clips} clips are unreadable; {unreadable_path(output)} lists them", file=sys.stderr
        )
    columns = ", ".join(f"{name} ({size})" for name, size in embedder.columns().items())
    print(f"{num_clips - len(errors)} clips: {columns}")
    print(f"everything is in {output}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
