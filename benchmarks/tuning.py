"""
Compares ways to adapt a pretrained encoder: a linear probe, LoRA, the upper blocks, all blocks with one learning rate
or one per block. Reports trained parameters, seconds of training, and accuracy on the test.

Fine-tunes each on the embedded recordings, with the same number of epochs and the same seeds. Writes a table and a
JSON. Finished runs are not repeated: to begin anew, remove the output folder.
"""

import argparse
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fusion_runs import OWN
from report import print_table, versions, write_figures
from training_runs import ROOT, results_of, test_accuracy, train

# Low-rank updates allow larger steps than full weights; the head has the same rate in all.
WAYS = {
    "linear probe": ["--freeze_encoder", "true"],
    "LoRA, rank 8, q and v": ["--lora_rank", 8, "--learning_rate", 3e-3],
    "LoRA, rank 8, all layers": [
        "--lora_rank", 8, "--learning_rate", 3e-3,
        "--lora_target_modules", "q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2",
    ],
    "upper 4 of 12 blocks": ["--freeze_layers", 8],
    "all": [],
    "all, layer decay 0.75": ["--layer_decay", 0.75],
}  # fmt: skip


def finetune(way: str, seed: int, args: argparse.Namespace) -> Path:
    """Fine-tunes and returns the folder; the last epoch counts, so that validation clips choose nothing."""
    words = ["--model_name_or_path", args.model, *OWN["voice_prompts"].words(), "--seed", seed]
    words += ["--num_train_epochs", args.epochs, "--train_sampling_strategy", "group_by_length"]
    words += ["--eval_strategy", "no", "--save_strategy", "no", "--html_report", "false"]
    folder = args.output / f"{list(WAYS).index(way)}-seed{seed}"
    train(folder, 1, args.finetuning, *words, *WAYS[way])
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "runs" / "fusion_demo" / "pretrained")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "tuning")
    parser.add_argument("--finetuning", type=Path, default=ROOT / "recipes" / "fusion_demo_finetune.yaml")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="runs at a time, each with one thread")
    args = parser.parse_args()
    args.model, args.output, args.finetuning = args.model.resolve(), args.output.resolve(), args.finetuning.resolve()
    if not (args.model / "config.json").exists():
        raise SystemExit(
            f"{args.model} holds no model; benchmarks/fusion_pays.py pretrains one, or name another --model"
        )

    runs = [(way, seed) for seed in range(args.seeds) for way in WAYS]
    with ThreadPoolExecutor(args.threads) as pool:
        folders = dict(zip(runs, pool.map(lambda run: finetune(*run, args), runs)))
    rows, figures = [], {}
    for way in WAYS:
        own = [folders[way, seed] for seed in range(args.seeds)]
        training = [results_of(folder)["training"] for folder in own]
        accuracy = [test_accuracy(folder) for folder in own]
        seconds, counts = [run["seconds"] for run in training], training[0]
        figures[way] = {"accuracy": accuracy, "seconds": seconds, "trained": counts["trainable_parameters"]}
        share = counts["trainable_parameters"] / counts["parameters"]
        rows.append([
            way, f"{counts['trainable_parameters']:,}", f"{share:.1%}", f"{statistics.median(seconds):.0f}",
            f"{statistics.mean(accuracy):.3f} ({min(accuracy):.3f}-{max(accuracy):.3f})",
        ])  # fmt: skip
    num_clips = results_of(own[0])["clips"]["test"]
    print(f"{versions()}\n\n{args.epochs} epochs, {args.seeds} seeds, accuracy on {num_clips} test clips\n")
    print_table(["trained", "parameters", "share", "s, median", "accuracy, mean (range)"], rows)
    report = {"versions": versions(), "epochs": args.epochs, "test_clips": num_clips, "ways": figures}
    write_figures(args.output / "tuning.json", report)


if __name__ == "__main__":
    main()
