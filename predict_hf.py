"""
Classifies audio: `python predict_hf.py MODEL FILES-FOLDERS-OR-MANIFESTS [--top_k 3] [--output scores.csv]`, by several
models: `python predict_hf.py FILES --models MODEL MODEL`, or sound as it comes in: `python predict_hf.py MODEL --listen
[DEVICE]`.
"""

import dataclasses
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from training.base.inference import labels_of, load_classifier
from training.base.open_set import UNKNOWN, RejectionArguments, choose_rejection
from training.console import fail, run_program
from training.errors import InputError, printable
from training.files import check_apart
from training.inference.arguments import ScoringArguments
from training.inference.engine import Engine
from training.inference.inputs import HELP, ClipSequence, open_inputs
from training.inference.live import LiveArguments, listen, with_device
from training.inference.precision import Hardware, HardwareArguments, choose_hardware, place
from training.inference.processes import Processes, start_processes
from training.inference.scores import Classifier, ClipScores, clip_scores, write_tables
from training.inference.shards import Part, Shards, weights_fingerprint
from training.inference.shared import (
    ModelShards,
    SharedClassifier,
    encoder_key,
    names_of_models,
    of_model,
    same_names,
    use_encoder_of,
)
from training.inference.tables import check_table, unreadable_path, write_unreadable, written_beside
from training.recipe import described, parse_program

USAGE = (
    "predict_hf.py MODEL INPUT ... [--output TABLE] [--key value ...], predict_hf.py INPUT ... --models MODEL MODEL, "
    "or predict_hf.py MODEL --listen [DEVICE]"
)
KEPT = (
    "with --output, what is finished is kept in OUTPUT.shards: give the same command again, without --overwrite, to go "
    "on"
)
PRINTED_FAILURES = 20


@dataclass
class PredictArguments(ScoringArguments, LiveArguments, RejectionArguments, HardwareArguments):
    """Defines the options of predict_hf.py."""

    model: str | None = described(None, "Folder or Hub name of a classifier of this project; the first word.")
    models: list[str] | None = described(
        None,
        "Several models instead of one, with a table each, called by its name. Models on one encoder share its pass.",
    )
    inputs: list[str] | None = described(None, HELP)
    top_k: int = described(1, "Classes to print per file.", at_least=1)
    output: Path | None = described(None, "Table of the scores of all classes: .csv, .parquet or .jsonl.")
    windows: Path | None = described(None, "Table of the scores of every window, with its times; the same endings.")
    events: Path | None = described(
        None, "Table of the sound events: .txt (Raven), .tsv, .csv, .json or .jsonl; or a folder of tables."
    )
    event_format: str | None = described(
        None,
        "Format of --events: raven, audacity, dcase, csv, json, jsonl or soundevent; unset: by the ending, raven in "
        "folders.",
    )
    shard_clips: int = described(128, "Clips per shard of what is stored while a run goes on.", at_least=1)
    share: str | None = described(
        None, "I/N: compute only this share, on one of N machines that share a folder; then run once without."
    )
    streaming: bool = described(False, "Stream the data sets instead of downloading them.")
    overwrite: bool = described(False, "Begin anew, and replace an earlier output without keeping it.")

    def __post_init__(self):
        super().__post_init__()
        if not (self.model or self.models) or not (self.inputs or self.listen):
            raise InputError(f"usage: {USAGE}")
        if self.model and self.models:
            raise InputError("models: stands in place of the one model; leave one of them out")
        for name, value in {"event_format": self.event_format, **self.event_settings()}.items():
            is_printed = self.listen and name != "event_format"  # events that are found live are printed, too
            if value is not None and self.events is None and not is_printed:
                raise InputError(f"{name}: needs --events, the table of the events; add it")
        if self.events and not self.events.name.strip("."):  # `.` and `..` have no names
            self.events = Path(os.path.abspath(self.events))
        if self.share and not self.place:
            raise InputError("share: needs --output, the place where the shares meet; add it")
        outputs = {"output": self.output, "windows": self.windows, "events": self.events}
        beside = {} if self.models else written_beside(self.place, [self.output, self.windows])  # they have their own
        check_apart(outputs | beside, self.inputs or ())

    @property
    def place(self) -> Path | None:
        """The table beside which the shards are stored."""
        return self.output or self.windows or self.events


def main(argv: list[str]) -> int:
    return run_program(predict, argv, KEPT)


