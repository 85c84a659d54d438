"""Draws training clips in an order that resumption repeats, and computes weights that balance the classes."""

from collections.abc import Iterator

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from transformers import PretrainedConfig

from ..data.dataset import ClipDataset
from ..data.labels import LabelSet
from ..errors import InputError
from .arguments import ClassificationTrainingArguments, TuningArguments
from .token_batches import STRATEGY, TokenBatches, make_token_batches

BLUR = 0.05
POOL_STEPS = 50


class ClipSampler(torch.utils.data.Sampler):
    """
    Draws the clips of an epoch. The order depends on seed and epoch alone: it is the same in every process, with any
    number of workers, and after a resumption.

    Args:
        num_clips: clips of the data set, and of an epoch
        epoch: the data set's tensor with the number of the epoch, which the training loop updates
        weights: (clips,), to draw with replacement; `None`: each clip once
        lengths: (clips,), so that clips of about the same length share a batch; `None`: batches are random
        group_size: clips per step of the optimiser, over all processes
    """

    def __init__(
        self,
        num_clips: int,
        seed: int,
        epoch: torch.Tensor,
        weights: np.ndarray | None = None,
        lengths: list[int] | None = None,
        group_size: int = 1,
    ):
        self.num_clips = num_clips
        self.seed = seed
        self.epoch = epoch
        self.weights = weights
        self.lengths = lengths
        self.group_size = group_size

    def __len__(self) -> int:
        return self.num_clips

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, int(self.epoch)))
        if self.weights is None:
            drawn = rng.permutation(self.num_clips)
        else:
            drawn = rng.choice(self.num_clips, self.num_clips, p=self.weights / self.weights.sum())
        return iter((drawn if self.lengths is None else self._grouped(drawn, rng)).tolist())

    def _grouped(self, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """
        Returns the drawn clips (clips,) with similar lengths in each step, and the steps in random order.

        Transformers sorts a few large groups: a small data set then has 10 % of padding, and the longest clips come
        first. Here all clips are sorted (50 steps at a time in a large data set) by lengths that are changed at random
        by up to 5 %, so that batches differ between epochs.
        """
        blurred = np.asarray(self.lengths)[drawn] * rng.uniform(1 - BLUR, 1 + BLUR, len(drawn))
        pools = np.arange(len(drawn)) // (POOL_STEPS * self.group_size)
        drawn = drawn[np.lexsort((-blurred, pools))]
        steps = [drawn[first : first + self.group_size] for first in range(0, len(drawn), self.group_size)]
        last = [steps.pop()] if len(steps[-1]) < self.group_size else []  # elsewhere it would shift all others
        return np.concatenate([steps[index] for index in rng.permutation(len(steps))] + last)


def make_sampler(
    tuning: TuningArguments,
    labels: LabelSet,
    dataset: ClipDataset,
    arguments: ClassificationTrainingArguments,
    config: PretrainedConfig,
) -> ClipSampler | TokenBatches | None:
    """
    Returns the sampler of the recipe; `None` for Transformers' own. `config` is that of the model.

    Raises:
        InputError: balanced classes for a regression or together with another strategy, `tokens_per_batch` without
            its strategy, or what `make_token_batches` raises.
    """
    balances, strategy = tuning.sampler == "balanced", arguments.train_sampling_strategy
    if balances and labels.is_regression:
        raise InputError("sampler: balanced needs classes, and a regression has none; leave it out")
    if balances and strategy not in ("random", "group_by_length"):
        raise InputError(f"sampler: balanced draws by chance, but train_sampling_strategy is {strategy}; set random")
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    if strategy == STRATEGY:
        return make_token_batches(dataset, config, arguments, seed)
    if arguments.tokens_per_batch is not None:
        raise InputError(f"tokens_per_batch: has no effect unless train_sampling_strategy is {STRATEGY}; set it")
    if not balances and strategy != "group_by_length":
        return None
    weights = clip_weights(dataset.label_matrix()) if balances else None
    lengths = dataset.num_samples() if strategy == "group_by_length" else None
    group_size = arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    return ClipSampler(len(dataset), seed, dataset.epoch, weights, lengths, group_size)


def class_weights(matrix: np.ndarray) -> np.ndarray:
    """
    Returns scikit-learn's balanced class weights, clips / (classes * clips of the class), for one label per clip; 1 for
    a class without clips. (clips, labels) -> float32 (labels,)
    """
    classes = matrix.argmax(axis=1)
    present = np.unique(classes)
    weights = np.ones(matrix.shape[1], dtype=np.float32)
    weights[present] = compute_class_weight("balanced", classes=present, y=classes)
    return weights


def positive_weights(matrix: np.ndarray) -> np.ndarray:
    """
    Returns the weight of each label's positive clips, negatives / positives: the ratio of its two balanced class
    weights; 1 for a label that no clip or every clip has. (clips, labels) -> float32 (labels,)
    """
    positives = matrix.sum(axis=0)
    negatives = len(matrix) - positives
    is_divided = (positives > 0) & (negatives > 0)
    return np.where(is_divided, negatives / np.maximum(positives, 1), 1.0).astype(np.float32)


def clip_weights(matrix: np.ndarray) -> np.ndarray:
    """
    Returns sampling weights that balance the classes: the sum over a clip's labels of 1 / clips with the label (PSLA,
    Gong et al., TASLP 2021). Clips without a label form a class too. (clips, labels) -> float64 (clips,)
    """
    weights = np.zeros(len(matrix))
    for has_label in [*np.transpose(matrix), ~np.any(matrix, axis=1)]:  # a label at a time: the matrix may be large
        weights += has_label / max(np.sum(has_label), 1)
    return weights
