"""Makes random annotations, and scores and predictions that are right to some degree."""

from collections.abc import Mapping, Sequence

import numpy as np

from training.data.events import Event


def random_annotations(
    rng: np.random.Generator,
    durations_s: Mapping,
    labels: Sequence[str],
    near: Mapping | None = None,
    decimals: int = 3,
) -> dict[str, list[Event]]:
    """Returns events of which none overlaps one of its label; some recordings and labels have none. near: moved."""
    found = {}
    for name, duration_s in durations_s.items():
        events = []
        for label in labels:
            if near is None:
                events += _apart(rng.uniform(0, duration_s, 2 * rng.integers(0, 4)), label, decimals)
            else:
                own = [event for event in near[name] if event.label == label and rng.random() < 0.8]
                times = [time + rng.normal(0, 0.15) for event in own for time in event[:2]]
                times += list(rng.uniform(0, duration_s, 2 * rng.integers(0, 2)))
                events += _apart(np.clip(times, 0, duration_s), label, decimals)
        found[name] = events if rng.random() < 0.8 else []
    return found


def _apart(times: np.ndarray, label: str, decimals: int) -> list[Event]:
    times = np.unique(np.round(times, decimals))
    return [Event(float(times[i]), float(times[i + 1]), label) for i in range(0, len(times) - 1, 2)]


def random_scores(
    rng: np.random.Generator, durations_s: Mapping, annotations: Mapping, labels: Sequence[str], is_coarse: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns smooth scores of frames, higher where events are. is_coarse: with few different values"""
    found = {}
    for name, duration_s in durations_s.items():
        edges = np.append(np.arange(0, duration_s, 0.16), duration_s)
        middles = (edges[:-1] + edges[1:]) / 2
        values = rng.normal(0, 1, (len(middles), len(labels)))
        values = np.apply_along_axis(lambda column: np.convolve(column, np.ones(3) / 3, mode="same"), 0, values)
        for event in annotations[name]:
            values[(middles > event.onset_s) & (middles < event.offset_s), labels.index(event.label)] += rng.uniform(
                0, 2
            )
        found[name] = (np.round(values, 1) if is_coarse else values, edges)
    return found