def predict(argv: list[str]) -> int:
    """Classifies what the command line names; returns 1 if anything could not be classified."""
    has_models = any(word.partition("=")[0] == "--models" for word in argv)
    named = ["inputs"] if has_models else ["model", "inputs"]
    arguments = parse_program(with_device(argv), PredictArguments, USAGE, *named)
    if arguments.listen:
        return run_live(arguments)
    processes = start_processes(arguments.share, arguments.device, arguments.overwrite)
    try:
        return run(arguments, processes)
    except InputError:
        if processes.is_main:
            raise
        return 1  # the main process prints the message


def run_live(arguments: PredictArguments) -> int:
    """Classifies what comes in from a microphone or standard input; returns the exit status."""
    hardware = choose_hardware(arguments)
    model, extractor = load_classifier(arguments.model, of_frames=True)
    labels = labels_of(arguments.model, model.config)
    about = {"model": arguments.model, "weights": weights_fingerprint(model), "hardware": str(hardware)}
    about["settings"] = settings_of(arguments, hardware)
    rejection = choose_rejection(arguments, arguments.model, model)
    network = make_network(place(model, hardware), extractor, labels, arguments, rejection)
    print(f"weights: {hardware}", file=sys.stderr)
    return listen(arguments, network, about, arguments.events, arguments.event_format, **arguments.event_settings())


@dataclass
class Job:
    """
    Holds one model of a run.

    Args:
        arguments: those of a run of this model alone
        name: for the printed lines; empty: the only model
        weights: their fingerprint
        events: the `EventTable`, if one is asked for
    """

    arguments: PredictArguments
    name: str
    network: Classifier
    weights: str
    events: object = None


@dataclass
class Pass:
    """
    Holds what jobs that share an encoder, or a single one, have computed.

    Args:
        shards: the stored numbers
        facts, remarks: what the tables say of each job, and of all
        empty_folders: messages of inputs without clips
        failures: what could not be classified, where nothing is stored
    """

    jobs: list[Job]
    shards: Shards
    facts: list[dict]
    remarks: dict
    clips: ClipSequence
    empty_folders: list[str]
    failures: list[tuple[str, str]]


def run(arguments: PredictArguments, processes: Processes) -> int:
    """Does the work of one process; returns the exit status."""
    if processes.count > 1 and not arguments.place:
        raise InputError("output: is not set, and several processes need a place to meet; name a table")
    several = processes.together(lambda: one_by_one(arguments))
    for path in (path for own in several.values() for path in (own.output, own.windows) if path):
        processes.together(lambda path=path: check_table(path))
    hardware = processes.together(lambda: choose_hardware(arguments, processes.device))
    groups = {}  # key of an encoder -> jobs
    for name, own in several.items():
        job = open_job(name, own, processes)
        is_shared = len(several) > 1 and not (job.network.of_frames or hardware.is_compiled)
        group = groups.setdefault(encoder_key(job.network) if is_shared else name, [])
        if group:
            use_encoder_of(job.network, group[0].network)
        group.append(job)
    for job in (job for group in groups.values() for job in group):
        place(job.network.model, hardware)
    passes = []
    for group in groups.values():
        if len(several) > 1 and processes.is_main:
            names = " and ".join(job.name for job in group)
            print(f"{names}: one pass of the encoder" if len(group) > 1 else f"{names}: by itself", file=sys.stderr)
        passes.append(run_jobs(group, hardware, processes))
    if processes.num_shares > 1:
        if processes.is_main:
            print(f"share {arguments.share} is done; run once without --share when all are", file=sys.stderr)
        return 0
    return processes.together(lambda: finish_all(passes, processes) if processes.is_main else 0)


def one_by_one(arguments: PredictArguments) -> dict[str, PredictArguments]:
    """
    Returns name -> the arguments of a run of each model alone, with tables of its name: scores.NAME.csv, or a folder of
    its name in the folder of the events.
    """
    if not arguments.models:
        return {"": arguments}
    found, events = {}, arguments.events
    are_folders = events is not None and (events.is_dir() or not events.suffix)
    names = names_of_models(arguments.models)
    folders = [name.replace(".", "_") for name in names]  # what is after a point would be taken for a format
    if are_folders and len({folder.casefold() for folder in folders}) < len(folders):
        raise same_names(arguments.models)
    for name, folder, model in zip(names, folders, arguments.models):
        tables = {table: getattr(arguments, table) for table in ("output", "windows", "events")}
        tables = {key: path and path.with_name(f"{path.stem}.{name}{path.suffix}") for key, path in tables.items()}
        if are_folders:
            tables["events"] = events / folder
        found[name] = dataclasses.replace(arguments, model=model, models=None, **tables)
    return found


