"""
Measures the service: requests per second and their times for 1, 8 and 64 clients, batching on and off, in one run.

    python benchmarks/serving.py [MODEL ...] [--seconds 10] [--clip_s 10]

Without MODEL two models of random weights are measured, a tiny one and one of SSAST's base size.
"""

import argparse
import asyncio
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import soundfile
import torch
from report import last_line, versions

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForAudioClassification

ROOT = Path(__file__).parent.parent
RATE = 16000
CLIENTS = (1, 8, 64)
SIZES = {
    "tiny": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "base": {},
}
BATCHING = {"on": [], "off": ["--max_batch", "1"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="folders of classifiers")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds per measurement")
    parser.add_argument("--clip_s", type=float, default=10.0, help="seconds per clip")
    arguments = parser.parse_args()
    print("| model | batching | clients | requests per second | p50, ms | p99, ms |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        models = arguments.models or [save_random(Path(folder) / name, SIZES[name]) for name in SIZES]
        for model in models:
            for batching, options in BATCHING.items():
                with served(model, options) as address:
                    asyncio.run(measure(address, 1, 2.0, arguments.clip_s))  # warms up
                    for clients in CLIENTS:
                        times_s, wall_s = asyncio.run(measure(address, clients, arguments.seconds, arguments.clip_s))
                        figures = len(times_s) / wall_s, *(1000 * np.percentile(times_s, [50, 99]))
                        row = Path(model).name, batching, str(clients), *(f"{figure:.3g}" for figure in figures)
                        print(f"| {' | '.join(row)} |", flush=True)
    print(f"\n{os.cpu_count()} CPU cores, clients on the same machine, clips of {arguments.clip_s:g} s; {versions()}")


def save_random(folder: Path, settings: dict) -> str:
    """Saves a classifier of ten classes with random weights; returns its folder."""
    torch.manual_seed(0)
    DualSSASTForAudioClassification(DualSSASTConfig(num_labels=10, **settings)).save_pretrained(folder)
    DualSSASTFeatureExtractor().save_pretrained(folder)
    return str(folder)


@contextlib.contextmanager
def served(model: str, options: list[str]):
    """
    Runs serve_hf.py; yields its address.

    Raises:
        SystemExit: it did not start.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "serve_hf.py"), model, "--port", "0", *options],
            cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        try:
            found = re.search(r"http://\S+(?=;)", process.stdout.readline())
            if found:
                yield found[0]
        finally:
            process.terminate()
            process.wait()
        if not found:
            raise SystemExit(f"{model}: serve_hf.py did not start: {last_line(errors)}")


async def measure(address: str, clients: int, seconds: float, clip_s: float) -> tuple[list[float], float]:
    """
    Lets clients send one clip after the other, each as soon as the last is answered.

    Returns:
        seconds of every request; seconds of all
    """
    times_s = []
    start_s = time.perf_counter()

    async def client(number: int):
        content = wav(clip_s, number)
        async with httpx.AsyncClient(base_url=address, timeout=600) as own:
            while time.perf_counter() - start_s < seconds:
                begun_s = time.perf_counter()
                response = await own.post("/classify", content=content, headers={"content-type": "audio/wav"})
                response.raise_for_status()
                times_s.append(time.perf_counter() - begun_s)

    await asyncio.gather(*map(client, range(clients)))
    return times_s, time.perf_counter() - start_s


def wav(seconds: float, seed: int) -> bytes:
    """Returns noise of up to a tenth less than `seconds`, so that clients differ, as a WAV file."""
    rng = np.random.default_rng(seed)
    samples = 0.1 * rng.standard_normal(round(seconds * rng.uniform(0.9, 1) * RATE))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
