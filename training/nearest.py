"""
Lists the clips of a collection that are most like some clips: `python -m training.nearest EMBEDDINGS CLIP ...`.

Likeness is the cosine between the vectors that `embed_hf.py` wrote. The search is exact, or with `--index FILE` that of
an approximate index, whose recall is measured when it is built.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers.utils import logging

from .console import print_table, run_program
from .data.audio import read_audio
from .data.tables import NamedClip
from .embeddings.embed import load
from .embeddings.log_mel import LOG_MEL, require_float32
from .embeddings.neighbours import (
    build_index,
    check_lengths,
    check_usearch,
    describe,
    exact_neighbours,
    open_index,
)
from .embeddings.stored import (
    NAMES,
    ClipPlaces,
    EmbeddingArguments,
    Embeddings,
    as_text,
    read_embeddings,
    suggestion,
)
from .errors import InputError, blamed, printable
from .files import arrow_array, check_apart, check_writable
from .inference.precision import HardwareArguments, choose_hardware, place
from .inference.shards import weights_fingerprint
from .inference.tables import Columns, check_table, open_table, with_own_columns, written_beside
from .recipe import described, parse_program

USAGE = "python -m training.nearest EMBEDDINGS CLIP ... [--key value ...]"
KEPT = "an index that was built is kept; give the same command again"
PRINTED_COLUMNS = 4  # of the table's own


@dataclass
class NearestArguments(EmbeddingArguments, HardwareArguments):
    """Defines the options of training.nearest."""

    clips: list[str] | None = described(
        None, "Clips to find others for: file names of the table, or recordings; the words after it."
    )
    k: int = described(10, "Clips to find for each clip.", at_least=1, at_most=1000)
    index: Path | None = described(
        None, "File of an approximate index (usearch): built if it is missing, else used. Unset: exact search."
    )
    overwrite: bool = described(False, "Build the index anew if it is one of other vectors.")
    output: Path | None = described(None, "Table of what is found too: .csv, .jsonl or .parquet.")
    model: str | None = described(
        None, "Model that encodes recordings which are not in the table; unset: the one that made it."
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.embeddings or not self.clips:
            raise InputError(f"usage: {USAGE}")
        outputs = {"output": self.output, "index": self.index, **written_beside(None, [self.output])}
        check_apart(outputs, [self.embeddings, *self.clips])


def main(argv: list[str]) -> int:
    logging.set_verbosity_error()
    return run_program(find, argv, KEPT)


def find(argv: list[str]):
    """Lists the neighbours of the clips that the command line names."""
    arguments = parse_program(argv, NearestArguments, USAGE, "embeddings", "clips")
    if arguments.output is not None:
        check_table(arguments.output)
    if arguments.index is not None:
        check_usearch()
        check_writable(arguments.index)
    found = read_embeddings(arguments.embeddings, arguments.column)
    check_lengths(arguments.embeddings, found)
    if len(found.names) == 1:
        raise InputError(f"{arguments.embeddings}: has one clip and no others to find; embed more")
    places = ClipPlaces(found.names)
    rows = np.array([(places.find(NamedClip(clip, clip)) or [-1])[-1] for clip in arguments.clips])
    queries = np.empty((len(rows), found.vectors.shape[1]), dtype=np.float32)
    queries[rows >= 0] = found.vectors[rows[rows >= 0]]
    new = [clip for clip, row in zip(arguments.clips, rows) if row < 0]
    if new:
        queries[rows < 0] = encode(arguments, found, new)
    search, how = choose_search(arguments, found)
    pairs = zip(rows.tolist(), *(one.tolist() for one in search(queries, arguments.k + 1)))
    # A clip of the table is not its own neighbour.
    near = [[pair for pair in zip(*lists) if pair[0] != own][: arguments.k] for own, *lists in pairs]
    print(f"{arguments.embeddings}: {len(found.names)} clips; {how}", file=sys.stderr)
    table = columns_of(found, arguments.clips, near)
    print_found(table, arguments.clips, list(map(len, near)))
    if arguments.output is not None:
        with open_table(arguments.output, arguments.about(found) | {"search": how}) as write:
            write(table)


def choose_search(arguments: NearestArguments, found: Embeddings):
    """
    Returns a function of queries and k, see `exact_neighbours`, and how it searches.

    Raises:
        InputError: the index cannot be read, or is one of other vectors.
    """
    if arguments.index is None:
        return (lambda queries, k: exact_neighbours(found.vectors, queries, k)), "exact search"
    about = describe(found)
    index = open_index(arguments.index, found, about) if arguments.index.exists() else None
    if index is None:
        if arguments.index.exists() and not arguments.overwrite:
            raise InputError(
                f"{arguments.index}: was built from other vectors than those of {arguments.embeddings}; add "
                "--overwrite true to build it anew, or name another --index"
            )
        index = build_index(arguments.index, found, about)
        print(f"{arguments.index}: built; {index.recall(arguments.k)}", file=sys.stderr)
    return index.neighbours, f"search with {arguments.index}"


def encode(arguments: NearestArguments, found: Embeddings, clips: list[str]) -> np.ndarray:
    """
    Returns the vectors of recordings that are not in the table, (clips, size), made as those of the table.

    Raises:
        InputError: there is no such recording, the table does not say what made it, or the model has changed since.
    """
    for clip in clips:
        if not Path(clip).is_file():
            raise InputError(
                f"{clip}: neither a file nor a {NAMES} of {arguments.embeddings}; {suggestion(clip, found.names)}"
            )
    about = found.about
    name = arguments.model or about.get("model")
    if name is None or about.get("level") != "clip":
        what = "does not say which model made it" if name is None else "is not an output of embed_hf.py --level clip"
        raise InputError(f"{clips[0]}: is not in {arguments.embeddings}, which {what}; embed it with the other clips")
    settings = dict(about["settings"])
    window_s, dtype = settings.pop("window_s", None), settings.pop("dtype", "float32")
    try:
        embedder = load(name, "clip", window_s, **settings)
    except InputError as error:
        if arguments.model is not None or Path(name).exists():
            raise
        reason = str(error).partition(";")[0]
        raise InputError(
            f"{arguments.embeddings}: the model that made it cannot be loaded here ({reason}); name it with --model"
        ) from None
    if weights_fingerprint(embedder.model) != about["weights"]:
        raise InputError(
            f"{name}: its weights are not those that {arguments.embeddings} was made with; embed the clips again, or "
            "name the old model as --model"
        )
    arguments.dtype = dtype if arguments.dtype == "auto" else arguments.dtype
    if name == LOG_MEL:
        require_float32(arguments)
    hardware = choose_hardware(arguments)
    place(embedder.model, hardware)
    rate = embedder.extractor.sampling_rate
    print(f"{len(clips)} new: encoded with {printable(name)}, {hardware}", file=sys.stderr)
    vectors = []
    for clip in clips:
        waveform = read_audio(clip, rate)
        with blamed(clip, "name another recording"):
            vectors.append(embedder.model.embed(waveform, rate, embedder.extractor, window_s=window_s)[0].numpy())
        if not np.isfinite(vectors[-1]).all() or not vectors[-1].any():
            raise InputError(f"{clip}: has no finite vector other than zero; name another recording")
    return np.stack(vectors)


def columns_of(found: Embeddings, clips: list[str], near: list[list[tuple[int, float]]]) -> Columns:
    """
    Returns the table of neighbours: a row per clip and neighbour.

    Args:
        near: of each clip rows and cosines, the nearest first
    """
    import pyarrow

    rows, cosines = zip(*(pair for pairs in near for pair in pairs))
    own = pyarrow.Table.from_pandas(found.columns.iloc[list(rows)].reset_index(drop=True), preserve_index=False)
    results = [
        ("nearest_to", [clip for clip, pairs in zip(clips, near) for _ in pairs]),
        ("rank", np.concatenate([np.arange(1, len(pairs) + 1) for pairs in near])),
        ("cosine", np.array(cosines, dtype=np.float32)),
    ]
    return with_own_columns(NAMES, [found.names[row] for row in rows], list(range(len(rows))), own, results)


def print_found(table: Columns, clips: list[str], counts: list[int]):
    """Prints the neighbours of each clip, so many, with the first of the table's own columns."""
    (_, files), *own, _, (_, ranks), (_, cosines) = ((name, arrow_array(values).to_pylist()) for name, values in table)
    own, start = own[:PRINTED_COLUMNS], 0
    for clip, count in zip(clips, counts):
        print(printable(f"nearest to {clip}:"))
        rows = range(start, start + count)
        cells = ([ranks[row], cosines[row], files[row], *(as_text(values[row]) for _, values in own)] for row in rows)
        print_table(cells, ["rank", "cosine", NAMES, *(name for name, _ in own)])
        start += count


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