def open_job(name: str, arguments: PredictArguments, processes: Processes) -> Job:
    """Loads a model; on its device it is placed by `run`."""
    model, extractor = processes.together(lambda: load_classifier(arguments.model, of_frames=True))
    labels = labels_of(arguments.model, model.config)
    weights = weights_fingerprint(model)
    rejection = processes.together(lambda: choose_rejection(arguments, arguments.model, model))
    return Job(arguments, name, make_network(model, extractor, labels, arguments, rejection), weights)


def run_jobs(jobs: list[Job], hardware: Hardware, processes: Processes) -> Pass:
    """Runs models that share an encoder, or a single one."""
    arguments, empty_folders = jobs[0].arguments, []
    clips = processes.together(lambda: ClipSequence(open_inputs(arguments.inputs, arguments.streaming, empty_folders)))
    for job in jobs:
        if job.arguments.events:
            job.events = processes.together(lambda job=job: open_events(job.arguments, job.network, clips))
    remarks = {"hardware": str(hardware)}
    about = {"settings": settings_of(arguments, hardware), "clips": clips.fingerprint()}
    own_facts = [{"model": job.arguments.model, "weights": job.weights, **about} for job in jobs]
    facts = own_facts[0] if len(jobs) == 1 else {"models": own_facts}
    shards = Shards(
        arguments.place and arguments.place.with_name(f"{arguments.place.name}.shards"),
        clips.num_clips,
        arguments.shard_clips,
        facts,
        remarks,
    )
    processes.together(lambda: shards.prepare(arguments.overwrite) if processes.is_main else None)
    if processes.is_main:
        print(f"weights: {hardware}", file=sys.stderr)
    network, failures = jobs[0].network if len(jobs) == 1 else SharedClassifier([job.network for job in jobs]), []
    engine = Engine(network, clips, shards, arguments.batch_size, arguments.num_workers, processes, verb="classifying")
    if not processes.is_alone:
        processes.together(engine.fill)
    elif len(jobs) == 1:
        failures = show(jobs[0], network.joined(engine.run(with_stored=True)))
    else:
        parts = []
        if arguments.place:
            engine.fill()
        else:  # nothing is stored: memory holds the logits
            parts += engine.run()
        for number, job in enumerate(jobs):
            found = shards.parts() if arguments.place else parts
            failures += show(job, (of_model(part, number) for part in found))
        failures = list(dict.fromkeys(failures))
    return Pass(jobs, shards, own_facts, remarks, clips, empty_folders, failures)


def finish_all(passes: list[Pass], processes: Processes) -> int:
    """
    Writes the tables of all models, and says what could not be classified; returns the exit status.

    The shards are removed last of all: a run that is stopped goes on with all of them, and their markers keep it from
    taking its own tables for earlier ones.
    """
    statuses = []
    for one in passes:
        failures, listed = write_all(one, processes) if one.shards.folder is not None else (one.failures, None)
        statuses.append(report(one.empty_folders, failures, one.clips.num_clips, listed))
    for one in passes:
        one.shards.remove()
    return max(statuses)


def write_all(one: Pass, processes: Processes) -> tuple[list[tuple[str, str]], Path | None]:
    """Writes tables; returns what could not be classified, and the first list of it that is beside a table."""
    failures, lists = [], []
    for number, job in enumerate(one.jobs):
        own = one.shards if len(one.jobs) == 1 else ModelShards(one.shards, number, one.facts[number], one.remarks)
        errors = finish(job, own, one.clips, processes)
        failures += errors
        lists += [unreadable_path(job.arguments.place)] if len(errors) < own.summary()[0] else []
    return list(dict.fromkeys(failures)), next(iter(lists), None)


def make_network(model, extractor, labels, arguments: PredictArguments, rejection) -> Classifier:
    """Returns what gives the scores of windows, or of time frames."""
    if "FrameClassification" in type(model).__name__:
        from training.inference.frames import FrameClassifier  # here: scipy takes time to import

        return FrameClassifier(model, extractor, labels, arguments.window_s, arguments.hop_s)
    return Classifier(model, extractor, labels, arguments.window_s, arguments.hop_s, rejection)


