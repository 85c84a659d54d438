"""
Ranks layers and poolings without labels, by the geometry of their features (OpenReview daNOsuODU8), and says how far
that agrees with the scores of a labelled sweep.
"""

import json
import os
from pathlib import Path

import numpy as np
import pandas
from datasets import Dataset
from scipy import stats
from transformers.utils import logging

from ..base.figures import new_figure, save_figure
from ..base.geometry import effective_rank, iso_score
from ..data.arguments import FrozenDataArguments
from ..data.audio import segment_name
from ..data.columns import TIME_COLUMNS, Columns, other_columns
from ..data.screening import screen
from ..data.sources import SPLIT_NAMES, choose_split, find_split_tables
from ..errors import InputError
from ..inference.inputs import Examples, Files, open_inputs
from ..recipe import default_of, options
from .representations import block_features, subsets

logger = logging.get_logger(__name__)

MEASURES = ("effective_rank", "iso_score")
NEED_LABELS = (
    "validation_split", "validation_file", "validation_fraction", "test_split", "test_file", "test_fraction",
    "split_seed", "label_column", "label_separator", "label_file", "none_label", "problem_type", "fold_column",
    "group_column", "ridge", "num_folds", "num_repeats", "nested", "choice",
)  # fmt: skip


class UnlabelledClips(Examples):
    """
    Holds a random sample of clips, for `encode_clips`.

    Args:
        data: names the clips by `dataset_name` or `train_file`, in any form that `embed_hf.py` takes
        windows: window and hop of long clips in samples; `None`: each clip is one window
        folder: folder of the run; its `unreadable_clips.jsonl` lists the clips that are left out

    Raises:
        InputError: no such clips, or fewer than two; unreadable ones, as for `screen`; or times of what is no table.
    """

    def __init__(self, data: FrozenDataArguments, feature_extractor, windows, max_clips: int, seed: int, folder: Path):
        self.feature_extractor, self.windows = feature_extractor, windows
        name, split = training_split(data)
        settings = {
            "config": data.dataset_config_name, "revision": data.dataset_revision, "split": split,
            "audio_column": data.audio_column,
        }  # fmt: skip
        settings = {key: value for key, value in settings.items() if value not in (None, "train")}
        entry = json.dumps({"path": name, **settings}) if settings else name
        (source,) = open_inputs([entry], reads_times=bool(data.start_column or data.end_column))
        if len(source) < 2:
            raise InputError(f"{name}: holds fewer than two clips; name another source")
        examples = Dataset.from_dict({"audio": source.files}) if isinstance(source, Files) else source.data
        times = times_of(data, name, source.own)
        starts, ends = (times.get(key, [None] * len(source)) for key in TIME_COLUMNS)
        for key, values in times.items():
            examples = examples.add_column(key, np.array(values, dtype=np.float64))
        names = [segment_name(*clip) for clip in zip(source.names(), starts, ends)]
        # The screening looks for lost classes: here is one.
        examples = examples.add_column("name", names).add_column("label", [""] * len(names))
        chosen = np.random.default_rng(seed).permutation(len(source))[:max_clips]
        self.data = screen({"train": examples.select(sorted(chosen))}, data, folder)["train"]
        self._names = self.data["name"][:]


def training_split(data: FrozenDataArguments) -> tuple[str, str]:
    """
    Returns the source of the training clips and the name of its split. A folder that holds a table or a folder for each
    split gives those of the training, which need no labels.
    """
    name = str(data.dataset_name or data.train_file)
    if not os.path.isdir(name):
        return name, data.train_split
    folders = {path.name: path for path in sorted(Path(name).iterdir()) if path.is_dir() and path.name[0] != "."}
    are_splits = all(folder.lower() in SPLIT_NAMES for folder in folders)
    available = find_split_tables(Path(name)) or (folders if are_splits else {})
    chosen = choose_split(name, available, "train", data.train_split) if available else None
    return (name, data.train_split) if chosen is None else (str(available[chosen]), "train")


