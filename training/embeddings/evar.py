"""
Evaluates frozen features by the rules of EVAR (Niizumi et al.; github.com/nttcslab/eval-audio-repr), to the letter.

The rules are those of its `lineareval.py`, run for three seeds, and of the classifier that it downloads. Their defaults
are `EVAR` in arguments.py; what no option can change stands here.
"""

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset
from tqdm.auto import tqdm

from ..base.arguments import ModelArguments
from ..base.loading import compute_statistics
from ..data.arguments import FrozenDataArguments
from ..data.audio import as_stored
from ..data.dataset import ClipDataset
from ..errors import InputError
from ..inference.inputs import Examples
from ..recipe import default_of, options
from .arguments import ProbeArguments

STATISTICS_CLIPS = 5000
VALIDATION_FRACTION = 0.1  # of the training clips, where a data set has no validation split
VALIDATION_DRAWS = 100  # until the validation clips have every class of the training clips
WEIGHT_DECAY = 1e-8
TEST_BATCH = 256


class FixedClips(ClipDataset):
    """
    Returns clips of one length: longer ones are cut, shorter ones end in zeros.

    Args:
        num_samples: of every clip; `None`: clips as they are
        at_random: cut at a random place, the same in every pass; else at the beginning
    """

    def __init__(self, *args, num_samples: int | None, at_random: bool, **kwargs):
        super().__init__(*args, **kwargs)
        self.length, self.at_random = num_samples, at_random

    def waveform(self, index: int) -> np.ndarray:
        waveform = super().waveform(index)
        if self.length is None:
            return waveform
        spare = len(waveform) - self.length
        start = int(np.random.default_rng((self.seed, index)).integers(spare)) if self.at_random and spare > 0 else 0
        waveform = waveform[start : start + self.length]
        return np.pad(waveform, (0, self.length - len(waveform)))

    def source(self) -> "ClipDataset | FixedSource":
        """Returns the clips for `encode_clips`, which reads the recordings of a `ClipDataset` as they are."""
        return self if self.length is None else FixedSource(self)

    def description(self) -> str:
        """Returns what is encoded of each clip, in words: stored clips of another kind are refused by it."""
        if self.length is None:
            return "whole clips"
        place = f"at random places of seed {self.seed}" if self.at_random else "from the beginning"
        return f"{self.length} samples {place}"


class FixedSource(Examples):
    """Gives `FixedClips` as they are cut and padded, as recordings in memory."""

    def __init__(self, clips: FixedClips):
        super().__init__(clips)
        self.clips, self.feature_extractor, self.windows = clips, clips.feature_extractor, clips.windows

    def __getitem__(self, index: int) -> dict:
        waveform = self.clips.waveform(index)
        return as_stored({"array": waveform, "sampling_rate": self.feature_extractor.sampling_rate})


def fixed_length(model_arguments: ModelArguments, extractor, clip_s: float | None) -> int | None:
    """
    Returns the samples of `clip_s` seconds, and sets `max_length` of recipe and feature extractor to its frames: the
    positions of a transformer are resized to the clips, like in EVAR.
    """
    if clip_s is None:
        return None
    num_samples = int(clip_s * extractor.sampling_rate)
    extractor.max_length = None  # would cut what is counted
    extractor.max_length = len(extractor.spectrograms([torch.zeros(num_samples)])[0])
    model_arguments.max_length = extractor.max_length
    return num_samples


def check_data(arguments: FrozenDataArguments, splits: Collection[str]):
    """
    Checks the options of the data.

    Args:
        splits: those that the data set has

    Raises:
        InputError: an option that the protocol does not obey.
    """
    for name in ("window_s", "hop_s"):
        if getattr(arguments, name) is not None:
            raise InputError(f"{name}: the protocol evar has no windows, but clip_s; leave it out")
    by_folds = bool(arguments.fold_column)
    found = [split for split in ("validation", "test") if by_folds and split in splits]
    if found:
        raise InputError(
            f"fold_column: the folds divide the training clips, and there is a {found[0]} split; leave it out, or name "
            "all clips as the training split"
        )
    defaults = {option.name: default_of(option) for option in options(FrozenDataArguments)}
    share = arguments.validation_fraction
    if "validation" not in splits and share not in (VALIDATION_FRACTION, defaults["validation_fraction"]):
        raise InputError(
            f"validation_fraction: is {VALIDATION_FRACTION} in the protocol evar, got {share}; leave it out, or name a "
            "validation split"
        )
    if by_folds and arguments.test_fraction != defaults["test_fraction"]:
        raise InputError("test_fraction: has no effect with fold_column, whose folds are the test clips; leave it out")


def own_statistics(clips: FixedClips, extractor):
    """Returns the feature extractor with the mean and deviation of the first training clips, if it normalises."""
    if not getattr(extractor, "do_normalize", False):
        return extractor
    count = min(len(clips), STATISTICS_CLIPS)
    return compute_statistics(map(clips.waveform, range(count)), count, extractor)


@dataclass
class Outcome:
    """
    Holds the result of a linear layer.

    epoch: the one whose weights count, from 1; validation, test: its scores
    outputs: of the test clips, (clips, labels)
    """

    epoch: int
    validation: float
    test: float
    outputs: np.ndarray


