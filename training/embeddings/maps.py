"""Lays vectors out on a plane by UMAP or t-SNE, groups clips by a column, and draws the map."""

import itertools
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..base.figures import COLOURS, MAP, new_figure, plain, save_figure
from ..errors import InputError, one_line, printable
from .neighbours import unit
from .stored import as_text

UMAP, TSNE = "umap", "tsne"
TITLES = {UMAP: "UMAP", TSNE: "t-SNE"}
FEWEST = 5  # clips of a map: fewer have no neighbourhoods
UMAP_NEIGHBOURS, PERPLEXITY = 15, 30  # the libraries' own defaults
TSNE_COMPONENTS = 50  # principal components that t-SNE begins from, as its authors advise
OTHER, MISSING = "#999999", "#d0d0d0"  # of the classes without a colour; of clips without a value
MARKERS = ("o", "s", "^", "D")  # of the groups, in turn, beside their colours
MOST_DRAWN = 5000  # points above which a PDF holds them as a picture
DOTS_PER_INCH = 200  # of points that are neighbours


def project(vectors: np.ndarray, method: str, seed: int) -> np.ndarray:
    """
    Lays vectors out on a plane, so that those with a high cosine are neighbours. The same seed gives the same map, on
    one machine.

    Args:
        vectors: (clips, size)
        method: one of `TITLES`

    Returns:
        (clips, 2); directions and distances between far points have no meaning

    Raises:
        InputError: umap-learn is not installed.
    """
    count, vectors = len(vectors), unit(vectors)
    if method == UMAP:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numba, and of parts of the map that no neighbour connects
            umap = _import_umap()
            # A spectral beginning needs more clips than neighbours.
            settings = {"n_neighbors": min(UMAP_NEIGHBOURS, count - 1), "init": "spectral" if count > 20 else "random"}
            mapper = umap.UMAP(metric="cosine", random_state=seed, n_jobs=1, **settings)
            return mapper.fit_transform(vectors).astype(np.float32)
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE as Mapper
    from threadpoolctl import threadpool_limits

    components = min(TSNE_COMPONENTS, count, vectors.shape[1])
    with threadpool_limits(1):  # sums of several threads have no fixed order
        vectors = PCA(components, random_state=seed).fit_transform(vectors)
        mapper = Mapper(perplexity=min(PERPLEXITY, (count - 1) / 3), init="pca", random_state=seed)
        return mapper.fit_transform(vectors).astype(np.float32)


def _import_umap():
    try:
        import umap
    except ImportError as error:
        raise InputError(
            f"method umap: needs umap-learn ({one_line(error)}); pip install umap-learn, or take --method tsne"
        ) from None
    return umap


# ---- Colours ----


@dataclass(frozen=True)
class Groups:
    """
    Holds what clips are coloured by.

    Args:
        column: name of the column; empty: all clips are one group
        names: of the groups, in the order of the legend
        colours: of the groups, as #rrggbb
        markers: of the groups, some of `MARKERS`
        members: (clips,), the place of each clip's group
    """

    column: str
    names: list[str]
    colours: list[str]
    markers: list[str]
    members: np.ndarray

    def counts(self) -> list[int]:
        """Returns the number of clips of each group."""
        return np.bincount(self.members, minlength=len(self.names)).tolist()


def group(column: str, values) -> Groups:
    """
    Groups clips by a column: a group per class, with the smallest together if there are more classes than colours; for
    more numbers than colours, ranges with as many clips each.

    Args:
        values: (clips,) texts, numbers or lists of texts; `None`, NaN and empty texts are a group of their own
    """
    texts = [as_text(value) for value in values]
    counts = Counter(filter(None, texts))
    numbers = _as_numbers(counts) if len(counts) > len(COLOURS) else None
    if numbers is not None:
        return _ranges(column, texts, numbers)
    ordered = sorted(counts, key=lambda text: (-counts[text], text))
    shown, others = ordered[: len(COLOURS)], ordered[len(COLOURS) :]
    places = {text: place for place, text in enumerate(shown)}
    names, colours = list(map(printable, shown)), list(COLOURS[: len(shown)])
    markers = [MARKERS[place % len(MARKERS)] for place in range(len(shown))]
    if others:
        places |= dict.fromkeys(others, len(names))
        names.append(printable(others[0]) if len(others) == 1 else f"other: {len(others)} classes")
    return _with_missing(column, texts, places, names, [*colours, *[OTHER] * bool(others)], markers)


def _as_numbers(texts) -> dict[str, float] | None:
    try:
        numbers = {text: float(text) for text in texts}
    except ValueError:
        return None
    return numbers if np.isfinite(list(numbers.values())).all() else None


def _ranges(column: str, texts: list[str], numbers: dict[str, float]) -> Groups:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    values = np.array([numbers[text] for text in texts if text])
    edges = np.unique(np.quantile(values, np.linspace(0, 1, len(COLOURS))))
    count = max(len(edges) - 1, 1)
    places = {
        text: int(np.clip(np.searchsorted(edges, value, "right") - 1, 0, count - 1)) for text, value in numbers.items()
    }
    names = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges)] or [f"{edges[0]:.4g}"]
    colours = [to_hex(colormaps[MAP](place)) for place in np.linspace(0, 0.95, count)]
    return _with_missing(column, texts, places, names, colours, ["o"] * count)


def _with_missing(
    column: str, texts: list[str], places: dict[str, int], names: list[str], colours: list[str], markers: list[str]
) -> Groups:
    """Adds the group of clips without a value, if there are some. The last groups, without markers, get dots."""
    if "" in texts:
        places, names, colours = places | {"": len(names)}, [*names, f"no {column}"], [*colours, MISSING]
    members = np.array([places[text] for text in texts])
    return Groups(column, names, colours, [*markers, *["o"] * (len(names) - len(markers))], members)


def one_group(count: int) -> Groups:
    """Returns all clips as one group."""
    return Groups("", ["clips"], [COLOURS[0]], ["o"], np.zeros(count, dtype=int))


# ---- The picture ----


def draw_map(places: np.ndarray, groups: Groups, title: str, path: Path, figure_format: str):
    """
    Draws a map with its legend beside it.

    Args:
        places: (clips, 2)
        title: names in it are `plain`
        path: ends in .png
        figure_format: of the copy for papers
    """
    figure, axes = new_figure(size=(7.2, 4.8))
    counts = groups.counts()
    size = float(np.clip(6000 / len(places), 3, 36))
    behind = sorted(
        range(len(counts)), key=lambda place: (groups.colours[place] not in (OTHER, MISSING), -counts[place])
    )
    drawn = {}
    for place in behind:  # small groups lie above large ones
        own = places[groups.members == place]
        drawn[place] = axes.scatter(
            *own.T, s=size, c=groups.colours[place], marker=groups.markers[place], alpha=0.85,
            linewidths=0.05 * size**0.5, edgecolors="#000000a0", rasterized=len(places) > MOST_DRAWN,
            label=f"{plain(groups.names[place])} ({counts[place]})",
        )  # fmt: skip
    axes.set(title=title, xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.05)
    if groups.column:
        legend = figure.legend(
            handles=[drawn[place] for place in range(len(counts))], loc="outside right upper", fontsize="small",
            title=plain(groups.column), frameon=False,
        )  # fmt: skip
        for handle in legend.legend_handles:
            handle.set_sizes([30])
            handle.set_alpha(1)
    save_figure(figure, path, figure_format, dpi=DOTS_PER_INCH)
