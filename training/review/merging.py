"""Merges the answers about candidates into the annotations that these were made from."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..data.annotations import ROUNDING_S, AnnotatedRecording, outside
from ..data.events import DECIMALS, UNSURE, Event, in_order
from ..errors import InputError, nearest, printable
from .tables import NEW, Answer, key_of

YES = "yes"  # answers, unless they are labels: the label in question, or no event
NOTHING = ("no", "nothing")
TOLERANCE_S = 1.5 * 10**-DECIMALS  # tables hold rounded times
# What an answer did, as the program counts it.
OUTCOMES = ("added", "removed", "renamed", "moved", "unsure", "confirmed", "no event", "already there", "not looked at")


class Merged(NamedTuple):
    """
    Holds merged annotations.

    Args:
        recordings: the recordings; those that stay unlabelled have no events
        counts: of each of `OUTCOMES`
        remarks: a line for each thing that may be a mistake
    """

    recordings: list[AnnotatedRecording]
    counts: Counter
    remarks: list[str]


def merge(recordings: Iterable[AnnotatedRecording], answers: Sequence[Answer]) -> Merged:
    """
    Returns the annotations with the answers in them.

    An answer is a label, `yes`, or `no` or `nothing` (unless labels are called so). Times count as they stand. In
    recordings without annotations only the stretches with an answer become annotated: the rest is `UNSURE`, and so is
    what a collection of soundevent leaves out.

    Args:
        recordings: what the candidates were made from, see `read_annotations` with `overlaps="keep"`

    Raises:
        InputError: two answers about one candidate, a candidate that the annotations no longer have, times outside
            the recording, or an answer about none of the recordings; names the row.
    """
    recordings = list(recordings)
    labels = {event.label for one in recordings for event in one.events or ()}
    labels |= {answer.label for answer in answers if answer.label is not None}
    nothing = {word for word in NOTHING if word not in labels}
    answers = [_without_yes(answer) if YES not in labels else answer for answer in answers]
    own: dict[Path, list[Answer]] = {}
    counts, remarks = Counter(), _open_remarks(answers, recordings)
    for answer in _unique(answers):
        if answer.answer:
            own.setdefault(answer.recording, []).append(answer)
        else:
            counts["not looked at"] += 1
    given = [answer for found in own.values() for answer in found]
    foreign = [answer for answer in given if answer.recording not in {one.path for one in recordings}]
    if foreign:
        raise InputError(
            f"{foreign[0].where} is about {printable(foreign[0].recording)}, which is none of the recordings; name a "
            "folder that has it, too"
        )
    strange = [one for one in given if one.answer not in labels | {UNSURE} and _word(one) not in nothing]
    if strange:
        hint = nearest(strange[0].answer, labels)
        remarks.append(
            f"{len(strange)} answers are labels that neither annotations nor candidates have, the first is "
            f"{printable(strange[0].answer)} in {strange[0].where}{f': {hint}' if hint else ''}"
        )
    found, overlapping, opened = [], [], []
    for one in recordings:
        if one.path in own:
            merged, changed = _merged(one, own[one.path], nothing, labels, counts)
            overlapping += [(one.path, event) for event in changed if _overlaps(event, merged.events)]
            opened += [one.path] * (one.events is None)
            one = merged
        if one.unsure:
            stretches = tuple(event._replace(label=UNSURE) for event in one.unsure)
            one = dataclasses.replace(one, events=tuple(in_order([*one.events, *stretches])), unsure=())
        found.append(one)
    if overlapping:
        path, event = overlapping[0]
        remarks.append(
            f"{len(overlapping)} changed events overlap others of their label, the first is {printable(event.label)} "
            f"at {event.onset_s:g} s of {printable(path)}: were the annotations changed by hand, or twice?"
        )
    if opened:
        remarks.append(
            f"{len(opened)} recordings had no annotations, such as {printable(opened[0])}: what no answer is about is "
            f"{UNSURE} there"
        )
    return Merged(found, counts, remarks)


def _word(answer: Answer) -> str:
    return answer.answer.casefold()


def _without_yes(answer: Answer) -> Answer:
    if _word(answer) != YES:
        return answer
    if answer.label is None:
        raise InputError(f"{answer.where} says {YES}, but shows no label; write the label as its answer")
    return answer._replace(answer=answer.label)


def _unique(answers: Sequence[Answer]) -> Iterator[Answer]:
    """Yields one answer per candidate; several annotators may have answered the same."""
    first: dict[tuple, Answer] = {}
    for answer in answers:
        if answer.key == NEW:
            yield answer
            continue
        name = (answer.recording, answer.key)
        before = first.get(name)
        if before is not None and before.answer and answer.answer:
            is_same = before.answer == answer.answer and not _is_moved(before, answer)
            if not is_same:
                raise InputError(
                    f"{_shown(answer)}, and {_shown(before)}, about the same candidate; agree on one answer"
                )
        elif before is None or answer.answer:
            first[name] = answer
    yield from first.values()


def _shown(answer: Answer) -> str:
    return f"{answer.where} says {printable(answer.answer)}, {answer.onset_s:g} to {answer.offset_s:g} s"


def _is_moved(one, two) -> bool:
    return max(abs(one.onset_s - two.onset_s), abs(one.offset_s - two.offset_s)) > TOLERANCE_S


def _open_remarks(answers: Sequence[Answer], recordings: Sequence[AnnotatedRecording]) -> list[str]:
    """Returns a line about rows that were changed, but have no answer."""
    annotated = {one.path: {_anchor(event): event for event in one.events or ()} for one in recordings}

    def is_changed(one: Answer) -> bool:
        own = key_of(Event(one.onset_s, one.offset_s, one.label or ""))
        if one.label is not None and own[1:5] != one.key[1:5]:
            return True
        if one.key[0] == "a":
            event = annotated.get(one.recording, {}).get(one.key[5:])
            return event is not None and _is_moved(event, one)
        return one.label is not None and own != one.key

    changed = [one for one in answers if not one.answer and one.key != NEW and is_changed(one)]
    if not changed:
        return []
    return [
        f"{len(changed)} candidates have another label or other times, but no answer, and count as not looked at, the "
        f"first is {changed[0].where}: write the label as its answer"
    ]


def _anchor(event: Event) -> str:
    return key_of(event, event)[5:]


def _merged(
    recording: AnnotatedRecording, answers: list[Answer], nothing: set[str], labels: set[str], counts: Counter
) -> tuple[AnnotatedRecording, list[Event]]:
    """Returns a recording with its answers, and the events that they changed or added."""
    events = list(recording.events or ())
    by_anchor: dict[str, list[Event]] = {}
    for event in events:
        by_anchor.setdefault(_anchor(event), []).append(event)
    removed, changed, stretches = set(), [], []
    for answer in answers:
        olds = by_anchor.get(answer.key[5:], []) if answer.key[0] == "a" else []
        if answer.key[0] == "a" and not olds:
            raise InputError(
                f"{answer.where}: the annotations of {printable(recording.path)} no longer have the event of candidate "
                f"{answer.key}, near {answer.onset_s:g} s; suggest anew, or clear the answer"
            )
        stretches.append(_within(answer, recording))
        is_event = answer.answer in labels or _word(answer) not in nothing
        is_unsure = _word(answer) == UNSURE and answer.answer not in labels
        new = Event(*stretches[-1], UNSURE if is_unsure else answer.answer)
        if not is_event:
            counts["removed" if olds else "no event"] += 1
            removed |= set(olds)
            continue
        outcome = "unsure" if new.label == UNSURE else "added"
        if olds:
            is_moved, is_renamed = _is_moved(olds[0], new), olds[0].label != new.label
            new = olds[0]._replace(label=new.label, **dict(zip(("onset_s", "offset_s"), new)) if is_moved else {})
            outcome = ("moved" if is_moved else "confirmed") if not is_renamed else "renamed"
            outcome = "unsure" if new.label == UNSURE and is_renamed else outcome
            if outcome == "confirmed":
                counts[outcome] += 1
                continue
            removed |= set(olds)
        elif any(one.label == new.label and not _is_moved(one, new) for one in (*events, *changed)):
            counts["already there"] += 1
            continue
        counts[outcome] += 1
        changed.append(new)
    kept = [event for event in events if event not in removed]
    unsure = recording.unsure
    if recording.events is None:
        unsure += tuple(Event(*times, UNSURE) for times in outside(recording.duration_s, stretches))
    merged = in_order([*kept, *changed])
    return dataclasses.replace(recording, events=tuple(merged), unsure=unsure), changed


def _within(answer: Answer, recording: AnnotatedRecording) -> tuple[float, float]:
    """Returns the times of an answer; raises `InputError` if they lie outside the recording."""
    for name, time_s in (("begins", answer.onset_s), ("ends", answer.offset_s)):
        if time_s > recording.duration_s + ROUNDING_S:
            raise InputError(
                f"{answer.where} {name} at {time_s:g} s, after the end of its recording ({recording.duration_s:g} s); "
                "correct it"
            )
    return min(answer.onset_s, recording.duration_s), min(answer.offset_s, recording.duration_s)


def _overlaps(event: Event, others: Iterable[Event]) -> bool:
    return any(
        other != event
        and other.label == event.label
        and min(other.offset_s, event.offset_s) > max(other.onset_s, event.onset_s)
        for other in others
    )
