"""
Measures what a finer clock costs: frame classifiers of the base size on 10 s, with a frame every 160, 80, 40 and 20 ms.
Weights are random: the time does not depend on them. The time is that of the processor, so that other programs count
for little.
"""

import argparse
import statistics
import time

import torch
from model_sizes import BASE
from report import print_table, time_in_blocks, versions

from modeling_dual_ssast import DualSSASTConfig, DualSSASTForAudioFrameClassification

FRAMES, MELS = 998, 128  # of the spectrogram of 10 s
PATCHES = {"patch_size": [16, 16], "frequency_stride": 16}
SIDES = {f"patches, time_stride {stride}": {**PATCHES, "time_stride": stride} for stride in (16, 8, 4)}
SIDES["frames, time_stride 2"] = {"patch_size": [128, 2], "frequency_stride": 128, "time_stride": 2}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--layers", type=int, default=BASE["num_hidden_layers"], help="of the networks")
    parser.add_argument("--repeats", type=int, default=5, help="blocks per side")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    models = {}
    for name, grid in SIDES.items():
        config = DualSSASTConfig(**BASE | grid | {"num_hidden_layers": args.layers}, max_length=FRAMES)
        models[name] = DualSSASTForAudioFrameClassification(config).eval()
    values = torch.randn(1, FRAMES, MELS, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        sides = {name: lambda model=model: model(values) for name, model in models.items()}
        seconds = time_in_blocks(sides, args.repeats, 1, time.process_time)

    print(versions())
    print(f"10 s of audio at once, {args.layers} layers, {args.repeats} alternating calls; ratios: median (range)\n")
    rows, (first, *_) = [], seconds.values()
    for name, own in seconds.items():
        ratios = sorted(one / other for one, other in zip(own, first))
        rows.append(
            [
                name,
                f"{1000 * models[name].config.frame_hop_s:.0f} ms",
                str(models[name].config.num_patches),
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            ]
        )
    print_table(["network", "a frame every", "patches", "time"], rows)


if __name__ == "__main__":
    main()
