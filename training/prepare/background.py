"""
Makes clips for a classifier that may answer "nothing": `python -m training.prepare.background ANNOTATIONS RECORDINGS`.

Annotated events become clips with their labels. Clips of `background` are cut from the rest of the recordings, but not
from what is unsure: time with excluded labels, or outside the annotated clips of a soundevent collection.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ..console import ArgumentParser, run_program
from ..data.annotations import read_annotations
from ..data.audio import audio_seconds
from ..data.events import BACKGROUND, UNSURE, Event
from ..errors import InputError
from ..files import check_apart, check_outside, check_writable
from ..recipe import LARGEST_WHOLE
from . import check_manifest, write_manifest
from .common import Clip


def background_clips(
    events: dict[Path, list[Event]],
    clip_s: float = 2.0,
    margin_s: float = 0.5,
    num_clips: int | None = None,
    seed: int = 0,
    label: str = BACKGROUND,
    unsure: Mapping[Path, Sequence[Event]] = MappingProxyType({}),
) -> list[Clip]:
    """
    Returns a clip per event, and clips from the rest of the recordings, by recording and time.

    Events shorter than `clip_s` get that length around their middle, or short clips alone would tell events from
    background.

    Args:
        events: recording -> all of its events; a recording with an empty list is background from beginning to end
        clip_s: seconds of a background clip
        margin_s: seconds beside an event that are neither
        num_clips: background clips, drawn at random; `None`: twice as many as there are events. Recordings are nothing
            most of the time, and a class of a few such clips leaves much of it to the other classes
        seed: of the drawing
        unsure: recording -> stretches of which nobody knows what is there; they are no background

    Raises:
        InputError: a recording cannot be read, an event begins after its end, or there is no rest.
    """
    clips, rest = [], []
    for path, found in events.items():
        duration_s = audio_seconds(str(path))
        for event in found:
            if event.onset_s >= duration_s:
                raise InputError(
                    f"{path}: ends at {duration_s:g} s, and an event begins at {event.onset_s:g} s; remove it"
                )
            offset_s = min(event.offset_s, duration_s)
            middle_s, length_s = (event.onset_s + offset_s) / 2, min(max(offset_s - event.onset_s, clip_s), duration_s)
            start_s = min(max(middle_s - length_s / 2, 0.0), duration_s - length_s)
            clips.append(_clip(path, event.label, start_s, start_s + length_s))
        starts = _free([*found, *unsure.get(path, ())], duration_s, clip_s, margin_s)
        rest += [_clip(path, label, start, start + clip_s) for start in starts]
    if not rest:
        raise InputError(f"no recording has {clip_s:g} s without events; give a smaller --clip_s or --margin_s")
    wanted = (2 * len(clips) or len(rest)) if num_clips is None else num_clips
    chosen = np.random.default_rng(seed).permutation(len(rest))[:wanted]
    return sorted(clips + [rest[index] for index in chosen], key=lambda clip: (clip.path, clip.start, clip.label))


def _clip(path: Path, label: str, start: float, end: float) -> Clip:
    return Clip(path, label, group=str(path), start=round(start, 6), end=round(end, 6))


def _free(events: list[Event], duration_s: float, clip_s: float, margin_s: float) -> list[float]:
    """Returns the beginnings of clips that follow each other where no event is near."""
    starts, free_s = [], 0.0
    blocked = sorted((event.onset_s - margin_s, event.offset_s + margin_s) for event in events)
    for begin_s, end_s in [*blocked, (duration_s, math.inf)]:
        count = math.floor((min(begin_s, duration_s) - free_s) / clip_s + 1e-9)
        starts += [free_s + index * clip_s for index in range(count)]
        free_s = max(free_s, end_s)
    return starts


def program(argv: list[str]) -> None:
    parser = ArgumentParser(prog="python -m training.prepare.background", description=__doc__)
    parser.add_argument("annotations", type=Path, help="table of events, or a folder of tables (docs/guides/events.md)")
    parser.add_argument("recordings", type=Path, help="folder of the recordings, or the only one")
    parser.add_argument("--output", type=Path, default=Path("clips.csv"), help="table of clips; unset: clips.csv")
    parser.add_argument("--clip_s", type=float, default=2.0, help="seconds of a background clip (default: %(default)s)")
    parser.add_argument(
        "--margin_s", type=float, default=0.5, help="seconds beside an event, no background (default: %(default)s)"
    )
    parser.add_argument("--clips", type=int, help="background clips; unset: twice as many as there are events")
    parser.add_argument("--label", default=BACKGROUND, help="name of the class; unset: background")
    parser.add_argument("--label_column", help="column of the labels; unset: guessed")
    parser.add_argument(
        "--exclude_labels", nargs="*", default=[UNSURE], help="labels whose time is no background; unset: unsure"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the drawing")
    arguments = parser.parse_args(argv)
    for name, least, most in (("clip_s", 0.001, 1e6), ("margin_s", 0, 1e6), ("seed", 0, LARGEST_WHOLE)):
        if not least <= getattr(arguments, name) <= most:
            raise InputError(f"--{name}: must be from {least} to {most}, got {getattr(arguments, name)}")
    if arguments.clips is not None and arguments.clips < 0:
        raise InputError(f"--clips: must be 0 or more, got {arguments.clips}")
    check_apart({"--output": arguments.output}, [arguments.annotations])
    check_outside(arguments.output, arguments.annotations)
    check_writable(arguments.output)
    check_manifest(arguments.output)
    annotated = read_annotations(
        arguments.annotations,
        arguments.recordings,
        label_column=arguments.label_column,
        exclude=arguments.exclude_labels,
        overlaps="keep",
    )
    known = [recording for recording in annotated if recording.events is not None]
    found = background_clips(
        {recording.path: list(recording.events) for recording in known},
        arguments.clip_s,
        arguments.margin_s,
        arguments.clips,
        arguments.seed,
        arguments.label,
        {recording.path: recording.unsure for recording in known},
    )
    write_manifest(arguments.output, found, ("label", "group", "start", "end"))
    num_background = sum(clip.label == arguments.label for clip in found)
    print(f"{arguments.output}: {len(found) - num_background} clips of events, {num_background} of {arguments.label}")


def main() -> int:
    return run_program(program, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
