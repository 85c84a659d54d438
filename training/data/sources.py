"""
Loads labelled clips from folders, tables, SSAST's JSON manifests and the Hub.

Each split is a `datasets.Dataset` with the columns `audio` (a path, or {"path", "bytes"}) and `label` (a text, or a
list of texts; numbers stay texts until `LabelSet.encode` reads them) and, if the source has them, `fold` and `group`
(texts), and `start` and `end` (seconds) of segments of recordings.
"""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.compute
from transformers.utils import logging

from ..errors import InputError, one_line, printable, short
from .audio import datasets_without_torchcodec
from .columns import (
    OTHER_COLUMNS,
    STORED_AUDIO,
    Columns,
    as_text,
    choose_audio_column,
    choose_label_column,
    clip_names,
    other_columns,
    read_labels,
    row_of,
    stored_audio,
)
from .labels import class_name
from .listing import CIRCLE, COMPANION, EMPTY_FOLDER, HIDDEN, Listing, as_lines, list_audio_files, warn
from .tables import TABLE_READERS, load_known_labels, load_named_rows, load_table, resolve, time_columns, warn_of_parts
from .text_tables import is_empty

logger = logging.get_logger(__name__)

# Usual names of splits -> this project's names.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
}

# Files in which `datasets` may find a data set; text files alone are none beside clips that cannot be read.
PACKED_SUFFIXES = (".parquet", ".arrow", ".tar", ".zip", ".gz", ".tgz")
STORED_SUFFIXES = (*PACKED_SUFFIXES, ".json", ".jsonl", ".csv", ".py")

# Kinds of tables that are read by their names, such as train.tsv; texts and JSON of these names may be notes.
FOLDER_TABLES = tuple(suffix for suffix in TABLE_READERS if suffix not in (".txt", ".json"))

# Takes a folder, and rows (`Listing.left_out_rows`) on what was left out of it.
Report = Callable[[Path, list[dict]], None]


def warn_of_left_out(folder: Path, rows: list[dict]):
    """Logs a warning per row of a report."""
    warn(folder, as_lines(rows))


def find_split_tables(folder: Path) -> dict[str, Path]:
    """
    Finds train.csv and the other tables with usual names of splits in a local folder: name -> path; empty without a
    training table.

    Raises:
        InputError: two tables have one name.
    """
    tables = {}
    for path in _tables_in(folder, FOLDER_TABLES):
        if path.stem.lower() in SPLIT_NAMES:
            if path.stem in tables:
                raise InputError(f"{folder}: has {tables[path.stem].name} and {path.name}; keep one of them")
            tables[path.stem] = path
    return tables if any(SPLIT_NAMES[name.lower()] == "train" for name in tables) else {}


