"""Times log-mel features of 16 clips of 10 s: this project's extractor and Transformers' ASTFeatureExtractor."""

import argparse
import statistics

import numpy as np
import torch
from report import print_table, spread, time_in_blocks, versions
from transformers import ASTFeatureExtractor

from modeling_dual_ssast import DualSSASTFeatureExtractor

SAMPLING_RATE = 16000


def make_clips(num_clips: int, seconds: float, seed: int = 0) -> list[np.ndarray]:
    """Makes chirps in noise of different loudness: float32 (samples,) each."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    clips = []
    for _ in range(num_clips):
        chirp = np.sin(2 * np.pi * (rng.uniform(50, 500) + rng.uniform(10, 300) * time_s) * time_s)
        clip = rng.uniform(0.05, 0.5) * chirp + 0.01 * rng.standard_normal(len(time_s))
        clips.append(clip.astype(np.float32))
    return clips


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--clips", type=int, default=16, help="clips per call")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--repeats", type=int, default=5, help="blocks per side")
    parser.add_argument("--calls", type=int, default=3, help="timed calls per block")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    clips = make_clips(args.clips, args.seconds)
    extractors = {
        "ASTFeatureExtractor": ASTFeatureExtractor(),
        "DualSSASTFeatureExtractor": DualSSASTFeatureExtractor.original(),
    }
    sides = {
        name: lambda extract=extract: extract(clips, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        for name, extract in extractors.items()
    }
    theirs, ours = (call()["input_values"] for call in sides.values())
    seconds = time_in_blocks(sides, args.repeats, args.calls)

    print(versions())
    print(f"{args.clips} clips of {args.seconds:g} s, {args.repeats} alternating blocks of {args.calls} calls\n")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    slowest = medians["ASTFeatureExtractor"]
    rows = [
        [name, spread(seconds[name]), f"{args.clips * args.seconds / median:.0f}", f"{slowest / median:.1f}"]
        for name, median in medians.items()
    ]
    print_table(["extractor", "ms per call: median (range)", "seconds of audio per second", "ratio"], rows)
    print(f"\nlargest difference of the features, normalised: {(theirs - ours).abs().max():.1e}")


if __name__ == "__main__":
    main()
