"""
Reads and writes the JSON of `soundevent`, which Whombat exports (AOEF 1.1).

Its times and frequencies are those of the sound. In the file of a recording that is slowed down, such as of bats, they
are multiplied and divided by `time_expansion`.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

VERSION = "1.1.0"  # soundevent reads no other
HIGHEST_HZ = 5_000_000  # soundevent's MAX_FREQUENCY stands for no upper bound
DONE = {"completed", "verified"}  # states of a clip in a project of annotation
ROUNDING_S = 0.01  # a clip that ends this much before its recording is all of it
# Keys of tags with labels, the likeliest first; soundevent writes some of them as terms of Darwin Core.
LABEL_KEYS = ("label", "event_label", "event", "class", "species", "dwc:scientificName", "common_name")
LABEL_KEYS += ("dwc:vernacularName", "call_type", "type")
COLUMNS = ("file", "onset_s", "offset_s", "label", "low_hz", "high_hz", "score")


class Collection(NamedTuple):
    """
    Holds a collection as a table.

    Args:
        names, rows: `COLUMNS`, and a column per key of other tags of the events and recordings. A recording with an
            annotated clip and without events has a row without times
        uuids: of the sound event (of the recording) of each row
        stretches: recording -> its annotated stretches in seconds, where they are not all of it
    """

    names: list[str]
    rows: list[list]
    uuids: list[str]
    stretches: dict[str, list[tuple[float, float]]]


def is_collection(value) -> bool:
    """Returns whether a value of JSON is a collection of soundevent."""
    return isinstance(value, dict) and isinstance(value.get("data"), dict) and "collection_type" in value["data"]


def read_collection(value: dict, label_key: str | None = None) -> Collection:
    """
    Reads the annotations of a collection, or its predictions if it has no annotations.

    Args:
        label_key: key of the tags that hold the labels; `None`: the only one, or the first of `LABEL_KEYS`

    Raises:
        ValueError: no tags have the key, or it must be given; the message ends with the remedy.
        KeyError, TypeError, AttributeError: the collection is damaged.
    """
    data = value["data"]

    def objects(name: str, key: str = "uuid") -> dict:
        return {own[key]: own for own in data.get(name) or ()}

    recordings, sounds, tags = objects("recordings"), objects("sound_events"), objects("tags", "id")
    kind = "annotations" if {"clip_annotations", "sound_event_annotations"} & set(data) else "predictions"
    found = []
    for own in objects(f"sound_event_{kind}").values():
        sound = sounds[own["sound_event"]]
        score = own.get("score", (sound.get("features") or {}).get("score"))
        scored = [tag if isinstance(tag, list) else (tag, score) for tag in own.get("tags") or ()]
        found.append((sound, score, [(tags[tag], tag_score) for tag, tag_score in scored]))
    label_key = _choose_key({tag["key"] for *_, own in found for tag, _ in own}, label_key)
    others = sorted({tag["key"] for tag in tags.values()} - {label_key, *COLUMNS})

    def row(recording: dict, cells: Iterable, own_tags: Iterable[dict] = ()) -> list:
        own_tags = [*(tags[tag] for tag in recording.get("tags") or ()), *own_tags]
        values = {tag["key"]: tag["value"] for tag in own_tags}
        return [_name(recording), *cells, *map(values.get, others)]

    rows, uuids = [], []
    for sound, score, own in found:
        recording = recordings[sound["recording"]]
        onset_s, offset_s, low_hz, high_hz = _bounds(sound["geometry"], _expansion(recording))
        labels = [(tag["value"], tag_score) for tag, tag_score in own if tag["key"] == label_key]
        for label, label_score in labels or [(None, score)]:
            cells = (onset_s, offset_s, label, low_hz, high_hz, label_score)
            rows.append(row(recording, cells, (tag for tag, _ in own)))
            uuids.append(sound["uuid"])
    stretches = _stretches(data, kind, recordings, objects("clips"))
    with_events = {sound["recording"] for sound, *_ in found}
    for key, own in stretches.items():
        if own and key not in with_events:
            rows.append(row(recordings[key], [None] * 6))
            uuids.append(key)
    parts = {_name(recordings[key]): own for key, own in stretches.items() if not _is_all(own, recordings[key])}
    return Collection([*COLUMNS, *others], rows, uuids, parts)


def _name(recording: dict) -> str | None:
    """Returns the path of a recording; `None`: the only one, which has none."""
    return None if recording["path"] in ("", ".") else recording["path"]


def _expansion(recording: dict) -> float:
    return recording.get("time_expansion") or 1.0


def _choose_key(keys: set[str], wanted: str | None) -> str | None:
    """Returns the key of the tags that hold the labels; `None` if there are no tags."""
    if wanted is not None or not keys:
        if keys and wanted not in keys:
            raise ValueError(f"no tag has the key {wanted!r}; they have {', '.join(sorted(keys))}")
        return wanted
    known = [key for key in LABEL_KEYS if key in keys] if len(keys) > 1 else list(keys)
    if not known:
        raise ValueError(f"its tags have several keys; set label_column to one of {', '.join(sorted(keys))}")
    return known[0]


def _bounds(geometry: dict, expansion: float) -> tuple:
    """Returns onset, offset, and the lowest and highest frequency of a geometry of any type, in those of the file."""
    kind, coordinates = geometry["type"], geometry["coordinates"]
    if kind in ("TimeStamp", "TimeInterval"):
        times_s = [coordinates] if kind == "TimeStamp" else coordinates
        return min(times_s) * expansion, max(times_s) * expansion, None, None
    points = coordinates
    if kind in ("Point", "BoundingBox"):
        points = [coordinates[place : place + 2] for place in range(0, len(coordinates), 2)]
    while isinstance(points[0][0], list):  # polygons, and several lines
        points = [point for own in points for point in own]
    times_s, frequencies = zip(*points)
    high_hz = max(frequencies)
    high_hz = None if high_hz >= HIGHEST_HZ else high_hz / expansion
    return min(times_s) * expansion, max(times_s) * expansion, min(frequencies) / expansion, high_hz


def _stretches(data: dict, kind: str, recordings: dict, clips: dict) -> dict[str, list[tuple[float, float]]]:
    """
    Returns recording -> its annotated clips. In a project where some are marked as completed or verified, only these
    are annotated.
    """
    states = {
        task["clip"]: {badge["state"] for badge in task.get("status_badges") or ()} for task in data.get("tasks") or ()
    }
    done = {clip for clip, own in states.items() if own & DONE and "rejected" not in own}
    found = {}
    for own in data.get(f"clip_{kind}") or ():
        clip = clips[own["clip"]]
        stretches = found.setdefault(clip["recording"], [])
        if not done or own["clip"] in done:
            expansion = _expansion(recordings[clip["recording"]])
            stretches.append((clip["start_time"] * expansion, clip["end_time"] * expansion))
    return found


def _is_all(stretches: list[tuple[float, float]], recording: dict) -> bool:
    """Returns whether annotated clips without gaps between them are all of the recording."""
    end_s = 0.0
    for start_s, stop_s in sorted(stretches):
        end_s = max(end_s, stop_s) if start_s <= end_s + ROUNDING_S else end_s
    return bool(stretches) and end_s >= recording["duration"] * _expansion(recording) - ROUNDING_S


def write_collection(
    events: Mapping[str | None, Iterable[tuple]], facts_of: Callable[[str | None], tuple[float, int, int]]
) -> Iterator[str]:
    """
    Yields the lines of a collection: a set of predictions if all events have a score from 0 to 1, else of annotations,
    where scores are features of the sound events.

    Args:
        events: recording -> (onset_s, offset_s, label, low_hz, high_hz, score) of each event
        facts_of: function of the recording -> its duration in seconds, rate in Hz, and number of channels
    """
    events = {file: list(found) for file, found in events.items()}
    scores = [event[5] for found in events.values() for event in found]
    are_scored = bool(scores) and all(score is not None and 0 <= score <= 1 for score in scores)
    kind = "prediction" if are_scored else "annotation"
    labels = dict.fromkeys(event[2] for found in events.values() for event in found)
    tags = {label: index for index, label in enumerate(labels)}
    names = ("recordings", "clips", "sound_events", f"sound_event_{kind}s", f"clip_{kind}s")
    recordings, clips, sounds, found, found_in_clips = lists = tuple([] for _ in names)
    for file, own in events.items():
        duration_s, rate, channels = facts_of(file)
        recording, clip, in_clip = (_uuid(what, file) for what in ("recording", "clip", kind))
        path = "" if file is None else file
        recordings.append(
            {"uuid": recording, "path": path, "duration": duration_s, "channels": channels, "samplerate": rate}
        )
        clips.append({"uuid": clip, "recording": recording, "start_time": 0.0, "end_time": duration_s})
        members = []
        for index, (onset_s, offset_s, label, low_hz, high_hz, score) in enumerate(own):
            sound, member = (_uuid(what, file, index, *own[index]) for what in ("sound", kind))
            geometry = {"type": "TimeInterval", "coordinates": [onset_s, offset_s]}
            if (low_hz, high_hz) != (None, None):
                box = [onset_s, low_hz or 0.0, offset_s, HIGHEST_HZ if high_hz is None else high_hz]
                geometry = {"type": "BoundingBox", "coordinates": box}
            features = {} if score is None or are_scored else {"features": {"score": score}}
            sounds.append({"uuid": sound, "recording": recording, "geometry": geometry} | features)
            tag = {"score": score, "tags": [[tags[label], score]]} if are_scored else {"tags": [tags[label]]}
            found.append({"uuid": member, "sound_event": sound} | tag)
            members.append(member)
        found_in_clips.append({"uuid": in_clip, "clip": clip, "sound_events": members})
    data = {"uuid": _uuid(kind, *(own["uuid"] for own in found_in_clips)), "collection_type": f"{kind}_set"}
    data["tags"] = [{"id": index, "key": LABEL_KEYS[0], "value": label} for label, index in tags.items()]
    yield json.dumps({"version": VERSION, "data": data | dict(zip(names, lists))}, ensure_ascii=False)


def _uuid(*parts) -> str:
    """Returns an identifier that is the same whenever the same events are written."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(parts)))
