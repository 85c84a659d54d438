"""
Draws a map of a collection: `python -m training.map EMBEDDINGS FOLDER`.

UMAP or t-SNE lays the vectors that `embed_hf.py` wrote out on a plane. FOLDER gets a picture for papers, the table of
the places, and a page on which the clip under the pointer plays.
"""

import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas

from .base.figures import FORMATS, plain
from .console import run_program
from .data.columns import AUDIO_COLUMNS, LABEL_COLUMNS
from .data.tables import load_named_rows
from .embeddings.map_page import AUTO, NO_SOUND, SOUNDS, find_sounds, write_map_page
from .embeddings.maps import FEWEST, TITLES, UMAP, Groups, draw_map, group, one_group, project
from .embeddings.neighbours import check_lengths
from .embeddings.stored import (
    NAMES,
    ClipPlaces,
    EmbeddingArguments,
    Embeddings,
    as_text,
    clip_file,
    read_embeddings,
)
from .errors import InputError, nearest, printable
from .files import arrow_array, check_apart, check_writable, storable
from .inference.tables import open_table, with_own_columns
from .recipe import described, parse_program

USAGE = "python -m training.map EMBEDDINGS FOLDER [--key value ...]"
KEPT = "give the same command again"
FOLDER, SPLIT = "folder", "split"  # columns that every collection has; that several tables of labels have
GUESSED = (*LABEL_COLUMNS, "prediction", SPLIT)  # what clips are coloured by, if there is such a column


@dataclass
class MapArguments(EmbeddingArguments):
    """Defines the options of training.map."""

    output: Path | None = described(None, "Folder of map.png, map.pdf, map.csv and map.html; the second word.")
    method: str = described(UMAP, "Method that lays the clips out.", choices=tuple(TITLES))
    colour: str | None = described(
        None,
        "Column that clips are coloured by, of the embeddings or of `labels`; or folder, the folder of a clip. Unset: "
        "the label, the prediction or the split, if there is one.",
    )
    labels: list[Path] | None = described(
        None,
        "Tables with further columns of the clips, such as those of predict_hf.py; joined by file. With several "
        "tables, their names are the splits.",
    )
    folder: Path | None = described(
        None, "Folder that relative file names begin in, if neither the current one nor that of the embeddings."
    )
    most_clips: int = described(20_000, "Clips of the map; of more, a random sample.", at_least=FEWEST, at_most=200_000)
    sounds: str = described(
        AUTO,
        "Recordings of the page: embedded, or linked to where they lie; auto: embedded if all fit into 16 MB.",
        choices=SOUNDS,
    )
    figure_format: str = described("pdf", "Format of the picture for papers, beside map.png.", choices=FORMATS)
    seed: int = described(0, "Seed of the sample and the map; the same gives the same map.", at_least=0)

    def __post_init__(self):
        super().__post_init__()
        if not self.embeddings or not self.output:
            raise InputError(f"usage: {USAGE}")
        for name in ("map.csv", "map.html", "map.png", f"map.{self.figure_format}"):
            check_apart({"output": self.output / name}, [self.embeddings, *(self.labels or ())])


def main(argv: list[str]) -> int:
    return run_program(draw, argv, KEPT)


