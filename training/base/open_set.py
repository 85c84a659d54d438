"""
Scores how unlike a model's training clips a clip is: energy (Liu et al., *Energy-based Out-of-distribution Detection*,
NeurIPS 2020), and the Mahalanobis distance to the nearest class (Lee et al., *A Simple Unified Framework for Detecting
Out-of-Distribution Samples and Adversarial Attacks*, NeurIPS 2018).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import cached_file

from modeling_dual_ssast.fusion_dual_ssast import masked_mean

from ..errors import InputError, one_line
from ..recipe import Arguments, described

FILE = "open_set.safetensors"  # beside the weights
MIN_CLIPS = 20  # validation clips, of which one is beyond the threshold that keeps 95 %
UNKNOWN = "unknown"  # prediction for a clip that is like no class
SCORES = ("distance", "energy")  # higher: less like the training clips
NUM_QUANTILES = 1001


@dataclass
class RejectionArguments(Arguments):
    """Holds the options of the rejection; a program takes them among its own."""

    reject: float | None = described(
        None, "Share of known clips to keep, such as 0.95: those that are less like the training clips are unknown.",
        above=0, below=1,
    )  # fmt: skip
    reject_by: str = described("distance", "Score by which --reject decides.", choices=SCORES)

    def __post_init__(self):
        super().__post_init__()
        if self.reject is None and self.reject_by != "distance":
            raise InputError("reject_by: has no effect without --reject; add it, or leave this out")


class EmbeddingHook:
    """
    Holds what a classifier's head receives, batch after batch: (batch, size), normalised by `normalise`. Of the tokens
    that prototypes receive it holds the mean.
    """

    def __init__(self, model: torch.nn.Module):
        self._batches: list[torch.Tensor] = []
        self._handle = model.classifier.register_forward_pre_hook(self._hold)

    @torch.compiler.disable
    def _hold(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]):
        vectors, *mask = inputs
        if mask:
            vectors = masked_mean(vectors.mean(dim=2), *mask)  # (batch, frames, tokens of a frame, size)
        self._batches.append(normalise(vectors.detach()))

    def take(self) -> torch.Tensor:
        """Returns the embeddings since the last call."""
        batches, self._batches[:] = list(self._batches), []
        return torch.cat(batches)

    def remove(self):
        self._handle.remove()


def normalise(embeddings: torch.Tensor) -> torch.Tensor:
    """
    Gives each embedding (..., size) the mean 0 and the variance 1, like the LayerNorm that most heads begin with: its
    length says more about loudness than about the class.
    """
    return torch.nn.functional.layer_norm(embeddings.float(), embeddings.shape[-1:])


@dataclass
class OpenSet:
    """
    Holds the statistics of the training embeddings, and the scores of the validation clips.

    The classes share a covariance: variances along its first principal directions, and one for the rest (Tipping and
    Bishop, *Probabilistic Principal Component Analysis*, 1999).

    Args:
        means: (classes, size)
        directions: (directions, size), orthonormal
        variances: (directions + 1,), the last one for the rest
        quantiles: score -> (NUM_QUANTILES,), ascending; the scores of the validation clips
    """

    means: torch.Tensor
    directions: torch.Tensor
    variances: torch.Tensor
    quantiles: dict[str, torch.Tensor]

    def distances(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Returns the Mahalanobis distance of normalised embeddings (rows, size) to the nearest class mean: (rows,)"""
        means, directions, variances = (
            value.to(embeddings.device, torch.float32) for value in (self.means, self.directions, self.variances)
        )
        nearest = None
        for mean in means:  # one by one: hundreds of classes would take hundreds of times the memory
            offsets = embeddings.float() - mean
            along = offsets @ directions.T
            rest = offsets - along @ directions
            squares = (along.square() / variances[:-1]).sum(dim=1) + rest.square().sum(dim=1) / variances[-1]
            nearest = squares if nearest is None else torch.minimum(nearest, squares)
        return nearest.sqrt()

    def threshold(self, score: str, kept: float) -> float:
        """Returns the score that a share of the validation clips does not exceed."""
        return float(self.quantiles[score][int(np.ceil(round(kept * (NUM_QUANTILES - 1), 6)))])

    def save(self, model: torch.nn.Module, folder: Path):
        """Writes the statistics beside the weights of their model."""
        tensors = {"means": self.means, "directions": self.directions, "variances": self.variances, **self.quantiles}
        tensors = {name: value.to(torch.float32).contiguous() for name, value in tensors.items()}
        save_file(tensors, folder / FILE, {"classifier": fingerprint(model)})

    @classmethod
    def load(cls, name: str, model: torch.nn.Module, revision: str = "main") -> "OpenSet":
        """
        Reads the statistics of a model before its number format is changed.

        Args:
            name: folder or Hub name

        Raises:
            InputError: there are none, they are damaged, or belong to other weights.
        """
        path = cached_file(
            name, FILE, revision=revision, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        if path is None:
            raise InputError(
                f"{name}: has no {FILE}, which --reject needs; fine-tune it with train_hf.py, with one label per clip "
                f"and at least {MIN_CLIPS} validation clips"
            )
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no dict
                owner = (file.metadata() or {}).get("classifier")
            found = cls(*(tensors.pop(key) for key in ("means", "directions", "variances")), tensors)
            _check_shapes(found, model.config.num_labels)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({one_line(error)}); fine-tune the model again") from error
        if owner != fingerprint(model):
            raise InputError(f"{path}: belongs to other weights than those beside it; fine-tune the model again")
        return found


def _check_shapes(found: OpenSet, num_labels: int):
    num_classes, size = found.means.shape
    num_directions = len(found.directions)
    expected = {"directions": (num_directions, size), "variances": (num_directions + 1,)}
    shapes = {name: tuple(getattr(found, name).shape) for name in expected}
    shapes |= {name: tuple(found.quantiles[name].shape) for name in SCORES}
    expected |= dict.fromkeys(SCORES, (NUM_QUANTILES,))
    if shapes != expected or num_classes != num_labels:
        raise ValueError(f"shapes are {shapes}, expected {expected}")
    tensors = (found.means, found.directions, found.variances, *found.quantiles.values())
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors) or bool((found.variances <= 0).any()):
        raise ValueError("numbers that are not finite")


