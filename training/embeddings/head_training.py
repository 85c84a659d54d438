"""
Trains the heads of a probe on stored features, each with the same grid of learning rates and weight decays, seeds,
batch size, patience and limit of epochs; the same metric on the validation clips chooses.
"""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from modeling_dual_ssast.classifier_dual_ssast import classification_loss, probabilities_of_logits

from ..base.ridge import metric_of
from ..data.dataset import mean_over_windows
from ..data.labels import LabelSet
from ..errors import InputError
from .arguments import ProbeArguments
from .heads import Head
from .stored_features import Stored

logger = logging.get_logger(__name__)


def head_rows(
    head: Head,
    data: Mapping[str, Stored],
    labels: Mapping[str, np.ndarray],
    label_set: LabelSet,
    arguments: ProbeArguments,
    device: torch.device | str = "cpu",
) -> list[dict]:
    """
    Returns a row per seed, with the learning rate and weight decay of the best validation score; of equal ones, the
    first. `scores` are those of the test clips, (clips, labels): probabilities or numbers; `weights` are the head's.

    Raises:
        InputError: the head diverges with every learning rate, or the validation clips have no score.
    """
    name, rows = head.method.name, []
    grid = list(itertools.product(arguments.learning_rates, arguments.weight_decays))
    for seed in range(arguments.seed, arguments.seed + arguments.num_seeds):
        tried = [
            fit(head, data, labels, label_set, pair, seed, arguments, device)
            for pair in tqdm(grid, desc=f"{name}, seed {seed}", leave=False)
        ]
        diverged = sorted({rate for (rate, _), row in zip(grid, tried) if row is None})
        if not any(tried):
            raise InputError(f"learning_rates: the {name} head diverges with each of {diverged}; set lower ones")
        if diverged:
            logger.warning(f"the {name} head of seed {seed} diverges with the learning rates {diverged}")
        rows.append(max(filter(None, tried), key=lambda row: row["validation"]))
    return rows


def fit(
    head: Head,
    data: Mapping[str, Stored],
    labels: Mapping[str, np.ndarray],
    label_set: LabelSet,
    rates: tuple[float, float],
    seed: int,
    arguments: ProbeArguments,
    device: torch.device | str = "cpu",
) -> dict | None:
    """
    Trains a head with one learning rate and weight decay; returns its validation and test scores at the best epoch, or
    `None` if it diverges: if an output is not finite.
    """
    learning_rate, decay = rates
    score, generator = score_function(label_set), torch.Generator().manual_seed(seed)
    targets = torch.from_numpy(labels["train"]).to(device)
    begin(head, seed, generator, device)
    optimizer = torch.optim.AdamW(parameter_groups(head, decay), lr=learning_rate)
    micro, best = data["train"].most_clips, {"validation": -np.inf}
    for epoch in range(arguments.num_epochs):
        head.train()
        order = torch.randperm(len(data["train"]), generator=generator)
        for batch in order.split(arguments.batch_size):
            optimizer.zero_grad()
            for part in batch.split(micro):  # as many clips as memory holds: the gradients add up
                outputs = logits_of(head, data["train"], part.numpy(), device)
                loss = classification_loss(outputs, targets[part.to(device)], label_set.problem_type)
                (loss * (len(part) / len(batch))).backward()
            optimizer.step()
        found = {split: outputs_of(head, data[split], device) for split in ("validation", "test")}
        if not all(np.isfinite(values).all() for values in found.values()):
            return None  # the highest of NaN scores would be class 0
        validation = score(found["validation"], labels["validation"])
        if not np.isfinite(validation):
            name = metric_of(label_set.problem_type)[0]
            raise InputError(f"validation_split: the {name} of its clips is {validation}; name other clips")
        if validation > best["validation"]:
            best = {
                "method": head.method.name, "setting": setting_of(rates, arguments), "seed": seed, "epoch": epoch + 1,
                "validation": validation, "test": score(found["test"], labels["test"]),
                "scores": scores_of(found["test"], label_set), "weights": head.weights(),
            }  # fmt: skip
        if epoch + 1 - best["epoch"] >= arguments.patience:
            break
    return best


def begin(head: Head, seed: int, generator: torch.Generator, device):
    """Gives a head its initial weights: of a linear layer small random ones, else those of the model."""
    head.start(seed, device)
    if head.method.name == "linear":
        layer = head.first_layer
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.01)
            layer.bias.zero_()


def parameter_groups(head: Head, decay: float) -> list[dict]:
    """Returns the weights that decay, and those that do not: biases, norms, and the weights of layers."""
    decayed, others = [], []
    for parameter in head.parameters():
        (decayed if parameter.ndim > 1 else others).append(parameter)
    return [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def setting_of(rates: tuple[float, float], arguments: ProbeArguments) -> str:
    """Returns learning rate and, if one was searched, weight decay in words."""
    text = f"learning rate {rates[0]:g}"
    return text if arguments.weight_decays == [0.0] else f"{text}, weight decay {rates[1]:g}"


def logits_of(head: Head, stored: Stored, clips: np.ndarray, device) -> torch.Tensor:
    """Returns the logits of some clips: (clips, labels), the means over their windows."""
    inputs, mask, counts = stored.batch(clips, device)
    logits = head(inputs, mask)
    return logits if max(counts) == 1 else mean_over_windows(logits, torch.tensor(counts))


@torch.no_grad()
def outputs_of(head: Head, stored: Stored, device) -> np.ndarray:
    """Returns the logits of all clips: (clips, labels)"""
    head.eval()
    parts = torch.arange(len(stored)).split(stored.most_clips)
    return torch.cat([logits_of(head, stored, part.numpy(), device) for part in parts]).cpu().numpy()


def scores_of(outputs: np.ndarray, label_set: LabelSet) -> np.ndarray:
    """Returns the probabilities, or numbers, of the logits of a head: both (clips, labels)"""
    return probabilities_of_logits(torch.from_numpy(outputs), label_set.problem_type).numpy()


def score_function(label_set: LabelSet) -> Callable[[np.ndarray, np.ndarray], float]:
    """Returns a function: outputs (clips, labels) and labels -> metric of this kind of problem, higher is better."""
    metric = metric_of(label_set.problem_type)[1]
    eye = np.eye(len(label_set.names))

    def score(outputs: np.ndarray, labels: np.ndarray) -> float:
        targets = eye[labels] if label_set.is_single else labels.reshape(outputs.shape)
        return metric(targets, outputs)

    return score
