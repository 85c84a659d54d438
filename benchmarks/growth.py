"""
Measures how time and memory grow: `python benchmarks/growth.py`. The network with the length of a clip and with the
batch, `predict_hf.py` with the length of a recording, and the reader of manifests with the number of rows.

Each point is a process of its own, so that its memory is its own: its highest resident set, with all imports. The times
are without imports, except those of `predict_hf.py`. Weights are random: time and memory do not depend on them.

Writes `growth.json` and `growth.png`. With some of the curves or sizes their names have these, so that whole ones stay.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from matplotlib.figure import Figure
from model_sizes import TINY
from report import last_line, print_table, versions
from transformers.utils import logging

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForAudioClassification

ROOT = Path(__file__).parent.parent
RATE = 16000
# Before every program: at its end it writes its highest resident set in KiB, where the system says it (Linux). The
# `ru_maxrss` of a process begins there with the memory of this one, which started it.
PEAK = """
import atexit, os
def write_peak():
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status") as status, open(os.environ["GROWTH_PEAK"], "w") as file:
            file.write(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
atexit.register(write_peak)
"""
RECORDING = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
NETWORK = """
import sys, time
import torch
from modeling_dual_ssast import DualSSASTConfig, DualSSASTForAudioClassification
clips, frames = map(int, sys.argv[2:])
config = DualSSASTConfig.from_pretrained(sys.argv[1], max_length=frames)
model = DualSSASTForAudioClassification(config).eval()
features = torch.randn(clips, frames, 128)
with torch.inference_mode():
    model(features[:1, :128])
    started = time.perf_counter()
    model(features)
print(time.perf_counter() - started)
"""
MANIFEST = """
import sys, time
from training.data.arguments import FrozenDataArguments
from training.data.splits import load_splits
first, path, rows = sys.argv[1:]
load_splits(FrozenDataArguments(train_file=first))  # imports what is imported late
started = time.perf_counter()
assert len(load_splits(FrozenDataArguments(train_file=path))["train"]) == int(rows)
print(time.perf_counter() - started)
"""
CURVES = {
    "clip": ("network, one clip", "seconds", (2, 5, 10, 20, 40, 80)),
    "batch": ("network, clips of 10 s", "clips per batch", (1, 2, 4, 8, 16, 32)),
    "recording": ("predict_hf.py, one recording", "minutes", (1, 10, 60, 180)),
    "rows": ("reading a manifest", "rows", (10**2, 10**3, 10**4, 10**5, 10**6)),
}


def save_model(folder: Path):
    """Writes the tiny model, with random weights."""
    DualSSASTForAudioClassification(DualSSASTConfig(**TINY)).save_pretrained(folder)
    DualSSASTFeatureExtractor().save_pretrained(folder)


def write_noise(path: Path, minutes: int):
    """Writes a recording of noise."""
    minute = 0.1 * np.random.default_rng(0).standard_normal(60 * RATE)
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for _ in range(minutes):
            file.write(minute)


def write_manifest(path: Path, rows: int):
    """Writes a manifest of different stretches of one recording, with two labels."""
    if not (path.parent / "clip.wav").exists():
        soundfile.write(path.parent / "clip.wav", np.zeros(RATE), RATE)
    with open(path, "w", encoding="utf-8") as file:
        file.write("file_name,label,start_s,end_s\n")
        file.writelines(f"clip.wav,{'ab'[row % 2]},{row / (2 * rows):.9f},1\n" for row in range(rows))


def command_of(curve: str, size: int, folder: Path) -> list[str]:
    """Makes the inputs of a point in `folder`, and returns the words after `python`."""
    if curve in ("clip", "batch"):
        clips, seconds = (1, size) if curve == "clip" else (size, 10)
        return ["-c", PEAK + NETWORK, f"{folder}/model", str(clips), str(100 * seconds)]
    if curve == "recording":
        write_noise(folder / "noise.wav", size)
        output = f"{folder}/scores-{size}.csv"
        return ["-c", PEAK + RECORDING, "predict_hf.py", f"{folder}/model", f"{folder}/noise.wav", "--output", output]
    write_manifest(folder / "rows.csv", size)
    write_manifest(folder / "first.csv", 100)
    return ["-c", PEAK + MANIFEST, f"{folder}/first.csv", f"{folder}/rows.csv", str(size)]


def measure(curve: str, size: int, folder: Path) -> dict[str, float]:
    """Runs a point; returns its size, seconds, and highest resident set in MiB."""
    words, peak = command_of(curve, size, folder), folder / "peak.txt"
    peak.unlink(missing_ok=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "GROWTH_PEAK": str(peak)}
    with open(folder / "printed.txt", "w+", encoding="utf-8") as printed:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        last = last_line(printed)
    if process.returncode:
        raise SystemExit(f"{CURVES[curve][0]}, {size:,} {CURVES[curve][1]}: {last}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    highest = int(peak.read_text()) if peak.exists() else usage.ru_maxrss
    return {"size": size, "seconds": seconds if curve == "recording" else float(last), "mib": highest / unit}


def draw(points: dict[str, list[dict]], path: Path):
    """Draws time and memory of every curve over its size."""
    figure = Figure(figsize=(3.2 * len(points), 5.4), layout="constrained")
    axes = figure.subplots(2, len(points), sharex="col", squeeze=False)
    for (seconds, mib), (curve, measured) in zip(axes.T, points.items()):
        title, unit, _ = CURVES[curve]
        sizes = [point["size"] for point in measured]
        seconds.loglog(sizes, [point["seconds"] for point in measured], marker="o")
        seconds.set_title(title, fontsize=10)
        mib.semilogx(sizes, [point["mib"] for point in measured], marker="o")
        decades = np.log10([point["seconds"] for point in measured])
        seconds.set_ylim(10 ** np.floor(decades.min()), 10 ** np.ceil(decades.max()))
        seconds.yaxis.set_major_formatter("{x:g}")
        mib.set_xlabel(unit)
        mib.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
        mib.minorticks_off()
        mib.set_ylim(0, 1.1 * max(point["mib"] for point in measured))
        for axis in (seconds, mib):
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("time (s)")
    axes[1, 0].set_ylabel("highest memory (MiB)")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "bench", help="folder of growth.json and .png")
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=[*CURVES])
    parser.add_argument("--most", type=int, help="largest size of any curve")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    points = {curve: [] for curve in arguments.curves}
    print(versions())
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model")
        for curve, measured in points.items():
            title, unit, sizes = CURVES[curve]
            sizes = [size for size in sizes if arguments.most is None or size <= arguments.most]
            measured += [measure(curve, size, Path(folder)) for size in sizes]
            print(f"\n{title}")
            rows = [[f"{point['size']:,}", f"{point['seconds']:.3g}", f"{point['mib']:.0f}"] for point in measured]
            print_table([unit, "time (s)", "highest memory (MiB)"], rows)
    arguments.output.mkdir(parents=True, exist_ok=True)
    parts = [] if set(points) == set(CURVES) else list(points)
    parts += [] if arguments.most is None else [str(arguments.most)]
    path = arguments.output / f"{'-'.join(['growth', *parts])}.json"
    path.write_text(json.dumps(points, indent=2) + "\n", encoding="utf-8")
    draw(points, path.with_suffix(".png"))
    print(f"\nplot and figures: {path.with_suffix('.png')}, .json")


if __name__ == "__main__":
    main()
