"""
Mixes data/soundscapes from the clips of data/instruments and data/voice_prompts:
`python -m training.prepare.soundscapes`.

The same seed makes the same samples and tables. data/soundscapes/README.md describes them.
"""

import csv
import functools
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from scipy.signal import resample_poly

from ..console import ArgumentParser, run_program
from ..data.events import Event, write_events
from ..errors import InputError
from ..files import check_writable

DATA = Path(__file__).resolve().parents[2] / "data"
SEED = 16
RATE = 16000
FRAME = RATE // 100  # times are multiples of 10 ms
RECORDING_S = 30
RECORDINGS = {"train": 5, "validation": 8, "test": 10}
EMPTY_SHARE = 0.1  # of the recordings, the last ones: without events

# Class -> names of its clips.
CLASSES = {
    "bass drum": ("bd_*", "drum_bass_*", "drum_heavy_kick", "elec_*_kick"),
    "cymbal": ("drum_cymbal_hard", "drum_cymbal_open", "drum_cymbal_soft", "drum_splash_*"),
    "hi-hat": ("hat_*", "drum_cymbal_closed"),
    "snare": ("drum_snare_*", "elec_snare", "elec_[hlm]?*_snare"),
    "voice": ("en_*", "es_*", "fr_*", "it_*", "ru_*"),
}
# Hi-hats are closed ones: the first three are open, and like cymbals, the others low, and like snares.
LEFT_OUT = ("hat_cats", "hat_gump", "hat_zan", "hat_len", "hat_metal")
# Clips that are in another split than there, so that each class has clips of each kind in each split.
MOVED = {
    "train": ("bd_boom", "drum_snare_hard", "drum_splash_soft"),
    "validation": ("bd_klub", "drum_cymbal_soft", "drum_snare_soft"),
    "test": ("drum_splash_hard", "elec_snare", "hat_gem"),
}
SPLIT_OF = {stem: split for split, stems in MOVED.items() for stem in stems}

BACKGROUNDS = ("white", "pink", "brown", "hum")
BACKGROUND_DB = -49.0  # its level re full scale, as root mean square
STEP = 1 / 256  # samples are multiples of it: FLAC stores 9 bits
SNR_DB = (18.0, 24.0)
PEAK = 0.48  # two events that overlap stay below full scale
AUDIBLE_DB = 15.0  # a clip begins and ends where 10 ms are less than that below its loudest 10 ms
SPEEDS = ((8, 9), (9, 10), (15, 16), (1, 1), (16, 15), (10, 9), (9, 8))  # of instruments, as fractions
SHORT_S, LONG_S = 0.5, 1.6  # shorter clips are repeated, longer ones are cut
REPEATED_S = (0.7, 1.6)
PAUSE_S = (0.03, 0.08)  # between repetitions, which are one event
OVERLAPPED = 0.4  # probability that an event that sounds alone gets company
GAP_S = (0.4, 1.2)  # between others


class Mixed(NamedTuple):
    """Holds an event of a mixture: its place in samples, label, band and clip."""

    start: int
    end: int
    label: str
    band_hz: tuple[float, float]
    clip: str

    def as_annotated(self) -> Event:
        return Event(self.start / RATE, self.end / RATE, self.label, *self.band_hz)


def read_sources() -> dict[str, dict[str, list[str]]]:
    """Returns split -> class -> its clips, which are of the same split of their data set unless they are `MOVED`."""
    found = {split: {label: [] for label in CLASSES} for split in RECORDINGS}
    for split in RECORDINGS:
        for folder in ("instruments", "voice_prompts"):
            with open(DATA / folder / f"{split}.csv", encoding="utf-8", newline="") as file:
                names = [f"{folder}/{row['file_name']}" for row in csv.DictReader(file)]
            for name in names:
                stem = Path(name).stem
                forms = {} if stem in LEFT_OUT else CLASSES
                for label in (label for label, own in forms.items() if any(fnmatch(stem, form) for form in own)):
                    found[SPLIT_OF.get(stem, split)][label].append(name)
    return found


@functools.cache
def read_clip(name: str) -> np.ndarray:
    """Reads the audible part of a clip at 16 kHz: whole frames of 10 ms."""
    audio, rate = soundfile.read(DATA / name)
    audio = resample_poly(audio, RATE, rate) if rate != RATE else audio
    audio = np.pad(audio, (0, -len(audio) % FRAME)).reshape(-1, FRAME)
    power = np.mean(audio**2, axis=1)
    (audible,) = np.nonzero(power >= np.max(power) * 10 ** (-AUDIBLE_DB / 10))
    return faded(audio[audible[0] : audible[-1] + 1].reshape(-1))


def faded(audio: np.ndarray) -> np.ndarray:
    """Fades 2 ms in and up to 20 ms out, so that a cut does not click."""
    num_in, num_out = RATE // 500, min(RATE // 50, len(audio) // 2)
    audio = audio.copy()
    audio[:num_in] *= np.linspace(0, 1, num_in)
    audio[-num_out:] *= np.linspace(1, 0, num_out)
    return audio


def slowed(clip: np.ndarray, up: int, down: int) -> np.ndarray:
    """Plays a clip `up / down` times as long, and as much lower: whole frames of 10 ms."""
    if up == down:
        return clip
    clip = resample_poly(clip, up, down)
    return faded(np.pad(clip, (0, -len(clip) % FRAME)))


