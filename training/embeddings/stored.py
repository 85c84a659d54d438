"""Reads what `embed_hf.py` wrote, for the programs that search, draw and judge collections, and finds its clips."""

import json
import os
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas

from ..data.tables import NamedClip
from ..errors import InputError, nearest, one_line, printable
from ..files import ABOUT
from ..recipe import Arguments, described
from .embed import EXTENSIONS

NAMES, TIMES = "file_name", "time_ms"  # columns of every output of embed_hf.py; of `--level frames`
VECTORS = {"clip": re.compile("embedding"), "layers": re.compile(r"layer_\d+")}  # their columns, by --level
BLOCK = 16384  # rows that are looked at together: 50 MB of 768 numbers
REMEDY = "name an output of embed_hf.py --level clip"
MOST_COMPARED = 20_000  # names that a misspelt one is compared with: that takes a second


class Embeddings(NamedTuple):
    """
    Holds the vectors of clips.

    Args:
        names: (clips,), as the column `file_name` has them
        vectors: (clips, size) float32, finite; those of an npz file stay on the disk and cannot be written to
        columns: the other columns, such as those of the manifest, a row per clip
        about: what made the vectors, see `embed_hf.run`; empty where the file does not say it
    """

    names: list[str]
    vectors: np.ndarray
    columns: pandas.DataFrame
    about: dict


@dataclass
class EmbeddingArguments(Arguments):
    """Holds the options of programs that read stored embeddings."""

    embeddings: Path | None = described(
        None, "Output of embed_hf.py with a vector per clip, .parquet or .npz; the first word."
    )
    column: str | None = described(
        None, "Column of vectors, such as layer_7 of embed_hf.py --level layers; unset: the only one."
    )

    def about(self, found: Embeddings, *others: str) -> dict:
        """Returns what a table is made from, for `open_table`: these options, `others`, and what made the vectors."""
        options = {name: getattr(self, name) for name in ("embeddings", "column", *others)}
        return {name: _storable(value) for name, value in options.items()} | {"made_by": found.about}


def _storable(value):
    """Returns an option as JSON takes it."""
    if isinstance(value, list):
        return list(map(_storable, value))
    return str(value) if isinstance(value, Path) else value


def as_text(value) -> str:
    """Returns a cell of the columns as a text; empty for none."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(map(str, value))
    return str(value).strip()


def read_embeddings(path: Path, column: str | None = None, may_repeat: bool = False) -> Embeddings:
    """
    Reads a Parquet or npz file with a vector per clip.

    Args:
        column: of vectors; `None`: the only one, which `--level layers` does not have
        may_repeat: clips may be listed several times

    Raises:
        InputError: the file is missing, damaged or empty, has no such columns or a row per time frame, or a vector is
            missing, not finite or of another size; a clip is listed twice
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; {REMEDY}")
    if path.suffix not in EXTENSIONS:
        raise InputError(f"{path}: must end in {' or '.join(EXTENSIONS)}; {REMEDY}")
    try:
        found = (_read_parquet if path.suffix == ".parquet" else _read_npz)(path, column)
    except (ValueError, OSError, EOFError, KeyError, RecursionError, zipfile.BadZipFile) as error:  # also of Arrow
        raise InputError(f"{path}: not readable ({one_line(error)}); write it again with embed_hf.py") from None
    _check(path, found, may_repeat)
    return found


def _check(path: Path, found: Embeddings, may_repeat: bool):
    """Raises `InputError` for vectors that no result can come from, and for clips that are not told apart."""
    if TIMES in found.columns:
        raise InputError(f"{path}: has a row per time frame; {REMEDY}")
    for start in range(0, len(found.names), BLOCK):
        rows = np.flatnonzero(~np.isfinite(found.vectors[start : start + BLOCK]).all(axis=1))
        if len(rows):
            name = printable(found.names[start + rows[0]])
            raise InputError(f"{path}: the vector of {name} is not finite; remove that clip and embed again")
    if may_repeat or len(set(found.names)) == len(found.names):
        return
    (name, count), *_ = Counter(found.names).most_common(1)
    raise InputError(f"{path}: lists {printable(name)} {count} times; leave one row of each clip")


