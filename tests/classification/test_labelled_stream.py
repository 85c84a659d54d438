"""Tests streamed classification: no duplicates, no gaps, resumption, constant memory."""

import json
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import torch
from audio_files import kill_after, launch, run_program, tone, write_class_folders
from safetensors.torch import load_file
from tiny_models import save_tiny_classifier
from tiny_runs import TINY, write_recipe
from warnings_of import warnings_of

import train_hf
from modeling_dual_ssast import DualSSASTFeatureExtractor
from training.base.arguments import TrainingArguments
from training.classification.labelled_stream import LabelledClipStream, LabelledStream, read_whole
from training.data.arguments import DataArguments
from training.data.audio import datasets_without_torchcodec
from training.data.augmentation import AugmentationArguments
from training.data.columns import Columns
from training.data.dataset import ClipDataset
from training.data.feature_plans import PlannedBatch
from training.data.labels import LabelSet
from training.errors import InputError

CLASSES = ("high", "low")


def write_shards(folder, num_clips: int = 24, num_shards: int = 3, split: str = "train", class_label: bool = True):
    """Writes Parquet files as on the Hub, with the audio as bytes; a clip's length identifies it."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    label = datasets.ClassLabel(names=["low", "high"]) if class_label else datasets.Value("string")
    features = datasets.Features({"audio": datasets.Audio(), "label": label})
    for shard in range(num_shards):
        numbers = range(shard, num_clips, num_shards)
        rows = {
            "audio": [
                {"array": tone(0.1 + 0.002 * n, hz=(900, 300)[n % 2], seed=n), "sampling_rate": 16000} for n in numbers
            ],
            "label": [CLASSES[n % 2] for n in numbers],
        }
        with datasets_without_torchcodec():
            data = datasets.Dataset.from_dict(rows, features)
        data.to_parquet(folder / "data" / f"{split}-{shard:05d}-of-{num_shards:05d}.parquet")
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = write_shards(tmp_path_factory.mktemp("repository"))
    return write_shards(folder, 6, 1, "validation")


def open_stream(folder, **columns) -> LabelledStream:
    data = datasets.load_dataset(str(folder), split="train", streaming=True)
    return LabelledStream(str(folder), data, Columns(**columns), shuffle_buffer=5)


def clip_stream(folder, tmp_path, index: int = 0, processes: int = 1, start: int = 0, seed: int = 3):
    labels = LabelSet(CLASSES, "single_label_classification")
    template = ClipDataset(None, DualSSASTFeatureExtractor(max_length=64), labels, AugmentationArguments(), seed)
    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=4, seed=seed, max_steps=10)
    stream = LabelledClipStream(open_stream(folder), template, DataArguments(dataset_name=str(folder)), arguments)
    stream.num_processes, stream.process_index, stream.start = processes, index, start
    return stream


def heard(stream, count: int, workers: int = 0) -> list[tuple[int, int]]:
    """Returns number of frames and label of examples, which identify the clips of `write_shards`."""
    loader = torch.utils.data.DataLoader(stream, batch_size=4, num_workers=workers, collate_fn=list)
    found = []
    for batch in loader:
        found += [(example["input_values"].sum().item(), example["labels"]) for example in batch]
        if len(found) >= count:
            return found[:count]
    raise AssertionError("the stream has no end")


def test_a_pass_hears_every_clip_once_with_its_label(repository, tmp_path):
    one = heard(clip_stream(repository, tmp_path), 48)
    assert len(set(one[:24])) == 24 and set(one[:24]) == set(one[24:]) and one[:24] != one[24:]
    assert [label for _, label in one[:24]].count(0) == 12
    assert open_stream(repository).class_names() == ("high", "low")


@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 0), (2, 2), (4, 1)])
def test_processes_and_workers_share_without_duplicates_or_gaps(repository, tmp_path, processes, workers):
    alone = heard(clip_stream(repository, tmp_path), 32)
    parts = [
        heard(clip_stream(repository, tmp_path, index, processes), 32 // processes, workers)
        for index in range(processes)
    ]
    together = [example for step in range(32 // (4 * processes)) for part in parts for example in part[4 * step :][:4]]
    assert together == alone


def test_a_resumed_stream_goes_on(repository, tmp_path):
    whole = heard(clip_stream(repository, tmp_path), 40)
    assert heard(clip_stream(repository, tmp_path, start=12), 28) == whole[12:]


def test_a_run_resumed_with_another_batch_size_goes_on(recipe):
    """Counts the delivered clips, not the steps."""
    path, output = recipe(num_train_epochs=1, save_strategy="epoch")
    assert train_hf.main([path]) == 0
    words = ["--resume_from_checkpoint", "true", "--num_train_epochs", "3", "--per_device_train_batch_size", "2"]
    assert train_hf.main([path, *words]) == 0
    log = json.loads((output / "results.json").read_text())["log"]
    clips = {entry["step"]: entry["clips"] for entry in log if "clips" in entry}
    assert clips[6] == 24 and clips[18] == 24 + 12 * 2


def test_a_stream_goes_on_with_its_own_data_alone(recipe, repository, tmp_path, capsys):
    """Another data set or shuffle buffer repeated some clips and skipped others."""
    path, output = recipe(num_train_epochs=1, save_strategy="epoch")
    assert train_hf.main([path]) == 0
    stored = output / "checkpoint-6" / "training_data.json"
    facts = json.loads(stored.read_text())
    moved, other = tmp_path / "elsewhere" / repository.name, tmp_path / "other"
    for folder in (moved, other):
        shutil.copytree(repository, folder)
    words = [path, "--resume_from_checkpoint", "true", "--num_train_epochs", "1"]
    for name, value in (("shuffle_buffer", "6"), ("dataset_name", str(other)), ("streaming", "false")):
        assert train_hf.main([*words, f"--{name}", value]) == 1
        assert re.search(
            f"was made with (stream.{name}|stream) .*, now .*; resume with the same", capsys.readouterr().err
        )
    assert train_hf.main([*words, "--dataset_name", str(moved)]) == 0
    del facts["stream"]  # as earlier versions stored it
    stored.write_text(json.dumps(facts))
    assert train_hf.main([*words, "--shuffle_buffer", "6"]) == 0


def test_validation_clips_that_are_addresses_are_fetched(tmp_path):
    folder = write_class_folders(tmp_path / "clips", 2)
    rows = [{"audio": f"file://{path}", "label": path.parent.name} for path in sorted(folder.rglob("*.wav"))]
    stream = LabelledStream("files", datasets.Dataset.from_list(rows).to_iterable_dataset(), Columns())
    clips = ClipDataset(
        read_whole(stream), DualSSASTFeatureExtractor(max_length=64), LabelSet(CLASSES, "single_label_classification")
    )
    assert [len(clips.waveform(index)) for index in range(len(clips))] == [3200, 4000] * 2


def test_labels_of_texts_and_missing_ones(tmp_path):
    folder = write_shards(tmp_path / "texts", 4, 1, class_label=False)
    stream = open_stream(folder)
    assert stream.class_names() is None and [clip["label"] for clip in stream.in_order()] == ["high", "low"] * 2
    table = pandas.read_parquet(folder / "data" / "train-00000-of-00001.parquet")
    table["label"] = [None, "a", "b", "c"]
    table.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(InputError, match="has no label; name another split"):
        list(open_stream(folder).in_order())


@pytest.fixture
def recipe(tmp_path, repository):
    settings = TINY | {
        "dataset_name": repository, "streaming": True, "epoch_steps": 6, "num_train_epochs": 2, "shuffle_buffer": 5,
        "validation_fraction": 0, "test_fraction": 0,
    }  # fmt: skip
    return lambda **values: write_recipe(tmp_path, settings | values)


def test_a_streamed_run_leaves_what_others_leave(recipe):
    path, output = recipe(compute_statistics=True)
    assert train_hf.main([path]) == 0
    results = json.loads((output / "results.json").read_text())
    assert results["labels"] == ["high", "low"] and results["clips"] == {"train": 48, "validation": 6}
    assert results["training"]["steps"] == 12 and results["training"]["epochs"] == pytest.approx(2)
    assert [entry["epoch"] for entry in results["log"] if "eval_accuracy" in entry] == pytest.approx([1, 2])
    assert results["normalisation"]["std"] != pytest.approx(4.0)
    assert len(pandas.read_csv(output / "predictions.csv")) == 6


def test_held_out_clips_are_screened_before_the_training(recipe, repository, tmp_path, capsys):
    """They are in memory from the start; a damaged one ended a run after its last step."""
    damaged = tmp_path / "damaged"
    shutil.copytree(repository, damaged)
    (part,) = damaged.glob("data/validation-*.parquet")
    table = pandas.read_parquet(part)
    table["audio"] = [{"bytes": b"RIFFrubbish", "path": "0.wav"}, *table["audio"][1:]]
    table.to_parquet(part)
    path, output = recipe(dataset_name=str(damaged))
    assert train_hf.main([path]) == 1 and not (output / "results.json").exists()
    assert "0.wav: not readable as audio" in capsys.readouterr().err and not list(output.glob("checkpoint-*"))
    path, output = recipe(dataset_name=str(damaged), on_bad_audio="skip", max_unreadable_share=0.5)
    assert train_hf.main([path]) == 0
    assert json.loads((output / "results.json").read_text())["clips"]["validation"] == 5
    assert "0.wav" in (output / "unreadable_clips.jsonl").read_text()


def test_left_out_training_clips_are_counted_and_named(recipe, repository, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(repository, damaged)
    part = min(damaged.glob("data/train-*.parquet"))
    table = pyarrow.parquet.read_table(part)  # whose metadata name the classes
    place = table.schema.get_field_index("audio")
    audio = [{"bytes": b"RIFFrubbish", "path": "bad.wav"}, *table["audio"].to_pylist()[1:]]
    column = pyarrow.array(audio, table.schema.field(place).type)
    pyarrow.parquet.write_table(table.set_column(place, table.schema.field(place), column), part)
    path, _ = recipe(dataset_name=str(damaged), on_bad_audio="skip", max_unreadable_share=0.5)
    with warnings_of("training.data.unreadable") as messages:
        assert train_hf.main([path]) == 0
    assert len(messages) == 1 and "lists 1 unreadable clips, left out: " in messages[0] and "bad.wav" in messages[0]


def test_a_run_that_stops_early_counts_the_clips_that_it_has_read(recipe):
    path, output = recipe(num_train_epochs=30, early_stopping_patience=1, learning_rate=1e-30)
    assert train_hf.main([path]) == 0
    results = json.loads((output / "results.json").read_text())
    assert results["training"]["steps"] == 12 and results["clips"]["train"] == 48


def test_streamed_clips_may_have_their_features_made_on_the_device(recipe, tmp_path, monkeypatch):
    made, make = [], PlannedBatch.make
    monkeypatch.setattr(PlannedBatch, "make", lambda self, *args: made.append(len(self.plans)) or make(self, *args))
    losses = []
    for value in (False, True):
        assert not made
        settings = {"logging_strategy": "steps", "logging_steps": 1, "noise": True, "frequency_mask_bins": 16}
        path, _ = recipe(features_on_device=value, output_dir=str(tmp_path / str(value)), **settings)
        assert train_hf.main([path]) == 0
        log = json.loads((tmp_path / str(value) / "results.json").read_text())["log"]
        losses.append([entry[name] for entry in log for name in ("loss", "eval_loss") if name in entry])
    assert len(losses[0]) == 12 + 2 and sum(made) > 48
    # Log-mels of a batch differ in rounding alone; a loss is around 1.
    np.testing.assert_allclose(*losses, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"epoch_steps": None}, "epoch_steps: is not set, and a stream has no known end"),
        ({"mixup_rate": 0.5}, "mixup_rate: streamed clips cannot be mixed"),
        ({"data_seed": 7}, "data_seed: the order of a stream follows from seed; leave it out"),
        ({"decoded_cache": "cache"}, "decoded_cache: streamed clips are not stored"),
        ({"group_column": "speaker"}, "group_column: a stream is not divided into splits or folds; leave it out"),
        ({"fold_column": "fold"}, "fold_column: a stream is not divided"),
        ({"validation_fraction": 0.2}, "validation_fraction: no clips of a stream are set aside; leave it out"),
        ({"test_fraction": 0.2}, "test_fraction: no clips of a stream are set aside"),
        ({"sampler": "balanced"}, "sampler: .*stream"),
        ({"train_file": "clips.csv", "dataset_name": None}, "streaming: tables name files that are here already"),
        ({"task": "cross_validation"}, "streaming: folds"),
        ({"task": "probe"}, "streaming: folds"),
    ],
)
def test_what_streams_cannot_do_is_told(recipe, values, pattern, capsys, tmp_path):
    if values.get("task") == "probe":
        values = {**values, "model_name_or_path": str(save_tiny_classifier(tmp_path / "model"))}
    path, _ = recipe(**values)
    if values.get("task") == "probe":  # knows fewer keys
        recipe_values = json.loads(Path(path).read_text())
        kept = ("task", "dataset_name", "streaming", "output_dir", "model_name_or_path")
        Path(path).write_text(json.dumps({key: recipe_values[key] for key in kept}))
    assert train_hf.main([path]) == 1
    assert re.search(pattern, capsys.readouterr().err)


def damage(folder):
    """The audio of one clip is no audio."""
    path = sorted((folder / "data").glob("train-*"))[0]
    table = pandas.read_parquet(path)
    table.at[0, "audio"] = {"bytes": b"no audio at all", "path": "bad.wav"}
    table.to_parquet(path)


def test_unreadable_clips_stop_or_are_replaced(recipe, tmp_path, capsys):
    folder = write_shards(tmp_path / "damaged", class_label=False)
    damage(folder)
    (tmp_path / "labels.txt").write_text("high\nlow\n")
    labels = {"label_file": str(tmp_path / "labels.txt"), "problem_type": "single_label_classification"}
    path, output = recipe(dataset_name=str(folder), eval_strategy="no", load_best_model_at_end=False)
    assert train_hf.main([path]) == 1
    assert "does not know its classes before it is read; name a file" in capsys.readouterr().err
    path, output = recipe(dataset_name=str(folder), eval_strategy="no", load_best_model_at_end=False, **labels)
    assert train_hf.main([path]) == 1
    assert "bad.wav" in capsys.readouterr().err
    words = ["--on_bad_audio", "skip", "--max_unreadable_share", "0.1", "--overwrite", "true"]
    assert train_hf.main([path, *words]) == 0
    (line,) = (output / "unreadable_clips.jsonl").read_text().splitlines()
    assert json.loads(line)["clip"] == "bad.wav"


@pytest.mark.slow
def test_a_killed_streamed_run_resumes_to_the_same_weights(recipe, tmp_path):
    path, whole = recipe(
        save_strategy="steps", save_steps=2, num_train_epochs=20, frequency_mask_bins=16, load_best_model_at_end=False
    )
    process = run_program("train_hf.py", path)  # with as many threads as the other: sums depend on them
    assert process.returncode == 0, process.stderr[-2000:]
    killed = tmp_path / "killed"
    kill_after(killed / "checkpoint-10", path, "--dataloader_num_workers", 2)
    resumed = run_program("train_hf.py", path, "--output_dir", killed, "--resume_from_checkpoint", "true")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    expected, weights = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_two_processes_stream_what_one_does_with_the_doubled_batch(recipe, tmp_path):
    path, _ = recipe(frequency_mask_bins=16, logging_strategy="steps", logging_steps=1, save_strategy="no")
    one, two = tmp_path / "one", tmp_path / "two"
    words = ["train_hf.py", path, "--load_best_model_at_end", "false", "--output_dir"]
    first = launch(1, *words, one)
    words = [*words, two, "--use_cpu", "true", "--per_device_train_batch_size", 2, "--dataloader_num_workers", 1]
    second = launch(2, *words)
    assert first.returncode == second.returncode == 0, second.stderr[-3000:]
    losses = [
        [entry["loss"] for entry in json.loads((folder / "results.json").read_text())["log"] if "loss" in entry]
        for folder in (one, two)
    ]
    assert len(losses[0]) == 12
    np.testing.assert_allclose(*losses, atol=1e-4)


MEMORY = """
import resource, sys
from pathlib import Path
sys.path[:0] = ["tests/classification", "tests/helpers", "."]
import test_labelled_stream as t
stream = t.clip_stream(Path(sys.argv[1]), Path(sys.argv[2]))
peaks = []
for index, _ in enumerate(stream, start=1):
    if index in (1000, 10000):
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if index == 10000:
        break
