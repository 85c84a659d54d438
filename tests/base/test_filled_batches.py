"""Tests that the clips with which Accelerate fills the last batches of several processes do not count."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from annotated_tones import write_annotated_tones
from audio_files import write_class_folders
from tiny_pretrainings import COMMON, OWN
from tiny_runs import TINY, TINY_DETECTION, write_recipe

from training import tasks
from training.base.trainer import AudioTrainer
from training.classification import train as classification
from training.detection import train as detection
from training.pretraining import mspm


def tones(folder):
    return {"train_annotations": write_annotated_tones(folder, num_recordings=8, seconds=2.5)}


def classes(folder, seconds=0.2):
    return {"dataset_name": write_class_folders(folder, 7, seconds=seconds), "validation_fraction": 0.4}


def unlabelled(folder):
    return {"train_sources": [str(write_class_folders(folder, 35))], "validation_clips": 5, "picture_clips": 0}


KINDS = {
    "clips": (classification, TINY, classes),
    "windows": (classification, TINY, lambda folder: classes(folder, seconds=0.5)),
    "frames": (detection, TINY_DETECTION | {"validation_fraction": 0.4}, tones),
    "patches": (mspm, {"task": "mspm"} | COMMON | OWN["mspm"], unlabelled),
}


class Caught(Exception):
    """Holds the trainer of a run that does not begin."""


def _catch(self, *args, **kwargs):
    raise Caught(self)


@pytest.mark.parametrize("num_processes", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_are_those_of_one_process(kind, num_processes, tmp_path, monkeypatch):
    task, values, data = KINDS[kind]
    values = values | {"html_report": False} if task is not mspm else values
    path, _ = write_recipe(tmp_path, values | data(tmp_path / "data") | {"per_device_eval_batch_size": 4})
    monkeypatch.setattr(AudioTrainer, "train", _catch)
    with pytest.raises(Caught) as caught:
        task.run(*tasks.parse([path])[1:])
    trainer = caught.value.args[0]
    expected, dataset = trainer.evaluate(), trainer.eval_dataset
    assert len(dataset) % 4  # the last batch of one process is not full
    losses, values = gathered(trainer, dataset, num_processes, monkeypatch)
    assert len(losses) == len(dataset)
    assert np.mean(losses) == pytest.approx(expected["eval_loss"], rel=1e-5)
    if task is mspm:
        found = trainer.compute_metrics(SimpleNamespace(predictions=values))
        assert found == {name: pytest.approx(expected[f"eval_{name}"], rel=1e-5) for name in found}


def gathered(trainer, dataset, num_processes: int, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """Returns losses (clips,) and predictions (clips, ...) as Trainer gathers and cuts them, in turns of a process."""
    size = trainer.args.eval_batch_size
    batches = torch.utils.data.BatchSampler(range(len(dataset)), size, drop_last=False)
    shards = [list(BatchSamplerShard(batches, num_processes, index)) for index in range(num_processes)]
    remainder = len(dataset) % (num_processes * size)
    kind, losses, predictions = type(trainer.args), [], []
    monkeypatch.setattr(kind, "world_size", num_processes)
    for step, own in enumerate(zip(*shards), 1):
        is_last = step == len(shards[0])
        state = SimpleNamespace(end_of_dataloader=is_last, remainder=remainder)
        monkeypatch.setattr(trainer.accelerator, "gradient_state", state)
        parts = []
        for index, batch in enumerate(own):
            monkeypatch.setattr(kind, "process_index", index)
            inputs = trainer.data_collator([dataset[clip] for clip in batch])
            loss, values, _ = trainer.prediction_step(trainer.model.eval(), inputs, prediction_loss_only=False)
            assert loss.isfinite() and len(values) == size
            parts.append((loss.repeat(size), values))
        cut = remainder or None if is_last else None
        losses.append(torch.cat([part[0] for part in parts])[:cut])
        predictions.append(torch.cat([part[1] for part in parts])[:cut])
    return torch.cat(losses).numpy(), torch.cat(predictions).numpy()
