"""Loads or makes the training, validation and test split of a data set, and the folds of a cross-validation."""

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import datasets
import numpy as np
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold, train_test_split
from transformers.utils import logging

from ..errors import InputError, nearest
from .arguments import DataArguments, EvaluationDataArguments, FrozenDataArguments, SourceArguments, SplitArguments
from .columns import OTHER_COLUMNS, TIME_COLUMNS, Columns, clip_names, stored_paths
from .labels import LabelSet, class_name, label_names, read_label_file, rename_labels, sort_key, without_label
from .sources import Report, choose_split, load_local, standardise, warn_of_left_out
from .tables import load_table

logger = logging.get_logger(__name__)
NAMED_CLASSES = 3  # in a message


def load_splits(arguments: SplitArguments, report: Report = warn_of_left_out) -> dict[str, datasets.Dataset]:
    """
    Loads the splits that the recipe names, as `train` and, where given, `validation` and `test`.

    Args:
        report: takes a folder, and rows on the files that are left out of it

    Raises:
        InputError: an unreadable source, one without a training split, or options that have no effect on it, such as
            a `none_label` that no clip has.
    """
    arguments.check_source()
    columns = columns_of(arguments, is_multi=arguments.problem_type == "multi_label_classification")
    if arguments.train_file:
        files = {"train": arguments.train_file, "validation": arguments.validation_file, "test": arguments.test_file}
        splits = {split: load_table(Path(file), columns) for split, file in files.items() if file}
    else:
        name, available = arguments.dataset_name, _load_named(arguments, columns, report)
        wanted = {kind: getattr(arguments, f"{kind}_split") for kind in ("train", "validation", "test")}
        chosen = {kind: choose_split(name, available, kind, split) for kind, split in wanted.items()}
        if chosen["train"] is None:
            raise InputError(f"{name}: no split 'train'; set train_split to one of {', '.join(available)}")
        splits = {kind: available[split]() for kind, split in chosen.items() if split is not None}
    if problem := _unused_none_label(splits.values(), arguments):
        raise InputError(problem)
    return _with_one_kind({split: _with_meant_labels(data, arguments) for split, data in splits.items()})