def score(outputs: np.ndarray, targets: np.ndarray, is_single: bool) -> float:
    """Returns the accuracy, or the mean average precision over all labels; both arrays are (clips, labels)."""
    if is_single:
        return float((outputs.argmax(axis=1) == targets.argmax(axis=1)).mean())
    return float(average_precision_score(targets, outputs, average=None).mean())


def train_layers(folds: list[dict[str, tuple[np.ndarray, np.ndarray]]], is_single: bool, arguments: ProbeArguments):
    """
    Trains a linear layer per seed and fold.

    Args:
        folds: split -> features (clips, size) and targets (clips, labels), 0 or 1; `train`, `test` and, if the data set
            has it, `validation`
        is_single: one label per clip

    Returns:
        seed -> an `Outcome` per fold

    Raises:
        InputError: no draw of validation clips has every class.
    """
    found = {}
    for seed in tqdm(range(arguments.seed, arguments.seed + arguments.num_seeds), desc="linear", leave=False):
        # EVAR seeds once per run: the folds use one stream of random numbers.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            rng = np.random.RandomState(seed)
            found[seed] = [train_layer(fold, is_single, arguments, rng) for fold in folds]
    return found


def train_layer(fold: dict, is_single: bool, arguments: ProbeArguments, rng: np.random.RandomState) -> Outcome:
    """Trains the layer of one fold; see `train_layers`."""
    features, targets = fold["train"]
    scaler = StandardScaler().fit(features)
    splits = {split: (scaler.transform(values), labels) for split, (values, labels) in fold.items()}
    if "validation" not in splits:
        splits["train"], splits["validation"] = draw_validation(*splits["train"], rng)
    data = {
        split: TensorDataset(*(torch.from_numpy(np.asarray(part, np.float32)) for part in parts))
        for split, parts in splits.items()
    }
    layer = torch.nn.Linear(features.shape[1], targets.shape[1])
    optimizer = torch.optim.Adam(layer.parameters(), lr=arguments.learning_rates[0], weight_decay=WEIGHT_DECAY)
    size = min(arguments.batch_size, len(features))
    training = batches(data["train"], size, shuffled=True)
    validation = batches(data["validation"], size, shuffled=False)
    best_epoch, best, kept = 0, 0.0, {}
    for epoch in range(1, arguments.num_epochs + 1):
        for inputs, wanted in training:
            optimizer.zero_grad()
            loss_of(layer(inputs), wanted, is_single).backward()
            optimizer.step()
        found = score(outputs_of(layer, validation), splits["validation"][1], is_single)
        if found >= best:  # of equal epochs the last one counts
            best_epoch, best, kept = epoch, found, copy.deepcopy(layer.state_dict())
        if epoch - best_epoch >= arguments.patience:
            break
    layer.load_state_dict(kept)
    outputs = outputs_of(layer, batches(data["test"], TEST_BATCH, shuffled=False))
    return Outcome(best_epoch, best, score(outputs, splits["test"][1], is_single), outputs)


def loss_of(logits: torch.Tensor, targets: torch.Tensor, is_single: bool) -> torch.Tensor:
    """Returns the loss (): the mean over clips and classes, which is the cross-entropy divided by their number."""
    if is_single:
        return -(targets * logits.log_softmax(dim=-1)).mean()
    return torch.nn.functional.binary_cross_entropy(logits.sigmoid(), targets)


@torch.no_grad()
def outputs_of(layer: torch.nn.Linear, parts) -> np.ndarray:
    """Returns the sigmoids of all clips, from which EVAR takes the classes too: (clips, labels)"""
    return torch.cat([layer(inputs).sigmoid() for inputs, _ in parts]).numpy()


def batches(data: TensorDataset, size: int, shuffled: bool) -> DataLoader:
    """
    Returns batches of rows. A `DataLoader`, also for validation and test clips: each pass of one draws from torch's
    random numbers, and EVAR's next epoch or fold depends on it.
    """
    sampler = RandomSampler(data) if shuffled else SequentialSampler(data)
    return DataLoader(data, batch_size=None, sampler=BatchSampler(sampler, size, drop_last=False))


def draw_validation(features: np.ndarray, targets: np.ndarray, rng: np.random.RandomState) -> tuple[tuple, tuple]:
    """
    Sets aside a tenth of the training clips, drawn until it has every class.

    Raises:
        InputError: none of many draws has.
    """
    present = targets.any(axis=0)
    for _ in range(VALIDATION_DRAWS):
        train, held, train_targets, held_targets = train_test_split(
            features, targets, test_size=VALIDATION_FRACTION, random_state=rng
        )
        if (held_targets.any(axis=0) == present).all():
            return (train, train_targets), (held, held_targets)
    raise InputError(
        f"validation_split: {VALIDATION_FRACTION:.0%} of the {len(features)} training clips never have all "
        f"{present.sum()} classes, as EVAR's protocol wants; name a validation split"
    )


def rows_of(found: dict[int, list[Outcome]], rate: float) -> Iterator[dict]:
    """Yields a row of the probe's table per seed: means over the folds."""
    for seed, outcomes in found.items():
        yield {
            "method": "linear", "setting": f"learning rate {rate:g}", "seed": seed,
            "epoch": round(float(np.mean([outcome.epoch for outcome in outcomes])), 1),
            "validation": float(np.mean([outcome.validation for outcome in outcomes])),
            "test": float(np.mean([outcome.test for outcome in outcomes])),
        }  # fmt: skip