def _tables_in(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Returns the tables that lie directly in a folder, sorted."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if path.suffix.lower() in suffixes and path.is_file()]


def load_local(
    name: str, columns: Columns, config: str | None, revision: str | None, report: Report = warn_of_left_out
) -> tuple[dict[str, datasets.Dataset], bool]:
    """
    Loads all splits of a local folder of tables or audio, of a local folder of Parquet files, or of the Hub.

    Returns:
        split -> examples, and whether they have the columns of this project already

    Raises:
        InputError: the data set cannot be loaded.
    """
    folder = Path(name)

    def load() -> dict[str, datasets.Dataset]:
        return dict(load_stored(name, config, revision))

    if not os.path.isdir(folder):
        return load(), False
    listing = list_audio_files(folder)
    tables = find_split_tables(folder)
    # `datasets` reads Parquet that holds the clips themselves, and keeps it on the disk.
    if tables and (listing.files or any(path.suffix.lower() != ".parquet" for path in tables.values())):
        _refuse_options(folder, config, revision)
        splits = {split: load_table(path, columns) for split, path in tables.items()}
        report(folder, _unlisted(listing, splits.values(), "its tables"))
        return splits, True
    if listing.files or _find_metadata(folder):
        _refuse_options(folder, config, revision)
        return load_folder(folder, columns, listing, report), True
    splits = load_packed(name, listing, load)
    return {split: with_paths(data, columns.audio, listing) for split, data in splits.items()}, False


def load_packed(name: str, listing: Listing, load: Callable):
    """
    Calls `load` for a folder without audio files, if it may hold Parquet files or others that `datasets` loads.

    Raises:
        InputError: it holds none, or they cannot be loaded; names what was left out of the folder.
    """
    suffixes = {path.suffix.lower() for path, reason in listing.left_out.items() if reason != HIDDEN}
    reasons = listing.report()
    if suffixes & set(PACKED_SUFFIXES if reasons else STORED_SUFFIXES):
        try:
            return load()
        except InputError:
            # `datasets` opens archives of tables, but not of clips.
            if not reasons or suffixes & {".parquet", ".arrow", ".tar"}:
                raise
    found = f" ({'; '.join(reasons)})" if reasons else ""
    raise InputError(
        f"{name}: holds no audio{found}, no train.csv or metadata.csv, and no Parquet; name another folder"
    )


def load_folder(
    folder: Path, columns: Columns, listing: Listing | None = None, report: Report = warn_of_left_out
) -> dict[str, datasets.Dataset]:
    """
    Loads a local folder by the conventions of `audiofolder`: one folder per class, or a table called metadata
    (`FOLDER_TABLES`) with a `file_name` column; either directly, or in sub-folders named like splits (train, test).

    Args:
        listing: what lies below the folder, if it was listed already

    Returns:
        split -> examples, under the names of the sub-folders, or `train` without such sub-folders

    Raises:
        InputError: no audio, no labels, a class folder without clips, sub-folders that may be splits or classes, or
            metadata without a label column, or another table that gives the clips other labels than their folders.
    """
    listing = listing or list_audio_files(folder)
    metadata = _find_metadata(folder)
    if metadata is not None:
        splits = _divide(load_table(metadata, columns), folder)
        rows = _unlisted(listing, splits.values(), metadata.name)
    else:
        rows = listing.left_out_rows()
        parts = [listing.below(path) for path in _split_folders(listing)]
        splits = {part.folder.name: _load_split_folder(part, columns, rows, folder) for part in parts}
        if not parts:
            splits = {"train": _load_split_folder(listing, columns, rows, folder)}
    report(folder, rows)
    return splits


def load_stored(name: str, config: str | None, revision: str | None, **options):
    """
    Calls `datasets.load_dataset` with its `options` (`split`, `streaming`); audio stays undecoded.

    Raises:
        InputError: the data set cannot be loaded, or is a local folder, which has no revisions.
    """
    if revision is not None and os.path.isdir(name):
        raise InputError(f"revision: {revision} has no effect on {name}, a local folder; leave it out")
    try:
        with datasets_without_torchcodec():
            return datasets.load_dataset(name, config, revision=revision, **options)
    except Exception as error:  # `datasets` raises a dozen kinds, from the network to the builder
        raise InputError(
            f"{name}: neither a local folder nor a data set that can be loaded ({short(one_line(error))}); check the "
            "name, the configuration (dataset_config_name) and the network"
        ) from error


def choose_split(source: str, available: dict, kind: str, wanted: str) -> str | None:
    """
    Returns the name among `available` of the split for `kind` (train, validation, test): `wanted`, or, if that is the
    default name, one with another usual name (such as dev); `None` if there is none.

    Raises:
        InputError: the recipe names a missing split, or several splits have usual names.
    """
    if wanted != kind:
        if wanted in available:
            return wanted
        raise InputError(f"{source}: no split {wanted!r}; set {kind}_split to one of {', '.join(available)}")
    found = [name for name in available if SPLIT_NAMES.get(name.lower()) == kind]
    if len(found) < 2:
        return found[0] if found else None
    others = ", ".join(name for name in found if name != kind)
    if kind not in available:
        raise InputError(f"{source}: which is the {kind} split? Set {kind}_split to one of {others}")
    if os.path.isdir(source):
        raise InputError(
            f"{source}: which is the {kind} split? Set {kind}_split to {others}, or move all but {kind} elsewhere"
        )
    logger.warning(f"{source}: the {kind} split is {kind}, and {others} is left out; {kind}_split may name another")
    return kind


def with_paths(data: datasets.Dataset, audio_column: str | None, listing: Listing) -> datasets.Dataset:
    """
    Returns a data set that `datasets` loaded from a local folder with paths relative to the files that name them.

    Args:
        audio_column: `None`: guessed; where there is none, the data stay as they are
        listing: what lies in the folder
    """
    try:
        column = choose_audio_column(str(listing.folder), data.features, audio_column)
    except InputError:
        return data
    locate = locator(listing)
    kind = data.features[column]
    if isinstance(kind, datasets.Value) and "string" in kind.dtype:
        paths = [locate(path) for path in data[column]]
        return data.remove_columns(column).add_column(column, paths, feature=datasets.Value("string"))
    is_stored = isinstance(kind, datasets.Audio) or (isinstance(kind, dict) and kind.keys() == STORED_AUDIO.keys())
    if not is_stored or not _has_paths(data, column):
        return data

    def locate_all(clips: list[dict | None]) -> dict:
        return {column: [clip and clip | {"path": locate(clip["path"], clip["bytes"])} for clip in clips]}

    data = data.cast_column(column, datasets.Audio(decode=False))
    features = datasets.Features({**data.features, column: STORED_AUDIO})
    return data.map(locate_all, input_columns=[column], batched=True, batch_size=16, features=features)


def locator(listing: Listing) -> Callable[..., str | None]:
    """
    Returns a function: path of a clip that `datasets` read from a local folder, and its bytes if it has any -> the
    path, relative to the file that names it. Processes can be given the function.
    """
    places = (path.parent for path in listing.left_out if path.suffix.lower() in STORED_SUFFIXES)
    return functools.partial(_locate, list(dict.fromkeys((*places, listing.folder))))


def _locate(folders: list[Path], path: str | None, content: bytes | None = None) -> str | None:
    if not path or "://" in path or content is not None:
        return path
    found = [resolve(path, folder) for folder in folders]
    return next(filter(os.path.exists, found), found[0])


def _has_paths(data: datasets.Dataset, column: str) -> bool:
    """Returns whether a clip of a column of stored audio has no bytes."""
    tables = data.select_columns([column]).with_format("arrow").iter(batch_size=1000)
    return any(pyarrow.compute.struct_field(table[column], "bytes").null_count for table in tables)


def standardise(source: str, data: datasets.Dataset, columns: Columns) -> datasets.Dataset:
    """
    Returns a stored data set with the columns `audio` and `label` and, if `columns` names them, `fold`, `group`,
    `start` and `end`.

    Raises:
        InputError: missing columns, or clips without label.
    """
    clips, data = data, _expand_json(data)
    audio_column = choose_audio_column(source, data.features, columns.audio)
    label_column = choose_label_column(source, data.features, columns.label)
    labels = read_labels(source, data[label_column], data.features[label_column], columns, row_of)
    unlabelled = [index for index, label in enumerate(labels) if label is None]
    if unlabelled:
        raise InputError(
            f"{source}: {len(unlabelled)} of {len(labels)} clips have no label, first {row_of(unlabelled[0])}; name "
            "another split"
        )
    others = other_columns(source, data, columns)
    # `datasets` cannot add columns to a selection of columns that were added themselves.
    if audio_column not in clips.features:
        clips = datasets.Dataset.from_dict({audio_column: data[audio_column][:]})
    times = data.select_columns(time_columns(data.column_names))
    data = stored_audio(source, clips, audio_column)
    if times.column_names and isinstance(data.features["audio"], datasets.Value):  # paths
        warn_of_parts(source, times.to_dict(), data["audio"][:], columns)
    for name, values in ({"label": labels} | others).items():
        data = data.add_column(name, values)
    return data


def _expand_json(data: datasets.Dataset) -> datasets.Dataset:
    """Turns the entries of a WebDataset's .json members into columns."""
    if not {"json", "__key__"} <= set(data.features):
        return data
    rows = [row if isinstance(row, dict) else {} for row in data["json"]]
    for key in dict.fromkeys(key for row in rows for key in row):
        if key in data.features:
            continue
        values = [row.get(key) for row in rows]
        try:
            data = data.add_column(key, values)
        except (TypeError, ValueError, pyarrow.ArrowException):  # numbers here, texts there
            data = data.add_column(key, [None if is_empty(value) else as_text(value) for value in values])
    return data.remove_columns("json")


def _find_metadata(folder: Path) -> Path | None:
    paths = [path for path in _tables_in(folder, FOLDER_TABLES) if path.stem.lower() == "metadata"]
    if len(paths) > 1:
        raise InputError(f"{folder}: has {' and '.join(path.name for path in paths)}; keep one of them")
    return paths[0] if paths else None


def _divide(data: datasets.Dataset, folder: Path) -> dict[str, datasets.Dataset]:
    """
    Divides the data by the first folder of its paths if all those are names of splits; else all is `train`.

    Raises:
        InputError: some lie in a folder for validation or test, and some in folders that are no splits.
    """
    first = [os.path.relpath(name, folder).split(os.sep)[0] for name in clip_names(data)]
    names = dict.fromkeys(first)
    others = [name for name in names if name.lower() not in SPLIT_NAMES]
    if not others:
        return {name: data.select([index for index, value in enumerate(first) if value == name]) for name in names}
    # A class may be called "test": then the labels are the names of the folders.
    held_out = {
        name
        for name, label in zip(first, data["label"])
        if SPLIT_NAMES.get(name.lower(), "train") != "train" and label != name
    }
    if held_out:
        raise InputError(
            f"{folder}: its metadata has clips in {_some(sorted(held_out))}, as for a split, and in {_some(others)}; "
            "move one of them elsewhere, or write a table for each split (train_file, validation_file, test_file)"
        )
    return {"train": data}


def _split_folders(listing: Listing) -> list[Path]:
    """
    Returns the sub-folders that are splits; none if the sub-folders are classes.

    Raises:
        InputError: some sub-folders are called and built like splits, and others stand beside them.
    """
    folder, depth = listing.folder, len(listing.folder.parts)
    inside, direct = Counter(), Counter()  # clips below a sub-folder, and directly in it
    for path in listing.files:
        inside[path.parts[depth]] += 1
        direct[path.parts[depth]] += len(path.parts) == depth + 2
    candidates = [path for path in _top_folders(listing) if inside[path.name] or not _is_aside(listing.below(path))]
    named = [path for path in candidates if path.name.lower() in SPLIT_NAMES]
    if not any(inside[path.name] or _find_metadata(path) for path in named):
        return []
    # An empty folder beside splits holds nothing that could be a class or a split.
    others = [path for path in candidates if path not in named]
    others = [path for path in others if inside[path.name] or _reasons_below(listing.below(path))]
    # A class may be called "train": then its clips lie in it, and not in class folders of a split.
    like_splits = [
        path for path in named if (inside[path.name] and not direct[path.name]) or _find_metadata(path) is not None
    ]
    if not others:
        loose = [path for path in listing.files if len(path.parts) == depth + 1]
        if loose:
            raise InputError(f"{printable(loose[0])}: lies beside the splits {_some(_names(named))}; move it into one")
        return named
    if not like_splits:
        return []
    raise InputError(
        f"{folder}: are its sub-folders splits or classes? {_some(_names(like_splits))} would be splits, with class "
        f"folders in them, but {_some(_names(others))} would not; if they are splits, move the others out of {folder}; "
        "if they are classes, rename those that are called like splits, or list the clips in a metadata.csv"
    )


def _load_split_folder(listing: Listing, columns: Columns, rows: list[dict], top: Path) -> datasets.Dataset:
    """Loads the clips of a split of the data set `top`; appends what it leaves out to `rows`."""
    folder = listing.folder
    metadata = _find_metadata(folder)
    if metadata is not None:
        data = load_table(metadata, columns)
        rows += _unlisted(listing, [data], f"{folder.name}/{metadata.name}")
        return data
    _refuse_columns(folder, columns)
    if not listing.files:
        raise InputError(f"{folder}: no audio files ({_why_lost(listing)}); name another folder")
    depth = len(folder.parts)
    loose = [path for path in listing.files if len(path.parts) == depth + 1]
    if loose:
        raise InputError(
            f"{printable(loose[0])}: lies in no class folder; use one folder per class, or metadata.csv (file_name, "
            "label)"
        )
    labels = [class_name(path.parts[depth]) for path in listing.files]
    for place in dict.fromkeys((top, folder)):
        _refuse_tables(place, dict(zip(map(os.path.abspath, listing.files), labels)))
    classes = set(labels)
    without = [listing.below(path) for path in _top_folders(listing) if class_name(path.name) not in classes]
    lost = [part for part in without if not _is_aside(part)]
    if lost:
        others = _names(part.folder for part in lost[1:])
        more = f" (and {len(others)} more such folders: {_some(others)})" if others else ""
        raise InputError(
            f"{printable(lost[0].folder)}: a class folder without clips: {_why_lost(lost[0])}; add clips, or remove "
            f"the folder{more}"
        )
    rows += [
        {"files": 1, "kind": "folder", "in": printable(part.folder.name), "reason": "no class: it holds no audio"}
        for part in without
    ]
    inner = [path for path in listing.folders if path.parent.parent == folder]
    held_out = [path for path in inner if SPLIT_NAMES.get(path.name.lower()) in ("validation", "test")]
    if held_out:
        reason = "not a split, since class folders hold no splits: all clips are taken together"
        rows.append({"files": len(held_out), "kind": "folder", "in": listing.places(held_out), "reason": reason})
    return datasets.Dataset.from_dict({"audio": [str(path) for path in listing.files], "label": labels})


def _top_folders(listing: Listing) -> list[Path]:
    return [path for path in listing.folders if path.parent == listing.folder]


def _reasons_below(listing: Listing) -> set[str]:
    """Returns the reasons why files of a folder are no clips, without those that need no word."""
    return set(listing.left_out.values()) - {HIDDEN, EMPTY_FOLDER}


def _is_aside(listing: Listing) -> bool:
    """Returns whether a folder without clips was never meant as a class: it holds notes or pictures, or is a circle."""
    reasons = _reasons_below(listing)
    return bool(reasons) and reasons <= {COMPANION, CIRCLE}


def _why_lost(listing: Listing) -> str:
    own = listing.left_out.get(listing.folder)
    if own is not None and own != EMPTY_FOLDER:
        return f"it is {own}" if not own.startswith("its") else own
    return "; ".join(listing.report()) or ("it is empty" if not _reasons_below(listing) else "it holds other files")


def _unlisted(listing: Listing, tables: Iterable[datasets.Dataset], name: str) -> list[dict]:
    """Returns a row of a report on the clips of a folder that its tables do not list."""
    listed = {os.path.abspath(path) for data in tables for path in _paths(data)}
    missing = [path for path in listing.files if os.path.abspath(path) not in listed] if listed else []
    if not missing:
        return []
    places = listing.places([path.parent for path in missing])
    reason = f"not listed in {name}, such as {printable(missing[0].name)}"
    return [{"files": len(missing), "kind": "of audio", "in": places, "reason": reason}]


def _paths(data: datasets.Dataset) -> list[str]:
    """Returns the paths of a table's clips; empty if it holds the audio itself."""
    return data["audio"][:] if data.features["audio"] == datasets.Value("string") else []


def _names(paths: Iterable[Path]) -> list[str]:
    return [printable(path.name) for path in paths]


def _some(names: Iterable[str]) -> str:
    """Returns the first names of a list, and the number of the others."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _refuse_tables(folder: Path, classes: dict[str, str]):
    """
    Raises `InputError` if a table in a folder divides the clips of a class folder. Where it has another name for a
    whole class, such as a code, a line says so.

    Args:
        classes: absolute path of a clip -> name of its folder
    """
    for path in _tables_in(folder, TABLE_READERS):
        try:
            listed = [clip for clip in load_named_rows(path)[0] if os.path.abspath(clip.path) in classes]
        except InputError:  # notes, or a table of something else
            continue
        if not listed:
            continue
        try:
            known = zip(*load_known_labels(path, Columns()))
        except InputError:
            logger.warning(f"{path}: lists {len(listed)} clips and no label; the folders are the classes")
            continue
        given = {}  # class folder -> label as text -> the first clip that has it, and the label
        for clip, label in known:
            own = classes.get(os.path.abspath(clip.path))
            if None not in (own, label):
                given.setdefault(own, {}).setdefault(str(label), (clip.name, label))
        others = [(own, text) for own, labels in given.items() for text in labels if text != own]
        for own, text in others:
            name, label = given[own][text]
            if len(given[own]) > 1:
                raise InputError(
                    f"{path}: gives {name} the label {label!r}, and its folder is {own}; name the table as train_file "
                    "or test_file, or move it elsewhere"
                )
        if others:
            own, text = others[0]
            logger.warning(
                f"{path}: gives all clips of {own} the label {text}; the folders are the classes: name the table as "
                "train_file to learn its labels"
            )


def _refuse_options(folder: Path, config: str | None, revision: str | None):
    for name, value in (("dataset_config_name", config), ("dataset_revision", revision)):
        if value:
            raise InputError(f"{name}: has no effect on {folder}, a local folder; leave it out")


def _refuse_columns(folder: Path, columns: Columns):
    for name in ("audio", "label", *OTHER_COLUMNS):
        if getattr(columns, name) is not None:
            raise InputError(
                f"{name}_column: {folder} has class folders and no columns; use a table, or a metadata.csv in it"
            )
