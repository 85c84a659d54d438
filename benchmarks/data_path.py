"""
Measures what a training spends on its data: `python benchmarks/data_path.py`. The first table has the milliseconds per
clip of every stage from the file to the step of the optimiser, one after the other in one process. With
`features_on_device` features and what is done to them are made in batches after the transfer; the last column but one
is what is left to the workers. The second table has the clips per second that reach a training loop from workers of the
data loader: this project's `ClipDataset` and `Collator`, without and with `decoded_cache`, with `features_on_device`
too, and Transformers' `ASTFeatureExtractor` with `datasets`.

The column of `datasets` holds paths. Its own `Audio` feature decodes by torchcodec; here a transform decodes with
soundfile and resamples with soxr, like this project does. Neither side augments in the second table. Each worker has
one thread: several ones of numpy's matrix products, which `ASTFeatureExtractor` uses, would slow down each other. The
model has random weights: the time does not depend on them.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import soundfile
import torch
from clips import STEREO_RATE, at_rate, read_at, stereo_clips
from model_sizes import AST_GRID, TINY
from report import print_table, versions
from threadpoolctl import threadpool_limits
from transformers import ASTFeatureExtractor, DefaultDataCollator

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForAudioClassification

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # `training` is not installed

from training.data.audio import decode_audio, mix_down  # noqa: E402
from training.data.augmentation import (  # noqa: E402
    AugmentationArguments,
    FeatureChanges,
    clip_generator,
    random_crop,
    random_gain,
)
from training.data.dataset import ClipDataset, Collator  # noqa: E402
from training.data.decoded_cache import DecodedCache  # noqa: E402
from training.data.feature_plans import FeaturePlan, PlannedBatch, make_features  # noqa: E402
from training.data.labels import LabelSet  # noqa: E402

RATE, BATCH, GOAL = 16000, 8, 3
LABELS = LabelSet(("even", "odd"), "single_label_classification")
AUGMENTATION = AugmentationArguments(frequency_mask_bins=24, time_mask_frames=96, noise=True, gain_db=6.0)
ON_DEVICE = "features_on_device"
DATA, STEP = ("decoding", "resampling", "features", "augmentation", "collation", "transfer"), "step"
WRITTEN = {"wav": {}, "flac": {}, "mp3": {"format": "MP3"}}  # ending -> options of soundfile


def write_clips(folder: Path, num_clips: int, seconds: float) -> dict[str, list[str]]:
    """Returns embedded recordings as they are, and clips that repeat them in 44.1 kHz stereo: data -> paths."""
    embedded = sorted((ROOT / "data" / "voice_prompts").rglob("*.flac"))[:num_clips]
    found = {"prompts, 8 kHz flac": [str(path) for path in embedded]}
    for ending in WRITTEN:
        found[f"{seconds:g} s, 44.1 kHz stereo {ending}"] = [
            str(folder / f"{index:03}.{ending}") for index in range(num_clips)
        ]
    for index, samples in enumerate(stereo_clips(embedded, num_clips, seconds)):
        for ending, options in WRITTEN.items():
            soundfile.write(folder / f"{index:03}.{ending}", samples, STEREO_RATE, **options)
    return found


def as_examples(paths: list[str]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"audio": paths, "label": [LABELS.names[i % 2] for i in range(len(paths))]})


class StageTimer:
    """Adds up the seconds of each stage of this project's data path, which it goes through step by step."""

    def __init__(self, extractor: DualSSASTFeatureExtractor, device: torch.device):
        self.extractor, self.device = extractor, device
        self.seconds = defaultdict(float)

    def timed(self, stage: str, work: Callable):
        started = time.perf_counter()
        found = work()
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        self.seconds[stage] += time.perf_counter() - started
        return found

    def example(self, path: str, rng: np.random.Generator, on_device: bool) -> torch.Tensor | FeaturePlan:
        """Makes the features of `ClipDataset`'s training example, stage by stage: (frames, mel), or their plan"""
        extractor = self.extractor
        samples, rate = self.timed("decoding", lambda: decode_audio(path))
        waveform = self.timed("resampling", lambda: at_rate(mix_down(path, samples), rate, RATE))
        waveform = self.timed("augmentation", lambda: random_crop(waveform, extractor.max_samples, rng))
        waveform = self.timed("augmentation", lambda: random_gain(waveform, AUGMENTATION.gain_db, rng))
        plan = self.timed("augmentation", lambda: self.plan(waveform, rng))
        if on_device:
            return plan
        (features,) = self.timed(
            "features", lambda: extractor.normalized_log_mel([plan.waveform], extractor.max_length)
        )
        return self.timed("augmentation", lambda: plan.changes.apply(features, extractor.padding_value))

    def plan(self, waveform: np.ndarray, rng: np.random.Generator) -> FeaturePlan:
        plan = FeaturePlan.of(waveform, self.extractor)
        plan.changes = FeatureChanges.draw(*plan.shape(self.extractor), AUGMENTATION, rng)
        return plan

    def moved(self, batch: dict) -> dict:
        """Takes a batch to the device, and makes its features there if they are planned."""
        batch = self.timed("transfer", lambda: {name: value.to(self.device) for name, value in batch.items()})
        planned = batch.pop(PlannedBatch.KEY, None)
        return batch if planned is None else batch | self.timed("features", lambda: planned.make(self.extractor))


