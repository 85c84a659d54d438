"""
Makes the endless sequence of training examples of a pretraining, and the clips of its evaluations.

The clips of a run have positions 0, 1, 2, ... The clip and example at a position depend on the seed alone, not on the
number of processes and data-loader workers, nor on where a run was resumed.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from transformers import TrainerCallback

from ..errors import InputError
from .clips import LocalClips, StreamedClips, join
from .unreadable import UnreadableLog, try_to_read

# Purposes of random numbers, as part of the generators' keys: no two purposes share a generator.
ORDER, MIXTURE, EXAMPLE, EVALUATION = range(4)
MIXTURE_CHUNK = 4096  # positions whose sources are drawn together; a jump draws all chunks before it
MIN_CLIPS_TO_JUDGE = 100  # with fewer clips, a share of unreadable ones means little
MAX_FAILURES = 10_000  # in a row: the disk or the network is gone

# Function of the task: waveform (samples,) float32, generator of the clip's position -> example.
MakeExample = Callable[[np.ndarray, np.random.Generator], dict]


class _Mixture:
    """Draws the source of each position by weight; positions must not decrease."""

    def __init__(self, weights: Sequence[float], seed: int):
        self.shares = np.asarray(weights) / np.sum(weights)
        self.seed = seed
        self.chunk = -1
        self.draws = np.zeros(0, dtype=np.int64)
        self.drawn_before = np.zeros(len(weights), dtype=np.int64)

    def at(self, position: int) -> tuple[int, int]:
        """Returns the source of a position, and the position within that source's own sequence."""
        if len(self.shares) == 1:
            return 0, position
        chunk, offset = divmod(position, MIXTURE_CHUNK)
        while self.chunk < chunk:
            self.drawn_before += np.bincount(self.draws, minlength=len(self.shares))
            self.chunk += 1
            rng = np.random.default_rng((self.seed, MIXTURE, 0, self.chunk))
            self.draws = rng.choice(len(self.shares), size=MIXTURE_CHUNK, p=self.shares)
        source = int(self.draws[offset])
        return source, int(self.drawn_before[source] + np.count_nonzero(self.draws[:offset] == source))


class ClipStream(torch.utils.data.IterableDataset):
    """
    Yields one process's share of the endless sequence of training examples, in batches.

    This process yields its own `batch_size` positions, in order, out of every `batch_size * num_processes`; with W
    data-loader workers each yields every W-th batch. An unreadable clip is replaced by the next readable one of the
    sequence, even if another process or worker also yields it, so that no batch shrinks and no other position moves.

    Args:
        weights: weight per source, as numbers of clips; all `None`: local sources are joined, every pass a permutation
        sampling_rate: Hz, of the decoded clips
        batch_size: batch size of the data loader, per process
        start: first position, for resumption: the examples that all processes together have consumed
        max_unreadable_share: share of unreadable clips above which the run stops

    Raises:
        InputError: a streamed source among several has no weight; while iterating, too many clips are unreadable.
    """

    def __init__(
        self,
        clips: Sequence[LocalClips | StreamedClips],
        weights: Sequence[float | None] | None,
        make_example: MakeExample,
        sampling_rate: int,
        seed: int,
        batch_size: int,
        log: UnreadableLog,
        num_processes: int = 1,
        process_index: int = 0,
        start: int = 0,
        max_unreadable_share: float = 0.05,
    ):
        weights = list(weights or [None] * len(clips))
        if len(weights) != len(clips) or not clips:
            raise ValueError(f"weights: got {len(weights)} for {len(clips)} sources; give one source or more, each one")
        if not 0 <= process_index < num_processes or batch_size < 1 or start < 0:
            raise ValueError(
                f"process {process_index} of {num_processes}, batch {batch_size}, start {start}: impossible"
            )
        streamed = [source for source in clips if isinstance(source, StreamedClips)]
        if len(clips) > 1 and not streamed and not any(weights):
            clips, weights = [join(clips)], [None]
        self.clips_per_pass = None if streamed else sum(len(source) for source in clips)
        self.clips = clips
        self.weights = [_weight(source, weight, alone=len(clips) == 1) for source, weight in zip(clips, weights)]
        self.make_example = make_example
        self.sampling_rate = sampling_rate
        self.seed = seed
        self.batch_size = batch_size
        self.log = log
        self.num_processes, self.process_index = num_processes, process_index
        self.start = start
        self.first_step = 0  # training step at which this run begins
        self.max_unreadable_share = max_unreadable_share
        # Shared by the workers: which local clips were counted. A stream has no indices that identify its clips.
        self._counted = [
            None if source in streamed else torch.zeros(len(source), dtype=torch.bool).share_memory_()
            for source in clips
        ]

    def __iter__(self) -> Iterator[dict]:
        own_positions = self._own_positions()
        next_own = next(own_positions)
        mixture = _Mixture(self.weights, self.seed)
        readers = [source.reader((self.seed, ORDER, number)) for number, source in enumerate(self.clips)]
        waiting = []  # positions of this worker without a readable clip yet: the next one serves them all
        position = failures = 0
        while True:
            # Positions of other workers are read only to replace an unreadable clip of this one.
            position = position + 1 if waiting else next_own
            is_own = position == next_own
            if is_own:
                waiting.append(position)
                next_own = next(own_positions)
            source, source_position = mixture.at(position)
            index, audio = readers[source](source_position)
            name = self.clips[source].name_of(index, audio)
            waveform, reason = try_to_read(audio, name, self.sampling_rate, self.log)
            if waveform is None:
                self.on_unreadable(name, reason)
            if is_own:
                self._count(source, index, waveform is not None)
                self._check_share(position + 1 - self.start)
            failures = failures + 1 if waveform is None else 0
            if failures >= MAX_FAILURES:
                raise InputError(
                    f"the last {failures} clips are unreadable, such as {name} ({reason}); {self.log.path} lists them "
                    "all: repair them or name other sources"
                )
            if waveform is not None:
                for place in waiting:  # copies: `make_example` may work in place
                    rng = np.random.default_rng((self.seed, EXAMPLE, 0, place))
                    yield self.example(waveform.copy(), rng, audio)
                waiting = []

    def num_delivered(self, step: int, arguments) -> int:
        """Returns the number of clips that all processes have processed after a step of this run."""
        return self.start + (step - self.first_step) * clips_per_step(arguments)

    def example(self, waveform: np.ndarray, rng: np.random.Generator, clip: dict) -> dict:
        """Makes a training example of a waveform (samples,); `clip` is the source's row."""
        return self.make_example(waveform, rng)

    def on_unreadable(self, name: str, reason: str):
        """Does nothing: unreadable clips are replaced. A subclass may raise an error instead."""

    def _own_positions(self) -> Iterator[int]:
        """Yields the positions of this worker of this process, in order."""
        worker = torch.utils.data.get_worker_info()
        worker_index, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.batch_size * self.num_processes
        first = self.start + worker_index * step + self.process_index * self.batch_size
        for batch_start in itertools.count(first, num_workers * step):
            yield from range(batch_start, batch_start + self.batch_size)

    def _count(self, source: int, index: int, readable: bool):
        """Counts a clip as readable or not: a local clip once, a streamed one at every reading."""
        counted = self._counted[source]
        if counted is None or not counted[index]:
            self.log.count(readable)
        if counted is not None:
            counted[index] = True

    def _check_share(self, num_positions: int):
        num_unreadable, num_readable = self.log.counts()
        num_met = num_unreadable + num_readable
        if num_met >= MIN_CLIPS_TO_JUDGE or num_positions >= (self.clips_per_pass or math.inf):
            self.log.check_share(num_unreadable, num_met, self.max_unreadable_share, num_met == self.clips_per_pass)


