"""One page about a classification run, in a file that needs no network: figures, tables, the hardest clips to hear."""

import base64
import io
import os
from collections import Counter
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
import soundfile
import soxr
import torch
from sklearn.metrics import average_precision_score
from transformers.utils import logging

from modeling_dual_ssast.classifier_dual_ssast import labels_of_probabilities

from ..data.dataset import ClipDataset
from ..data.labels import LabelSet

matplotlib.use("Agg")
from matplotlib import pyplot

logger = logging.get_logger(__name__)

TEMPLATE = Path(__file__).with_name("report.html")
SPLITS = ("train", "validation", "test")
PICTURES = {
    "learning_curves.png": "learning curves",
    "confusion_matrix.png": "confusion matrix",
    "calibration.png": "calibration",
    "layer_weights.png": "weights of the layers",
}
SHOWN_S = 10.0  # of a clip: picture and audio
# MP3: every browser plays it, and 10 s at 16 kHz take 72 KiB at its best quality (16-bit WAV: 313, FLAC: 131).
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


def write_report(
    folder: Path,
    trainer,
    datasets: dict[str, ClipDataset],
    labels: LabelSet,
    outcomes: dict,
    results: dict,
    scores: np.ndarray | None,
    dataset_name: str,
):
    """
    Writes `report.html` into the folder that holds the run's pictures already.

    Args:
        outcomes: split -> Trainer's PredictionOutput; the clips of the last one are shown
        results: what `results.json` holds
        scores: (clips, labels) of the last split, probabilities or numbers; `None` without outcomes
        dataset_name: what to call the data set
    """
    split = list(outcomes)[-1] if outcomes else None
    targets = np.asarray(outcomes[split].label_ids) if split else None
    pictures = {name: _data_uri(folder / name) for name in PICTURES if (folder / name).exists()}
    if split and labels.problem_type == "regression":
        pictures["scatter"] = _scatter(targets, scores[:, 0], split)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,  # file names and labels may hold anything
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    model_name = next(part["model_name_or_path"] for part in results["recipe"].values() if "model_name_or_path" in part)
    page = environment.get_template(TEMPLATE.name).render(
        name=Path(trainer.args.output_dir).resolve().name,
        model_name=Path(model_name).name if model_name and Path(model_name).exists() else model_name,
        dataset_name=dataset_name,
        split=split,
        splits=[name for name in SPLITS if name in datasets],
        results=results,
        arguments=trainer.args,
        config=trainer.model.config,
        extractor=trainer.processing_class,
        num_parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        pictures=pictures,
        captions=PICTURES,
        classes=_class_table(datasets, labels, results, targets, scores, split),
        clips=_hardest_clips(trainer, datasets[split], labels, outcomes[split], scores, results) if split else [],
        shown_s=SHOWN_S,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def clip_losses(logits: np.ndarray, targets: np.ndarray, problem_type: str) -> np.ndarray:
    """Cross-entropy, binary cross-entropy (mean over labels) or squared error of every clip: (clips,)"""
    logits, targets = torch.from_numpy(np.asarray(logits, dtype=np.float32)), torch.from_numpy(np.asarray(targets))
    if problem_type == "single_label_classification":
        return torch.nn.functional.cross_entropy(logits, targets.long(), reduction="none").numpy()
    if problem_type == "multi_label_classification":
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
        return losses.mean(dim=1).numpy()
    return (logits[:, 0] - targets.float()).square().numpy()


def public_clip_name(name: str, folder: str) -> str:
    """The name of a clip below the folder of its data set; of one that lies elsewhere, only that of the file."""
    relative = os.path.relpath(name, folder)
    return os.path.basename(name) if relative.startswith("..") else relative


def _hardest_clips(
    trainer, dataset: ClipDataset, labels: LabelSet, outcome, scores: np.ndarray, results: dict
) -> list[dict]:
    """What the page shows of the clips with the highest loss, the hardest first."""
    losses = clip_losses(outcome.predictions, outcome.label_ids, labels.problem_type)
    names, data = dataset.names(), next(part for part in results["recipe"].values() if "dataset_name" in part)
    folder = data["dataset_name"] or os.path.dirname(data.get("train_file") or data["test_file"]) or "."
    thresholds = trainer.model.config.decision_thresholds
    predictions = labels_of_probabilities(torch.from_numpy(scores), labels.names, labels.problem_type, thresholds)
    clips = []
    for index in np.argsort(-losses, kind="stable")[: trainer.args.report_clips]:
        clip = {"name": public_clip_name(names[index], folder), "loss": float(losses[index])}
        clip |= _answers(outcome.label_ids[index], predictions[index], scores[index], labels)
        try:
            clip |= _seen_and_heard(dataset.waveform(int(index)), dataset.feature_extractor)
        except Exception as error:  # one clip less on a page is no reason to lose a run
            logger.warning(f"report.html shows no picture of {names[index]} ({error})")
        clips.append(clip)
    return clips


def _answers(target, prediction, scores: np.ndarray, labels: LabelSet) -> dict:
    """Label and prediction as lists of (text, probability), of a number without the latter. scores: (labels,)"""
    if labels.problem_type == "regression":
        return {"label": [(_number(target, 4), None)], "prediction": [(_number(prediction, 4), None)], "wrong": None}
    is_single = labels.problem_type == "single_label_classification"
    right = [labels.names[i] for i in ([int(target)] if is_single else np.flatnonzero(target))]
    chosen = [prediction] if is_single else prediction
    label, prediction = ([(name, float(scores[labels.label2id[name]])) for name in names] for names in (right, chosen))
    return {"label": label, "prediction": prediction, "wrong": right != chosen}


def _seen_and_heard(waveform: np.ndarray, extractor) -> dict:
    """The beginning of a clip as a spectrogram and as audio, and its seconds, all and shown. waveform: (samples,)"""
    rate = extractor.sampling_rate
    shown = waveform[: round(SHOWN_S * rate)]
    log_mel = extractor.log_mel([torch.from_numpy(shown)])[0].T.numpy()  # (mel, frames)
    low, high = np.quantile(log_mel, (0.01, 0.995))
    image = io.BytesIO()
    pyplot.imsave(image, log_mel, cmap="magma", origin="lower", vmin=low, vmax=high, format="png")
    audio, audio_rate = io.BytesIO(), next((mp3 for mp3 in MP3_RATES if mp3 >= rate), MP3_RATES[-1])
    shown = soxr.resample(shown, rate, audio_rate) if audio_rate != rate else shown
    # Quality 0 of LAME's variable bit rate is its best.
    soundfile.write(
        audio, np.clip(shown, -1, 1), audio_rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.0
    )
    return {
        "picture": _data_uri(image.getvalue(), "image/png"),
        "audio": _data_uri(audio.getvalue(), "audio/mpeg"),
        "seconds": len(waveform) / rate,
        "shown_s": min(len(waveform) / rate, SHOWN_S),
    }


def _class_table(
    datasets: dict[str, ClipDataset], labels: LabelSet, results: dict, targets, scores, split: str | None
) -> dict:
    """Column names, and per class its name, its clips in every split, and its figures on the last; none for numbers."""
    if labels.problem_type == "regression":
        return {"counts": [], "figures": [], "rows": []}
    counts = {}
    # A stream does not know how many clips of a class it has.
    for name, dataset in ((name, datasets[name]) for name in SPLITS if hasattr(datasets.get(name), "examples")):
        values = dataset.examples["label"]
        counts[name] = Counter(part for value in values for part in (value if isinstance(value, list) else [value]))
    if split is None:
        figures = {}
    elif labels.problem_type == "single_label_classification":
        keys = {"precision": "precision", "recall": "recall", "F1": "f1-score"}
        figures = {title: [results["per_class"][c][key] for c in labels.names] for title, key in keys.items()}
    else:
        figures = {
            "average precision": [
                average_precision_score(targets[:, i], scores[:, i]) if targets[:, i].any() else None
                for i in range(len(labels.names))
            ]
        }
    rows = [
        {
            "name": name,
            "counts": [counts[split][name] for split in counts],
            "figures": [values[i] for values in figures.values()],
        }
        for i, name in enumerate(labels.names)
    ]
    return {"counts": list(counts), "figures": list(figures), "rows": rows}


def _scatter(targets: np.ndarray, predictions: np.ndarray, split: str) -> str:
    """Predictions against targets, (clips,) each, as the address of a picture."""
    figure, axes = pyplot.subplots(figsize=(5, 5), layout="constrained")
    ends = [min(targets.min(), predictions.min()), max(targets.max(), predictions.max())]
    axes.plot(ends, ends, color="grey", linewidth=1, linestyle="--")
    axes.scatter(targets, predictions, s=14, alpha=0.6)
    axes.set(title=f"{split} split", xlabel="target", ylabel="prediction", aspect="equal")
    axes.grid(alpha=0.3)
    image = io.BytesIO()
    figure.savefig(image, dpi=120, format="png")
    pyplot.close(figure)
    return _data_uri(image.getvalue(), "image/png")


def _data_uri(content: bytes | Path, kind: str = "image/png") -> str:
    content = content.read_bytes() if isinstance(content, Path) else content
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _number(value, digits: int = 3) -> str:
    """A figure of the page; a dash for what is not defined."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"
