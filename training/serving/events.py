"""Joins the windows in which a class is above its threshold to events."""

import numpy as np


def join_windows(
    scores: np.ndarray, start_s: np.ndarray, end_s: np.ndarray, names: tuple[str, ...], thresholds: list[float]
) -> list[dict]:
    """
    Returns events in the order of their starts: label, `start_s`, `end_s` and the highest score. Windows above the
    threshold that overlap or touch are one event.

    Args:
        scores: (windows, labels)
        start_s: (windows,), ascending
        end_s: (windows,)
        thresholds: (labels,)
    """
    found = []
    for label, (name, threshold) in enumerate(zip(names, thresholds)):
        event = None
        for window in np.flatnonzero(scores[:, label] > threshold):
            start, end, score = float(start_s[window]), float(end_s[window]), float(scores[window, label])
            if event is None or start > event["end_s"]:
                event = {"label": name, "start_s": start, "end_s": end, "score": score}
                found.append(event)
            event |= {"end_s": end, "score": max(score, event["score"])}
    return sorted(found, key=lambda event: (event["start_s"], event["end_s"]))