def _with_one_kind(splits: dict[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """Returns the splits with lists of labels in all of them if a clip of any has several labels or none."""
    lists = datasets.List(datasets.Value("string"))
    are_lists = {split: not isinstance(data.features["label"], datasets.Value) for split, data in splits.items()}
    if len(set(are_lists.values())) == 1:
        return splits
    return {
        split: data
        if are_lists[split]
        else data.remove_columns("label").add_column("label", [[label] for label in data["label"]], feature=lists)
        for split, data in splits.items()
    }


def load_test_split(arguments: SourceArguments, is_multi: bool = False) -> datasets.Dataset:
    """
    Loads the test clips that the recipe names; all clips of a source with a single split.

    Args:
        is_multi: a clip may have several labels or none

    Raises:
        InputError: an unreadable source, or several splits without one for the test.
    """
    arguments.check_source()
    columns = columns_of(arguments, is_multi)
    if arguments.test_file:
        data = load_table(Path(arguments.test_file), columns)
    else:
        name, available = arguments.dataset_name, _load_named(arguments, columns)
        chosen = choose_split(name, available, "test", arguments.test_split)
        if chosen is None and len(available) > 1:
            raise InputError(f"{name}: no split 'test'; set test_split to one of {', '.join(available)}")
        data = available[chosen or next(iter(available))]()
    if problem := _unused_none_label([data], arguments):
        logger.warning(problem)  # a test may have classes alone
    return _with_meant_labels(data, arguments)


def columns_of(arguments: SourceArguments, is_multi: bool = False) -> Columns:
    """Returns the columns that the recipe names."""
    names = ("audio", "label", *OTHER_COLUMNS)
    return Columns(
        separator=arguments.label_separator,
        is_multi=is_multi,
        **{name: getattr(arguments, f"{name}_column", None) for name in names},  # an evaluation has no folds and groups
    )


def _load_named(
    arguments: SourceArguments, columns: Columns, report: Report = warn_of_left_out
) -> dict[str, Callable[[], datasets.Dataset]]:
    """Loads a named data set: split -> function that returns its examples, so that only what is used must be right."""
    name, config, revision = arguments.dataset_name, arguments.dataset_config_name, arguments.dataset_revision
    splits, is_standard = load_local(name, columns, config, revision, report)
    if is_standard:
        return {split: lambda data=data: data for split, data in splits.items()}
    return {split: partial(standardise, f"{name}[{split}]", data, columns) for split, data in splits.items()}


def _unused_none_label(splits: Iterable[datasets.Dataset], arguments: SourceArguments) -> str:
    """Returns what is wrong with a `none_label` that no clip has, such as a misspelt one; empty if nothing is."""
    if arguments.none_label is None:
        return ""
    name = class_name(arguments.none_label)
    known = {own for data in splits for label in data["label"] for own in label_names(label)}
    if name in known:
        return ""
    hint = nearest(name, known, f"known are {', '.join(sorted(known, key=sort_key)[:20])}")
    return f"none_label: no clip has the label {name!r}; {hint}"


def _with_meant_labels(data: datasets.Dataset, arguments: SourceArguments) -> datasets.Dataset:
    """Returns the data without labels that stand for none, and with the display names of the label file as labels."""
    labels = data["label"]
    if arguments.none_label is not None:
        labels = [without_label(label, arguments.none_label) for label in labels]
    if arguments.label_file:
        names = read_label_file(Path(arguments.label_file))
        labels = [rename_labels(label, names) for label in labels]
    if not arguments.label_file and arguments.none_label is None:
        return data
    texts = datasets.List(datasets.Value("string"))  # a split may have empty lists alone
    kind = texts if any(isinstance(label, list) for label in labels) else None
    return data.remove_columns("label").add_column("label", labels, feature=kind)


def warn_of_repeats(splits: dict[str, datasets.Dataset]):
    """Warns of files that are listed twice: they may end up on both sides of a split and make the test invalid."""
    repeated = count_repeats((split, name) for split, data in splits.items() for name in clip_names(data))
    if repeated:
        logger.warning(
            f"{len(repeated)} files are listed more than once, such as {next(iter(repeated))}: is that meant?"
        )
    shared = {name: counts for name, counts in repeated.items() if len(counts) > 1}
    if shared:
        name, counts = next(iter(shared.items()))
        logger.warning(f"{len(shared)} files are in several splits, such as {name} in {' and '.join(counts)}")


def count_repeats(clips: Iterable[tuple[str, str]]) -> dict[str, Counter]:
    """
    Finds clips that are listed more than once, also under two spellings of a path.

    Args:
        clips: split and name of each entry

    Returns:
        name -> number of entries by split
    """
    counts = defaultdict(Counter)
    for split, name in clips:
        counts[os.path.normpath(name)][split] += 1
    return {name: own for name, own in counts.items() if own.total() > 1}


def warn_of_divided_recordings(data: datasets.Dataset, sides: Sequence[int]):
    """
    Warns of recordings whose parts are drawn into several splits or folds: they may overlap, and sound alike anyway.

    Args:
        sides: number of the split or fold of each clip
    """
    if "group" in data.column_names or not set(TIME_COLUMNS) & set(data.column_names):
        return
    found = defaultdict(set)
    for path, side in zip(stored_paths(data), sides):
        found[path].add(side)
    divided = [path for path, own in found.items() if len(own) > 1]
    if divided:
        logger.warning(
            f"parts of {len(divided)} recordings, such as {divided[0]}, are divided among splits or folds; set "
            "group_column to keep each recording in one"
        )


def divides_by_class(labels: LabelSet, values: Iterable) -> bool:
    """Returns whether the clips are divided by class: each label of a clip is one class, or none of them."""
    # Everywhere by this rule: a sweep and the fine-tuning of its recipe must set the same test clips aside.
    return labels.is_single or (labels.is_multi and all(isinstance(value, str) or len(value) < 2 for value in values))


def complete_splits(
    splits: dict[str, datasets.Dataset], arguments: FrozenDataArguments, stratify: bool, seed: int
) -> dict[str, datasets.Dataset]:
    """
    Sets aside a test and a validation split from the training clips where the source has none. Clips of one `group`
    stay together.

    Args:
        stratify: keep the share of every class; a class with a single clip (or group) stays in the training split

    Raises:
        InputError: too few clips or groups.
    """
    splits, made = dict(splits), ["train"]
    for split, fraction in (("test", arguments.test_fraction), ("validation", arguments.validation_fraction)):
        if split not in splits and fraction:
            splits["train"], splits[split] = _set_aside(splits["train"], split, fraction, stratify, seed)
            made.append(split)
    sides = [side for side, split in enumerate(made) for _ in range(len(splits[split]))]
    warn_of_divided_recordings(datasets.concatenate_datasets([splits[split] for split in made]), sides)
    return splits


def _set_aside(
    data: datasets.Dataset, split: str, fraction: float, stratify: bool, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    labels = [str(label) for label in data["label"]]
    if "group" in data.column_names:
        return _set_groups_aside(data, labels, split, fraction, stratify, seed)
    alone = {label for label, count in Counter(labels).items() if stratify and count == 1}
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


def _set_groups_aside(
    data: datasets.Dataset, labels: list[str], split: str, fraction: float, stratify: bool, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Sets aside about a fraction of the clips in whole groups, at least one group."""
    num_groups, num_folds = len(set(data["group"])), max(2, round(1 / fraction))
    if num_groups < 2:
        raise InputError(
            f"the training clips are of one group, which cannot be divided into training and {split} split; name a "
            f"{split} split, set {split}_fraction to 0, or leave out group_column"
        )
    if num_groups < num_folds:
        logger.warning(
            f"{num_groups} groups are too few for {split}_fraction {fraction:g}: the {split} split is a whole group"
        )
        num_folds = num_groups
    try:
        folds = group_folds(labels, data["group"], num_folds, stratify, seed)
    except ValueError as error:
        raise InputError(f"{split}_fraction: {fraction:g} does not fit the data ({error}); set a larger one") from None
    if stratify:
        folds = _with_every_class(folds, labels, split)
    # Where groups differ in size, the first fold can be far from the fraction.
    kept, set_aside = min(folds, key=lambda fold: abs(len(fold[1]) - fraction * len(data)))
    return data.select(sorted(kept)), data.select(sorted(set_aside))


def _with_every_class(folds: list[tuple], labels: list[str], split: str) -> list[tuple]:
    """Returns the folds that leave each class some training clips; all, with a warning, where none does."""
    lost = [sorted(set(labels) - {labels[index] for index in kept}) for kept, _ in folds]
    if complete := [fold for fold, names in zip(folds, lost) if not names]:
        return complete
    names = ", ".join(min(lost, key=len)[:NAMED_CLASSES])
    logger.warning(
        f"however the groups are divided, the {split} split takes all training clips of some classes, such as {names}; "
        f"name a {split} split, or leave out group_column"
    )
    return [fold for fold, names in zip(folds, lost) if len(names) == min(map(len, lost))]


def sample_splits(
    splits: dict[str, datasets.Dataset], arguments: DataArguments | EvaluationDataArguments, seed: int
) -> dict[str, datasets.Dataset]:
    """Draws at most `max_train_clips` or `max_eval_clips` clips of each split, and keeps their order."""
    sampled = {}
    for split, data in splits.items():
        limit = arguments.max_train_clips if split == "train" else arguments.max_eval_clips
        if limit is not None and limit < len(data):
            data = data.select(sorted(np.random.default_rng(seed).choice(len(data), limit, replace=False)))
        sampled[split] = data
    return sampled


def group_folds(labels: list[str], groups: list[str], num_folds: int, stratify: bool, seed: int) -> list[tuple]:
    """Returns the indices (training clips, held-out clips) of each fold; no group is in both."""
    places = np.zeros(len(labels))
    if stratify:
        splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():  # of classes missing from some folds; groups can force that
            warnings.simplefilter("ignore", UserWarning)
            return list(splitter.split(places, labels, groups))
    return list(GroupKFold(num_folds, shuffle=True, random_state=seed).split(places, labels, groups))


def make_folds(
    data: datasets.Dataset, num_folds: int, stratify: bool, seed: int, num_repeats: int = 1
) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    Returns the indices (training clips, held-out clips) of each fold of a cross-validation: by the column `fold` if
    there is one, else drawn, in whole groups if there is a column `group`.

    Raises:
        InputError: every class has fewer clips than folds, there are fewer groups than folds, or only one fold.
    """
    if "fold" in data.column_names:
        own = np.asarray(data["fold"])
        names = sorted(set(own), key=sort_key)
        if len(names) < 2:
            raise InputError(f"fold_column: all clips are in fold {names[0]}; leave it out")
        return [(np.flatnonzero(own != name), np.flatnonzero(own == name)) for name in names]
    labels = [str(label) for label in data["label"]]
    groups = data["group"][:] if "group" in data.column_names else None
    folds: list[tuple] = []
    for repeat in range(num_repeats):
        try:
            if groups is not None:
                folds += group_folds(labels, groups, num_folds, stratify, seed + repeat)
                continue
            splitter = (StratifiedKFold if stratify else KFold)(num_folds, shuffle=True, random_state=seed + repeat)
            folds += list(splitter.split(np.zeros(len(labels)), labels if stratify else None))
        except ValueError as error:
            raise InputError(f"num_folds: {num_folds} do not fit the data ({error}); set fewer") from None
    sides = np.zeros(len(data), dtype=int)
    for number, (_, held_out) in enumerate(folds[:num_folds]):
        sides[held_out] = number
    warn_of_divided_recordings(data, sides)
    return folds