def _choose(path: Path, names: list[str], about: dict, wanted: str | None) -> tuple[str, list[str]]:
    """Returns the column of vectors, `wanted` or the only one, and those of all layers. Others are the manifest's."""
    if NAMES not in names:
        raise InputError(f"{path}: has no column {NAMES}; {REMEDY}")
    kinds = [VECTORS[about["level"]]] if about.get("level") in VECTORS else VECTORS.values()
    known = [name for name in names if any(kind.fullmatch(name) for kind in kinds)]
    if wanted is not None:
        if wanted not in names:
            raise InputError(f"{path}: has no column {wanted}; {nearest(wanted, names, f'it has {names}')}")
        return wanted, [wanted, *known]
    if len(known) == 1:
        return known[0], known
    if not known:
        raise InputError(f"{path}: has no column of vectors (embedding); {REMEDY}, or name the column")
    raise InputError(f"{path}: has {len(known)} columns of vectors; name one of {', '.join(known)} as the column")


def _no_rows(path: Path) -> InputError:
    return InputError(f"{path}: has no rows; embed some clips")


# ---- Parquet ----


def _read_parquet(path: Path, wanted: str | None) -> Embeddings:
    """Reads vectors batch by batch into one array: the table as a whole is never in memory twice."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path, memory_map=True)
    names = file.schema_arrow.names
    about = (file.schema_arrow.metadata or {}).get(ABOUT.encode())
    about = json.loads(about) if about else {}
    chosen, all_chosen = _choose(path, names, about, wanted)
    num_rows, vectors, row = file.metadata.num_rows, None, 0
    if not num_rows:
        raise _no_rows(path)
    for batch in file.iter_batches(BLOCK, columns=[chosen]):
        rows = _rows(path, batch.column(0), chosen, row, None if vectors is None else vectors.shape[1])
        vectors = np.empty((num_rows, rows.shape[1]), dtype=np.float32) if vectors is None else vectors
        vectors[row : row + len(rows)] = rows
        row += len(rows)
    table = file.read(columns=[name for name in names if name not in all_chosen])
    table = table.to_pandas(integer_object_nulls=True)  # classes such as 0 and 1 do not become floats
    files = table.pop(NAMES)
    if files.isna().any():
        raise InputError(f"{path}: row {int(files.isna().argmax()) + 1} has no {NAMES}; fill it in")
    files = files.astype(str).tolist()
    return Embeddings(files, vectors, table, about)


def _rows(path: Path, values, column: str, first: int, size: int | None) -> np.ndarray:
    """
    Returns vectors of a batch as (rows, size).

    Args:
        values: an Arrow array
        first: number of its first row in the file
        size: of the batches before; `None`: this is the first one
    """
    import pyarrow.compute

    kind = values.type
    if not str(kind).startswith(("list", "large_list", "fixed_size_list")) or str(kind.value_type) not in (
        "halffloat", "float", "double",
    ):  # fmt: skip
        raise InputError(f"{path}: the column {column} holds no vectors but {kind}; name another one")
    sizes = pyarrow.compute.list_value_length(values).to_pylist()
    size = sizes[0] if size is None else size
    odd = next((row for row, own in enumerate(sizes) if not own or own != size), None)
    if odd is not None:
        has = f"{sizes[odd]} numbers, others have {size}" if sizes[odd] else "no numbers"
        raise InputError(f"{path}: the vector in row {first + odd + 1} has {has}; embed all clips with one model")
    flat = pyarrow.compute.list_flatten(values)
    return flat.to_numpy(zero_copy_only=False).reshape(len(values), size)  # nulls become NaN


# ---- npz ----


def _read_npz(path: Path, wanted: str | None) -> Embeddings:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"{damaged} is damaged")
    with np.load(path) as arrays:  # refuses pickles
        names = [name for name in arrays.files if name != "about"]
        about = json.loads(str(arrays["about"])) if "about" in arrays.files else {}
        chosen, all_chosen = _choose(path, names, about, wanted)
        vectors = _mapped(path, chosen)
        vectors = arrays[chosen] if vectors is None else vectors
        files = arrays[NAMES].tolist()
        others = {name: arrays[name] for name in names if name not in (NAMES, *all_chosen)}
    if vectors.dtype.kind != "f" or vectors.ndim != 2 or not vectors.shape[1]:
        raise InputError(f"{path}: the array {chosen} holds no vectors but {vectors.dtype} {vectors.shape}; {REMEDY}")
    if not len(vectors):
        raise _no_rows(path)
    for name, values in {NAMES: files, **others}.items():
        if len(values) != len(vectors):
            raise InputError(f"{path}: {name} has {len(values)} rows, {chosen} has {len(vectors)}; write it again")
    columns = {name: list(values) if values.ndim > 1 else values for name, values in others.items()}
    table = pandas.DataFrame(columns, index=range(len(vectors)))
    return Embeddings(list(map(str, files)), vectors.astype(np.float32, copy=False), table, about)


def _mapped(path: Path, name: str) -> np.ndarray | None:
    """Returns an array of an npz file as it lies on the disk; `None` where it is compressed or in another order."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        info = archive.getinfo(f"{name}.npy")
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(member)
        length = member.tell()  # of the header of numpy
    if info.compress_type != zipfile.ZIP_STORED or is_fortran or dtype != np.float32 or 0 in shape:
        return None
    with open(path, "rb") as file:  # a member has a header of its own, whose length its last four bytes say
        file.seek(info.header_offset + 26)
        own = sum(int.from_bytes(file.read(2), "little") for _ in range(2))
    return np.memmap(path, dtype, "r", info.header_offset + 30 + own + length, shape)


