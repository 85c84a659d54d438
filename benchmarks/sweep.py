"""
Times a sweep over all layers and poolings of a 12-layer model, with and without its nested score, and encoding the
clips once per configuration.

Uses the embedded recordings, random weights of the tiny size and 2 threads. The second side is measured for a few
configurations and extrapolated: all of them would take hours.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import soundfile
import torch
from model_sizes import TINY
from report import print_table, versions
from transformers.utils import logging

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForPreTraining, DualSSASTModel

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data" / "voice_prompts"
SPLITS = ("train", "validation")
BATCH = 16
THREADS = 2  # of both sides
MEASURED = (
    {"fusion_layers": [-1], "pooling": ["mean"]},
    {"fusion_layers": [6, 12], "pooling": ["mean", "max"]},
    {"fusion_layers": [3, 9], "pooling": ["mean", "max", "min"], "pooling_combination": "concat"},
    {"fusion_layers": [6, 12], "readout": "frames", "pooling": ["mean", "max"]},
)
GOAL = 50


def save_encoder(folder: Path):
    torch.manual_seed(0)
    extractor = DualSSASTFeatureExtractor(max_length=384)
    DualSSASTForPreTraining(DualSSASTConfig(**TINY, max_length=384)).save_pretrained(folder)
    extractor.save_pretrained(folder)


def sweep(encoder: Path, output: Path, nested: bool) -> dict:
    """
    Runs the task and returns its `results.json`; its seconds begin after the imports. `cpu_seconds` are those of the
    whole process on all cores, which other programs on the machine change little.
    """
    words = ["--model_name_or_path", encoder, "--output_dir", output, "--label_column", "language", "--task", "sweep"]
    words += ["--nested", str(nested).lower()]
    words += ["--train_file", DATA / "train.csv", "--validation_file", DATA / "validation.csv"]
    words += ["--test_file", DATA / "test.csv"]  # not used by a sweep
    recipe = output.with_suffix(".yaml")
    recipe.write_text("task: sweep\n")
    command = [sys.executable, "train_hf.py", recipe, *words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    words = [str(word) for word in command]
    subprocess.run(words, cwd=ROOT, env=os.environ | threads, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads((output / "results.json").read_text()) | {"cpu_seconds": used}


@torch.no_grad()
def encode(encoder: Path, files: list[Path], settings: dict) -> float:
    """Returns the seconds from files to the fused vectors of one configuration."""
    extractor = DualSSASTFeatureExtractor.from_pretrained(encoder)
    model = DualSSASTModel.from_pretrained(encoder, **settings).eval()
    last_layer = max(model.config.fused_layers)
    started = time.perf_counter()
    for start in range(0, len(files), BATCH):
        clips = [soundfile.read(path, dtype="float32")[0].repeat(2) for path in files[start : start + BATCH]]
        model(**extractor(clips, sampling_rate=16000, return_tensors="pt"), last_layer=last_layer)
    return time.perf_counter() - started


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(THREADS)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    files = [DATA / row["file_name"] for split in SPLITS for row in csv.DictReader((DATA / f"{split}.csv").open())]
    with tempfile.TemporaryDirectory() as folder:
        encoder = Path(folder, "encoder")
        save_encoder(encoder)
        plain = sweep(encoder, Path(folder, "plain"), nested=False)
        results = sweep(encoder, Path(folder, "nested"), nested=True)
        once = [encode(encoder, files, settings) for settings in MEASURED]
    seconds, count = results["seconds"], results["candidates"]
    total = seconds["encoding"] + seconds["scoring"]
    each = statistics.mean(once) * count + seconds["scoring"]
    print(versions())
    print(f"{results['clips']} clips, {count} configurations, {results['folds']} folds")
    print_table(
        ["side", "seconds"],
        [
            ["sweep: one encoding", f"{seconds['encoding']:.1f}"],
            ["sweep: all scores", f"{plain['seconds']['scoring']:.1f}"],
            ["sweep: all scores, nested too", f"{seconds['scoring']:.1f}"],
            ["encoding for one configuration", f"{statistics.mean(once):.1f} ({min(once):.1f}-{max(once):.1f})"],
            ["encoding for each, and all scores", f"{each:.0f}"],
        ],
    )
    cpu = [found["cpu_seconds"] for found in (plain, results)]
    text = f"{cpu[0]:.0f} s of CPU without the nested score, {cpu[1]:.0f} with it, {cpu[1] / cpu[0]:.2f} times as many"
    print(f"whole process: {text}")
    print(f"the sweep is {each / total:.0f} times as fast (goal: {GOAL})")


if __name__ == "__main__":
    main()