def fingerprint(model: torch.nn.Module) -> str:
    """Returns a short text that changes with the head's weights, which every training changes."""
    digest = hashlib.sha256()
    for _, value in sorted(model.classifier.state_dict().items()):
        digest.update(value.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def energies(logits: torch.Tensor) -> torch.Tensor:
    """Returns the energy of logits (rows, labels), at the temperature 1 of the paper: (rows,)"""
    return -logits.float().logsumexp(dim=1)


class Rejection:
    """
    Rejects clips and windows that are like no class.

    Args:
        open_set: of the model
        score: one of `SCORES`
        kept: share of the validation clips that the threshold keeps
    """

    def __init__(self, open_set: OpenSet, score: str, kept: float):
        self.open_set = open_set
        self.score = score
        self.threshold = open_set.threshold(score, kept)

    def scores(self, logits: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """Returns the score of each row: (rows, labels), (rows,) -> (rows,)"""
        return distances if self.score == "distance" else energies(torch.from_numpy(logits)).numpy()


def choose_rejection(arguments: RejectionArguments, name: str, model: torch.nn.Module) -> Rejection | None:
    """
    Returns what rejects unknown clips, if the options ask for it. Called before the number format is changed.

    Args:
        name: folder or Hub name of the model, which has the statistics beside its weights

    Raises:
        InputError: as `OpenSet.load`, or the classes are no alternatives.
    """
    if arguments.reject is None:
        return None
    if model.config.problem_type not in (None, "single_label_classification"):
        raise InputError(
            f"reject: {name} is a {model.config.problem_type.replace('_', ' ')}, and a softmax alone needs "
            "it; leave it out"
        )
    return Rejection(OpenSet.load(name, model), arguments.reject_by, arguments.reject)
