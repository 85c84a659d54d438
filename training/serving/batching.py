"""Joins clips of concurrent requests into batches of similar length, which one thread gives to the model."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

SIMILAR = 1.25  # the longest clip of a batch has at most this times the samples of the shortest: little is padding


@dataclass
class Piece:
    """Holds a clip that fits into the model, float32 (samples,), and the place of its result."""

    kind: str
    samples: np.ndarray
    since_s: float = field(default_factory=time.monotonic)
    result: Future = field(default_factory=Future)


class Batcher:
    """
    Computes pieces in batches. A batch is the piece that waits longest, and those of its kind and length.

    Args:
        compute: (kind, list of samples) -> a row per clip; called in one thread only
        max_batch: pieces per batch; 1: each alone
        max_wait_s: seconds that a piece waits for others while the model is idle
        observe: called with the size of each batch
    """

    def __init__(
        self,
        compute: Callable[[str, list[np.ndarray]], np.ndarray],
        max_batch: int,
        max_wait_s: float,
        observe: Callable[[int], None] = lambda size: None,
    ):
        self.compute, self.max_batch, self.max_wait_s, self.observe = compute, max_batch, max_wait_s, observe
        self.waiting: list[Piece] = []  # the oldest first
        self.closed = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="model", daemon=True)
        self.thread.start()

    def submit(self, kind: str, samples: np.ndarray) -> Future:
        """Returns the row of a piece, later."""
        piece = Piece(kind, samples)
        with self.changed:
            if self.closed:
                raise RuntimeError("the service is closed")
            self.waiting.append(piece)
            self.changed.notify()
        return piece.result

    def close(self):
        """Computes what waits, and ends the thread."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def is_alive(self) -> bool:
        return self.thread.is_alive()

    def _run(self):
        while batch := self._next():
            # A client that has gone has cancelled its pieces.
            batch = [piece for piece in batch if piece.result.set_running_or_notify_cancel()]
            if batch:
                self.observe(len(batch))
                self._finish(batch)

    def _next(self) -> list[Piece]:
        """Waits for a batch and takes it; an empty one is the end."""
        with self.changed:
            while not self.waiting and not self.closed:
                self.changed.wait()
            while self.waiting and not self.closed and len(batch := self._similar()) < self.max_batch:
                left_s = batch[0].since_s + self.max_wait_s - time.monotonic()
                if left_s <= 0:
                    break
                self.changed.wait(left_s)
            batch = self._similar() if self.waiting else []
            chosen = set(map(id, batch))
            self.waiting = [piece for piece in self.waiting if id(piece) not in chosen]
            return batch

    def _similar(self) -> list[Piece]:
        """Returns the oldest piece and those that go with it, the nearest lengths first."""
        first = self.waiting[0]
        lengths = [len(first.samples)] * 2  # shortest and longest of the batch
        chosen = []
        same = (piece for piece in self.waiting if piece.kind == first.kind)
        for piece in sorted(same, key=lambda piece: abs(len(piece.samples) - len(first.samples))):
            widened = min(lengths[0], len(piece.samples)), max(lengths[1], len(piece.samples))
            if len(chosen) == self.max_batch or widened[1] > SIMILAR * widened[0]:
                break
            chosen.append(piece)
            lengths = widened
        return chosen

    def _finish(self, batch: list[Piece]):
        try:
            rows = self.compute(batch[0].kind, [piece.samples for piece in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].result.set_exception(error)
                return
            for piece in batch:  # one of them must not fail the others
                self._finish([piece])
            return
        for piece, row in zip(batch, rows):
            piece.result.set_result(row)
