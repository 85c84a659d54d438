"""Finds the nearest vectors by cosine: exactly, block by block, or with an index of usearch."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from ..errors import InputError, one_line, printable
from ..files import complete_file, fingerprint
from .stored import BLOCK, Embeddings

QUERIES = 512  # that are compared with a block at a time: 32 MB of cosines
SAMPLE = 200  # clips that the recall of an index is measured on
ADDED = 1024  # vectors that are added to an index at a time: some seconds
MARK = b"dual_ssast index"  # end of an index file, after the length of what it was built from
CANDIDATES = 4  # times k vectors are asked of an index, and ordered by their exact cosines


def unit(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors (rows, size) of length 1; a vector of zeros, which has no cosine, stays one."""
    vectors = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)  # squares may overflow in float32
    return (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)


def check_lengths(path: Path, found: Embeddings):
    """Raises `InputError` if a vector is zero: it has no cosine."""
    for start in range(0, len(found.names), BLOCK):
        rows = np.flatnonzero(~found.vectors[start : start + BLOCK].any(axis=1))
        if len(rows):
            name = printable(found.names[start + rows[0]])
            raise InputError(f"{path}: the vector of {name} is zero, which has no direction; remove that clip")


def exact_neighbours(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Compares every query with every vector; memory holds a block.

    Args:
        vectors: (rows, size)
        queries: (queries, size)
        k: at most `rows`

    Returns:
        rows and cosines (queries, k), the nearest first; of equal cosines the first row
    """
    k = min(k, len(vectors))
    parts = np.split(unit(queries), range(QUERIES, len(queries), QUERIES))
    best = [(np.empty((len(part), 0), dtype=np.int64), np.empty((len(part), 0), dtype=np.float32)) for part in parts]
    for start in range(0, len(vectors), BLOCK):
        block = unit(vectors[start : start + BLOCK])
        for place, (part, (rows, cosines)) in enumerate(zip(parts, best)):
            found = part @ block.T
            kept = np.broadcast_to(np.arange(start, start + len(block)), found.shape)
            if len(block) > k:
                top = np.argpartition(-found, k - 1, axis=1)[:, :k]
                found, kept = np.take_along_axis(found, top, 1), np.take_along_axis(kept, top, 1)
            best[place] = _ordered(np.hstack([rows, kept]), np.hstack([cosines, found]), k)
    return tuple(map(np.vstack, zip(*best)))


def _ordered(rows: np.ndarray, cosines: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k nearest of candidates (queries, candidates), in order."""
    order = np.lexsort((rows, -cosines), axis=1)[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(cosines, order, 1)


def neighbours_of_each(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and cosines (rows, k) of the nearest vectors of each vector without itself; fewer if there are."""
    rows, cosines = exact_neighbours(vectors, vectors, k + 1)
    return without(np.arange(len(vectors)), rows, cosines)


def without(own: np.ndarray, rows: np.ndarray, cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Removes a row from each list of neighbours, or the last one where it is not in it.

    Args:
        own: (queries,), the rows to remove
        rows, cosines: (queries, k + 1)

    Returns:
        (queries, k)
    """
    place = np.where((rows == own[:, None]).any(axis=1), (rows == own[:, None]).argmax(axis=1), rows.shape[1] - 1)
    kept = np.arange(rows.shape[1]) != place[:, None]
    shape = (len(rows), rows.shape[1] - 1)
    return rows[kept].reshape(shape), cosines[kept].reshape(shape)


# ---- An index ----


class NeighbourIndex:
    """
    Holds an index of usearch over the vectors of a table, see `build_index` and `open_index`.

    Args:
        index: `usearch.index.Index`; its keys are rows
        vectors: (rows, size), of the table: the cosines are theirs
    """

    def __init__(self, index, vectors: np.ndarray):
        self.index = index
        self.vectors = vectors

    def neighbours(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the same as `exact_neighbours`, as far as the index finds them."""
        k, queries = min(k, len(self.vectors)), unit(queries)
        rows, cosines = np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k), dtype=np.float32)
        for place, query in enumerate(queries):
            keys = self.index.search(query, min(k * CANDIDATES, len(self.vectors))).keys.astype(np.int64)
            if len(keys) < k:  # a graph may be cut off from some of its vectors
                rows[place], cosines[place] = (found[0] for found in exact_neighbours(self.vectors, query[None], k))
                continue
            found = unit(self.vectors[keys]) @ query
            rows[place], cosines[place] = (one[0] for one in _ordered(keys[None], found[None], k))
        return rows, cosines

    def recall(self, k: int) -> "Recall":
        """Compares the index with exact search for the nearest other clips of clips that lie all over the table."""
        own = np.linspace(0, len(self.vectors) - 1, min(SAMPLE, len(self.vectors))).astype(int)
        queries = self.vectors[own]
        lists = self.neighbours(queries, k + 1), exact_neighbours(self.vectors, queries, k + 1)
        found, exact = (without(own, *rows)[0].tolist() for rows in lists)
        return Recall(
            float(np.mean([len({*a} & {*b}) / len(b) for a, b in zip(found, exact)])), len(exact[0]), len(own)
        )


class Recall(NamedTuple):
    """Holds the share of the exact `k` neighbours of `clips` clips that an index finds."""

    share: float
    k: int
    clips: int

    def __str__(self) -> str:
        return f"it finds {self.share:.1%} of the {self.k} nearest clips that exact search does, for {self.clips} clips"


def describe(found: Embeddings) -> dict:
    """Returns what an index is built from: a short text that changes with the names or the vectors, and their shape."""
    digest = hashlib.sha256(fingerprint(found.names).encode())
    for start in range(0, len(found.names), BLOCK):
        digest.update(np.ascontiguousarray(found.vectors[start : start + BLOCK]))
    return {"clips": len(found.names), "size": found.vectors.shape[1], "fingerprint": digest.hexdigest()[:16]}


def check_usearch():
    """Raises `InputError` if usearch is not installed."""
    try:
        import usearch.index  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"index: needs usearch ({one_line(error)}); pip install usearch, or leave out --index: the search is exact"
        ) from None


def build_index(path: Path, found: Embeddings, about: dict) -> NeighbourIndex:
    """
    Builds an index and writes it, whole or not at all: a file of usearch, with what it was built from at its end.

    Args:
        about: as `describe` returns it
    """
    from usearch.index import Index

    index = Index(ndim=found.vectors.shape[1], metric="cos", dtype="f32")
    for start in tqdm(range(0, len(found.names), ADDED), desc="indexing", disable=None, leave=False):
        block = unit(found.vectors[start : start + ADDED])
        # Vectors that are added at the same time may miss each other, which matters where there are few.
        index.add(np.arange(start, start + len(block), dtype=np.uint64), block, threads=0 if start else 1)
    text = json.dumps(about).encode()
    with complete_file(path) as unfinished:
        index.save(str(unfinished))
        with open(unfinished, "ab") as file:
            file.write(text + len(text).to_bytes(8, "little") + MARK)
    return NeighbourIndex(index, found.vectors)


def open_index(path: Path, found: Embeddings, about: dict) -> NeighbourIndex | None:
    """
    Opens an index that `build_index` wrote; `None` if it was built from something else.

    Raises:
        InputError: the file is no such index, or damaged.
    """
    from usearch.index import Index

    stored = _read_about(path)
    if stored != about:
        return None
    try:
        index = Index.restore(str(path), view=True)
        if index is None or len(index) != about["clips"] or index.ndim != about["size"]:
            raise ValueError("it holds other vectors than it says")
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"{path}: not readable ({one_line(error)}); remove it, and give the same command") from None
    return NeighbourIndex(index, found.vectors)


def _read_about(path: Path) -> dict:
    """Returns the end of an index file."""
    end = len(MARK) + 8
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - end, 0))
            length, mark = int.from_bytes(file.read(8), "little"), file.read()
            if mark != MARK or length > size - end:
                raise ValueError("its end is missing")
            file.seek(size - end - length)
            return json.loads(file.read(length))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: is not an index of training.nearest ({one_line(error)}); name another --index"
        ) from None
