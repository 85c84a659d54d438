"""Options of finished models."""

from dataclasses import dataclass

from ..recipe import Arguments, described

OF_EVENTS = ("threshold", "low_threshold", "min_duration_s", "max_gap_s", "median_steps")


@dataclass
class ScoringArguments(Arguments):
    """Holds the windows of long clips, and what makes events of their scores."""

    window_s: float | None = described(
        None,
        "Seconds per window of long clips; unset: what a detector was trained with, else the model's longest input.",
        above=0,
    )
    hop_s: float | None = described(None, "Seconds from window to window; unset: half a window.", above=0)
    batch_size: int = described(8, "Clips or windows per forward pass.", at_least=1)
    num_workers: int = described(2, "Threads that decode.", at_least=0)
    threshold: float | None = described(
        None, "Score above which an event begins; unset: the model's own, or 0.5.", at_least=0, at_most=1
    )
    low_threshold: float | None = described(
        None,
        "Score above which an event that has begun goes on; unset: the model's own, or the same.",
        at_least=0,
        at_most=1,
    )
    min_duration_s: float | None = described(
        None,
        "Seconds of the shortest event; that of a single window lasts a hop; unset: the model's own, or 0.",
        at_least=0,
    )
    max_gap_s: float | None = described(
        None, "Seconds between two events of a class that count as one; unset: the model's own, or 0.", at_least=0
    )
    median_steps: int | None = described(
        None,
        "Windows or time frames of the median filter over the scores, an odd number; 1: none. Unset: the model's own.",
        at_least=1,
    )

    def event_settings(self) -> dict:
        """Returns the options of events, for the function of this name in training/base/event_detection.py."""
        return {name: getattr(self, name) for name in OF_EVENTS}
