"""Runs what benchmarks/fusion_results.py reports: small encoders, sweeps, fine-tunings and probes of every data set."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from training_runs import ROOT, train_here

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTModel

RECIPE = ROOT / "recipes" / "fusion_results.yaml"
ENCODER = {  # a tiny one: five seeds of everything are to fit into an hour on one core
    "patch_size": [64, 8], "frequency_stride": 64, "time_stride": 8, "hidden_size": 96, "num_hidden_layers": 6,
    "num_attention_heads": 3, "intermediate_size": 384,
}  # fmt: skip
MAX_LENGTH = 512  # frames of 10 ms: the longest clip is 5 s
BASELINE = "last layer, mean"
BEST = "best of the sweep"
RANDOM = "random weights"
# The budget of every head of a probe.
PROBE_OPTIONS = {"learning_rates": [1e-3, 3e-3, 1e-2], "num_epochs": 100, "patience": 10, "batch_size": 64}


@dataclass(frozen=True)
class Clips:
    """
    Names the clips of a data set.

    folder: has `train.csv`, `validation.csv` and `test.csv`
    epochs: of a fine-tuning
    own_epochs: of the encoder that is trained on it from random weights
    """

    name: str
    folder: Path
    label_column: str
    epochs: int = 0
    own_epochs: int = 0
    fold_column: str | None = None

    def words(self) -> list:
        """Returns the words of the command line that name the clips."""
        words = ["--label_column", self.label_column]
        for split in ("train", "validation", "test"):
            words += [f"--{split}_file", self.folder / f"{split}.csv"]
        return words


OWN = {
    clips.name: clips
    for clips in (
        Clips("voice_prompts", ROOT / "data" / "voice_prompts", "language", epochs=3, own_epochs=12),
        Clips("instruments", ROOT / "data" / "instruments", "category", epochs=8, own_epochs=30, fold_column="fold"),
    )
}


def configurations(num_layers: int) -> dict[str, list]:
    """Returns name -> words of the command line, the baseline first; `BEST` takes its words from the sweep."""
    dual = dual_layers(num_layers)
    published = ["--pooling", "mean", "max", "--fusion_norm", "shared_twice"]
    every = ["--fusion_layers", *range(num_layers + 1), "--fusion", "gated"]
    return {
        BASELINE: ["--fusion_layers", -1, "--pooling", "mean"],
        "dual, published: mean + max, normed twice": [*dual, *published],
        "dual, mean + max, normed once": [*dual, "--pooling", "mean", "max"],
        "dual, mean": [*dual, "--pooling", "mean"],
        "dual, max": [*dual, "--pooling", "max"],
        "dual, min": [*dual, "--pooling", "min"],
        "dual, mean and std side by side": [*dual, "--pooling", "mean", "std", "--pooling_combination", "concat"],
        "dual, attention": [*dual, "--pooling", "attention"],
        "all layers, gated, mean": [*every, "--pooling", "mean"],
        "all layers, gated, attention": [*every, "--pooling", "attention"],
        "dual, prototypes": [*dual, "--classifier", "prototypes"],
        BEST: [],
    }


def probes(num_layers: int) -> dict[str, tuple[list, dict[str, str]]]:
    """
    Returns name of a probe -> its words, and its methods with the configurations that they are; each encodes the clips
    once. A probe's attention over all layers weighs them by a softmax, the fine-tuned one by gates.
    """
    dual, shown = dual_layers(num_layers), configurations(num_layers)
    last = {
        "linear": BASELINE,
        "attentive": "last layer, attention",
        "gated": "all layers, gated, mean",
        "multilayer_attentive": "all layers, weighted, attention",
    }
    once = {
        "linear": "dual, mean + max, normed once",
        "attentive": "dual, attention",
        "prototypes": "dual, prototypes",
    }
    linear = {
        "published": "dual, published: mean + max, normed twice",
        "mean": "dual, mean",
        "max": "dual, max",
        "min": "dual, min",
        "mean-std": "dual, mean and std side by side",
        "sweep": BEST,
    }
    words = {name: (shown[configuration], {"linear": configuration}) for name, configuration in linear.items()}
    once_words = [*dual, "--pooling", "mean", "max"]
    return {"last": (shown[BASELINE], last), "once": (once_words, once), **words}


def dual_layers(num_layers: int) -> list:
    """Returns the words that choose the published layers, in proportion to the depth."""
    return ["--fusion_layers", *DualSSASTConfig(num_hidden_layers=num_layers).fused_layers]


def depth(encoder: Path) -> int:
    """Returns the number of layers of a saved encoder."""
    return json.loads((encoder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]


def train_encoder(clips: Clips, folder: Path):
    """Trains an encoder on a data set from random weights, with the mean over its last layer."""
    words = [*clips.words(), "--config_overrides", json.dumps(ENCODER), "--max_length", MAX_LENGTH]
    words += ["--compute_statistics", "true", "--fusion_layers", -1, "--pooling", "mean"]
    train_here(folder, RECIPE, *words, "--num_train_epochs", clips.own_epochs)


def save_random(trained: Path, folder: Path):
    """Saves an encoder with the configuration and features of a trained one and random weights of seed 0."""
    if (folder / "config.json").exists():
        return
    torch.manual_seed(0)
    DualSSASTModel(DualSSASTConfig.from_pretrained(trained)).save_pretrained(folder)
    DualSSASTFeatureExtractor.from_pretrained(trained).save_pretrained(folder)


def sweep(clips: Clips, encoder: Path, folder: Path):
    """Sweeps the encoder on the training and validation clips."""
    words = [*clips.words(), "--model_name_or_path", encoder, "--dataloader_num_workers", 0]
    words += ["--fold_column", clips.fold_column] if clips.fold_column else []
    train_here(folder, ROOT / "recipes" / "sweep.yaml", *words)


def fine_tune(clips: Clips, encoder: Path, fusion: list, seed: int, folder: Path):
    """Fine-tunes all weights; the seed is that of the new head and of the order of the clips."""
    words = [*clips.words(), "--model_name_or_path", encoder, *fusion, "--seed", seed]
    train_here(folder, RECIPE, *words, "--num_train_epochs", clips.epochs)


def probe(clips: Clips, encoder: Path, fusion: list, methods: dict[str, str], num_seeds: int, folder: Path):
    """Trains heads on the frozen encoder, each with every seed and the same budget."""
    words = [*clips.words(), "--model_name_or_path", encoder, *fusion, "--methods", *methods, "--num_seeds", num_seeds]
    for name, value in PROBE_OPTIONS.items():
        words += [f"--{name}", *(value if isinstance(value, list) else [value])]
    train_here(folder, ROOT / "recipes" / "probe.yaml", *words, "--dataloader_num_workers", 0)
