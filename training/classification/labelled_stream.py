"""
Streams labelled clips, so that training needs no download: shuffled in a buffer, divided among processes and
data-loader workers without duplicates or gaps, and resumed where a stopped run ended.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from ..base.arguments import TrainingArguments
from ..data.arguments import DataArguments
from ..data.audio import audio_name, datasets_without_torchcodec
from ..data.clip_stream import ORDER, ClipStream, StreamCallback, clips_per_step
from ..data.clips import StreamedClips, with_json
from ..data.columns import (
    TIME_COLUMNS,
    Columns,
    as_seconds,
    choose_column,
    choose_label_column,
    label_reader,
    of_one_kind,
)
from ..data.dataset import ClipDataset
from ..data.labels import class_name, read_label_file, rename_labels, sort_key
from ..data.listing import list_audio_files
from ..data.sources import choose_split, load_stored, locator
from ..data.tables import time_columns, warn_of_parts
from ..data.unreadable import UNREADABLE_CLIPS, UnreadableLog, try_to_read
from ..errors import InputError

STATISTICS_CLIPS = 1000  # clips on which `compute_statistics` computes
MOST_EVALUATED = 100_000  # clips of a validation or test split, kept undecoded in memory


class LabelledStream(StreamedClips):
    """
    Streams a split. Its clips have `label` (a text, or a list of texts) beside `path` and `bytes`, and `start` and
    `end` (seconds) where they are parts of recordings.
    """

    def __init__(
        self,
        name: str,
        data: datasets.IterableDataset,
        columns: Columns,
        names: dict[str, str] | None = None,
        shuffle_buffer: int = 1000,
        locate: Callable[[str | None, bytes | None], str | None] | None = None,
    ):
        with datasets_without_torchcodec():  # JSON lines have features only after the first row
            features = with_json(data.features or dict.fromkeys(next(iter(data), {})))
        column = choose_label_column(name, features, columns.label)
        times = {key: wanted for key in TIME_COLUMNS if (wanted := getattr(columns, key)) is not None}
        others = {key: choose_column(name, features, key, wanted, ()) for key, wanted in times.items()}
        others = {"label": column} | others
        super().__init__(name, data, columns.audio, shuffle_buffer, others, locate)
        if unread := time_columns(self.columns):
            first = self.first(data, unread)  # stands for all: a stream is long
            file = first["path"] if first["bytes"] is None else None
            warn_of_parts(name, {column: [first[column]] for column in unread}, [file], columns)
        self._feature = features[column]
        self._read_label = label_reader(name, self._feature, columns)
        self._names = names or {}

    def class_names(self) -> tuple[str, ...] | None:
        """Returns the classes if the data set's description names them, else `None`."""
        names = getattr(getattr(self._feature, "feature", self._feature), "names", None)
        return None if names is None else tuple(sorted({class_name(name) for name in names}, key=sort_key))

    def _read(self, shard: datasets.IterableDataset) -> Iterator[dict]:
        for clip in super()._read(shard):
            file = audio_name({"path": clip["path"]})
            where = f"{self.name}: {file}"
            times = {
                name: as_seconds(self.name, name, [clip[name]], lambda _, file=file: file)[0]
                for name in TIME_COLUMNS
                if name in clip
            }
            label = self._read_label(clip["label"], where)
            if label is None:
                raise InputError(f"{where} has no label; name another split or label column")
            yield clip | times | {"label": rename_labels(label, self._names)}


class LabelledClipStream(ClipStream):
    """
    Iterates endlessly over training examples, or over one process's share of them.

    Args:
        stream: the clips
        template: makes the examples; its own clips are not used

    Raises:
        InputError: while iterating, a label outside the label set, or unreadable clips (the first, or too many).
    """

    def __init__(
        self, stream: LabelledStream, template: ClipDataset, data_arguments: DataArguments, arguments: TrainingArguments
    ):
        super().__init__(
            [stream],
            None,
            None,
            template.feature_extractor.sampling_rate,
            arguments.seed,
            arguments.train_batch_size,
            UnreadableLog(Path(arguments.output_dir) / UNREADABLE_CLIPS),
            num_processes=arguments.world_size,
            process_index=arguments.process_index,
            max_unreadable_share=data_arguments.max_unreadable_share,
        )
        self.template = template
        self.skips_unreadable = data_arguments.on_bad_audio == "skip"
        self.epoch_steps = arguments.epoch_steps
        self.windows = None  # only evaluations cut clips into windows
        self.num_clips = arguments.max_steps * clips_per_step(arguments)  # read by the training

    @property
    def feature_extractor(self):
        return self.template.feature_extractor

    @feature_extractor.setter
    def feature_extractor(self, extractor):
        self.template.feature_extractor = extractor

    def check_labels(self):
        """Does nothing: a stream's labels are unknown until read."""

    def callback(self) -> TrainerCallback:
        return StreamCallback(self, self.epoch_steps)

    def example(self, waveform: np.ndarray, rng: np.random.Generator, clip: dict) -> dict:
        label = self.template.labels.encode(clip["label"], audio_name(clip))
        return self.template.training_example(waveform, label, rng)

    def on_unreadable(self, name: str, reason: str):
        if not self.skips_unreadable:
            raise InputError(f"{name}: {reason}; or set on_bad_audio to skip")

    def waveforms(self) -> Iterator[np.ndarray]:
        """Yields some random clips, (samples,) each, for the statistics of their features."""
        (stream,) = self.clips
        clips = itertools.islice(stream.shuffled(np.random.default_rng((self.seed, ORDER, 0, 0))), STATISTICS_CLIPS)
        for index, clip in enumerate(clips):
            waveform, _ = try_to_read(clip, stream.name_of(index, clip), self.sampling_rate, self.log)
            if waveform is not None:
                yield waveform


