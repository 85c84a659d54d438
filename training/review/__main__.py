"""
Finds what of recordings is worth a look: `python -m training.review MODEL RECORDINGS --annotations TABLES`. Merges the
answers into the annotations: `python -m training.review merge RECORDINGS TABLE ... --annotations TABLES`.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from transformers.utils import logging

from ..base.event_detection import event_settings
from ..base.inference import labels_of, load_classifier
from ..console import fail, run_program
from ..data.annotations import AnnotatedRecording, read_annotations, read_cells, read_label_map
from ..data.audio import audio_seconds
from ..data.events import (
    FORMATS,
    HIGHEST_HZ,
    UNSURE,
    Recordings,
    check_events_file,
    event_files,
    find_format,
    other_columns,
    write_events,
)
from ..errors import InputError, printable
from ..files import MOST_STEM, check_outside, check_writable
from ..inference.arguments import ScoringArguments
from ..inference.engine import Engine
from ..inference.frames import FrameClassifier
from ..inference.inputs import ClipSequence, Files
from ..inference.precision import Hardware, HardwareArguments, choose_hardware, place
from ..inference.scores import Classifier
from ..inference.shards import Shards, weights_fingerprint
from ..recipe import Arguments, described, parse_program
from .candidates import REASONS, SUSPECTED, Suggester, choose
from .merging import OUTCOMES, merge
from .tables import SEPARATORS, read_answers, write_candidates, write_clip

logger = logging.get_logger(__name__)

MERGE = "merge"
USAGE = f"python -m training.review MODEL RECORDINGS [--key value ...], or python -m training.review {MERGE} --help"
USAGE_OF_MERGE = f"python -m training.review {MERGE} RECORDINGS TABLE ... [--key value ...]"
MOST_NAMED = 5  # columns in a message
KEPT = "what is finished is kept in OUTPUT.shards: give the same command again to go on"
SHARD_CLIPS = 8  # recordings per shard of what is stored while a run goes on


@dataclass
class TableArguments(Arguments):
    """Holds the options of annotated recordings."""

    recordings: Path | None = described(None, "Folder of the recordings, or the only one.")
    annotations: Path | None = described(
        None, "Table of the events as they are annotated, or a folder of tables; unset: nothing is annotated."
    )
    audio_column: str | None = described(None, "Column of the recordings; unset: guessed.")
    label_column: str | None = described(None, "Column of the labels; unset: guessed.")
    label_map: str | None = described(
        None, "Labels of the tables -> labels of the model, as in recipes; unset: labels stay as they are."
    )
    unannotated: str = described(
        "unlabelled",
        "What recordings without a table are: unlabelled, empty (without events), or left out (skip).",
        choices=("unlabelled", "empty", "skip"),
    )
    overwrite: bool = described(False, "Replace a table that is there, with all that was written into it.")


@dataclass
class SuggestArguments(ScoringArguments, HardwareArguments, TableArguments):
    """Defines the options of training.review."""

    model: str | None = described(None, "Folder or Hub name of a classifier of frames or clips; the first word.")
    output: Path = described(
        Path("candidates.csv"), "Table of the candidates: .csv, .txt (Raven or Audacity), or a folder of tables."
    )
    event_format: str | None = described(
        None, "Format of the table; unset: by the ending, raven for .txt and folders.", choices=tuple(SEPARATORS)
    )
    limit: int = described(100, "Candidates to write, the most valuable ones.", at_least=1, at_most=10_000)
    clips: Path | None = described(None, "Folder for a clip (WAV) of each candidate; unset: none are cut.")
    margin_s: float = described(1.0, "Seconds of a clip before and after its event.", at_least=0, at_most=60)
    exclude_labels: list[str] | None = described([UNSURE], "Labels whose time is not judged.")

    def __post_init__(self):
        super().__post_init__()
        if not self.model or not self.recordings:
            raise InputError(f"usage: {USAGE}")


@dataclass
class MergeArguments(TableArguments):
    """Defines the options of training.review merge."""

    tables: list[Path] | None = described(
        None, "Tables of candidates with answers, or folders of them; the words after RECORDINGS."
    )
    output: Path = described(
        Path("merged.csv"), "Table of the merged annotations: .txt, .tsv, .csv, .json or .jsonl; or a folder of tables."
    )
    event_format: str | None = described(
        None, "Format of the table; unset: by the ending, raven for .txt and folders.", choices=tuple(FORMATS)
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.recordings or not self.tables:
            raise InputError(f"usage: {USAGE_OF_MERGE}")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    is_merge = argv[:1] == [MERGE]
    return run_program(merge_answers, argv[1:], "nothing is written") if is_merge else run_program(suggest, argv, KEPT)


def suggest(argv: list[str]) -> int:
    """Writes the table of candidates that the command line asks for; returns 1 if a recording could not be read."""
    arguments = parse_program(argv, SuggestArguments, USAGE, "model", "recordings")
    event_format = check_outputs(arguments)
    hardware = choose_hardware(arguments)
    places = Recordings(arguments.recordings)
    annotated = load(arguments, places, "skip", arguments.exclude_labels or ())
    is_wanted = arguments.unannotated != "skip"
    recordings = {_name(one.path, places): one for one in annotated if is_wanted or one.events is not None}
    if not recordings:
        raise InputError(f"{arguments.recordings}: holds no recording to look at; name another folder")
    check_place(arguments, event_format, recordings)
    suggester, weights = open_suggester(arguments, event_format, hardware, recordings)
    print_unknown(arguments, suggester)
    shards = score(arguments, hardware, suggester, weights)
    return finish(arguments, event_format, suggester, shards)


def check_outputs(arguments: SuggestArguments) -> str:
    """Returns the format of the table; raises `InputError` if it or the clips cannot be written to their places."""
    event_format, is_folder = find_format(arguments.output, arguments.event_format)
    if event_format not in SEPARATORS:
        raise InputError(f"{arguments.output}: candidates are .csv or .txt, or a folder of tables; name another file")
    check_writable(arguments.output, is_folder)
    if arguments.clips:
        check_writable(arguments.clips, is_folder=True)
        if arguments.clips.resolve().is_relative_to(arguments.recordings.resolve()):
            raise InputError(
                f"{arguments.clips}: its clips would be recordings of {arguments.recordings}; name another"
            )
    return event_format


def open_suggester(
    arguments: SuggestArguments, event_format: str, hardware: Hardware, recordings: dict[str, AnnotatedRecording]
) -> tuple[Suggester, str]:
    """Returns what finds the candidates, with its model in its place, and the fingerprint of the model's weights."""
    model, extractor = load_classifier(arguments.model, of_frames=True)
    labels = labels_of(arguments.model, model.config)
    check_events_file(arguments.output, event_format, labels.names, recordings)
    settings = event_settings(model.config, **arguments.event_settings())
    weights = weights_fingerprint(model)
    kind = FrameClassifier if "FrameClassification" in type(model).__name__ else Classifier
    network = kind(place(model, hardware), extractor, labels, arguments.window_s, arguments.hop_s)
    return Suggester(network, settings, recordings), weights