class ClipList(torch.utils.data.Dataset):
    """Returns examples by index, the same in every evaluation. The next readable clip replaces an unreadable one."""

    def __init__(self, clips: LocalClips, make_example: MakeExample, sampling_rate: int, seed: int, log: UnreadableLog):
        self.clips = clips
        self.make_example = make_example
        self.sampling_rate = sampling_rate
        self.seed = seed
        self.log = log

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        for step in range(len(self)):
            place = (index + step) % len(self)
            audio = self.clips[place]
            waveform, reason = try_to_read(audio, self.clips.name_of(place, audio), self.sampling_rate, self.log)
            if waveform is not None:
                return self.make_example(waveform, np.random.default_rng((self.seed, EVALUATION, 0, index)))
        raise InputError(
            f"{self.clips.name}: none of {len(self)} held-out clips is readable ({reason}); {self.log.path} lists them "
            "all: repair them"
        )


def _weight(source: LocalClips | StreamedClips, weight: float | None, alone: bool) -> float:
    if weight is not None or alone:
        return weight or 1.0
    if isinstance(source, StreamedClips):
        raise InputError(
            f"{source.name}: a streamed source among several needs a weight; set it to about its number of clips"
        )
    return len(source)


class StreamCallback(TrainerCallback):
    """Sets the position at which a resumed stream starts, and the epoch in the log: `epoch_steps` steps each."""

    def __init__(self, stream: ClipStream, epoch_steps: int):
        self.stream = stream
        self.epoch_steps = epoch_steps

    def on_train_begin(self, args, state, control, **kwargs):
        heard = [entry for entry in state.log_history if "clips" in entry and entry["step"] <= state.global_step]
        # Counted in clips, so that a run can be resumed with another batch size or number of processes.
        step, clips = (heard[-1]["step"], heard[-1]["clips"]) if heard else (0, 0)
        self.stream.first_step = state.global_step
        self.stream.start = clips + (state.global_step - step) * clips_per_step(args)

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = self.stream.num_delivered(state.global_step, args) / (self.epoch_steps * clips_per_step(args))
        # Logs at each checkpoint and at the end: a resumed run starts its figures at zero.
        control.should_log |= control.should_save or control.should_evaluate or state.global_step >= state.max_steps


def clips_per_step(arguments) -> int:
    """Returns the number of clips per optimizer step, over all processes."""
    return arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