print(*peaks)
"""


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_clips(tmp_path):
    folder = write_shards(tmp_path / "many", 2000, 8)
    process = run_program("-c", MEMORY, folder, tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    after_1000, after_10000 = map(float, process.stdout.split())
    assert after_10000 - after_1000 < 40, f"{after_1000:.0f} MiB, then {after_10000:.0f} MiB"


@pytest.mark.parametrize("labels", [["dog", None], [None, None], [["dog", "cat"], "dog"]])
def test_a_split_of_a_stream_may_have_clips_without_labels(labels):
    """One clip without label, and the column held two types: a traceback of pyarrow."""
    rows = [{"audio": "x.wav", "label": label} for label in labels]
    data = datasets.IterableDataset.from_generator(lambda: iter(rows))
    split = read_whole(LabelledStream("hub", data, Columns(is_multi=True)))
    wanted = [label if isinstance(label, list) else [label] if label else [] for label in labels]
    assert split["label"][:] == wanted and split.features["label"] == datasets.List(datasets.Value("string"))


def test_columns_of_times_of_a_stream_are_chosen_as_those_of_a_table():
    data = datasets.Dataset.from_dict({"audio": ["x.wav"], "label": ["dog"], "Begin ": [0.5]}).to_iterable_dataset()
    assert next(LabelledStream("hub", data, Columns(start="begin")).in_order())["start"] == 0.5
    with pytest.raises(InputError, match="hub: no column 'offset'; it has audio, label, Begin"):
        LabelledStream("hub", data, Columns(start="begin", end="offset"))


@pytest.mark.parametrize(
    ("audio", "warned"), [("x.wav", True), ({"path": "x.wav", "bytes": b"RIFF"}, False)], ids=["file", "stored"]
)
def test_times_of_a_stream_that_are_not_read_are_named(caplog, audio, warned):
    """Stored audio is a clip of its own: its times are those of another recording."""
    rows = {"audio": [audio], "label": ["dog"], "Start": [0.5], "end": [1.0]}
    data = datasets.Dataset.from_dict(rows).to_iterable_dataset()
    LabelledStream("hub", data, Columns(start="Start", end="end"))
    assert not caplog.text
    LabelledStream("hub", data, Columns())
    assert ("hub: a clip has times in Start and end, which are not read" in caplog.text) == warned


def test_labels_and_times_of_a_stream_are_read_as_those_of_a_table():
    rows = {"audio": ["x.wav", "y.wav"], "label": ["dog\n", " e\u0301"], "begin": ["0.5", None]}
    stream = LabelledStream("hub", datasets.Dataset.from_dict(rows).to_iterable_dataset(), Columns(start="begin"))
    assert [(clip["label"], clip["start"]) for clip in stream.in_order()] == [("dog", 0.5), ("\u00e9", None)]
    rows |= {"begin": ["0.5", "soon"]}
    stream = LabelledStream("hub", datasets.Dataset.from_dict(rows).to_iterable_dataset(), Columns(start="begin"))
    with pytest.raises(InputError, match="hub: y.wav has 'soon' in start, not a number of seconds"):
        list(stream.in_order())