def score(arguments: SuggestArguments, hardware: Hardware, suggester: Suggester, weights: str) -> Shards:
    """Scores the recordings, and returns the stored scores."""
    clips = ClipSequence([NamedFiles(suggester.recordings)])
    output = Path(os.path.abspath(arguments.output))  # `.` has no name
    about = {"window_s": arguments.window_s, "hop_s": arguments.hop_s, "dtype": hardware.dtype_name}
    about["recordings"] = os.path.abspath(arguments.recordings)
    shards = Shards(
        output.with_name(f"{output.name}.shards"),
        clips.num_clips,
        SHARD_CLIPS,
        {"model": arguments.model, "weights": weights, "settings": about, "clips": clips.fingerprint()},
        {"hardware": str(hardware)},
    )
    shards.prepare(arguments.overwrite)
    print(f"weights: {hardware}", file=sys.stderr)
    network = suggester.classifier
    Engine(network, clips, shards, arguments.batch_size, arguments.num_workers, verb="scoring").fill()
    return shards


def finish(arguments: SuggestArguments, event_format: str, suggester: Suggester, shards: Shards) -> int:
    """Writes the candidates and their clips; returns 1 if a recording could not be read."""
    network, recordings = suggester.classifier, suggester.recordings
    _, errors = shards.summary()
    failed = set(errors)
    found = list(suggester.find(network.joined(shards.parts()), failed))
    chosen = choose(found, arguments.limit)
    chosen = suggester.describe(chosen, network.joined(shards.parts()), failed)
    chosen = sorted(chosen, key=lambda one: one.order)
    if arguments.clips:
        tables = event_files(arguments.output, recordings, event_format)
        chosen = [
            with_clip(rank, one, recordings[one.recording], tables[one.recording].parent, arguments)
            for rank, one in enumerate(chosen, start=1)
        ]
    durations_s = {name: one.duration_s for name, one in recordings.items()}
    write_candidates(arguments.output, chosen, event_format, durations_s, network.extractor.sampling_rate / 2)
    shards.remove()
    print_summary(arguments.output, found, chosen)
    for name, error in errors.values():
        fail(f"{name}: {error}")
    return int(bool(errors))