def measure_stages(
    paths: list[str], on_device: bool, num_steps: int, device: torch.device, steps: dict[torch.Size, float]
) -> dict[str, float]:
    """
    Returns the seconds per clip of each stage.

    Args:
        on_device: whether the features are made on the device
        num_steps: batches with which the optimiser's step is timed
        steps: shape of the first batch -> seconds of a step per clip, which depend on nothing else; is added to
    """
    extractor = DualSSASTFeatureExtractor(max_length=AST_GRID["max_length"])
    dataset = ClipDataset(as_examples(paths), extractor, LABELS, AUGMENTATION, on_device=on_device)
    collate, timer = Collator(extractor), StageTimer(extractor, device)
    staged, whole = timer.example(paths[0], clip_generator(0, 0, 0), on_device), dataset[0]["input_values"]
    if on_device:
        staged, whole = (make_features([plan], extractor)[0] for plan in (staged, whole))
    if not torch.equal(staged, whole):
        raise AssertionError("the stages are not those of ClipDataset")  # they would time something else
    timer.moved(collate([{"input_values": dataset[0]["input_values"], "labels": 0}]))  # makes the filters there
    timer.seconds.clear()
    features = [timer.example(path, clip_generator(0, 0, index), on_device) for index, path in enumerate(paths)]
    examples = [{"input_values": one, "labels": index % 2} for index, one in enumerate(features)]
    batches = [
        timer.timed("collation", lambda first=first: collate(examples[first : first + BATCH]))
        for first in range(0, len(examples), BATCH)
    ]
    batches = [timer.moved(batch) for batch in batches]
    found = {stage: seconds / len(paths) for stage, seconds in timer.seconds.items()}
    shape = batches[0]["input_values"].shape
    if shape not in steps:
        step = make_step(device)
        step(batches[0])  # allocates the optimiser's states
        timed = batches[:num_steps]
        for batch in timed:
            timer.timed(STEP, lambda batch=batch: step(batch))
        steps[shape] = timer.seconds[STEP] / sum(len(batch["labels"]) for batch in timed)
    return found | {STEP: steps[shape]}


