"""Runs what benchmarks/fusion_results.py reports: small encoders, sweeps, fine-tunings and probes of every data set."""

import json
from dataclasses import dataclass
from pathlib import Path

from training_runs import ROOT, train_here

from modeling_dual_ssast import DualSSASTConfig

RECIPE = ROOT / "recipes" / "fusion_results.yaml"
ENCODER = {  # a tiny one: five seeds of everything are to fit into an hour on one core
    "patch_size": [64, 8], "frequency_stride": 64, "time_stride": 8, "hidden_size": 96, "num_hidden_layers": 6,
    "num_attention_heads": 3, "intermediate_size": 384,
}  # fmt: skip
MAX_LENGTH = 512  # frames of 10 ms: the longest clip is 5 s
BASELINE = "last layer, mean"
BEST = "best of the sweep"


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
        files = [[f"--{split}_file", self.folder / f"{split}.csv"] for split in ("train", "validation", "test")]
        return [*sum(files, []), "--label_column", self.label_column]


OWN = {
    clips.name: clips
    for clips in (
        Clips("voice_prompts", ROOT / "data" / "voice_prompts", "language", epochs=3, own_epochs=12),
        Clips("instruments", ROOT / "data" / "instruments", "category", epochs=8, own_epochs=30, fold_column="fold"),
    )
}


def configurations(num_layers: int) -> dict[str, list]:
    """Returns name -> words of the command line, the baseline first; `BEST` takes its words from the sweep."""
    dual = ["--fusion_layers", *DualSSASTConfig(num_hidden_layers=num_layers).fused_layers]
    every = ["--fusion_layers", *range(num_layers + 1), "--fusion", "gated"]
    return {
        BASELINE: ["--fusion_layers", -1, "--pooling", "mean"],
        "dual, published: mean + max, normed twice": [
            *dual,
            "--pooling",
            "mean",
            "max",
            "--fusion_norm",
            "shared_twice",
        ],
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


def depth(encoder: Path) -> int:
    """Returns the number of layers of a saved encoder."""
    return json.loads((encoder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]


def train_encoder(clips: Clips, folder: Path):
    """Trains an encoder on a data set from random weights, with the mean over its last layer."""
    words = [*clips.words(), "--config_overrides", json.dumps(ENCODER), "--max_length", MAX_LENGTH]
    words += ["--compute_statistics", "true", "--fusion_layers", -1, "--pooling", "mean"]
    train_here(folder, RECIPE, *words, "--num_train_epochs", clips.own_epochs)


def sweep(clips: Clips, encoder: Path, folder: Path):
    """Sweeps the encoder on the training and validation clips."""
    words = [*clips.words(), "--model_name_or_path", encoder, "--dataloader_num_workers", 0]
    words += ["--fold_column", clips.fold_column] if clips.fold_column else []
    train_here(folder, ROOT / "recipes" / "sweep.yaml", *words)


def fine_tune(clips: Clips, encoder: Path, fusion: list, seed: int, folder: Path):
    """Fine-tunes all weights; the seed is that of the new head and of the order of the clips."""
    words = [*clips.words(), "--model_name_or_path", encoder, *fusion, "--seed", seed]
    train_here(folder, RECIPE, *words, "--num_train_epochs", clips.epochs)
