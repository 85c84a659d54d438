"""Runs what benchmarks/fusion_results.py reports: small encoders, sweeps, fine-tunings and probes of every data set."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from training_runs import ROOT, train_here

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTModel

RECIPE, SWEEP_RECIPE = ROOT / "recipes" / "fusion_results.yaml", ROOT / "recipes" / "sweep.yaml"
ENCODER = {  # a tiny one: five seeds of everything are to fit into an hour on one core
    "patch_size": [64, 8], "frequency_stride": 64, "time_stride": 8, "hidden_size": 96, "num_hidden_layers": 6,
    "num_attention_heads": 3, "intermediate_size": 384,
}  # fmt: skip
MAX_LENGTH = 512  # frames of 10 ms: the longest clip is 5 s
BASELINE, BEST = "last-mean", "sweep"
RANDOM = "random"
WEIGHTS = "model.safetensors"
# The budget of every head of a probe.
PROBE_OPTIONS = {"learning_rates": [3e-3, 1e-2], "num_epochs": 100, "patience": 30, "batch_size": 32}


@dataclass(frozen=True)
class Clips:
    """
    Names the clips of a data set.

    folder: has `train.csv`, `validation.csv` and `test.csv`
    epochs: of a fine-tuning
    own_epochs: of the encoder that is trained on it from random weights; 0: none is
    group_column: what the folds of a sweep do not divide, and what a comparison draws
    options: words of the command line that its tables need
    """

    name: str
    folder: Path
    label_column: str
    epochs: int = 0
    own_epochs: int = 0
    fold_column: str | None = None
    group_column: str | None = None
    options: tuple[str, ...] = ()

    def words(self, *splits: str) -> list:
        """Returns the words of the command line that name the clips of some splits, or of all."""
        words = ["--label_column", self.label_column, *self.options]
        words += ["--group_column", self.group_column] if self.group_column else []
        for split in splits or ("train", "validation", "test"):
            words += [f"--{split}_file", self.folder / f"{split}.csv"]
        return words


OWN = {
    clips.name: clips
    for clips in (
        Clips("voice_prompts", ROOT / "data" / "voice_prompts", "language", epochs=2, own_epochs=12),
        Clips("instruments", ROOT / "data" / "instruments", "category", epochs=6, own_epochs=30, fold_column="fold"),
    )
}


@dataclass(frozen=True)
class Configuration:
    """Describes a fusion with poolings and head; `words` of the command line choose it, `None`: the sweep's best."""

    title: str
    words: list | None


def configurations(num_layers: int) -> dict[str, Configuration]:
    """Returns name -> configuration, the baseline first."""
    dual = ["--fusion_layers", *dual_layers(num_layers), "--pooling"]
    every = ["--fusion_layers", *range(num_layers + 1), "--fusion", "gated", "--pooling"]
    norm, side_by_side = ["--fusion_norm", "shared_twice"], ["--pooling_combination", "concat"]
    prototypes = [*dual, "mean", "--classifier", "prototypes"]  # they do not pool
    return {
        BASELINE: Configuration("last layer, mean", ["--fusion_layers", -1, "--pooling", "mean"]),
        "published": Configuration("dual, mean + max, normed twice (published)", [*dual, "mean", "max", *norm]),
        "dual-mean-max": Configuration("dual, mean + max, normed once", [*dual, "mean", "max"]),
        "dual-mean": Configuration("dual, mean", [*dual, "mean"]),
        "dual-max": Configuration("dual, max", [*dual, "max"]),
        "dual-min": Configuration("dual, min", [*dual, "min"]),
        "dual-mean-std": Configuration("dual, mean and std side by side", [*dual, "mean", "std", *side_by_side]),
        "dual-attention": Configuration("dual, attention", [*dual, "attention"]),
        "gated-mean": Configuration("all layers, gated, mean", [*every, "mean"]),
        "gated-attention": Configuration("all layers, gated, attention", [*every, "attention"]),
        "prototypes": Configuration("dual, prototypes", prototypes),
        BEST: Configuration("best of the sweep", None),
    }