def draw(argv: list[str]):
    """Draws the map of the embeddings that the command line names."""
    arguments = parse_program(argv, MapArguments, USAGE, "embeddings", "output")
    folder = arguments.output
    check_writable(folder, is_folder=True)
    found = read_embeddings(arguments.embeddings, arguments.column, may_repeat=True)
    num_all = len(found.names)
    if num_all < FEWEST:
        raise InputError(f"{arguments.embeddings}: has {num_all} clips, a map needs {FEWEST} or more; embed more")
    check_lengths(arguments.embeddings, found)
    rows = np.arange(num_all)
    if num_all > arguments.most_clips:
        rows = np.sort(np.random.default_rng(arguments.seed).choice(num_all, arguments.most_clips, replace=False))
        print(f"{len(rows)} of {num_all} clips are drawn, a random sample; --most_clips draws more", file=sys.stderr)
    found = Embeddings([found.names[row] for row in rows], found.vectors[rows], found.columns.iloc[rows], found.about)
    places_of_files = (arguments.folder,) if arguments.folder else (arguments.embeddings.parent,)
    files = [clip_file(name, places_of_files) for name in found.names]
    table = with_labels(found, files, arguments.labels or [])
    groups = choose_groups(arguments, found.names, table)
    places = project(found.vectors, arguments.method, arguments.seed)
    folder.mkdir(parents=True, exist_ok=True)
    method, name = TITLES[arguments.method], arguments.embeddings.name
    by = f", coloured by {plain(groups.column)}" if groups.column else ""
    title = f"{method} of {len(rows)} clips of {plain(name)}{by}"
    draw_map(places, groups, title, folder / "map.png", arguments.figure_format)
    write_places(folder / "map.csv", arguments, found, table, groups, places)
    sounds = find_sounds(files, folder, arguments.sounds)
    page = folder / "map.html"
    write_map_page(page, f"Map of {name}", method, found, places, groups, table, sounds, num_all)
    if sounds.num_missing and arguments.sounds != NO_SOUND:
        print(f"{sounds.num_missing} of {len(rows)} recordings cannot be played; see --folder", file=sys.stderr)
    for text, count in zip(groups.names, groups.counts()):
        print(f"{printable(text)}: {count}")
    print(f"everything is in {folder}: map.html, map.png, map.{arguments.figure_format}, map.csv")


def with_labels(found: Embeddings, files: list[str | None], tables: list[Path]) -> pandas.DataFrame:
    """
    Returns the columns of the embeddings and of the tables, a row per clip; of several tables with a clip, those of the
    first.

    Raises:
        InputError: a table cannot be read, lists a recording twice, or none has a clip of these.
    """
    own = found.columns.reset_index(drop=True)
    if not tables:
        return own
    places, rows = ClipPlaces(found.names, files), {}
    for path in tables:
        clips, stored = load_named_rows(path)
        file, count = Counter(clip.path for clip in clips).most_common(1)[0]
        if count > 1:
            raise InputError(f"{path}: lists {printable(file)} twice; leave one row of each recording")
        stored = stored.drop_columns([name for name in stored.column_names if name in AUDIO_COLUMNS])
        split = {SPLIT: path.stem} if len(tables) > 1 and SPLIT not in stored.column_names else {}
        for clip, row in zip(clips, stored.to_pylist() or [{}] * len(clips)):  # no other column: no row
            for place in places.find(clip):
                rows.setdefault(place, row | split)
    missing = len(found.names) - len(rows)
    if not rows:
        raise InputError(
            f"{tables[0]}: has no row of these clips, such as {printable(found.names[0])}; name the table of this "
            "collection, or the --folder of its recordings"
        )
    if missing:
        print(f"{missing} of {len(found.names)} clips are in no table of --labels", file=sys.stderr)
    # Not numbers: a missing one would make floats of classes such as 0 and 1.
    joined = pandas.DataFrame([rows.get(place, {}) for place in range(len(found.names))], dtype=object)
    return pandas.concat([own[[name for name in own if name not in joined]], joined], axis=1)


def choose_groups(arguments: MapArguments, names: list[str], table: pandas.DataFrame) -> Groups:
    """
    Groups the clips by the column that the options name, or by the first one with a usual name.

    Raises:
        InputError: there is no such column.
    """
    column = arguments.colour or next((name for name in GUESSED if name in table), None)
    if column is None:
        return one_group(len(names))
    if column in table:
        return group(column, table[column].tolist())
    if column == FOLDER:
        return group(FOLDER, [os.path.basename(os.path.dirname(name)) for name in names])
    known = [*table.columns, FOLDER]
    raise InputError(f"colour: there is no column {column}; {nearest(column, known, 'there are ' + ', '.join(known))}")


def write_places(
    path: Path, arguments: MapArguments, found: Embeddings, table: pandas.DataFrame, groups: Groups, places: np.ndarray
):
    """Writes the table of the map: file, its columns, what it is coloured as, x and y."""
    import pyarrow

    own = {storable(str(name)): arrow_array([as_text(cell) or None for cell in table[name]]) for name in table}
    results = [
        ("coloured_as", [groups.names[place] for place in groups.members]), ("x", places[:, 0]), ("y", places[:, 1])
    ]  # fmt: skip
    about = arguments.about(found, "labels", "method", "seed") | {"coloured_by": groups.column}
    with open_table(path, about) as write:
        write(with_own_columns(NAMES, found.names, list(range(len(found.names))), pyarrow.table(own), results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
