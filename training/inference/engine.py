"""
Runs a network over clips: threads decode ahead, windows of similar length share a batch, and what is computed is stored
part by part. A part depends neither on the others nor on the process that computes it.
"""

import collections
import itertools
import sys
import time
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..base.finite import OVERFLOW
from ..data.unreadable import reason_of
from ..errors import InputError
from .inputs import ClipSequence
from .plan import PART_S, Stretch, cut, examine
from .processes import Processes
from .shards import Part, Segment, Shards

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total_fmt} files{postfix}, {remaining} left"
BAR_OF_STREAM = "{desc}: {n:.0f} files{postfix}"


class Network:
    """
    Says how a model is run; a subclass names its arrays.

    Args:
        model: on its device, in its number format; features are float32, and the model itself converts them
        extractor: its feature extractor
        keeps_windows: a row per window or time frame; else a row per clip, the mean over its windows
    """

    keeps_windows = False
    per_window: Container[str] = ()  # arrays with one row per window, where others have several

    def __init__(self, model: torch.nn.Module, extractor):
        self.model = model
        self.extractor = extractor

    def layout(self, num_samples: int) -> tuple[list[int], int]:
        """Returns the first sample of each window of a clip, and the samples per window."""
        raise NotImplementedError

    def run(self, features: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[int] | None]:
        """
        Returns arrays (batch, ...), and for arrays (batch, rows, ...) the number of rows of each window. Arrays of
        `per_window` come first.
        """
        raise NotImplementedError

    def dtype_of(self, name: str) -> str:
        """Returns the number format in which an array is stored."""
        return "float32"

    def places(self, stretch: Stretch, counts: list[int]) -> dict[str, np.ndarray]:
        """Returns further arrays of a stretch with `counts` rows per window, such as the times of its rows."""
        return {}


class _Read(NamedTuple):
    """One stretch on its way: its part (shard, number, of how many), and its samples or the error."""

    part: tuple[int, int, int]
    stretch: Stretch | None  # `None`: the part is stored already
    waveform: np.ndarray | None = None
    error: str = ""


@dataclass
class Engine:
    """
    Computes the parts of all shards.

    Args:
        batch_size: windows per forward pass
        num_threads: threads that decode ahead
        verb: for the progress bar
        stops_at_errors: raise the first error of a clip, instead of storing it; numbers may overflow
    """

    network: Network
    clips: ClipSequence
    shards: Shards
    batch_size: int = 8
    num_threads: int = 2
    processes: Processes = field(default_factory=Processes)
    verb: str = "embedding"
    stops_at_errors: bool = False

    def run(self, with_stored: bool = False) -> Iterator[Part]:
        """
        Computes and yields the missing parts of this process, in order.

        Args:
            with_stored: yield those that are stored too, in their places

        Raises:
            InputError: with `stops_at_errors`, a clip cannot be read.
        """
        rate = self.network.extractor.sampling_rate
        self.shards.look()
        self._say_what_is_done()
        self.with_stored = with_stored
        groups = self.clips.groups(self.shards.shard_size, self._is_wanted)
        planned = read_ahead(groups, self._plan, min(self.num_threads, 1), lambda group: 1, 1)
        reads = read_ahead(
            itertools.chain.from_iterable(planned), self._read, self.num_threads, self._samples, PART_S * rate
        )
        with Progress(self.verb, self._num_clips(), rate, not self.processes.is_main) as progress:
            for (shard, number, count), group in itertools.groupby(reads, lambda read: read.part):
                group = list(group)
                if group[0].stretch is None:
                    part = self.shards.load(shard, number, count)
                    progress.skip(sum(segment.is_last for segment in part.segments))
                else:
                    part = self._compute(group)
                    self.shards.save(shard, number, count, part)
                    progress.add(group)
                yield part

    def fill(self):
        """Computes what is missing."""
        for _ in self.run():
            pass

    def _is_wanted(self, shard: int) -> bool:
        return self.processes.owns(shard) and (self.with_stored or not self.shards.num_parts(shard))

    def _num_clips(self) -> int | None:
        if self.clips.num_clips is None:
            return None
        return sum(len(self.shards.clips(shard)) for shard in range(self.shards.num_shards) if self._is_wanted(shard))

    def _say_what_is_done(self):
        done, parts = self.shards.num_stored
        if (done or parts) and self.processes.is_main:
            of = "" if self.shards.num_clips is None else f" of {self.shards.num_shards}"
            others = f", and {parts} parts of others" if parts else ""
            print(f"goes on: {done}{of} shards are done{others}", file=sys.stderr)

    def _plan(self, group: tuple[int, list[tuple]]) -> list[_Read]:
        """Returns the stretches of a shard; one entry for each part that is stored."""
        shard, clips = group
        count = self.shards.num_parts(shard)
        if count:
            return [_Read((shard, number, count), None) for number in range(count)]
        rate = self.network.extractor.sampling_rate
        parts = cut([examine(*clip, rate) for clip in clips], self.network.layout, rate)
        items = []
        for number, stretches in enumerate(parts):
            key = (shard, number, len(parts))
            is_stored = self.shards.has(*key)
            items += [_Read(key, stretch) for stretch in ([None] if is_stored else stretches)]
        return items

    def _read(self, item: _Read) -> _Read:
        if item.stretch is None or item.stretch.clip.error:
            return item
        try:
            waveform = item.stretch.read(self.network.extractor.sampling_rate)
        except Exception as error:
            return item._replace(error=reason_of(error, item.stretch.clip.source))
        return item._replace(waveform=waveform)

    def _samples(self, item: _Read) -> int:
        return 0 if item.stretch is None else item.stretch.stop - item.stretch.start

    def _compute(self, reads: list[_Read]) -> Part:
        """Computes a part: its windows in batches by length, the same ones in every run."""
        rows, waveforms = [], []  # of all windows: (place in `reads`, samples)
        for place, read in enumerate(reads):
            if read.waveform is None:
                continue
            stretch = read.stretch
            for start in stretch.starts - stretch.start:
                waveform = read.waveform[start : start + stretch.window]
                if len(waveform):  # none where the file holds less than its header says
                    rows.append(place)
                    waveforms.append(waveform)
        found = run_windows(self.network, waveforms, self.batch_size)
        owners = np.asarray(rows, dtype=np.int64)
        segments, arrays = [], []
        for place, read in enumerate(reads):
            own = [found[index] for index in np.flatnonzero(owners == place)]
            segment, rows_of_clip = self._segment(read, own)
            if self.stops_at_errors and segment.error:
                raise InputError(f"{segment.name}: {segment.error}")
            segments.append(segment)
            arrays += [rows_of_clip] if segment.rows else []
        names = arrays[0] if arrays else {}
        return Part(segments, {name: np.concatenate([one[name] for one in arrays]) for name in names})

    def _segment(self, read: _Read, windows: list[dict]) -> tuple[Segment, dict[str, np.ndarray]]:
        """Joins the arrays of the windows of a stretch: a row per window or time frame, or their mean."""
        stretch = read.stretch
        segment = Segment(stretch.clip.number, stretch.clip.name, is_last=stretch.is_last)
        segment.error = stretch.clip.error or read.error
        if segment.error or not windows:
            segment.error = segment.error or ("" if stretch.start else "holds no samples; remove it or record it again")
            return segment, {}
        arrays = {name: np.concatenate([window[name] for window in windows]) for name in windows[0]}
        if not self.stops_at_errors and not all(np.isfinite(array).all() for array in arrays.values()):
            segment.error = OVERFLOW
            return segment, {}
        counts = [len(next(iter(window.values()))) for window in windows]
        if not self.network.keeps_windows:
            arrays = {name: array.mean(axis=0, keepdims=True) for name, array in arrays.items()}
        arrays = {name: array.astype(self.network.dtype_of(name), copy=False) for name, array in arrays.items()}
        if self.network.keeps_windows:
            arrays |= self.network.places(stretch, counts)
        segment.windows, segment.rows = len(windows), len(next(iter(arrays.values())))
        return segment, arrays