def open_events(arguments: PredictArguments, network: Classifier, clips: ClipSequence):
    """Returns the table of the events; raises `InputError` where it cannot be written."""
    from training.inference.events import EventTable  # here: scipy takes time to import

    events = EventTable(arguments.events, arguments.event_format, network, **arguments.event_settings())
    events.check(clips)
    return events


def settings_of(arguments: PredictArguments, hardware: Hardware) -> dict:
    """Returns what determines the scores besides the model and the clips."""
    settings = {"window_s": arguments.window_s, "hop_s": arguments.hop_s, "dtype": hardware.dtype_name}
    rejection = {"reject": arguments.reject, "reject_by": arguments.reject_by}
    return settings if arguments.reject is None else settings | rejection


def show(job: Job, parts: Iterable[Part]) -> list[tuple[str, str]]:
    """
    Prints the likeliest classes of each file as soon as they are known.

    Returns:
        name and error of each file that could not be classified
    """
    failures = []
    for found in clip_scores(job.network, parts):
        for clip in found:
            if isinstance(clip, ClipScores):
                print_scores(job, clip)
            else:
                failures.append((clip.name, clip.error))
    return failures


def print_scores(job: Job, clip: ClipScores):
    network, logits = job.network, clip.logits[None]
    (row,), (found,) = network.probabilities(logits), network.reject([""], logits, np.asarray([clip.distance]))[0]
    text = network.top_text(row, job.arguments.top_k, found == UNKNOWN)
    model = f"{printable(job.name)}\t" if job.name else ""
    tqdm.write(f"{printable(clip.name)}\t{model}{text}")  # beside the progress bar


def finish(job: Job, shards: Shards, clips: ClipSequence, processes: Processes) -> list[tuple[str, str]]:
    """Writes the tables of a model from its shards, and lists what could not be classified beside them."""
    network, events, arguments = job.network, job.events, job.arguments

    def parts() -> Iterable[Part]:
        return network.joined(shards.parts())

    if not processes.is_alone:
        show(job, parts())
    num_clips, errors = shards.summary()
    has_windows = bool(arguments.window_s or arguments.hop_s) or any(s.windows > 1 for s in shards.segments())
    has_windows |= network.of_frames
    if len(errors) < num_clips:
        tables = {path: {path} for path in (arguments.output, arguments.windows) if path}
        if events:
            events.read(parts(), set(errors))
            tables[events.path] = events.files()
        # What is there after the marker was written by this run, which has been killed.
        if not shards.marker.exists() and not arguments.overwrite:
            for path, files in tables.items():
                keep(path, files)
        shards.marker.touch()
        write_tables(
            network,
            parts,
            set(errors),
            has_windows,
            clips.own("file"),
            shards.about,
            arguments.output,
            arguments.windows,
        )
        if events:
            print(events.write(), file=sys.stderr)
        write_unreadable(arguments.place, list(errors.values()))
    return list(errors.values())


def keep(path: Path, files: Iterable[Path]):
    """
    Gives tables a second name, NAME.previous.EXT, under which they stay when the first one is replaced.

    Args:
        path: the table, or a folder of tables
        files: the table itself, or those in the folder; some may not exist
    """
    kept = path.with_name(f"{path.stem}.previous{path.suffix}")
    earlier = list(filter(Path.exists, files))
    for file in earlier:
        place = kept / file.relative_to(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(os.path.realpath(file), place)  # what a link leads to is replaced, and not the link
        except OSError:  # a file system without links
            shutil.copy2(file, place)
    if earlier:
        print(f"the earlier {path} is kept as {kept}", file=sys.stderr)


def report(
    empty_folders: list[str], failures: list[tuple[str, str]], num_clips: int | None, listed: Path | None
) -> int:
    """Prints what could not be classified, all of it if no list has it; returns the exit status."""
    shown = failures if listed is None else failures[:PRINTED_FAILURES]
    for message in empty_folders + [f"{name}: {reason}" for name, reason in shown]:
        fail(message)
    if failures:
        of = "" if num_clips is None else f" of {num_clips}"
        where = "" if listed is None else f"; {listed} lists them"
        print(f"{len(failures)}{of} files could not be classified{where}", file=sys.stderr)
    return 1 if empty_folders or failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