class NamedFiles(Files):
    """Holds recordings by their names in tables."""

    def __init__(self, recordings: dict[str, AnnotatedRecording]):
        super().__init__(list(recordings))
        self.recordings = recordings

    def __getitem__(self, index: int) -> dict:
        return {"path": str(self.recordings[self.files[index]].path), "bytes": None}


def _name(path: Path, places: Recordings) -> str:
    """Returns the name of a recording in tables: its path below the folder of the recordings."""
    return Path(os.path.relpath(path, places.place)).as_posix() if places.place.is_dir() else path.name


def load(arguments: TableArguments, places: Recordings, on_bad_audio: str, exclude=()) -> list[AnnotatedRecording]:
    """Reads what is annotated; see `read_annotations`. Without annotations all recordings are unlabelled or empty."""
    if arguments.annotations is not None:
        return read_annotations(
            arguments.annotations,
            places,
            label_column=arguments.label_column,
            audio_column=arguments.audio_column,
            label_map=read_label_map(arguments.label_map) if arguments.label_map else None,
            exclude=exclude,
            unannotated="empty" if arguments.unannotated == "empty" else "unlabelled",
            overlaps="keep",
            on_bad_audio=on_bad_audio,
        )
    found, events = [], () if arguments.unannotated == "empty" else None
    for path in places.paths:
        try:
            found.append(AnnotatedRecording(path, audio_seconds(str(path)), events))
        except InputError as error:
            if on_bad_audio == "error":
                raise
            logger.warning(f"{error}; it is left out")
    return found


def check_place(arguments: TableArguments, event_format: str, names: Iterable[str]):
    """Raises `InputError` if the table would replace one that somebody worked on, or be read as annotations."""
    there = [path for path in event_files(arguments.output, names, event_format).values() if path.exists()]
    if there and not arguments.overwrite:
        raise InputError(f"{there[0]}: is there already; name another output, or add --overwrite true to replace it")
    source = arguments.annotations
    if source is None:
        return
    if isinstance(arguments, SuggestArguments) and source.resolve() in {path.resolve() for path in there}:
        raise InputError(f"{source}: holds the annotations; name another output")
    check_outside(arguments.output, source)


def print_unknown(arguments: SuggestArguments, suggester: Suggester):
    unknown = {label: n for label, n in suggester.counts.items() if label not in suggester.places}
    if unknown:
        logger.warning(
            f"{arguments.annotations}: {sum(unknown.values())} events have labels that the model lacks, and are not "
            f"judged, such as {printable(min(unknown))}; label_map renames labels"
        )