@torch.no_grad()
def run_windows(network: Network, waveforms: list[np.ndarray], batch_size: int) -> list[dict[str, np.ndarray]]:
    """Runs the network on windows (samples,), in batches of similar lengths: for each its arrays (rows, ...)."""
    extractor = network.extractor
    device = next(network.model.parameters()).device
    found = [{}] * len(waveforms)
    order = sorted(range(len(waveforms)), key=lambda index: len(waveforms[index]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        features = extractor(
            [torch.from_numpy(waveforms[index]).to(device) for index in batch],
            sampling_rate=extractor.sampling_rate,
            padding="longest",
            return_attention_mask=True,
            return_tensors="pt",
        )
        tensors, counts = network.run(features)
        for name, tensor in tensors.items():
            values = tensor.float().cpu().numpy()
            for place, index in enumerate(batch):
                is_row = counts is None or name in network.per_window
                own = values[place : place + 1] if is_row else values[place, : counts[place]]
                found[index] = {**found[index], name: own}
    return found


def read_ahead(
    items: Iterator,
    read: Callable,
    num_threads: int,
    size: Callable = lambda item: 0,
    most: int = 0,
) -> Iterator:
    """
    Yields `read(item)` of every item, in order; threads read a few items ahead.

    Args:
        size: of an item; no more items wait than make `most` together
    """
    if not num_threads:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        waiting = collections.deque()  # (size, future)
        total = 0
        try:
            for item in items:
                waiting.append((size(item), pool.submit(read, item)))
                total += waiting[-1][0]
                while len(waiting) > 2 * num_threads or (total > most and len(waiting) > 1):
                    taken, future = waiting.popleft()
                    total -= taken
                    yield future.result()
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            for _, future in waiting:
                future.cancel()


class Progress:
    """Shows files, hours of audio, times real time, and the time left."""

    def __init__(self, verb: str, total: int | None, rate: int, is_hidden: bool):
        self.bar = tqdm(
            total=total,
            desc=verb,
            bar_format=BAR_OF_STREAM if total is None else BAR,
            disable=True if is_hidden else None,
        )
        self.rate, self.audio_s, self.started = rate, 0.0, time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error):
        self.bar.close()

    def skip(self, num_clips: int):
        """Counts what was computed earlier."""
        if not self.bar.disable:
            self.bar.initial += num_clips
            self.bar.update(num_clips)

    def add(self, reads: list[_Read]):
        for stretch in (read.stretch for read in reads):
            self.audio_s += stretch.share * stretch.clip.length / self.rate
            self.bar.update(stretch.share)
        speed = self.audio_s / max(time.monotonic() - self.started, 1e-6)
        self.bar.set_postfix_str(f"{self.audio_s / 3600:.2f} h of audio, {speed:.0f} times real time", refresh=False)
