"""Refuses what is not a number: weights, scores and embeddings that are NaN or infinite."""

import numpy as np

from hub.finite import non_finite_weights

from ..errors import InputError

# What is wrong with a clip whose scores or embedding are not finite, although the weights are.
OVERFLOW = "the model's numbers overflow on this recording; convert it to samples from -1 to 1, or remove it"


class NotFinite(InputError):
    """Scores or embeddings that are NaN or infinite. `problem` is the message without its remedy."""

    def __init__(self, problem: str, remedy: str):
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem


def check_weights_finite(name: str, model):
    """Raises `InputError` if a weight of a loaded model is NaN or infinite."""
    problem = non_finite_weights(model.state_dict())
    if problem:
        raise InputError(
            f"{name}: {problem}; its training diverged or the file is damaged: take an earlier checkpoint, or train "
            "anew with a lower learning_rate"
        )


def check_scores(values, what: str = "the model's scores", names: list[str] | None = None):
    """
    Raises `NotFinite` if a row of an array is not finite: the highest of NaN scores would be class 0.

    Args:
        values: (clips, ...)
        what: the noun of the numbers, for the message
        names: (clips,), for the message; `None`: the clip's number
    """
    values = np.asarray(values)
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    rows = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    first = f"number {rows[0] + 1}" if names is None else names[rows[0]]
    raise NotFinite(
        f"{what} of {len(rows)} of {len(values)} clips are not finite, the first one {first}",
        "check the recordings (python -m training.check), lower learning_rate, or leave out fp16",
    )