def open_streams(arguments: DataArguments) -> dict[str, LabelledStream | datasets.Dataset]:
    """
    Returns the splits of the recipe: `train` as a stream; `validation` and `test`, where given, read at once and kept
    undecoded.

    Raises:
        InputError: the data set cannot be loaded, or is a table or a folder (these need no streaming).
    """
    if arguments.train_file:
        raise InputError("streaming: tables name files that are here already; leave it out")
    arguments.check_source()
    name = arguments.dataset_name
    available = load_stored(name, arguments.dataset_config_name, arguments.dataset_revision, streaming=True)
    columns = Columns(
        arguments.audio_column,
        arguments.label_column,
        arguments.label_separator,
        is_multi=arguments.problem_type == "multi_label_classification",
        start=arguments.start_column,
        end=arguments.end_column,
    )
    names = read_label_file(Path(arguments.label_file)) if arguments.label_file else {}
    wanted = {"train": arguments.train_split, "validation": arguments.validation_split, "test": arguments.test_split}
    chosen = {kind: choose_split(name, available, kind, split) for kind, split in wanted.items()}
    if chosen["train"] is None:
        raise InputError(f"{name}: no split 'train'; set train_split to one of {', '.join(available)}")
    locate = locator(list_audio_files(Path(name))) if os.path.isdir(name) else None
    streams = {
        kind: LabelledStream(f"{name}[{split}]", available[split], columns, names, arguments.shuffle_buffer, locate)
        for kind, split in chosen.items()
        if split is not None
    }
    return {kind: stream if kind == "train" else read_whole(stream) for kind, stream in streams.items()}


def describe_stream(stream: LabelledStream, arguments: DataArguments) -> dict:
    """Returns what a resumption of a streamed training must share; a local folder may have moved."""
    name = arguments.dataset_name
    name = os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name
    return {
        "dataset_name": name,
        "dataset_config_name": arguments.dataset_config_name,
        "dataset_revision": arguments.dataset_revision,
        "train_split": arguments.train_split,
        **stream.facts(),
    }


def read_whole(stream: LabelledStream) -> datasets.Dataset:
    """Returns a split with the columns of `sources`, in its own order."""
    rows = list(itertools.islice(stream.in_order(), MOST_EVALUATED + 1))
    if not rows or len(rows) > MOST_EVALUATED:
        number = "no" if not rows else f"more than {MOST_EVALUATED}"
        raise InputError(f"{stream.name}: holds {number} clips, which cannot be evaluated; name another split")
    columns = {"audio": [{"path": row["path"], "bytes": row["bytes"]} for row in rows]}
    columns |= {name: [row[name] for row in rows] for name in stream.others}
    labels = of_one_kind(columns.pop("label"))
    lists = datasets.List(datasets.Value("string"))  # a split may have empty lists alone
    kind = lists if isinstance(labels[0], list) else None
    return datasets.Dataset.from_dict(columns).add_column("label", labels, feature=kind)


def check_streaming(data_arguments: DataArguments, augmentation, tuning, arguments: TrainingArguments):
    """
    Sets the numbers of steps (a stream has no end).

    Raises:
        InputError: a setting that needs all clips at once.
    """
    if augmentation.mixup_rate:
        raise InputError("mixup_rate: streamed clips cannot be mixed with others that are not there yet; set 0")
    for name in ("max_train_clips", "max_eval_clips"):
        if getattr(data_arguments, name) is not None:
            raise InputError(f"{name}: a stream is read step by step; set max_steps instead")
    for name in ("none_label", "unknown_classes"):
        if getattr(data_arguments, name) is not None:
            raise InputError(f"{name}: a stream's labels are known only when they are read; leave it out")
    for name in ("group_column", "fold_column"):
        if getattr(data_arguments, name) is not None:
            raise InputError(f"{name}: a stream is not divided into splits or folds; leave it out")
    for option in dataclasses.fields(data_arguments):
        value = getattr(data_arguments, option.name)
        if option.name in ("validation_fraction", "test_fraction") and value not in (0, option.default):
            raise InputError(f"{option.name}: no clips of a stream are set aside; leave it out, or name another split")
    if arguments.data_seed is not None:
        raise InputError("data_seed: the order of a stream follows from seed; leave it out")
    if data_arguments.decoded_cache is not None:
        raise InputError("decoded_cache: streamed clips are not stored; leave it out")
    for name, value, plain in (
        ("sampler", tuning.sampler, "uniform"),
        ("class_weights", tuning.class_weights, "none"),
        ("train_sampling_strategy", arguments.train_sampling_strategy, "random"),
    ):
        if value != plain:
            raise InputError(f"{name}: {value} needs all clips at once, and a stream reads one by one; set {plain}")
    if tuning.average_from_epoch is not None:
        raise InputError("average_from_epoch: a stream has no epochs that end; set ema_decay instead")
    if arguments.epoch_steps is None and arguments.max_steps <= 0:
        raise InputError("epoch_steps: is not set, and a stream has no known end; say how many steps count as an epoch")
    if arguments.max_steps <= 0:
        arguments.max_steps = math.ceil(arguments.num_train_epochs * arguments.epoch_steps)
    arguments.epoch_steps = arguments.epoch_steps or arguments.max_steps
    arguments.ignore_data_skip = True  # the stream itself skips to where a run resumes
    for kind in ("eval", "save", "logging"):
        if getattr(arguments, f"{kind}_strategy") == "epoch":
            setattr(arguments, f"{kind}_strategy", IntervalStrategy.STEPS)
            setattr(arguments, f"{kind}_steps", arguments.epoch_steps)