def with_clip(rank: int, candidate, recording: AnnotatedRecording, folder: Path, arguments: SuggestArguments):
    """Cuts the clip of a candidate, and returns the candidate with the link to it from a folder."""
    path = arguments.clips / f"{rank:05d}_{recording.path.stem[:MOST_STEM]}_{candidate.event.onset_s:.2f}s.wav"
    write_clip(path, recording, candidate.event, arguments.margin_s)
    return replace(candidate, clip=printable(Path(os.path.relpath(path, folder)).as_posix()))


def print_summary(output: Path, found: list, chosen: list):
    counts, written = (Counter(one.reason for one in own) for own in (found, chosen))
    shown = ", ".join(f"{written[reason]} {reason}" for reason in REASONS if written[reason])
    suspected = sum(counts[reason] for reason in SUSPECTED)
    print(f"{output}: {len(chosen)} candidates ({shown or 'nothing is worth a look'}) of {len(found)}")
    print(f"{suspected} suspected errors of the annotations")


def merge_answers(argv: list[str]):
    """Merges the answers that the command line names into the annotations, and writes them."""
    arguments = parse_program(argv, MergeArguments, USAGE_OF_MERGE, "recordings", "tables")
    event_format, is_folder = find_format(arguments.output, arguments.event_format)
    check_writable(arguments.output, is_folder)
    places = Recordings(arguments.recordings)
    answers = [answer for table in arguments.tables for answer in read_answers(Path(table), places)]
    annotated = load(arguments, places, "skip_unannotated")
    for path in sorted({answer.recording for answer in answers} - {one.path for one in annotated}):
        audio_seconds(str(path))  # raises for one that cannot be read
    recordings, counts, remarks = merge(annotated, answers)
    events = {_name(one.path, places): one.events for one in recordings if one.events is not None}
    check_place(arguments, event_format, events)
    empty = [name for name, own in events.items() if not own]
    if event_format == "raven" and not is_folder and empty:
        raise InputError(
            f"{arguments.output}: Raven's table cannot hold the {len(empty)} recordings without events, such as "
            f"{printable(empty[0])}; name a folder, or a .csv"
        )
    check_events_file(arguments.output, event_format, (), events)
    durations_s = {_name(one.path, places): one.duration_s for one in recordings}
    columns, left_out = _other_cells(arguments, places, event_format)
    write_events(arguments.output, events, event_format, durations_s, HIGHEST_HZ, columns)
    if left_out:
        named = ", ".join(map(printable, left_out[:MOST_NAMED])) + ", ..." * (len(left_out) > MOST_NAMED)
        reason = "a recording has several values" if event_format == "csv" else "name a .csv to keep such as site"
        remarks.append(f"{len(left_out)} columns of the annotations are not kept: {named}; {reason}")
    lost = {"audacity": "scores", "dcase": "scores and frequencies"}.get(event_format)
    if lost and any(event[3:] != (None,) * 3 for own in events.values() for event in own):
        remarks.append(f"{event_format} does not hold {lost}; name a .csv to keep them")
    for remark in remarks:
        logger.warning(f"{arguments.output}: {remark}")
    print(", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name]) or "no candidates")
    print(f"{arguments.output}: {sum(map(len, events.values()))} events of {len(events)} recordings")


def _other_cells(
    arguments: MergeArguments, places: Recordings, event_format: str
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Returns the other columns of the annotations -> recording -> its cell, and the columns that cannot be kept."""
    source, kept, left_out = arguments.annotations, {}, []
    chosen = (arguments.label_column, arguments.audio_column)
    for column in () if source is None else other_columns(source, *chosen):
        cells = read_cells(source, places, column, *chosen)
        if cells is None or (cells and event_format != "csv"):
            left_out.append(column)
        elif cells:
            kept[column] = {_name(path, places): cell for path, cell in cells.items()}
    return kept, left_out


if __name__ == "__main__":
    sys.exit(main())
