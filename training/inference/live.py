"""
Classifies sound while it comes in: from a microphone, or raw samples from standard input.

The thread of the source mixes, resamples and puts blocks into a ring buffer; the main thread takes windows from it,
those that the same samples have as a file. Times are seconds from the first sample. Sound that is lost on the way moves
them on: it is a gap, and never a shift.
"""

import atexit
import collections
import contextlib
import dataclasses
import functools
import io
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr

from ..base.finite import OVERFLOW
from ..base.open_set import UNKNOWN
from ..base.predictions import predictions, score_names
from ..console import fail
from ..data.audio import mix_down
from ..data.events import FORMATS, Event, check_events_file, write_events
from ..errors import InputError, one_line, printable
from ..files import TEXT_ERRORS, about_path, write_json
from ..recipe import Arguments, default_of, described
from .engine import run_windows
from .overlaps import concatenated
from .scores import Classifier
from .tables import WRITERS, check_table, open_table

STANDARD_INPUT, ANY_MICROPHONE = "-", "default"
NAME_OF_INPUT = "standard input"
# ffmpeg's names -> numpy's, and the number that stands for 1.
ENCODINGS = {"s16le": ("<i2", 2.0**15), "s32le": ("<i4", 2.0**31), "f32le": ("<f4", 1.0)}
BLOCK_S = 0.1
# Seconds that wait at most for the network, and windows, whichever is longer: more would only be older.
BUFFER_S, BUFFER_WINDOWS = 10, 2
FILE_SPEED = 2.0  # times real time: no recorder is as fast
MOST_JITTER_S = 0.5  # of a sound card's clock
WAKE_S = 0.5  # Windows answers Ctrl-C only between waits
STOP_S = 3.0  # a sound driver may wait for a device that is gone
MOST_LATENCIES = 100_000
APPENDED = {".csv": 1, ".jsonl": 0}  # ending of a table of events -> lines of its header; others are written at the end
LIVE_ONLY = ("rate", "channels", "encoding")
FILES_ONLY = ("models", "inputs", "output", "num_workers", "shard_clips", "share", "streaming")


@dataclass
class LiveArguments(Arguments):
    """Holds the options of sound that comes in."""

    listen: str | None = described(
        None,
        "Listen to a microphone: its number or a part of its name (python -m sounddevice lists them), without a word "
        "the system's own; or - for raw samples from standard input. The last option, or the word follows it.",
        group="live",
    )
    rate: int | None = described(
        None,
        "Samples per second that come in; unset: the microphone's own, for standard input the model's.",
        group="live",
        at_least=1000,
        at_most=1_000_000,
    )
    channels: int = described(1, "Channels that come in; they are averaged.", group="live", at_least=1, at_most=1024)
    encoding: str = described(
        "s16le", "Samples of standard input, by ffmpeg's names.", group="live", choices=tuple(ENCODINGS)
    )

    def __post_init__(self):
        super().__post_init__()
        refused, reason = FILES_ONLY, "with --listen"
        if self.listen is None:
            refused, reason = LIVE_ONLY, "without --listen"
        elif self.listen != STANDARD_INPUT:
            refused, reason = (*FILES_ONLY, "encoding"), "for a microphone"
        for option in dataclasses.fields(self):
            if option.name in refused and getattr(self, option.name) != default_of(option):
                raise InputError(f"{option.name}: has no effect {reason}; leave it out")


def with_device(argv: list[str]) -> list[str]:
    """Returns the words of a command line, with the system's microphone where `--listen` names none."""
    return [
        f"{word}={ANY_MICROPHONE}" if word == "--listen" and (not after or after[0].startswith("--")) else word
        for word, after in ((word, argv[place + 1 :]) for place, word in enumerate(argv))
    ]


# ---- From the source to the ring buffer ----


class Block(NamedTuple):
    """
    Holds some sound at the model's rate.

    Args:
        start: number of its first sample, counted from the beginning
        samples: float32 (samples,)
        ended: when its last sample sounded, by `time.monotonic`
        number: of the block; the ring buffer counts them
    """

    start: int
    samples: np.ndarray
    ended: float
    number: int = -1

    @property
    def stop(self) -> int:
        return self.start + len(self.samples)


