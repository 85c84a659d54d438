"""Examples as the data loader serves them: decoded, augmented, featurised in its workers, and joined into batches."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.utils import logging

from .audio import audio_name, read_audio
from .augmentation import (
    MIXUP_ALPHA,
    AugmentationArguments,
    augment_features,
    clip_generator,
    mix_waveforms,
    random_crop,
)
from .labels import LabelSet
from .sources import clip_names

logger = logging.get_logger(__name__)


class ClipDataset(torch.utils.data.Dataset):
    """
    One split: index -> {"input_values": (frames, mel), "labels": class index, (labels,) vector, or number}.

    Args:
        examples: a `datasets.Dataset` with the columns `audio` and `label`
        feature_extractor: of any encoder of the project
        labels: encodes the label column
        augmentation: for the training split; `None` reads every clip from its beginning, unchanged
        seed: of the augmentation
    """

    def __init__(
        self,
        examples,
        feature_extractor,
        labels: LabelSet,
        augmentation: AugmentationArguments | None = None,
        seed: int = 0,
    ):
        self.examples = examples
        self.feature_extractor = feature_extractor
        self.labels = labels
        self.augmentation = augmentation
        self.seed = seed
        # Shared memory: the workers of the data loader see the epoch that the training loop sets.
        self.epoch = torch.zeros(1, dtype=torch.long).share_memory_()

    def __len__(self) -> int:
        return len(self.examples)

    def names(self) -> list[str]:
        """What to call each clip."""
        return clip_names(self.examples)

    def label(self, index: int):
        example = self.examples[index]
        return self.labels.encode(example["label"], audio_name(example["audio"]))

    def check_labels(self):
        """Raises `InputError` for the first label outside the label set. By column: a row would read its audio too."""
        for label, name in zip(self.examples["label"], self.names()):
            self.labels.encode(label, name)

    def __getitem__(self, index: int) -> dict:
        extractor, augmentation = self.feature_extractor, self.augmentation
        label = self.label(index)
        if augmentation is None:
            return {"input_values": self._features(self._first_part(index)), "labels": label}
        rng = clip_generator(self.seed, int(self.epoch), index)
        waveform = self._random_clip(index, rng)
        if augmentation.mixup_rate:
            waveform, label = self._mix(waveform, self._soft(label), rng)
        features = augment_features(self._features(waveform), augmentation, extractor.padding_value, rng)
        return {"input_values": features, "labels": label}

    def _features(self, waveform: np.ndarray) -> torch.Tensor:
        batch = self.feature_extractor(
            [torch.from_numpy(waveform)], self.feature_extractor.sampling_rate, padding=False
        )
        return batch["input_values"][0]  # (frames, mel)

    def _first_part(self, index: int) -> np.ndarray:
        """What the model can hear of a clip, from its beginning."""
        extractor = self.feature_extractor
        waveform = read_audio(self.examples[index]["audio"], extractor.sampling_rate)
        if extractor.max_samples is not None and len(waveform) > extractor.max_samples:
            logger.warning_once(f"Clips longer than {extractor.max_seconds:.2f} s are evaluated on their beginning.")
        return waveform[: extractor.max_samples]

    def _random_clip(self, index: int, rng: np.random.Generator) -> np.ndarray:
        extractor = self.feature_extractor
        waveform = read_audio(self.examples[index]["audio"], extractor.sampling_rate)
        return random_crop(waveform, extractor.max_samples, rng)

    def _mix(self, waveform: np.ndarray, label, rng: np.random.Generator):
        if rng.random() >= self.augmentation.mixup_rate:
            return waveform, label
        partner = int(rng.integers(len(self)))
        weight = np.float32(rng.beta(MIXUP_ALPHA, MIXUP_ALPHA))
        mixed = mix_waveforms(waveform, self._random_clip(partner, rng), weight)
        return mixed, weight * label + (1 - weight) * self._soft(self.label(partner))

    def _soft(self, label):
        """A class index as a one-hot vector: with mixup all labels of an epoch are of one kind."""
        return np.eye(len(self.labels.names), dtype=np.float32)[label] if isinstance(label, int) else label


class Collator:
    """Joins examples into a batch padded to its longest clip."""

    def __init__(self, feature_extractor):
        self.feature_extractor = feature_extractor

    def __call__(self, examples: Sequence[dict]) -> dict[str, torch.Tensor]:
        batch = self.feature_extractor.pad(examples, padding="longest", return_attention_mask=True, return_tensors="pt")
        labels = torch.as_tensor(np.asarray([example["labels"] for example in examples]))
        return {**batch, "labels": labels}


class EpochCallback(TrainerCallback):
    """Tells the training data which epoch it is, also when an epoch is resumed in the middle."""

    def __init__(self, dataset: ClipDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.epoch.fill_(int(state.epoch + 1e-6))
