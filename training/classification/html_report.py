"""Writes `report.html`, a page about a run that needs no network: figures, tables, and the hardest clips as audio."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from modeling_dual_ssast.classifier_dual_ssast import labels_of_probabilities

from ..base.page import (
    audio_uri,
    number,
    picture_uris,
    public_clip_name,
    public_model_name,
    spectrogram_uri,
    write_page,
)
from ..data.labels import LabelSet
from ..errors import one_line
from .finished_run import FinishedRun
from .metrics import average_precision

logger = logging.get_logger(__name__)

TEMPLATE = Path(__file__).with_name("report.html")
SPLITS = ("train", "validation", "test")
PICTURES = {
    "predicted_numbers.png": "predictions against targets",
    "learning_curves.png": "learning curves",
    "confusion_matrix.png": "confusion matrix",
    "calibration.png": "calibration",
    "layer_weights.png": "weights of the layers",
}
SHOWN_S = 10.0  # seconds of a clip in its picture and its audio


def write_report(folder: Path, run: FinishedRun, results: dict, scores: np.ndarray | None):
    """
    Writes the page into the folder that holds the run's figures already.

    Args:
        results: the content of `results.json`
        scores: (clips, labels) of the reported split, probabilities or numbers; `None` without a held-out split
    """
    split, targets = run.split, np.asarray(run.outcomes[run.split].label_ids) if run.split else None
    model_name = next(part["model_name_or_path"] for part in run.recipe.values() if "model_name_or_path" in part)
    write_page(
        folder / "report.html",
        TEMPLATE,
        name=run.folder.resolve().name,
        model_name=public_model_name(model_name),
        dataset_name=run.data_name,
        split=split,
        splits=[name for name in SPLITS if name in run.datasets],
        results=results,
        arguments=run.arguments,
        config=run.config,
        extractor=run.extractor,
        num_parameters=run.num_parameters,
        pictures=picture_uris(folder, PICTURES),
        captions=PICTURES,
        unit="clips",
        classes=_class_table(run, results, targets, scores),
        clips=_hardest_clips(run, scores) if split else [],
        shown_s=SHOWN_S,
    )


def clip_losses(logits: np.ndarray, targets: np.ndarray, problem_type: str) -> np.ndarray:
    """
    Returns the cross-entropy, binary cross-entropy (mean over labels) or squared error of every clip: (clips,)

    logits: (clips, labels); targets: (clips,) class indices or numbers, or (clips, labels)
    """
    logits, targets = torch.from_numpy(np.asarray(logits, dtype=np.float32)), torch.from_numpy(np.asarray(targets))
    if problem_type == "single_label_classification":
        return torch.nn.functional.cross_entropy(logits, targets.long(), reduction="none").numpy()
    if problem_type == "multi_label_classification":
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
        return losses.mean(dim=1).numpy()
    return (logits[:, 0] - targets.float()).square().numpy()


def _hardest_clips(run: FinishedRun, scores: np.ndarray) -> list[dict]:
    """Returns the page's entries of the clips with the highest loss, the hardest first. scores: (clips, labels)"""
    dataset, labels, outcome, data = run.datasets[run.split], run.labels, run.outcomes[run.split], run.data
    losses = clip_losses(outcome.predictions, outcome.label_ids, labels.problem_type)
    names, thresholds = dataset.names(), run.config.decision_thresholds
    folder = data["dataset_name"] or os.path.dirname(data.get("train_file") or data["test_file"]) or "."
    predictions = labels_of_probabilities(torch.from_numpy(scores), labels.names, labels.problem_type, thresholds)
    clips = []
    for index in np.argsort(-losses, kind="stable")[: run.arguments.report_clips]:
        clip = {"name": public_clip_name(names[index], folder), "loss": float(losses[index])}
        clip |= _answers(outcome.label_ids[index], predictions[index], scores[index], labels)
        try:
            clip |= _picture_and_sound(dataset.waveform(int(index)), dataset.feature_extractor)
        except Exception as error:  # a missing clip on the page must not stop the run
            logger.warning(one_line(f"report.html shows no picture of {names[index]} ({error})"))
        clips.append(clip)
    return clips


def _answers(target, prediction, scores: np.ndarray, labels: LabelSet) -> dict:
    """Returns label and prediction as lists of (text, probability); numbers have none. scores: (labels,)"""
    if labels.is_regression:
        return {"label": [(number(target, 4), None)], "prediction": [(number(prediction, 4), None)], "wrong": None}
    is_single = labels.is_single
    right = [labels.names[i] for i in ([int(target)] if is_single else np.flatnonzero(target))]
    chosen = [prediction] if is_single else prediction
    label, prediction = ([(name, float(scores[labels.label2id[name]])) for name in names] for names in (right, chosen))
    return {"label": label, "prediction": prediction, "wrong": right != chosen}


def _picture_and_sound(waveform: np.ndarray, extractor) -> dict:
    """Returns the first seconds of a clip as spectrogram and audio, and its length. waveform: (samples,)"""
    rate = extractor.sampling_rate
    shown = waveform[: round(SHOWN_S * rate)]
    return {
        "picture": spectrogram_uri(shown, extractor),
        "audio": audio_uri(shown, rate),
        "seconds": len(waveform) / rate,
        "shown_s": min(len(waveform) / rate, SHOWN_S),
    }


def _class_table(run: FinishedRun, results: dict, targets, scores) -> dict:
    """Returns column names, and per class its name, its clips in every split, and its scores on the reported one."""
    labels, datasets = run.labels, run.datasets
    if labels.is_regression:
        return {"counts": [], "figures": [], "rows": []}
    counts = {}
    # The classes of a stream's clips are unknown until they are read.
    for name, dataset in ((name, datasets[name]) for name in SPLITS if hasattr(datasets.get(name), "examples")):
        values = dataset.examples["label"]
        counts[name] = Counter(part for value in values for part in (value if isinstance(value, list) else [value]))
    if run.split is None:
        figures = {}
    elif labels.is_single:
        keys = {"precision": "precision", "recall": "recall", "F1": "f1-score"}
        figures = {title: [results["per_class"][c][key] for c in labels.names] for title, key in keys.items()}
    else:
        figures = {
            "average precision": [average_precision(scores[:, i], targets[:, i]) for i in range(len(labels.names))]
        }
    rows = [
        {
            "name": name,
            "counts": [counts[split][name] for split in counts],
            "figures": [values[i] for values in figures.values()],
        }
        for i, name in enumerate(labels.names)
    ]
    return {"counts": [f"{split} clips" for split in counts], "figures": list(figures), "rows": rows}
