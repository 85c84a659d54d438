"""
Times waveforms to logits for clips of 1-5 s: this project and Transformers' AST of the same width, depth and patches.

Transformers' AST pads every clip to 1024 frames; here the cost follows the length of the clips in a batch, or, packed,
the length of each clip. Also counts the tokens of an epoch of the quickstart with padding and packed, and times its
steps. The weights are random.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from clips import read_at
from report import print_table, versions
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForAudioClassification

SAMPLING_RATE = 16000
PROMPTS = Path(__file__).parents[1] / "data" / "voice_prompts"
# The model and the batches of recipes/quickstart.yaml.
QUICKSTART = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "max_length": 384,
    "num_labels": 5,
}
QUICKSTART_BATCH = 8
PACKED = {"with padding": False, "packed": True}


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


def prompt_batches(seed: int) -> list[dict[str, torch.Tensor]]:
    """Returns the batches of an epoch of the quickstart, in random order."""
    extractor = DualSSASTFeatureExtractor(max_length=QUICKSTART["max_length"])
    with open(PROMPTS / "train.csv", encoding="utf-8", newline="") as file:
        names = [row["file_name"] for row in csv.DictReader(file)]
    clips = [read_at(PROMPTS / name, SAMPLING_RATE) for name in names]
    order = np.random.default_rng(seed).permutation(len(clips))
    parts = [order[first : first + QUICKSTART_BATCH] for first in range(0, len(order), QUICKSTART_BATCH)]
    return [
        extractor([clips[index] for index in part], sampling_rate=SAMPLING_RATE, return_tensors="pt") for part in parts
    ]


def train_prompts(repeats: int, seed: int) -> list[list[str]]:
    """Computes the gradients of an epoch of the quickstart, with padding and packed in turn: a row of figures each."""
    batches = prompt_batches(seed)
    model = DualSSASTForAudioClassification(DualSSASTConfig(**QUICKSTART)).train()
    tokens, is_audio = dict.fromkeys(PACKED, 0), 0
    for batch in batches:
        columns = model.config.num_columns(batch["attention_mask"].sum(dim=1))
        is_audio += int((model.config.num_prefix_tokens + model.config.grid_shape[0] * columns).sum())
    computed = []
    model.dual_ssast.layers[0].register_forward_pre_hook(lambda layer, args: computed.append(args[0].shape[:2].numel()))
    seconds = {name: [] for name in PACKED}
    for _ in range(repeats):
        for name, packs in PACKED.items():
            model.config.pack_tokens = packs
            start = time.process_time()
            for batch in batches:
                model(**batch, labels=torch.zeros(len(batch["input_values"]), dtype=torch.long)).loss.backward()
                model.zero_grad()
            seconds[name].append(time.process_time() - start)
            tokens[name] = sum(computed)
            computed.clear()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        [
            name,
            f"{tokens[name]:,}",
            f"{tokens[name] / is_audio:.2f}",
            f"{medians[name]:.2f}",
            f"{medians['with padding'] / medians[name]:.2f}",
        ]
        for name in PACKED
    ]


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
    padded = DualSSASTForAudioClassification(DualSSASTConfig(**sizes, pack_tokens=False)).eval()
    grouped = sorted(clips, key=len)
    sides = {
        "Transformers AST": (*theirs, clips),
        "Dual SSAST, given order, with padding": (ours[0], padded, clips),
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
    print(f"\nThe quickstart's epoch, forward and backward, batches of {QUICKSTART_BATCH} in random order:\n")
    header = ["data/voice_prompts", "tokens", "per token of audio", "CPU s", "ratio"]
    print_table(header, train_prompts(args.repeats, args.seed))


if __name__ == "__main__":
    main()
