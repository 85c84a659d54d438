"""Describes clips by statistics of their log-mel features over time: a baseline that has no weights."""

import torch


def mean_and_deviation(log_mel: torch.Tensor) -> torch.Tensor:
    """
    Returns mean and standard deviation of each mel bin over time.

    Args:
        log_mel: (frames, mel), without padding; at least one frame

    Returns:
        (2 mel,): the means, then the deviations, those of the population: 0 for a single frame
    """
    return torch.cat((log_mel.mean(dim=0), log_mel.std(dim=0, correction=0)))


def log_mel_statistics(log_mel: torch.Tensor) -> torch.Tensor:
    """
    Returns `mean_and_deviation`, and the mean absolute difference between successive frames: (frames, mel) -> (3 mel,).

    The difference separates sounds that change fast from those that change slowly, where mean and deviation do not
    depend on the order of the frames. It is 0 for a single frame.
    """
    changes = log_mel.diff(dim=0).abs().sum(dim=0) / max(len(log_mel) - 1, 1)
    return torch.cat((mean_and_deviation(log_mel), changes))
