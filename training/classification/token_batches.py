"""Draws batches of a bounded number of tokens instead of a fixed number of clips."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from transformers import PretrainedConfig

from ..base.inference import PATCH_MODEL_TYPES
from ..data.dataset import ClipDataset
from ..errors import InputError
from .arguments import ClassificationTrainingArguments

STRATEGY = "token_budget"  # of train_sampling_strategy


class TokenBatches(torch.utils.data.Sampler):
    """
    Divides the clips of an epoch, each once and in random order, into batches of at most `budget` tokens.

    A shuffled epoch is one row of tokens. It is cut into parts of equal length, and a clip belongs to the part in which
    it begins: a batch holds less than a part and the longest clip together. So every epoch has the same number of
    batches, whatever its order is, and no batch is empty. Order and cuts depend on seed and epoch alone.

    Args:
        tokens: (clips,), tokens of each clip
        budget: most tokens of a batch
        seed: of the order
        epoch: the data set's tensor with the number of the epoch, which the training loop updates
        multiple: batches per step of the optimiser, over all processes: the number of batches is a multiple of it

    Raises:
        InputError: the budget is below two of the longest clips, or there are too few clips for a step.
    """

    batch_size = None  # Accelerate then gives whole batches to each process
    drop_last = False

    def __init__(self, tokens: list[int], budget: int, seed: int, epoch: torch.Tensor, multiple: int = 1):
        self.tokens = np.asarray(tokens)
        self.seed, self.epoch = seed, epoch
        longest, total = int(self.tokens.max()), int(self.tokens.sum())
        if budget < 2 * longest:
            raise InputError(
                f"tokens_per_batch: must be at least {2 * longest}, twice the longest clip's tokens, got {budget}"
            )
        batches = math.ceil(total / (budget - longest))
        self.num_batches = math.ceil(batches / multiple) * multiple
        if total / self.num_batches < longest:  # else a part might hold no clip's beginning
            raise InputError(
                f"gradient_accumulation_steps: {len(self.tokens)} training clips are too few for {multiple} batches a "
                "step; lower it, take fewer processes, or set train_sampling_strategy to random"
            )

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, int(self.epoch))).permutation(len(self.tokens))
        ends = self.tokens[order].cumsum()
        parts = (ends - self.tokens[order]) * self.num_batches // ends[-1]  # in integers: no rounding moves a cut
        cuts = np.searchsorted(parts, np.arange(1, self.num_batches))  # the parts of the order rise
        return (batch.tolist() for batch in np.split(order, cuts))


def make_token_batches(
    dataset: ClipDataset, config: PretrainedConfig, arguments: ClassificationTrainingArguments, seed: int
) -> TokenBatches:
    """
    Returns the batches of `tokens_per_batch`, with lengths from the headers of the files.

    Raises:
        InputError: no budget, a model without tokens, or a budget that does not fit the clips.
    """
    if arguments.tokens_per_batch is None:
        raise InputError(f"tokens_per_batch: train_sampling_strategy {STRATEGY} needs it; set it, such as 2000")
    if config.model_type not in PATCH_MODEL_TYPES:
        raise InputError(f"train_sampling_strategy: a {config.model_type} model has no tokens; set random")
    multiple = arguments.world_size * arguments.gradient_accumulation_steps
    tokens = clip_tokens(dataset, config)
    return TokenBatches(tokens, arguments.tokens_per_batch, seed, dataset.epoch, multiple)


def clip_tokens(dataset: ClipDataset, config: PretrainedConfig) -> list[int]:
    """Returns the tokens of each clip, prefix and patches, without reading audio."""
    frames = [dataset.feature_extractor.num_frames(samples) for samples in dataset.num_samples()]
    if config.attention_over_padding:
        frames = [config.max_length] * len(frames)
    rows = config.grid_shape[0]
    return [config.num_prefix_tokens + rows * config.num_columns(min(count, config.max_length)) for count in frames]