def times_of(data: FrozenDataArguments, name: str, own) -> dict[str, list]:
    """Returns the `start` and `end` of each clip that the recipe names columns for; `own`: the columns of a table."""
    named = {kind: getattr(data, f"{kind}_column") for kind in TIME_COLUMNS}
    for kind, column in named.items():
        if column is not None and own is None:
            raise InputError(f"{kind}_column: {name} is no table, whose columns have times; leave it out")
    return other_columns(name, own.to_pydict(), Columns(**named)) if any(named.values()) else {}


def warn_of_ignored(*parts):
    """Warns of options of a sweep that are set and have no effect without labels."""
    ignored = [
        option.name
        for part in parts
        for option in options(type(part))
        if option.name in NEED_LABELS and getattr(part, option.name) != default_of(option)
    ]
    if ignored:
        logger.warning(f"{', '.join(ignored)}: no effect in a sweep without labels (unlabelled)")


def geometry(arrays: dict[str, np.ndarray], readouts: list[str], layers: list[int]) -> pandas.DataFrame:
    """Returns `MEASURES` of every layer alone, by readout and pooling; NaN where features are not finite."""
    rows = []
    for readout in readouts:
        poolings = [()] if readout == "prefix" else [own for own in subsets() if len(own) == 1]
        for pooling in poolings:
            for layer in layers:
                features = block_features(arrays, readout, layer, pooling)
                known = np.isfinite(features).all()
                values = [measure(features) if known else np.nan for measure in (effective_rank, iso_score)]
                row = {"readout": readout, "layer": layer, "pooling": "".join(pooling)}
                rows.append(row | dict(zip(MEASURES, values)))
    return pandas.DataFrame(rows)


def agreement(table: pandas.DataFrame, metric: str) -> pandas.DataFrame:
    """
    Compares the measures with scores, over the layers of each readout and pooling.

    Args:
        table: as `geometry` returns it, with a column of scores
        metric: name of that column

    Returns:
        for each measure Spearman's rank correlation with the score, and what the layer with the highest measure loses
        against the best layer
    """
    rows = []
    for (readout, pooling), part in table.dropna().groupby(["readout", "pooling"], sort=False):
        row = {"readout": readout, "pooling": pooling, "best_layer": int(part.loc[part[metric].idxmax(), "layer"])}
        for measure in MEASURES:
            is_flat = part[measure].nunique() < 2 or part[metric].nunique() < 2
            row[f"{measure}_correlation"] = (
                np.nan if is_flat else stats.spearmanr(part[measure], part[metric]).statistic
            )
            row[f"{measure}_layer"] = int(part.loc[part[measure].idxmax(), "layer"])
            row[f"{measure}_loss"] = part[metric].max() - part.loc[part[measure].idxmax(), metric]
        rows.append(row)
    return pandas.DataFrame(rows)


def plot_geometry(table: pandas.DataFrame, path: Path, figure_format: str, metric: str | None = None):
    """Draws the measures, and the score if there is one, over the layers; a row of panels per readout."""
    columns, readouts = [*MEASURES, *([metric] if metric else [])], list(dict.fromkeys(table["readout"]))
    size = (4 * len(columns), 2.6 * len(readouts) + 0.4)
    figure, panels = new_figure(len(readouts), len(columns), size=size, squeeze=False, sharex=True)
    for axes_of_row, readout in zip(panels, readouts):
        for axes, column in zip(axes_of_row, columns):
            for pooling, part in table[table["readout"] == readout].groupby("pooling", sort=False):
                axes.plot(part["layer"], part[column], "o-", markersize=3, label=pooling or None)
            axes.set(title=readout, ylabel=column.replace("_", " "))
            axes.grid(alpha=0.3)
        if readout != "prefix":
            axes_of_row[0].legend(fontsize="small")
    for axes in panels[-1]:
        axes.set_xlabel("layer")
    save_figure(figure, path, figure_format)