def make_step(device: torch.device) -> Callable[[dict], None]:
    """Returns a step of the tiny model: forward, backward and optimiser."""
    model = DualSSASTForAudioClassification(DualSSASTConfig(**TINY, **AST_GRID, num_labels=2)).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)

    def step(batch: dict):
        model(**batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def ast_examples(paths: list[str]) -> datasets.Dataset:
    """Returns the clips with the transform of the usual fine-tuning of Transformers' AST."""
    extractor = ASTFeatureExtractor()
    numbers = {name: number for number, name in enumerate(LABELS.names)}

    def transform(rows: dict) -> dict:
        clips = [read_at(path, RATE) for path in rows["audio"]]
        features = extractor(clips, sampling_rate=RATE, return_tensors="pt")["input_values"]
        return {"input_values": list(features), "labels": [numbers[label] for label in rows["label"]]}

    return as_examples(paths).with_transform(transform)


def clips_per_second(sides: dict[str, tuple], num_workers: int, repeats: int) -> dict[str, list[float]]:
    """Returns the clips per second of each pass, from running workers to the device: side -> passes. They alternate."""
    found = {name: [] for name in sides}
    for _ in range(repeats):
        for name, (dataset, collate, finish) in sides.items():
            loader = torch.utils.data.DataLoader(
                dataset, batch_size=BATCH, collate_fn=collate, num_workers=num_workers,
                persistent_workers=num_workers > 0, worker_init_fn=lambda number: threadpool_limits(1),
            )  # fmt: skip
            sum(1 for _ in loader)  # starts the workers, and reads the files into the cache of the system
            started = time.perf_counter()
            for batch in loader:
                finish(batch)
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            found[name].append(len(dataset) / (time.perf_counter() - started))
            del loader
    return found


def print_stages(data: dict[str, list[str]], num_steps: int, device: torch.device):
    rows, steps = [], {}
    for (name, paths), on_device in itertools.product(data.items(), (False, True)):
        seconds = measure_stages(paths, on_device, num_steps, device, steps)
        total = sum(seconds[stage] for stage in DATA)
        cells = [f"{1e3 * seconds[stage]:.2f} ({seconds[stage] / total:.0%})" for stage in DATA]
        later = seconds["transfer"] + seconds["features"] * on_device
        cells += [f"{1e3 * value:.1f}" for value in (total, total - later, seconds[STEP])]
        rows.append([f"the same, {ON_DEVICE}" if on_device else name, *cells])
    print(f"milliseconds per clip (share of their sum); transfer to {device}; step: forward, backward and optimiser\n")
    print_table(["data", *DATA, "sum", "in the workers", STEP], rows)


def print_rates(data: dict[str, list[str]], folder: Path, num_workers: int, repeats: int, device: torch.device):
    cache = DecodedCache(folder, RATE, reports=False)
    rows, extractor = [], DualSSASTFeatureExtractor(max_length=AST_GRID["max_length"])
    theirs = "ASTFeatureExtractor with datasets"

    def make(batch: dict):
        batch[PlannedBatch.KEY].to(device).make(extractor)

    def take(batch: dict):
        batch["input_values"].to(device)

    for name, paths in data.items():
        examples, collate = as_examples(paths), Collator(extractor)
        stored = cache.open("train", examples)
        sides = {
            theirs: (ast_examples(paths), DefaultDataCollator(), take),
            "ClipDataset and Collator": (ClipDataset(examples, extractor, LABELS), collate, take),
            f"the same, {ON_DEVICE}": (ClipDataset(examples, extractor, LABELS, on_device=True), collate, make),
            "with decoded_cache": (ClipDataset(examples, extractor, LABELS, decoded=stored), collate, take),
            "with both": (ClipDataset(examples, extractor, LABELS, decoded=stored, on_device=True), collate, make),
        }
        rates = clips_per_second(sides, num_workers, repeats)
        anchor = statistics.median(rates[theirs])
        for side, values in rates.items():
            median, spread = statistics.median(values), f"{min(values):.0f}-{max(values):.0f}"
            rows.append([name, side, f"{median:.0f} ({spread})", f"{median / anchor:.1f}"])
    print(f"\nclips per second from {num_workers} workers, batches of {BATCH}; goal: {GOAL} times as many\n")
    print_table(["data", "side", "clips per s: median (range)", "ratio"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16, help="of each kind")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the clips of 44.1 kHz")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of the optimiser")
    parser.add_argument("--repeats", type=int, default=3, help="passes of each side")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of the data loader; 0: the process itself")
    parser.add_argument("--threads", type=int, default=1, help="of torch in this process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)
    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")

    print(versions())
    print(f"{args.clips} clips of each kind; {TINY['hidden_size']} wide, {TINY['num_hidden_layers']} layers\n")
    with tempfile.TemporaryDirectory() as folder:
        data = write_clips(Path(folder), args.clips, args.seconds)
        print_stages(data, args.steps, device)
        print_rates(data, Path(folder) / "decoded", args.workers, args.repeats, device)


if __name__ == "__main__":
    main()