# ---- The clips themselves ----


def clip_file(name: str, folders: tuple[Path, ...]) -> str | None:
    """
    Returns the path of a clip's recording, or `None` where there is no such file.

    Args:
        name: as the table has it: a path from where `embed_hf.py` ran, or from its manifest
        folders: where else relative names are looked for, in this order
    """
    return next(
        (path for path in (name, *(os.path.join(each, name) for each in folders)) if os.path.isfile(path)), None
    )


class ClipPlaces:
    """
    Finds embedded clips by what other tables call them.

    Args:
        names: (clips,), of the embeddings; they may repeat
        files: (clips,), paths of the recordings, or `None` where they are unknown: the names are taken as paths
    """

    def __init__(self, names: Sequence[str], files: Sequence[str | None] | None = None):
        self._by_name, self._by_path, self._by_real_path = defaultdict(list), defaultdict(list), None
        for place, (name, file) in enumerate(zip(names, files or [None] * len(names))):
            self._by_name[name].append(place)
            self._by_path[os.path.abspath(file or name)].append(place)

    def find(self, clip: NamedClip) -> list[int]:
        """Returns the places of clips with this name; without one, of those with this path, else of the same file."""
        found = self._by_name.get(clip.name) or self._by_path.get(os.path.abspath(clip.path))
        return found or (self._find_linked(clip.path) if os.path.isfile(clip.path) else [])

    def _find_linked(self, path: str) -> list[int]:
        if self._by_real_path is None:  # it asks the disk for every clip
            self._by_real_path = defaultdict(list)
            for own, places in self._by_path.items():
                if os.path.isfile(own):
                    self._by_real_path[os.path.realpath(own)] += places
        return self._by_real_path.get(os.path.realpath(path), [])


def suggestion(name: str, names: Sequence[str]) -> str:
    """Returns the end of an error message about an unknown clip: one of `names` that it may stand for."""
    same_file = next((other for other in names if os.path.basename(other) == os.path.basename(name)), None)
    if same_file is not None:
        is_elsewhere = not os.path.isabs(same_file) and not os.path.isfile(same_file)
        where = " Relative names begin in the folder where embed_hf.py ran: run the command there" * is_elsewhere
        return f"did you mean {printable(same_file)}?{where}"
    return printable(nearest(name, names[:MOST_COMPARED], f"such as {names[0]}"))