def draw_event(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Repeats a short clip, cuts a long one."""
    if len(clip) >= SHORT_S * RATE:
        longest = round(LONG_S * RATE)
        return faded(clip[:longest]) if len(clip) > longest else clip
    pause = round(rng.uniform(*PAUSE_S) * RATE / FRAME) * FRAME
    count = int(np.ceil(rng.uniform(*REPEATED_S) * RATE / (len(clip) + pause)))
    return np.tile(np.pad(clip, (0, pause)), count)[:-pause]


def draw_background(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Draws noise with a falling spectrum (0, 3 or 6 dB per octave above 50 Hz), or pink noise with a hum of 50 Hz."""
    num_samples = RECORDING_S * RATE
    frequencies = np.maximum(np.fft.rfftfreq(num_samples, 1 / RATE), 50.0)
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    noise = np.fft.irfft(spectrum * frequencies ** -{"white": 0, "brown": 1}.get(kind, 0.5), num_samples)
    noise /= np.sqrt(np.mean(noise**2))
    if kind == "hum":
        time_s = np.arange(num_samples) / RATE
        hum = sum(np.sin(2 * np.pi * 50 * k * time_s + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 9))
        noise += hum / np.sqrt(np.mean(hum**2))
    return noise / np.sqrt(np.mean(noise**2)) * 10 ** (BACKGROUND_DB / 20)


def find_band(audio: np.ndarray) -> tuple[float, float]:
    """Returns the frequencies between which 90 % of the energy lies, in Hz, to multiples of 50 Hz outwards."""
    energy = np.cumsum(np.abs(np.fft.rfft(audio)) ** 2) / np.sum(np.abs(np.fft.rfft(audio)) ** 2)
    low, high = np.searchsorted(energy, (0.05, 0.95)) * RATE / len(audio)
    return float(low // 50 * 50), float(-(-high // 50) * 50)


class Bag:
    """Draws all of its items before any of them again."""

    def __init__(self, items: list, rng: np.random.Generator):
        self.items, self.rng, self.left = items, rng, []

    def draw(self):
        self.left = self.left or [self.items[index] for index in self.rng.permutation(len(self.items))]
        return self.left.pop()


def mix(split: str, count: int, seed: int) -> Iterator[tuple[str, np.ndarray, list[Mixed]]]:
    """Yields recordings of a split's clips: name, samples between -1 and 1 as multiples of `STEP`, events by onset."""
    rng = np.random.default_rng([seed, list(RECORDINGS).index(split)])
    clips = {label: Bag(names, rng) for label, names in read_sources()[split].items()}
    labels = Bag(list(CLASSES), rng)
    for number in range(count):
        audio, events = draw_background(BACKGROUNDS[number % len(BACKGROUNDS)], rng), []
        if number < count - round(EMPTY_SHARE * count):
            events = add_events(audio, labels, clips, rng)
        yield f"{split}_{number + 1:02}", np.round(audio / STEP) * STEP, events


def add_events(audio: np.ndarray, labels: Bag, clips: dict[str, Bag], rng: np.random.Generator) -> list[Mixed]:
    """Adds events to a background until it is full; at most two sound at a time, of different classes."""
    events: list[Mixed] = []
    level = 10 ** (BACKGROUND_DB / 20)
    while True:
        label = labels.draw()
        while label in [event.label for event in events[-2:]]:
            label = labels.draw()
        name = clips[label].draw()
        clip = read_clip(name)
        if label != "voice":  # a voice of another height would be somebody else's
            clip = slowed(clip, *SPEEDS[rng.integers(len(SPEEDS))])
        event = draw_event(clip, rng)
        is_alone = len(events) > 0 and (len(events) < 2 or events[-2].end <= events[-1].start)
        if is_alone and rng.random() < OVERLAPPED:
            start = events[-1].start + (events[-1].end - events[-1].start) * rng.uniform(0.3, 0.7)
        else:
            start = max((event.end for event in events), default=0) + rng.uniform(*GAP_S) * RATE
        start = round(start / FRAME) * FRAME
        end = start + len(event)
        if end > len(audio) - RATE // 2:
            return events
        root_mean_square = np.sqrt(np.mean(event**2))
        gain = level * 10 ** (rng.uniform(*SNR_DB) / 20) / root_mean_square
        gain = min(gain, PEAK / np.max(np.abs(event)))
        audio[start:end] += gain * event
        events.append(Mixed(start, end, label, find_band(event), name))


def write(folder: Path, mixtures: Iterable[tuple[str, np.ndarray, list[Mixed]]]):
    """Writes recordings, and a table of Raven beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, audio, events in mixtures:
        soundfile.write(folder / f"{name}.flac", np.round(audio * 32768).astype(np.int16), RATE)
        # Without the recording's name: a table without rows is then that of a recording without events.
        table = folder / f"{name}.Table.1.selections.txt"
        write_events(table, {None: [event.as_annotated() for event in events]}, "raven")


def program(argv: list[str]) -> None:
    parser = ArgumentParser(prog="python -m training.prepare.soundscapes", description=__doc__)
    parser.add_argument("--output", type=Path, default=DATA / "soundscapes", help="folder; unset: data/soundscapes")
    parser.add_argument("--recordings", type=int, help="training recordings to mix; unset: data/soundscapes again")
    parser.add_argument("--seed", type=int, default=1, help="random seed of --recordings")
    options = parser.parse_args(argv)
    folder, count = options.output, options.recordings
    if count is not None and (count < 1 or options.seed < 0):
        raise InputError(f"--recordings {count} --seed {options.seed}: give at least 1 recording, and a seed from 0 on")
    check_writable(folder, is_folder=True)
    if count is None:
        for split, number in RECORDINGS.items():
            write(folder / split, mix(split, number, SEED))
    else:
        write(folder, mix("train", count, options.seed))
    print(f"{folder}: {count or sum(RECORDINGS.values())} recordings")


def main() -> int:
    return run_program(program, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