def probes(num_layers: int) -> dict[str, tuple[Configuration, dict[str, str]]]:
    """
    Returns name of a probe -> its configuration, and method -> title of what it trains; each encodes the clips once,
    and the baseline is the first. A probe's attention over all layers weighs them by a softmax, without gates.
    """
    found = {
        name: (configuration, {"linear": configuration.title})
        for name, configuration in configurations(num_layers).items()
        if name not in ("dual-attention", "gated-mean", "gated-attention", "prototypes")  # methods of other probes
    }
    found[BASELINE][1].update(
        attentive="last layer, attention",
        gated="all layers, gated, mean",
        multilayer_attentive="all layers, weighted, attention",
    )
    found["dual-mean-max"][1].update(attentive="dual, attention", prototypes="dual, prototypes")
    return found


def dual_layers(num_layers: int) -> list[int]:
    """Returns the published layers, in proportion to the depth."""
    return DualSSASTConfig(num_hidden_layers=num_layers).fused_layers


def depth(encoder: Path) -> int:
    """Returns the number of layers of a saved encoder."""
    return json.loads((encoder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]


def train_encoder(clips: Clips, folder: Path):
    """
    Trains an encoder on a data set from random weights, with the mean over its last layer, and saves it without its
    classifier: every fine-tuning begins with a new one.
    """
    if (folder / WEIGHTS).exists():
        return
    words = [*clips.words(), "--config_overrides", json.dumps(ENCODER), "--max_length", MAX_LENGTH]
    words += ["--compute_statistics", "true", "--fusion_layers", -1, "--pooling", "mean"]
    trained = folder.with_name(f"{folder.name}-classifier")
    words += ["--num_train_epochs", clips.own_epochs, "--per_device_train_batch_size", 16]
    train_here(trained, RECIPE, *words)
    save_encoder(DualSSASTModel.from_pretrained(trained), trained, folder)


def save_encoder(encoder: DualSSASTModel, origin: Path, folder: Path):
    """Saves an encoder with the features of another saved model; its weights come last."""
    DualSSASTFeatureExtractor.from_pretrained(origin).save_pretrained(folder)
    encoder.save_pretrained(folder)


def save_random(trained: Path, folder: Path, seed: int = 0):
    """Saves an encoder with the configuration and features of a trained one and random weights."""
    if (folder / WEIGHTS).exists():
        return
    torch.manual_seed(seed)
    save_encoder(DualSSASTModel(DualSSASTConfig.from_pretrained(trained)), trained, folder)


def sweep(clips: Clips, encoder: Path, folder: Path):
    """Sweeps the encoder on the training and validation clips."""
    train_here(folder, SWEEP_RECIPE, *sweep_words(clips, encoder), "--max_clips", 350)


def sweep_words(clips: Clips, encoder: Path) -> list:
    """Returns the words of a sweep of the training and validation clips; folds keep what belongs together."""
    # The test clips, which have no folds, are not named.
    words = ["--model_name_or_path", encoder, *clips.words("train", "validation"), "--test_fraction", 0]
    words += ["--fold_column", clips.fold_column] if clips.fold_column else []
    return [*words, "--dataloader_num_workers", 0]


def words_of(configuration: Configuration, sweep_folder: Path) -> list:
    return ["--from_sweep", sweep_folder] if configuration.words is None else configuration.words


def fine_tune(clips: Clips, encoder: Path, fusion: list, seed: int, folder: Path):
    """Fine-tunes all weights; the seed is that of the new head and of the order of the clips."""
    words = [*clips.words(), "--model_name_or_path", encoder, *fusion, "--seed", seed]
    train_here(folder, RECIPE, *words, "--num_train_epochs", clips.epochs)


def probe(clips: Clips, encoder: Path, fusion: list, methods: Iterable[str], num_seeds: int, folder: Path):
    """Trains heads on the frozen encoder, each with every seed and the same budget."""
    words = [*clips.words(), "--model_name_or_path", encoder, *fusion, "--methods", *methods, "--num_seeds", num_seeds]
    for name, value in PROBE_OPTIONS.items():
        words += [f"--{name}", *(value if isinstance(value, list) else [value])]
    train_here(folder, ROOT / "recipes" / "probe.yaml", *words, "--dataloader_num_workers", 0)
