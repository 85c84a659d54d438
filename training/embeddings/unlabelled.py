"""
Ranks layers and poolings without labels, by the geometry of their features (OpenReview daNOsuODU8), and says how far
that agrees with the scores of a labelled sweep.
"""

import json
from pathlib import Path

import numpy as np
import pandas
from scipy import stats

from ..base.figures import new_figure, save_figure
from ..base.geometry import effective_rank, iso_score
from ..data.arguments import FrozenDataArguments
from ..errors import InputError
from ..inference.inputs import ClipSequence, open_inputs
from .representations import block_features, subsets

MEASURES = ("effective_rank", "iso_score")


class UnlabelledClips:
    """
    Holds a random sample of clips, for `encode_clips`.

    Args:
        data: names the clips by `dataset_name` or `train_file`, in any form that `embed_hf.py` takes
        windows: window and hop of long clips in samples; `None`: each clip is one window
    """

    own = None

    def __init__(self, data: FrozenDataArguments, feature_extractor, windows, max_clips: int, seed: int):
        self.feature_extractor, self.windows = feature_extractor, windows
        name = str(data.dataset_name or data.train_file)
        settings = {
            "config": data.dataset_config_name, "revision": data.dataset_revision, "split": data.train_split,
            "audio_column": data.audio_column,
        }  # fmt: skip
        settings = {key: value for key, value in settings.items() if value not in (None, "train")}
        sources = open_inputs([json.dumps({"path": name, **settings}) if settings else name])
        places = [(source, index) for source in sources for index in range(len(source))]
        if len(places) < 2:
            raise InputError(f"{name}: holds fewer than two clips; name another source")
        chosen = np.random.default_rng(seed).permutation(len(places))[:max_clips]
        names = ClipSequence(sources).names()
        self._names = [names[number] for number in sorted(chosen)]
        self._places = [places[number] for number in sorted(chosen)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int):
        source, place = self._places[index]
        return source[place]

    def names(self) -> list[str]:
        return self._names

    def name_of(self, index: int, audio) -> str:
        return self._names[index]


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
