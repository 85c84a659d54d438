"""Joins stored embeddings with a table of labels, of which many may be missing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers.utils import logging

from ..data.columns import Columns
from ..data.labels import LabelSet, labels_so_far, without_label
from ..data.tables import load_known_labels
from ..errors import InputError, printable, short
from ..files import check_apart
from ..inference.tables import check_table
from ..recipe import described
from .stored import ClipPlaces, EmbeddingArguments, suggestion

logger = logging.get_logger(__name__)


@dataclass
class LabelArguments(EmbeddingArguments):
    """Holds the options of programs that read stored embeddings and labels."""

    labels: list[Path] | None = described(
        None, "Tables of the labels known so far; rows without a label are read as not labelled."
    )
    output: Path | None = described(None, "Table to write: .csv, .jsonl or .parquet.")
    audio_column: str | None = described(None, "Column of the clips in the tables; unset: guessed.")
    label_column: str | None = described(None, "Column of the labels in the tables; unset: guessed.")
    label_separator: str | None = described(None, "Text between several labels in one cell; unset: one label.")
    none_label: str | None = described(
        None, "Label of clips with none of the labels, where clips may have several; unset: there is none."
    )
    seed: int = described(0, "Random seed.", at_least=0)
    overwrite: bool = described(False, "Replace a table that is there, with all that was written into it.")

    def check_output(self):
        """Raises `InputError` if the table cannot be written, or would replace one that is there."""
        check_table(self.output)
        if self.output.exists() and not self.overwrite:
            raise InputError(f"{self.output}: is there already; name another output, or add --overwrite true")
        check_apart({"output": self.output}, [self.embeddings])
        if self.output.resolve() in {Path(table).resolve() for table in self.labels or ()}:
            raise InputError(f"{self.output}: holds the labels; name another output")

    def read(self, names: Sequence[str]) -> "KnownLabels":
        """Reads the labels of the embedded clips; see `read_known_labels`."""
        columns = Columns(self.audio_column, self.label_column, self.label_separator)
        return read_known_labels(self.labels or [], names, self.embeddings, columns, self.none_label)


class KnownLabels(NamedTuple):
    """
    Holds the labels of some of the embedded clips.

    Args:
        clips: (labelled clips,), their places among the embedded clips, in increasing order
        targets: (labelled clips,) class numbers; of clips with several labels (labelled clips, labels), 0 or 1
        labels: their names; empty if nothing is labelled
        separator: between several labels in a cell of the tables
    """

    clips: np.ndarray
    targets: np.ndarray
    labels: LabelSet
    separator: str = ";"

    def cell(self, names: Iterable[str]) -> str:
        """Returns several labels as a cell that is read back as they are."""
        return self.separator.join(names)

    @property
    def has_two(self) -> bool:
        """Returns whether there is something to tell apart: two classes; or a label that some clips have, not all."""
        if self.labels.is_multi:
            return bool((self.targets != self.targets[:1]).any())
        return len(self.labels.names) > 1

    def counts(self) -> dict[str, int]:
        """Returns the labelled clips of each class; where clips may have several labels, those with or without it."""
        if self.labels.is_multi:
            present = self.targets.sum(axis=0)
            numbers = np.minimum(present, len(self.clips) - present)
        else:
            numbers = np.bincount(self.targets, minlength=len(self.labels.names))
        return dict(zip(self.labels.names, numbers.tolist()))


def read_known_labels(
    tables: Sequence[Path], names: Sequence[str], source: Path, columns: Columns, none_label: str | None = None
) -> KnownLabels:
    """
    Reads the labels that tables have for embedded clips. A row without a label says nothing.

    Args:
        names: of the embedded clips
        source: what holds them, for messages
        none_label: stands for a clip with none of the labels, where clips may have several

    Raises:
        InputError: an unreadable table, labels of which none belongs to an embedded clip, or a clip with two rows.
    """
    places, found, unknown = ClipPlaces(names), {}, []
    for table in map(Path, tables):
        for clip, label in zip(*load_known_labels(table, columns)):
            if label is None:
                continue
            matched = places.find(clip)
            if not matched:
                unknown.append((table, clip.name))
            if any(place in found for place in matched):
                raise InputError(f"{table}: labels {printable(clip.name)} a second time; leave one label of each clip")
            found |= dict.fromkeys(matched, label if none_label is None else without_label(label, none_label))
    if unknown:
        (table, name), one = unknown[0], short(printable(unknown[0][1]))
        if not found:
            hint = suggestion(name, names)
            raise InputError(f"{table}: {one} is no clip of {source}; write the names that stand there, {hint}")
        logger.warning(f"{table}: {len(unknown)} labelled clips are not in {source}, such as {one}; they have no part")
    clips = np.array(sorted(found), dtype=np.int64)
    own = [found[place] for place in clips]
    labels = labels_so_far(own, None if none_label is None else "multi_label_classification")
    targets = np.array([labels.encode(label, names[place]) for place, label in zip(clips, own)], dtype=np.int64)
    targets = targets.reshape(len(clips), *[-1] * labels.is_multi)
    return KnownLabels(clips, targets, labels, columns.separator or ";")
