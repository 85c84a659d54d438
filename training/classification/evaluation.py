"""
Runs the task `evaluation`: scores a finished classifier on labelled clips, without training. Its logits are computed
and stored by the engine of predict_hf.py, so that a stopped evaluation goes on.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers.trainer_utils import PredictionOutput

from modeling_dual_ssast.classifier_dual_ssast import classification_loss

from ..base import outputs, reproduction
from ..base.finite import NotFinite, check_scores
from ..base.inference import labels_of, load_classifier
from ..data.arguments import EvaluationDataArguments
from ..data.dataset import ClipDataset
from ..data.screening import screen
from ..data.splits import load_test_split, sample_splits
from ..errors import InputError
from ..inference.engine import Engine
from ..inference.inputs import ClipSequence, Examples
from ..inference.precision import choose_hardware, place
from ..inference.processes import start_processes
from ..inference.scores import Classifier
from ..inference.shards import Shards, weights_fingerprint
from . import report
from .arguments import EvaluationArguments
from .finished_run import FinishedRun
from .metrics import metric_function

LOGITS = "unfinished-logits"  # below the output folder, until the outputs are written
SHARD_CLIPS = 64  # few, so that several processes have about the same number


def run(data_arguments: EvaluationDataArguments, arguments: EvaluationArguments):
    """
    Scores the clips and writes the output folder.

    Raises:
        InputError: bad input, wherever possible before the clips are decoded.
    """
    name, folder = arguments.model_name_or_path, Path(arguments.output_dir)
    if name is None:
        raise InputError("model_name_or_path: is not set; name the classifier")
    processes = start_processes(device=arguments.device)

    def in_main(work):
        processes.together(lambda: work() if processes.is_main else None)

    in_main(lambda: outputs.check_free(folder, "run", arguments.overwrite))
    hardware = processes.together(lambda: choose_hardware(arguments, processes.device))
    model, extractor = processes.together(lambda: load_classifier(name, arguments.model_revision))
    labels = labels_of(name, model.config)
    model.config.problem_type = labels.problem_type  # some configurations leave it out
    if data_arguments.none_label is not None and not labels.is_multi:
        raise InputError(
            f"none_label: {name} gives each clip one of its classes, or a number; leave it out, and the clips without "
            "a class"
        )
    weights = weights_fingerprint(model)
    network = Classifier(place(model, hardware), extractor, labels, data_arguments.window_s, data_arguments.hop_s)
    network.keeps_windows = False
    splits = screen({"test": load_test_split(data_arguments, labels.is_multi)}, data_arguments, folder)
    splits = sample_splits(splits, data_arguments, seed=0)
    dataset = ClipDataset(splits["test"], extractor, labels)
    names, clips = dataset.names(), ClipSequence([Examples(dataset)])
    targets = np.asarray([labels.encode(*pair) for pair in zip(dataset.examples["label"], names)])
    shards = Shards(
        folder / LOGITS,
        len(dataset),
        SHARD_CLIPS,
        {
            "model": name,
            "weights": weights,
            "settings": {"windows": [network.window, network.hop], "dtype": hardware.dtype_name},
            "features": extractor.to_dict(),
            "clips": clips.fingerprint(),
        },
    )
    in_main(lambda: shards.prepare(arguments.overwrite))
    if processes.is_main:
        print(f"weights: {hardware}", file=sys.stderr)
    batch_size, num_threads = arguments.per_device_eval_batch_size, arguments.dataloader_num_workers
    engine = Engine(network, clips, shards, batch_size, num_threads, processes, "classifying", stops_at_errors=True)
    processes.together(engine.fill)

    def write():
        outcome = score(model.config, read_logits(shards, names), targets)
        machine = reproduction.machine(hardware.device, processes.count) | {"dtype": hardware.dtype_name}
        data = reproduction.describe_data(splits)
        circumstances = {"versions": reproduction.versions(), "machine": machine, "data": data}
        recipe = {"task": "evaluation"} | outputs.describe_recipe(data_arguments, arguments)
        finished = FinishedRun(model, extractor, arguments, {"test": dataset}, labels, {"test": outcome}, recipe)
        report.write_evaluation(finished, circumstances)
        shards.remove()

    in_main(write)


def read_logits(shards: Shards, names: list[str]) -> np.ndarray:
    """Returns the logits of all clips (clips, labels); those that are not finite are computed again the next time."""
    logits = shards.means()["logits"]
    try:
        check_scores(logits, names=names)
    except NotFinite as error:
        shards.remove()
        remedy = "check the recordings (python -m training.check), or set dtype to float32"
        raise NotFinite(error.problem, remedy) from None
    return logits


def score(config, logits: np.ndarray, targets: np.ndarray) -> PredictionOutput:
    """Returns what Trainer's `predict` returns: logits (clips, labels), targets and metrics."""
    loss = classification_loss(
        torch.from_numpy(logits), torch.from_numpy(targets), config.problem_type, config.label_smoothing
    )
    outcome = PredictionOutput(logits, targets, None)
    metrics = metric_function(config.problem_type, config)(outcome)
    return outcome._replace(metrics={"loss": float(loss), **metrics})
