"""Places the frames of a frame classifier in time, and events in frames."""

from typing import NamedTuple

import numpy as np

from modeling_dual_ssast.embedding_dual_ssast import window_and_hop, window_starts

from ..errors import InputError

TOLERANCE = 1e-6  # in frames: tables hold rounded times


class FrameGrid(NamedTuple):
    """
    Describes the frames of a recording that is read in windows, and the windows.

    Frame `i` is the time from sample `i * step + offset` on, `step` samples long. Where patches overlap, that is the
    middle of its patches. The first frame begins with the recording, the last one ends with it.

    Attributes:
        rate: Sampling rate in Hz.
        unit: Samples from spectrogram frame to spectrogram frame.
        step: Samples from frame to frame.
        offset: Samples before the first frame.
        frames: Frames per window.
        length: Samples per window.
        hop: Frames from window to window.
        group: Frames that are computed together: windows begin at multiples of it.
    """

    rate: int
    unit: int
    step: int
    offset: int
    frames: int
    length: int
    hop: int
    group: int = 1

    @property
    def hop_s(self) -> float:
        """Returns the seconds from frame to frame."""
        return self.step / self.rate

    def windows(self, num_samples: int) -> list[int]:
        """Returns the first frame of each window of a recording; the last window holds its end."""
        beyond = -(-max(num_samples - self.length, 0) // (self.step * self.group)) * self.group
        return window_starts(self.frames + beyond, self.frames, self.hop)

    def edges_s(self, num_frames: int, num_samples: int) -> np.ndarray:
        """Returns the borders of all frames of a recording in seconds: (num_frames + 1,)"""
        edges = np.arange(num_frames + 1) * float(self.step) + self.offset
        edges[0], edges[-1] = 0.0, num_samples
        return np.minimum(edges, num_samples) / self.rate

    def places(self, samples: np.ndarray) -> np.ndarray:
        """Returns the places of samples (...) on the grid: a whole number where a frame begins."""
        return (np.asarray(samples, dtype=np.float64) - self.offset) / self.step


def frame_grid(model, extractor, window_s: float | None = None, hop_s: float | None = None) -> FrameGrid:
    """
    Returns the grid of a frame classifier, in windows of whole frames that begin at frames.

    Args:
        window_s: seconds per window; `None`: that of the model's `event_detection`, which was chosen for it, else its
            longest input, or about a minute without a limit
        hop_s: seconds from window to window; `None`: that of `event_detection` for its windows, else half a window

    Raises:
        InputError: a window that the model does not take, or that holds no frame, or a hop that skips audio.
    """
    if window_s is None:
        own = getattr(model.config, "event_detection", None) or {}
        window_s, hop_s = own.get("window_s"), own.get("hop_s") if hop_s is None else hop_s
    encoder, rate = model.base_model, extractor.sampling_rate
    first = extractor.num_samples(1)
    unit = extractor.num_samples(2) - first
    if window_s is not None and 1 + (round(window_s * rate) - first) // unit in (
        encoder.max_frames,
        extractor.max_length,
    ):
        window_s = None  # 10 s of 998 frames: the last samples make no frame
    try:
        window, _ = window_and_hop(encoder, extractor, window_s)
    except ValueError as error:
        raise InputError(str(error)) from error
    num_frames = 1 + (window - first) // unit  # of the spectrogram
    if getattr(model.config, "readout", None) == "tokens":  # frames without regard to patches
        step, offset, group = round(model.config.frame_hop_s * rate), 0, 1
        frames = (extractor.num_samples(num_frames + 1) - 1) // step  # up to the next spectrogram frame
        length = needed = frames * step
    else:
        width, stride, group = encoder.time_grid
        step, offset = stride * unit, max(width - stride, 0) * unit // 2
        frames = (num_frames - width) // stride + 1
        frames -= frames % group
        length, needed = (extractor.num_samples((count - 1) * stride + width) for count in (frames, group))
    if frames < group:
        raise InputError(f"window_s must be at least {needed / rate:g}, the length of {group} frame(s), got {window_s}")
    hop = frames // 2 if hop_s is None else round(hop_s * rate) // step
    if hop > frames:
        raise InputError(f"hop_s must be at most {frames * step / rate:g}, the frames of a window, got {hop_s:g}")
    return FrameGrid(rate, unit, step, offset, frames, length, max(hop // group, 1) * group, group)


def frame_targets(
    grid: FrameGrid, intervals: np.ndarray, labels: np.ndarray, num_frames: int, num_labels: int
) -> np.ndarray:
    """
    Returns the targets of frames: 1 in every frame that an event touches, else 0 (PretrainedSED, Schmid et al., ICASSP
    2025: from floor(onset / hop) to ceil(offset / hop) - 1).

    An event without duration has the frame that it lies in. What lies before the first frame belongs to it, what lies
    after the last one to that.

    Args:
        intervals: (events, 2), first sample and the one after the last, from the beginning of frame 0's recording on
        labels: (events,), index of each event's label; -1: nobody knows, so that all labels without an event of their
            own are NaN

    Returns:
        float32 (num_frames, num_labels): 0, 1 or NaN
    """
    targets = np.zeros((num_frames, num_labels), dtype=np.float32)
    if not num_frames:
        return targets
    places = grid.places(np.reshape(intervals, (-1, 2)))
    first = np.floor(places[:, 0] + TOLERANCE)
    last = np.maximum(np.ceil(places[:, 1] - TOLERANCE) - 1, first)
    first, last = (np.clip(side, 0, num_frames - 1).astype(int) for side in (first, last))
    for value, chosen in ((np.nan, labels < 0), (1.0, labels >= 0)):  # what is known has the last word
        for begin, end, label in zip(first[chosen], last[chosen], labels[chosen]):
            targets[begin : end + 1, label if label >= 0 else slice(None)] = value
    return targets
