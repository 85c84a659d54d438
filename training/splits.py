"""Training, validation and test split of a data set, given or made."""

from pathlib import Path

import datasets
from sklearn.model_selection import train_test_split
from tqdm.auto import tqdm
from transformers.utils import logging

from .arguments import DataArguments
from .audio import check_audio
from .errors import InputError
from .labels import read_label_file, rename_labels
from .sources import Columns, is_audio_folder, load_folder, load_hub, load_table

logger = logging.get_logger(__name__)


def load_splits(arguments: DataArguments) -> dict[str, datasets.Dataset]:
    """
    The splits that the recipe names, under `train`, `validation` and `test`; the last two only if they are given.

    Raises:
        InputError: a source cannot be read or has no training split.
    """
    columns = Columns(arguments.audio_column, arguments.label_column, arguments.label_separator)
    if arguments.train_file:
        files = {"train": arguments.train_file, "validation": arguments.validation_file, "test": arguments.test_file}
        splits = {split: load_table(Path(file), columns) for split, file in files.items() if file}
    else:
        splits = _load_named(arguments, columns)
    if arguments.label_file:
        names = read_label_file(Path(arguments.label_file))
        splits = {
            split: data.remove_columns("label").add_column(
                "label", [rename_labels(value, names) for value in data["label"]]
            )
            for split, data in splits.items()
        }
    return splits


def _load_named(arguments: DataArguments, columns: Columns) -> dict[str, datasets.Dataset]:
    name = arguments.dataset_name
    if is_audio_folder(Path(name)):
        available = load_folder(Path(name), columns)
    else:  # the Hub, or a local folder of Parquet files
        available = load_hub(name, arguments.dataset_config_name, columns, arguments.dataset_revision)
    wanted = {"train": arguments.train_split, "validation": arguments.validation_split, "test": arguments.test_split}
    splits = {split: available[source] for split, source in wanted.items() if source in available}
    if "train" not in splits:
        raise InputError(f"{name}: no split {wanted['train']!r}; set train_split to one of {', '.join(available)}")
    return splits


def complete_splits(
    splits: dict[str, datasets.Dataset], arguments: DataArguments, stratify: bool, seed: int
) -> dict[str, datasets.Dataset]:
    """
    Sets aside a test and a validation split from the training clips where the source has none.

    Args:
        stratify: keep the share of every class; a class with a single clip stays in the training split

    Raises:
        InputError: too few clips.
    """
    splits = dict(splits)
    for split, fraction in (("test", arguments.test_fraction), ("validation", arguments.validation_fraction)):
        if split not in splits and fraction:
            splits["train"], splits[split] = _set_aside(splits["train"], split, fraction, stratify, seed)
    return splits


def _set_aside(
    data: datasets.Dataset, split: str, fraction: float, stratify: bool, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    labels = [str(label) for label in data["label"]]
    alone = {label for label in set(labels) if stratify and labels.count(label) == 1}
    if alone:
        logger.warning(f"Classes with a single clip stay in the training split: {', '.join(sorted(alone))}")
    indices = [index for index, label in enumerate(labels) if label not in alone]
    try:
        kept, set_aside = train_test_split(
            indices,
            test_size=fraction,
            random_state=seed,
            stratify=[labels[index] for index in indices] if stratify else None,
        )
    except ValueError:
        raise InputError(
            f"the {len(data)} training clips are too few to set aside {fraction:.0%} of every class for the {split} "
            f"split; add clips, name a {split} split, or set {split}_fraction to 0 or higher"
        ) from None
    kept = sorted(set(range(len(data))) - set(set_aside))
    return data.select(kept), data.select(sorted(set_aside))


def check_files(splits: dict[str, datasets.Dataset]):
    """
    Reads the header of every clip.

    Raises:
        InputError: names the first damaged file and how many there are.
    """
    failures = []
    for split, data in splits.items():
        for source in tqdm(data["audio"], desc=f"checking {split} files", leave=False, disable=len(data) < 1000):
            try:
                check_audio(source)
            except InputError as error:
                failures.append(str(error))
    if failures:
        more = f" (and {len(failures) - 1} more damaged files)" if len(failures) > 1 else ""
        raise InputError(failures[0] + more)
