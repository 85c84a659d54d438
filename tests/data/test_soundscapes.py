"""Tests data/soundscapes: its recordings, its tables, and that the mixer makes both again."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import ROOT

from training.data.events import read_events
from training.errors import InputError
from training.prepare import soundscapes
from training.prepare.soundscapes import CLASSES, FRAME, RATE, RECORDING_S, RECORDINGS, SEED, mix, program, read_sources

FOLDER = ROOT / "data/soundscapes"
BIGGEST = 4_000_000  # bytes of the folder


def recordings():
    """Yields split, samples and events of every recording."""
    for split in RECORDINGS:
        for name, events in read_events(FOLDER / split).items():
            yield split, soundfile.read(FOLDER / split / f"{name}.flac")[0], events


def power(audio: np.ndarray) -> float:
    return float(np.mean(audio**2))


def test_every_recording_has_a_table_and_its_length():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= BIGGEST
    for split, count in RECORDINGS.items():
        names = {f"{split}_{number:02}" for number in range(1, count + 1)}
        assert set(read_events(FOLDER / split)) == names == {path.stem for path in (FOLDER / split).glob("*.flac")}
        for name in names:
            info = soundfile.info(FOLDER / split / f"{name}.flac")
            assert (info.samplerate, info.channels, info.frames) == (RATE, 1, RECORDING_S * RATE)


def test_events_lie_in_their_recordings_and_at_most_two_at_a_time():
    for _, audio, events in recordings():
        for event in events:
            assert 0 <= event.onset_s < event.offset_s <= len(audio) / RATE
            assert 0 <= event.low_hz < event.high_hz <= RATE / 2
        for first, _, third in zip(events, events[1:], events[2:]):
            assert first.offset_s <= third.onset_s
        for one, other in itertools.combinations(events, 2):
            assert one.label != other.label or other.onset_s - one.offset_s >= 0.4 - 1e-6


def test_no_clip_is_in_two_splits():
    sources = read_sources()
    for split, other in itertools.combinations(RECORDINGS, 2):
        clips, others = (set(itertools.chain(*sources[name].values())) for name in (split, other))
        assert clips and not clips & others
    moved = [stem for stems in soundscapes.MOVED.values() for stem in stems]
    assert len(set(moved)) == len(moved)
    for split, by_class in sources.items():
        assert set(soundscapes.MOVED[split]) <= {Path(name).stem for name in itertools.chain(*by_class.values())}


def test_events_are_louder_than_what_is_between_them():
    edges = []  # of events that sound alone: how loud 20 ms are before and after the onset, before and after the offset
    for _, audio, events in recordings():
        between = np.ones(len(audio), dtype=bool)
        for event in events:
            between[round(event.onset_s * RATE) : round(event.offset_s * RATE)] = False
        quiet = power(audio[between])
        for event in events:
            start, end = (round(time_s * RATE) for time_s in event[:2])
            assert power(audio[start:end]) >= quiet * 10, event
            if between[start - FRAME] and between[end + FRAME]:
                firsts = (start - 2 * FRAME, start, end - 2 * FRAME, end)
                edges.append([power(audio[first : first + 2 * FRAME]) / quiet for first in firsts])
    before, first, last, after = np.median(edges, axis=0)
    assert len(edges) > 100 and first > 10 and last > 2 and before < 1.2 and after < 1.2


def same(split: str, made) -> bool:
    name, audio, events = made
    stored = read_events(FOLDER / split)[name]
    assert [event.as_annotated() for event in events] == stored, name
    return np.array_equal(soundfile.read(FOLDER / split / f"{name}.flac")[0], audio)


@pytest.mark.parametrize("split", RECORDINGS)
def test_first_recordings_are_mixed_again(split):
    assert same(split, next(mix(split, RECORDINGS[split], SEED)))


def test_other_recordings_are_of_training_clips(tmp_path):
    """They are the same for the same seed, and others than those of another one."""
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        program(["--output", str(tmp_path / name), "--recordings", "1", "--seed", str(seed)])
    sounds = [soundfile.read(tmp_path / name / "train_01.flac")[0] for name in ("one", "again", "other")]
    assert np.array_equal(*sounds[:2]) and not np.array_equal(*sounds[1:])
    assert len(read_events(tmp_path / "one")["train_01"]) > 10
    used = {event.clip for _, _, events in mix("train", 2, 1) for event in events}
    assert used <= set(itertools.chain(*read_sources()["train"].values()))


@pytest.mark.parametrize("words", [["--recordings", "0"], ["--recordings", "2", "--seed", "-1"]])
def test_impossible_numbers_are_refused(words, tmp_path):
    with pytest.raises(InputError, match="at least 1 recording"):
        program(["--output", str(tmp_path / "none"), *words])
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_whole_folder_is_mixed_again(tmp_path):
    program(["--output", str(tmp_path)])
    stored, made = ({path.relative_to(folder) for path in folder.glob("*/*")} for folder in (FOLDER, tmp_path))
    assert stored == made
    for path in made:
        if path.suffix == ".flac":  # another libFLAC may compress otherwise
            assert np.array_equal(*(soundfile.read(folder / path)[0] for folder in (FOLDER, tmp_path))), path
        else:
            assert (FOLDER / path).read_bytes() == (tmp_path / path).read_bytes(), path


def test_readme_counts_the_events():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    counts = {split: dict.fromkeys(CLASSES, 0) for split in RECORDINGS}
    overlapping = 0
    for split, _, events in recordings():
        for event in events:
            counts[split][event.label] += 1
        overlapping += sum(
            any(one.onset_s < other.offset_s and other.onset_s < one.offset_s for other in events if other is not one)
            for one in events
        )
    for label in CLASSES:
        numbers = " | ".join(str(counts[split][label]) for split in RECORDINGS)
        clips = ", ".join(str(len(read_sources()[split][label])) for split in RECORDINGS)
        assert f"| {label} | {numbers} | {clips} |" in text
    total = sum(sum(own.values()) for own in counts.values())
    assert f"{total} events" in text and f"{100 * overlapping / total:.0f} % of them" in text
