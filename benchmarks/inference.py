"""
Measures predict_hf.py from the files to the table: `python benchmarks/inference.py`. Beside it stand the bare calls of
the network on features that are there already, the other stages, and a plain loop over Transformers' AST pipeline of
the same size. Weights are random: the time does not depend on them.
"""

import argparse
import csv
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
import torch
from clips import STEREO_RATE, at_rate, read_at, read_mono, stereo_clips
from model_sizes import AST_GRID, BASE, TINY
from report import can_measure_bfloat16, print_table, versions
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, pipeline
from transformers.utils import logging

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForAudioClassification

ROOT = Path(__file__).parent.parent
SIZES = {"base": BASE, "tiny": TINY}
DTYPES = ("float32", "bfloat16")
STAGES = ("decoding", "resampling", "features", "network")
RATE, BATCH = 16000, 8
# The second of two runs: the first one, on one file, imports what is imported late.
PROGRAM = """
import sys, time
import predict_hf
last = sys.argv.index("--inputs") + 2
assert predict_hf.main(sys.argv[1:last]) == 0
started = time.perf_counter()
assert predict_hf.main(sys.argv[1:]) == 0
print("seconds:", time.perf_counter() - started)
"""


def write_clips(folder: Path, num_clips: int) -> dict[str, list[Path]]:
    """Returns the embedded recordings, and clips of 10 s of them in 44.1 kHz stereo."""
    embedded = sorted((ROOT / "data").rglob("*.flac"))
    (folder / "stereo").mkdir()
    for index, samples in enumerate(stereo_clips(embedded[:50], num_clips, seconds=10)):
        soundfile.write(folder / "stereo" / f"{index:03}.wav", samples, STEREO_RATE)
    return {"embedded recordings": embedded, "44.1 kHz stereo": sorted((folder / "stereo").iterdir())}


def timed(work) -> tuple[float, object]:
    """Returns the seconds that `work` takes, and what it returns."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def stages(model: Path, files: list[Path], dtype: str) -> dict[str, float]:
    """Returns the seconds of each stage by itself, in one thread after the other; the network in batches by length."""
    extractor = DualSSASTFeatureExtractor.from_pretrained(model)
    network = DualSSASTForAudioClassification.from_pretrained(model).eval().to(getattr(torch, dtype))
    decoding, decoded = timed(lambda: [read_mono(file) for file in files])
    resampling, clips = timed(lambda: [at_rate(samples, rate, RATE) for samples, rate in decoded])
    clips = sorted((clip[: extractor.max_samples] for clip in clips), key=len)
    batches = [clips[first : first + BATCH] for first in range(0, len(clips), BATCH)]
    options = {"padding": "longest", "return_attention_mask": True, "return_tensors": "pt"}
    features, inputs = timed(lambda: [extractor(batch, RATE, **options) for batch in batches])
    with torch.inference_mode():
        network(**inputs[0])
        calls, _ = timed(lambda: [network(**batch).logits for batch in inputs])
    return dict(zip(STAGES, (decoding, resampling, features, calls)))


def predict(model: Path, files: list[Path], dtype: str, threads: int, output: Path) -> float:
    """Returns the seconds of predict_hf.py, loading of the model included, without Python's imports."""
    words = [model, "--dtype", dtype, "--threads", threads, "--batch_size", BATCH, "--output", output, "--overwrite"]
    command = [sys.executable, "-c", PROGRAM, *words, "--inputs", *files]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    process = subprocess.run(
        list(map(str, command)), check=True, capture_output=True, text=True, env=environment, cwd=ROOT
    )
    return float(process.stdout.rsplit("seconds: ", 1)[1])


def ast_loop(size: dict, files: list[Path]) -> float:
    """Returns the seconds of Transformers' pipeline, file by file."""
    model = ASTForAudioClassification(ASTConfig(**size, **AST_GRID))
    classifier = pipeline("audio-classification", model=model, feature_extractor=ASTFeatureExtractor())

    def classify(file: Path):
        return classifier({"raw": read_at(file, RATE), "sampling_rate": RATE})

    classify(files[0])
    return timed(lambda: list(map(classify, files)))[0]


def measure(size: str, model: Path, files: list[Path], dtypes: Sequence[str], threads: int) -> dict[str, dict]:
    """Returns, for each number format, the seconds of the AST loop, of the program, and of its stages by themselves."""
    loop = ast_loop(SIZES[size], files)
    return {
        dtype: {
            "loop": loop,
            "program": predict(model, files, dtype, threads, model.parent / f"{dtype}.csv"),
            **stages(model, files, dtype),
        }
        for dtype in dtypes
    }


def agreement(tables: list[Path]) -> str:
    """Compares two tables: the share of equal predictions and the largest difference of a probability."""
    one, other = ([list(row.values())[1:] for row in csv.DictReader(path.open())] for path in tables)
    same = np.mean([a[0] == b[0] for a, b in zip(one, other)])
    scores = [np.asarray([row[1:] for row in rows], dtype=float) for rows in (one, other)]
    return f"{same:.1%} of the predictions are equal, scores differ by up to {abs(scores[0] - scores[1]).max():.2g}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=100, help="clips of 44.1 kHz stereo")
    parser.add_argument("--limit", type=int, help="files of each kind; unset: all")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="passes, of which the medians are printed")
    parser.add_argument("--models", nargs="*", default=[], help="trained classifiers, for the agreement of the formats")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    print(versions())
    dtypes = DTYPES if can_measure_bfloat16() else DTYPES[:1]
    rows, remarks = [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for kind, files in write_clips(folder, arguments.clips).items():
            files = files[: arguments.limit]
            seconds = sum(soundfile.info(file).duration for file in files)
            for size, threads in itertools.product(arguments.sizes, arguments.threads):
                torch.set_num_threads(threads)
                torch.manual_seed(0)
                model = folder / size
                config = DualSSASTConfig(**SIZES[size], **AST_GRID, num_labels=10)
                DualSSASTForAudioClassification(config).save_pretrained(model)
                DualSSASTFeatureExtractor(max_length=1024).save_pretrained(model)
                passes = [measure(size, model, files, dtypes, threads) for _ in range(arguments.repeats)]
                for dtype in dtypes:
                    taken = {name: median(seen[dtype][name] for seen in passes) for name in passes[0][dtype]}
                    speeds = [f"{seconds / taken[name]:.0f}" for name in ("program", "network", "loop")]
                    reached = median(seen[dtype]["network"] / seen[dtype]["program"] for seen in passes)
                    alone = sum(taken[stage] for stage in STAGES)
                    shares = [f"{taken[stage] / alone:.0%}" for stage in STAGES]
                    rows.append([kind, size, dtype, str(threads), *speeds, f"{reached:.0%}", *shares])
        for model in arguments.models if dtypes == DTYPES else ():
            files = sorted((ROOT / "data").rglob("*.flac"))[: arguments.limit]
            tables = [folder / f"{dtype}.csv" for dtype in DTYPES]
            for dtype, table in zip(DTYPES, tables):
                predict(Path(model), files, dtype, max(arguments.threads), table)
            remarks.append(f"{model} on {len(files)} embedded recordings: {agreement(tables)}")
    print("times real time, without the imports of the program; shares of the stages one after the other")
    header = ["files", "model", "weights", "threads", "predict_hf.py", "bare network", "AST loop", "reached"]
    print_table([*header, *STAGES], rows)
    print(*remarks, sep="\n")


if __name__ == "__main__":
    main()
