"""
Times waveforms to logits for clips of 1-5 s: this project and Transformers' AST of the same width, depth and patches.

Transformers' AST pads every clip to 1024 frames; here the cost follows the length of the clips in a batch.
The weights are random.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from report import print_table, versions
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForAudioClassification

SAMPLING_RATE = 16000


def make_clips(num_clips: int, shortest_s: float, longest_s: float, seed: int) -> list[np.ndarray]:
    """Makes noise of uniformly drawn lengths: float32 (samples,) each."""
    rng = np.random.default_rng(seed)
    lengths = rng.uniform(shortest_s, longest_s, num_clips) * SAMPLING_RATE
    return [(0.1 * rng.standard_normal(int(length))).astype(np.float32) for length in lengths]


def classify(extract, model, clips: list[np.ndarray], batch_size: int) -> tuple[float, float]:
    """Classifies; returns the seconds for the features and for the network."""
    feature_s = network_s = 0.0
    for first in range(0, len(clips), batch_size):
        start = time.perf_counter()
        batch = extract(clips[first : first + batch_size], sampling_rate=SAMPLING_RATE, return_tensors="pt")
        extracted = time.perf_counter()
        model(**batch)
        feature_s += extracted - start
        network_s += time.perf_counter() - extracted
    return feature_s, network_s


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--shortest", type=float, default=1.0, help="seconds")
    parser.add_argument("--longest", type=float, default=5.0, help="seconds")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--hidden-size", type=int, default=192, help="a multiple of 64, the size of a head")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3, help="passes over all clips per side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    clips = make_clips(args.clips, args.shortest, args.longest, args.seed)
    sizes = {
        "hidden_size": args.hidden_size,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden_size // 64,
        "intermediate_size": 4 * args.hidden_size,
        "patch_size": 16,
        "frequency_stride": 10,
        "time_stride": 10,
        "num_labels": 10,
    }
    theirs = ASTFeatureExtractor(), ASTForAudioClassification(ASTConfig(**sizes)).eval()
    ours = DualSSASTFeatureExtractor(), DualSSASTForAudioClassification(DualSSASTConfig(**sizes)).eval()
    grouped = sorted(clips, key=len)
    sides = {
        "Transformers AST": (*theirs, clips),
        "Dual SSAST, given order": (*ours, clips),
        "Dual SSAST, grouped by length": (*ours, grouped),
    }
    seconds = {name: [] for name in sides}
    with torch.inference_mode():
        for _ in range(args.repeats):  # alternating sides share slow and fast minutes
            for name, (extract, model, ordered) in sides.items():
                classify(extract, model, ordered[: args.batch_size], args.batch_size)  # untimed: warms up
                seconds[name].append(classify(extract, model, ordered, args.batch_size))

    print(versions())
    print(
        f"{args.clips} clips of {args.shortest:g}-{args.longest:g} s ({sum(map(len, clips)) / SAMPLING_RATE:.0f} s in "
        f"all), batches of {args.batch_size}, {args.hidden_size} wide, {args.layers} layers, 16 x 16 patches at stride "
        f"10, float32; median of {args.repeats} passes\n"
    )
    totals = {name: statistics.median(map(sum, passes)) for name, passes in seconds.items()}
    rows = []
    for name, passes in seconds.items():
        feature_s, network_s = (statistics.median(part) for part in zip(*passes))
        ratio = totals["Transformers AST"] / totals[name]
        rows.append([name, f"{feature_s:.2f}", f"{network_s:.2f}", f"{totals[name]:.2f}", f"{ratio:.1f}"])
    print_table(["waveforms to logits", "features s", "network s", "total s", "ratio"], rows)


if __name__ == "__main__":
    main()