class RingBuffer:
    """
    Holds the newest blocks, between the thread of a source and the one that computes.

    When it is full, the oldest blocks are dropped, unless the source can wait, as a file does.

    Args:
        capacity: samples
        rate: samples per second
        can_wait: `None`: decided when it is full for the first time. What came at twice real time or faster can wait
    """

    def __init__(self, capacity: int, rate: int, can_wait: bool | None = False):
        self.capacity, self.rate, self.can_wait = capacity, rate, can_wait
        self.changed = threading.Condition()  # its lock may be taken again by a signal's handler
        self.blocks, self.held = collections.deque(), 0
        self.num_blocks = self.num_dropped = 0
        self.began = None
        self.is_ended, self.error = False, None

    def put(self, block: Block) -> bool:
        """Appends a block; returns whether more may follow."""
        with self.changed:
            if self.is_ended:
                return False
            now = time.monotonic()
            self.began = now if self.began is None else self.began
            self.blocks.append(block._replace(number=self.num_blocks))
            self.num_blocks += 1
            self.held += len(block.samples)
            if self.held > self.capacity and self.can_wait is None:
                self.can_wait = block.stop / self.rate > FILE_SPEED * (now - self.began)
            while self.held > self.capacity and not self.is_ended:
                if self.can_wait:
                    self.changed.wait(WAKE_S)
                else:
                    self.held -= len(self.blocks.popleft().samples)
                    self.num_dropped += 1
            self.changed.notify_all()
            return not self.is_ended

    def take(self, needed: int, hop: int, most: int) -> list[Block]:
        """
        Waits for blocks, and returns the oldest ones; none: the source has ended, and all were taken.

        Args:
            needed: samples that the next window lacks. If fewer are there, all are returned
            hop: samples that each further window needs
            most: windows. No more blocks are returned than complete them: what is taken cannot be dropped
        """
        with self.changed:
            while not self.blocks and not self.is_ended:
                self.changed.wait(WAKE_S)
            windows = 0 if self.held < needed else min(most, 1 + (self.held - needed) // hop)
            wanted = needed + (windows - 1) * hop if windows else self.held
            taken = []
            while self.blocks and wanted > 0:
                taken.append(self.blocks.popleft())
                wanted -= len(taken[-1].samples)
                self.held -= len(taken[-1].samples)
            self.changed.notify_all()
            return taken

    def end(self, error: str | None = None):
        """Lets no more blocks in; what is there can still be taken."""
        with self.changed:
            if not self.is_ended:
                self.is_ended, self.error = True, error
            self.changed.notify_all()


class Intake:
    """
    Mixes and resamples what comes in, and puts it into a ring buffer.

    Args:
        name: of the source, for messages
        rate: samples per second that come in
    """

    def __init__(self, buffer: RingBuffer, name: str, rate: int):
        self.buffer, self.name, self.rate = buffer, name, rate
        self._begin(0)

    def _begin(self, position: int):
        """Begins a stretch without gaps. position: samples that came or were lost before it, at the incoming rate"""
        self.position, self.received = position, 0
        self.start, self.given = round(position * self.buffer.rate / self.rate), 0
        self.resampler = None
        if self.rate != self.buffer.rate:
            self.resampler = soxr.ResampleStream(self.rate, self.buffer.rate, 1, dtype="float32")

    def add(self, samples: np.ndarray) -> bool:
        """Takes float32 (samples, channels) at the incoming rate; returns whether more may follow."""
        try:
            mono = mix_down(self.name, samples)
        except InputError as error:
            self.buffer.end(f"{error}; if there are none, correct --encoding")
            return False
        return self._put(mono)

    def skip(self, count: int):
        """Moves the times on by `count` samples that were lost on the way here."""
        self._flush()
        self._begin(self.position + self.received + count)

    def end(self, error: str | None = None):
        self._flush()
        self.buffer.end(error)

    def _flush(self):
        self._put(np.zeros(0, dtype=np.float32), is_last=True)

    def _put(self, mono: np.ndarray, is_last: bool = False) -> bool:
        self.received += len(mono)
        if self.resampler is not None:
            mono = self.resampler.resample_chunk(mono, last=is_last)
        if not len(mono):
            return not self.buffer.is_ended
        start, self.given = self.start + self.given, self.given + len(mono)
        waits_s = self.received / self.rate - self.given / self.buffer.rate  # in the resampler
        return self.buffer.put(Block(start, mono, time.monotonic() - max(waits_s, 0.0)))


@contextlib.contextmanager
def standard_input(intake: Intake, channels: int, encoding: str) -> Iterator[None]:
    """Reads raw samples in a thread."""
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(
            f"{NAME_OF_INPUT}: holds no samples; pipe some into it, as in ffmpeg -i FILE -f s16le -ar 16000 -ac 1 - | "
            "python predict_hf.py MODEL --listen -"
        )
    # Unbuffered: a thread that waits in a buffered file would keep its lock when the program ends.
    file = io.FileIO(sys.stdin.fileno(), closefd=False)
    kind, one = ENCODINGS[encoding]
    frame = np.dtype(kind).itemsize * channels
    size = max(round(BLOCK_S * intake.rate), 1) * frame

    def read():
        try:
            while content := _read_full(file, size):
                whole = len(content) // frame * frame
                samples = np.frombuffer(content[:whole], dtype=kind).astype(np.float32).reshape(-1, channels)
                if not intake.add(samples / np.float32(one)):
                    return
            intake.end()
        except Exception as error:  # or the main thread would wait for ever
            intake.buffer.end(f"{intake.name}: cannot be read ({one_line(error)})")

    threading.Thread(target=read, daemon=True).start()
    yield


def _read_full(file: io.FileIO, size: int) -> bytes:
    """Returns `size` bytes, fewer at the end: pipes give what they have."""
    parts, missing = [], size
    while missing and (part := file.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


class Microphone:
    """
    Opens a microphone through sounddevice.

    Args:
        device: number, part of a name, or `default`
        rate: samples per second; `None`: the device's own

    Raises:
        InputError: sounddevice, PortAudio or the device is missing, or the device refuses rate or channels.
    """

    def __init__(self, device: str, rate: int | None, channels: int):
        try:
            import sounddevice
        except ImportError as error:
            raise InputError(
                f'listen: needs sounddevice ({one_line(error)}); pip install "modeling-dual-ssast[live]"'
            ) from error
        except OSError as error:
            raise InputError(
                f"listen: needs PortAudio ({one_line(error)}); install it (Debian: apt-get install libportaudio2)"
            ) from error
        self.library, self.channels, self.asked = sounddevice, channels, device
        self.device = None if device == ANY_MICROPHONE else int(device) if device.isdecimal() else device
        with self._explained():
            about = sounddevice.query_devices(self.device, "input")
            self.name, self.rate = str(about["name"]), rate or round(about["default_samplerate"])

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (self.library.PortAudioError, ValueError) as error:
            raise InputError(
                f"listen {self.asked}: cannot be opened ({one_line(error)}); python -m sounddevice lists them, "
                "and --rate and --channels ask for others"
            ) from error

    @contextlib.contextmanager
    def open(self, intake: Intake) -> Iterator[None]:
        """Records until the block ends."""
        expected_s = None  # the next block's time by the sound card's clock

        def add(samples, num_samples: int, times, status):
            nonlocal expected_s
            lost_s = 0.0 if expected_s is None else times.inputBufferAdcTime - expected_s
            expected_s = times.inputBufferAdcTime + num_samples / self.rate
            if lost_s > 0 and (status.input_overflow or lost_s > MOST_JITTER_S):
                intake.skip(round(lost_s * self.rate))
            if not intake.add(samples):
                raise self.library.CallbackStop

        def finished():
            intake.end(f"{self.name}: has stopped; connect it again, and give the same command")

        with self._explained():
            stream = self.library.InputStream(
                samplerate=self.rate, blocksize=round(BLOCK_S * self.rate), device=self.device, channels=self.channels,
                dtype="float32", callback=add, finished_callback=finished,
            )  # fmt: skip
            stream.start()
        try:
            yield
        finally:
            self._stop(stream)

    def _stop(self, stream):
        """Stops and closes a stream. Ctrl-C does not reach a driver that waits, so that another thread calls it."""

        def stop():
            stream.stop()
            stream.close()

        thread = threading.Thread(target=stop, daemon=True)
        thread.start()
        thread.join(STOP_S)
        if thread.is_alive():
            atexit.unregister(self.library._exit_handler)  # it would wait in its turn
            told = f"listen {printable(self.asked)}: the sound driver does not stop, and is left behind"
            print(told, file=sys.stderr, flush=True)


# ---- From the ring buffer to windows ----


class Windows(NamedTuple):
    """
    Holds some windows.

    Args:
        starts: (windows,), their first samples, counted from the beginning
        waveforms: float32 (samples,) of each
        ended: (windows,), when their last samples sounded, by `time.monotonic`
        num_dropped: blocks dropped between the windows before them and these
    """

    starts: np.ndarray
    waveforms: list[np.ndarray]
    ended: np.ndarray
    num_dropped: int

    @property
    def stops(self) -> np.ndarray:
        return self.starts + [len(waveform) for waveform in self.waveforms]


class _Stretch:
    """
    Holds the newest sound of a stretch without gaps: the last window, and what came after it.

    Args:
        begin: its first sample
        window, hop: samples
        rate: samples per second
    """

    def __init__(self, begin: int, window: int, hop: int, rate: int):
        self.begin, self.window, self.hop, self.rate = begin, window, hop, rate
        self.first = self.stop = self.following = begin  # the samples held, and where the next window begins
        self.parts, self.ends = [], collections.deque()  # ends: of blocks, with the time

    def add(self, block: Block):
        self.parts.append(block.samples)
        self.ends.append((block.stop, block.ended))
        self.stop = block.stop

    def complete(self, most: int) -> Iterator[list[int]]:
        """Yields the first samples of the windows that are complete, up to `most` at a time."""
        starts = list(range(self.following, self.stop - self.window + 1, self.hop))
        yield from (starts[place : place + most] for place in range(0, len(starts), most))

    def cut(self, starts: list[int], num_dropped: int) -> Windows:
        samples = np.concatenate(self.parts)
        waveforms = [samples[start - self.first :][: self.window] for start in starts]
        ended = [self._ended_at(start + len(waveform)) for start, waveform in zip(starts, waveforms)]
        self.parts = [samples[starts[-1] - self.first :]]  # the recording's last window may begin in this one
        self.first, self.following = starts[-1], starts[-1] + self.hop
        return Windows(np.array(starts), waveforms, np.array(ended), num_dropped)

    def _ended_at(self, sample: int) -> float:
        while len(self.ends) > 1 and self.ends[0][0] < sample:
            self.ends.popleft()
        return self.ends[0][1] - max(self.ends[0][0] - sample, 0) / self.rate


def cut_windows(
    buffer: RingBuffer, window: int, hop: int, most: int, layout: Callable | None = None
) -> Iterator[Windows]:
    """
    Yields windows as soon as they are complete, and several where several are: those of `window_starts`. Each stretch
    between two gaps is divided like a recording of its own, but the sound before a gap that fills no window is left
    out: where sound is lost, there is no time for more windows.

    Args:
        window, hop: samples
        most: windows at a time
        layout: see `Network`, places the last window; `None`: it ends with the sound
    """
    stretch = _Stretch(0, window, hop, buffer.rate)
    number = num_dropped = 0  # of the next block; of blocks dropped since the last windows
    while blocks := buffer.take(stretch.following + window - stretch.stop, hop, most):
        for block in [*blocks, None]:
            if block is None or block.start != stretch.stop:
                for starts in stretch.complete(most):
                    yield stretch.cut(starts, num_dropped)
                    num_dropped = 0
            if block is not None:
                if block.start != stretch.stop:
                    stretch = _Stretch(block.start, window, hop, buffer.rate)
                num_dropped += block.number - number
                number = block.number + 1
                stretch.add(block)
    begin, stop = stretch.begin, stretch.stop
    covered = begin if stretch.following == begin else stretch.following - hop + window
    if stop > covered:
        start = max(stop - window, begin) if layout is None else begin + layout(stop - begin)[0][-1]
        yield stretch.cut([start], num_dropped)


# ---- From windows to results ----


class EventLog:
    """
    Writes events as they come where the format can be appended to, else at the end.

    Args:
        recording: its name in the table
        highest_hz: see `write_events`
    """

    def __init__(self, path: Path, event_format: str | None, recording: str, highest_hz: float):
        self.path, self.event_format, self.recording, self.highest_hz = path, event_format, recording, highest_hz
        self.events, self.num_events = [], 0
        self.file = None
        if path.suffix.lower() in APPENDED and not path.is_dir():
            self.file = open(path, "wb")  # noqa: SIM115
            self._write(self._lines([])[: self._header])

    @property
    def _header(self) -> int:
        return APPENDED[self.path.suffix.lower()]

    def _lines(self, events: list[Event]) -> list[str]:
        return list(FORMATS[self.path.suffix.lower()[1:]].lines({self.recording: events}))

    def _write(self, lines: list[str]):
        self.file.writelines(f"{line}\n".encode(errors=TEXT_ERRORS) for line in lines)
        self.file.flush()

    def add(self, events: list[Event]):
        self.num_events += len(events)
        if self.file is None:
            self.events += events
        elif events:
            self._write(self._lines(events)[self._header :])

    def close(self, duration_s: float):
        if self.file is None:
            durations_s = {self.recording: duration_s}
            write_events(self.path, {self.recording: self.events}, self.event_format, durations_s, self.highest_hz)
            return
        if not self.num_events:
            self._write(self._lines([])[self._header :])  # the recording without events
        self.file.close()


@contextlib.contextmanager
def growing_table(path: Path, about: dict) -> Iterator[Callable]:
    """Opens a table whose rows are in the file as soon as they are written; Parquet is complete at the end alone."""
    if path.suffix == ".parquet":
        with open_table(path, about) as write:
            yield write
        return
    write_json(about_path(path), about)
    writer = WRITERS[path.suffix](path, about)

    def write(columns):
        writer.write(columns)
        writer.file.flush()

    try:
        yield write
    finally:
        writer.close()


@dataclass
class Listener:
    """
    Prints and stores the results of windows or time frames, and what is said about the run. A frame waits until no
    further window can have it.

    Args:
        network: the classifier
        recording: name of what is heard
        make_finder: makes a finder of events for a stretch without gaps; `None`: no events
        top_k: classes to print per window
    """

    network: Classifier
    recording: str
    make_finder: Callable | None
    top_k: int
    write_windows: Callable | None = None
    event_log: EventLog | None = None

    def __post_init__(self):
        self.rate = self.network.extractor.sampling_rate
        self.covered = 0  # samples, to the end of the last window
        self.last_ended = 0.0  # when that sounded
        self._begin(0)
        self.num_windows = self.num_events = self.num_gaps = self.gap_samples = 0
        self.latencies_s = collections.deque(maxlen=MOST_LATENCIES)

    def _begin(self, start: int):
        """Begins a stretch of sound without gaps. start: its first sample"""
        self.begin = start
        self.finder = self.make_finder and self.make_finder()
        self.sequence = self.network.sequence(start)

    def add(self, windows: Windows, found: list[dict[str, np.ndarray]]):
        """Takes the next windows, and what the network gives for each: arrays (rows, ...)."""
        if windows.starts[0] > self.covered:
            slow = (
                f"the model is slower than the sound, {windows.num_dropped} blocks are dropped; a larger --hop_s helps"
            )
            start = int(windows.starts[0])
            self._gap(start, slow if windows.num_dropped else "the sound card has lost sound", start)
        if not all(np.isfinite(array).all() for arrays in found for array in arrays.values()):
            self._gap(int(windows.stops[-1]), OVERFLOW, self.begin)
            return
        self.covered, self.last_ended = int(windows.stops[-1]), float(windows.ended[-1])
        self.num_windows += len(found)
        if self.sequence is not None:
            self._take(self.sequence.add_windows(windows.starts, found))
            return
        arrays = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
        rows = {**arrays, "start": windows.starts, "stop": windows.stops}
        self._results(rows, windows.ended, zip(windows.starts, windows.stops, range(len(found))))

    def _take(self, found: list[dict[str, np.ndarray]]):
        """Takes the time frames that are certain now."""
        rows = concatenated(found)
        if rows:
            ended = self.last_ended - (self.covered - rows["stop"]) / self.rate
            self._results(rows, ended, [(rows["start"][0], rows["stop"][-1], slice(None))])

    def _results(self, rows: dict[str, np.ndarray], ended: np.ndarray, shown: Iterable[tuple]):
        """
        Prints and stores rows of windows or time frames.

        Args:
            ended: when the last sample of each row sounded
            shown: first sample, the one after the last, and which rows make a line, with their highest scores
        """
        starts_s, ends_s = rows["start"] / self.rate, rows["stop"] / self.rate
        scores, labels = self.network.probabilities(rows["logits"]), self.network.labels
        found = predictions(labels, scores, self.network.thresholds)
        found, unlike = self.network.reject(found, rows["logits"], rows.get("distance"))
        if self.write_windows is not None:
            times = [("start_s", starts_s.round(6)), ("end_s", ends_s.round(6)), ("prediction", found)]
            columns = zip(score_names(labels), np.ascontiguousarray(scores.T))
            self.write_windows([("file", [self.recording] * len(found)), *times, *unlike, *columns])
        for start, stop, place in shown:
            row = scores[place] if scores[place].ndim == 1 else scores[place].max(axis=0)
            text = self.network.top_text(row, self.top_k, unlike and found[place] == UNKNOWN)
            print(f"{start / self.rate:.2f}-{stop / self.rate:.2f} s\t{text}", flush=True)
        if self.finder is not None:
            from ..base.event_detection import event_scores

            self._show(self.finder.add(event_scores(scores, labels), starts_s, ends_s))
        self.latencies_s.extend(time.monotonic() - ended)

    def finish(self):
        """Ends the frames and the events that wait for more sound."""
        if self.sequence is not None:
            self._take(self.sequence.end(self.covered - self.begin))
        if self.finder is not None:
            self._show(self.finder.finish())

    def _gap(self, until: int, reason: str, begin: int):
        """Leaves out what lies before the sample `until`. begin: of the stretch after it"""
        self.finish()
        self._begin(begin)
        self.num_gaps += 1
        self.gap_samples += until - self.covered
        print(f"gap {self.covered / self.rate:.2f}-{until / self.rate:.2f} s: {reason}", file=sys.stderr, flush=True)
        self.covered = until

    def _show(self, events: list[Event]):
        self.num_events += len(events)
        for event in events:
            where = f"{event.onset_s:.2f}-{event.offset_s:.2f} s"
            print(f"event {where}\t{printable(event.label)} {event.score:.3f}", flush=True)
        if self.event_log is not None:
            self.event_log.add(events)

    def summary(self, buffer: RingBuffer) -> str:
        latency = "latency unknown"
        if self.latencies_s:
            median, high = np.quantile(self.latencies_s, (0.5, 0.95))
            latency = f"latency median {median:.2f} s, 95 % {high:.2f} s"
        return (
            f"{self.covered / self.rate:.1f} s: {self.num_windows} windows, {self.num_events} events; {latency}; "
            f"{buffer.num_dropped} of {buffer.num_blocks} blocks dropped; gaps: {self.num_gaps} "
            f"({self.gap_samples / self.rate:.1f} s)"
        )


def listen(
    arguments,
    network: Classifier,
    about: dict,
    events: Path | None = None,
    event_format: str | None = None,
    **settings,
) -> int:
    """
    Classifies what comes in until it ends or Ctrl-C; results that are appended survive a kill.

    Args:
        arguments: options of predict_hf.py
        network: the model in its place
        about: what made the tables, see `open_table`
        events: table of events, see `write_events`; `None`: they are printed alone
        settings: of events, see `event_settings`

    Returns:
        the exit status: 1 if the source failed

    Raises:
        InputError: the source cannot be opened, a table cannot be written, or the settings do not fit the model.
    """
    rate, is_input = network.extractor.sampling_rate, arguments.listen == STANDARD_INPUT
    began = time.strftime("%Y%m%d_%H%M%S", time.gmtime())
    recording = f"{'stdin' if is_input else 'microphone'}_{began}Z"
    if arguments.windows is not None:
        check_table(arguments.windows)
    if events is not None:
        check_events_file(events, event_format, network.labels.names, [recording])
    make_finder = choose_finder(network, events, settings)
    run_windows(network, [np.zeros(network.window, dtype=np.float32)], 1)  # the first call takes longer
    buffer = RingBuffer(max(BUFFER_S * rate, BUFFER_WINDOWS * network.window), rate, None if is_input else False)
    intake, source = open_source(arguments, buffer)
    listener = Listener(network, recording, make_finder, arguments.top_k)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ended_by_signals(buffer))
        stack.enter_context(source)
        for path in filter(None, (arguments.windows, events)):
            _keep(path, arguments.overwrite)
        if arguments.windows is not None:
            listener.write_windows = stack.enter_context(growing_table(arguments.windows, about))
        if events is not None:
            listener.event_log = EventLog(events, event_format, recording, rate / 2)
        print(
            f"listening to {printable(intake.name)} at {intake.rate} Hz: windows of {network.window / rate:g} s every "
            f"{network.hop / rate:g} s, times from {time.strftime('%Y-%m-%d %H:%M:%S')} on; Ctrl-C ends it",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        try:
            for windows in cut_windows(buffer, network.window, network.hop, arguments.batch_size, network.layout):
                listener.add(windows, run_windows(network, windows.waveforms, arguments.batch_size))
                if getattr(sys.stdout, "error", None) and arguments.windows is None and events is None:
                    buffer.end()  # the reader of the output, such as head, has ended, and nothing else is written
        finally:
            listener.finish()
            if listener.event_log is not None:
                listener.event_log.close(listener.covered / rate)
            print(listener.summary(buffer), file=sys.stderr, flush=True)
    if buffer.error:
        return fail(buffer.error)
    return 0 if buffer.num_blocks or not is_input else fail(f"{NAME_OF_INPUT}: no samples came; check what writes them")


def choose_finder(network: Classifier, events: Path | None, settings: dict) -> Callable | None:
    """Returns what makes a finder of events for a stretch without gaps; `None`: the model gives numbers."""
    if network.labels.is_regression:
        if events is not None:
            raise InputError(f"{events}: the model gives a number per clip, so it has no events; use a classifier")
        return None
    from ..base.event_detection import EventFinder, event_settings  # here: scipy takes time to import

    return functools.partial(EventFinder, network.labels.names, **event_settings(network.model.config, **settings))


def open_source(arguments, buffer: RingBuffer) -> tuple[Intake, contextlib.AbstractContextManager]:
    """Returns what puts the sound of `--listen` into a ring buffer, and what records it."""
    if arguments.listen == STANDARD_INPUT:
        intake = Intake(buffer, NAME_OF_INPUT, arguments.rate or buffer.rate)
        return intake, standard_input(intake, arguments.channels, arguments.encoding)
    microphone = Microphone(arguments.listen, arguments.rate, arguments.channels)
    intake = Intake(buffer, microphone.name, microphone.rate)
    return intake, microphone.open(intake)


@contextlib.contextmanager
def ended_by_signals(buffer: RingBuffer) -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM end the recording; what was recorded is still computed, unless Ctrl-C comes again."""

    def end(number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        buffer.end()

    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _keep(path: Path, overwrite: bool):
    """Renames an earlier table to NAME.previous.EXT, unless it may be overwritten."""
    if path.is_file() and not overwrite:
        kept = path.replace(path.with_name(f"{path.stem}.previous{path.suffix}"))
        print(f"the earlier {path} is kept as {kept}", file=sys.stderr)
