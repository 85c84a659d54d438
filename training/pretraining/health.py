"""
Measures whether the features of a pretraining still differ from clip to clip, and raises an alarm before a collapse.

A network that has collapsed gives every clip nearly the same features, while its loss may look good. The numbers are
entries of Trainer's log, from which table, figure and alarms follow: a resumed run needs no other memory.
"""

import copy
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
import torch
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator

from modeling_dual_ssast.fusion_dual_ssast import masked_mean
from modeling_dual_ssast.modeling_dual_ssast import DualSSASTFusion

from ..base.figures import COLOURS, MAP, new_figure, save_figure
from ..base.geometry import effective_rank

TABLE = "health.csv"
MEASURES = ("effective_rank", "clip_std", "token_std")
FUSED = "fused"  # the place of the fused vector, beside layer0 (the embedding), layer1 and so on
RANDOM = "random"  # in place of an encoder's name: random weights
KEY = re.compile(rf"health_(?P<encoder>\w+?)_(?P<place>layer\d+|{FUSED})_(?P<measure>{'|'.join(MEASURES)})")
COLUMNS = ("step", "epoch", "encoder", "place", *MEASURES)
# Below these shares of what random weights give an alarm is raised; docs/tutorials/pretraining.md has the reasons.
SHARES = {"effective_rank": 0.5, "clip_std": 0.2}
IN_A_ROW = 2  # measurements below the threshold: a single one may be a step that went wrong
PARTS = ("patch_embedding", "tokens_and_positions", "lower_blocks", "middle_blocks", "upper_blocks", "decoder", "heads")


def with_fusion(encoder):
    """
    Returns an encoder that shares the weights of a pretraining's encoder and also fuses its layers, with the weights
    of fusion with which a fine-tuning begins.
    """
    fusing = copy.copy(encoder)
    # Not by setattr, which would add it to the modules that both share.
    fusing.__dict__["fusion"] = DualSSASTFusion(encoder.config).to(encoder.device).eval()
    return fusing


@torch.no_grad()
def measure(encoder, batches: Iterable[dict[str, torch.Tensor]]) -> dict[str, dict[str, float]]:
    """
    Measures the features of every layer, normalised by the encoder's last LayerNorm as for fusion, and of their fusion.

    Args:
        encoder: a `DualSSASTModel` in evaluation mode
        batches: its inputs

    Returns:
        `layer0`, `layer1`, ... and `fused` -> `effective_rank` of the vectors of clips (of a layer: the means over the
        patches), their `clip_std`, and for layers the `token_std` of the patches; see `spread`.
    """
    fusing = with_fusion(encoder)
    vectors, sums, num_tokens = {}, {}, 0
    for batch in batches:
        outputs = fusing(**batch, output_hidden_states=True, return_dict=True)
        prefix = encoder.config.num_prefix_tokens
        shape = outputs.hidden_states[0][:, prefix:].shape[:2]
        mask = encoder.embeddings.patch_mask(batch.get("attention_mask"), shape[1])
        mask = torch.ones(shape, dtype=torch.bool, device=encoder.device) if mask is None else mask
        num_tokens += int(mask.sum())
        for layer, state in enumerate(outputs.hidden_states):
            patches = encoder.layernorm(state)[:, prefix:].float()  # (clips, patches, hidden)
            vectors.setdefault(f"layer{layer}", []).append(masked_mean(patches, mask).cpu())
            units = torch.nn.functional.normalize(patches[mask], dim=-1)  # (patches of all clips, hidden)
            sums[f"layer{layer}"] = sums.get(f"layer{layer}", 0.0) + units.double().sum(dim=0).cpu()
        vectors.setdefault(FUSED, []).append(outputs.pooler_output.float().cpu())
    found = {}
    for place, parts in vectors.items():
        own = torch.cat(parts).double()
        units = torch.nn.functional.normalize(own, dim=-1)
        found[place] = {"effective_rank": effective_rank(own.numpy()), "clip_std": spread(units.mean(dim=0))}
        if place in sums:
            found[place]["token_std"] = spread(sums[place] / num_tokens)
    return found


def spread(mean: torch.Tensor) -> float:
    """
    Returns the standard deviation of unit vectors from their mean (size,), over all directions together: 1 where they
    point everywhere, 0 where they are all the same. It is the mean standard deviation per channel, the measure of
    collapse in SimSiam (Chen and He, CVPR 2021), times the root of the size.
    """
    return float((1 - mean.square().sum()).clamp(min=0).sqrt())


def entries(encoder: str, found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Returns measurements as numbers of the log: health_ENCODER_PLACE_MEASURE -> value."""
    return {f"health_{encoder}_{place}_{name}": value for place, own in found.items() for name, value in own.items()}


def table_of(log: list[dict]) -> pandas.DataFrame:
    """Returns the measurements in Trainer's log: a row per step, encoder (or `random`) and place; see `COLUMNS`."""
    rows = {}
    for entry in log:
        for key, value in entry.items():
            if match := KEY.fullmatch(key):
                place = (entry["step"], match["encoder"], match["place"])
                first = {"step": entry["step"], "epoch": entry.get("epoch"), "encoder": place[1], "place": place[2]}
                rows.setdefault(place, first)[match["measure"]] = value

    def order(row: dict) -> tuple:  # that of the log is another one after a resumption
        is_fused = row["place"] == FUSED
        return row["step"], row["encoder"] != RANDOM, row["encoder"], is_fused, is_fused or int(row["place"][5:])

    return pandas.DataFrame(sorted(rows.values(), key=order), columns=COLUMNS)


class Alarm(NamedTuple):
    """Describes features that no longer differ enough: the value at a step, and the threshold that it is below."""

    step: int
    encoder: str
    place: str
    measure: str
    value: float
    threshold: float

    def __str__(self) -> str:
        place = "the fused features" if self.place == FUSED else f"layer {self.place.removeprefix('layer')}"
        return (
            f"step {self.step}: the features collapse: {self.measure.replace('_', ' ')} of {place} ({self.encoder}) is "
            f"{self.value:.3g}, below {self.threshold:.3g} at {IN_A_ROW} measurements in a row "
            f"({SHARES[self.measure]:g} of what random weights have); lower learning_rate, lengthen the warm-up or "
            "clip gradients (max_grad_norm), and begin anew from an earlier checkpoint"
        )


def alarms(log: list[dict]) -> tuple[list[Alarm], Alarm | None]:
    """
    Returns the alarms of a run, one for each time that features have been below a threshold for `IN_A_ROW`
    measurements: the one that is furthest below; and the alarm at the last measurement, if there is one.
    """
    table = table_of(log)
    random = table[table["encoder"] == RANDOM].set_index("place")
    thresholds = {
        (place, name): share * random.loc[place, name]
        for name, share in SHARES.items()
        for place in random.index
        if name == "clip_std" or place == FUSED
    }
    raised, low_for, current = [], {}, None
    for step, rows in table[table["encoder"] != RANDOM].groupby("step", sort=True):
        low = {}
        for row in rows.to_dict("records"):
            for name in SHARES:
                threshold = thresholds.get((row["place"], name))
                if threshold is not None and not row[name] >= threshold:  # NaN: all features are 0
                    own = Alarm(int(step), row["encoder"], row["place"], name, row[name], threshold)
                    low[row["encoder"], row["place"], name] = own
        low_for = {key: low_for.get(key, 0) + 1 for key in low}
        found = [own for key, own in low.items() if low_for[key] >= IN_A_ROW]
        worst = min(found, key=lambda own: np.nan_to_num(own.value / own.threshold), default=None)
        if worst is not None and current is None:
            raised.append(worst)
        current = worst
    return raised, current


# ---- gradients ----


def part_of(name: str, num_layers: int) -> str:
    """Returns the part of a pretraining model that a parameter belongs to, one of `PARTS`; blocks by thirds."""
    if ".embeddings.projection." in name:
        return "patch_embedding"
    if ".embeddings." in name or name == "mask_token":
        return "tokens_and_positions"
    if name.startswith("decoder."):
        return "decoder"
    if match := re.search(r"\.layers\.(\d+)\.", name):
        return PARTS[2 + 3 * int(match[1]) // num_layers]
    return "heads" if "head" in name.partition(".")[0] else "upper_blocks"  # the last LayerNorm


@torch.no_grad()
def gradient_norms(named_parameters, num_layers: int) -> dict[str, torch.Tensor]:
    """Returns `grad_norm_PART` -> Euclidean norm of the gradients of a part, on their device: no wait for it."""
    parts = {}
    for name, parameter in named_parameters:
        if parameter.grad is not None:
            parts.setdefault(part_of(name, num_layers), []).append(parameter.grad)
    norms = {part: torch.stack(torch._foreach_norm(own)).float().norm() for part, own in parts.items()}
    return {f"grad_norm_{part}": norms[part] for part in PARTS if part in norms}


# ---- table and figure ----


def plot(log: list[dict], path: Path, figure_format: str = "png"):
    """Draws each measure over the steps, a line per layer, and the norms of the gradients. Needs measurements."""
    table = table_of(log)
    random, table = table[table["encoder"] == RANDOM].set_index("place"), table[table["encoder"] != RANDOM]
    encoders = list(dict.fromkeys(table["encoder"]))
    panels = list(itertools.product(MEASURES, encoders))  # two encoders stand side by side
    rows = len(panels) // 2 + 1
    figure, grid = new_figure(rows, 2, (11.0, 3.0 * rows), squeeze=False)
    places = [place for place in dict.fromkeys(table["place"]) if place != FUSED]
    colours = colormaps[MAP](np.linspace(0, 0.92, len(places)))
    named = {places[0]: "embedding", places[len(places) // 2]: places[len(places) // 2], places[-1]: places[-1]}
    for axes, (name, encoder) in zip(grid.flat, panels):
        own = table[table["encoder"] == encoder]
        for place, colour in zip(places, colours):
            part = own[own["place"] == place]
            label = named.get(place, "").replace("layer", "layer ") or None
            axes.plot(part["step"], part[name], color=colour, linewidth=1.2, label=label)
        if name != "token_std":
            part = own[own["place"] == FUSED]
            axes.plot(part["step"], part[name], color="black", linewidth=2, label=FUSED)
            level = random.loc[FUSED, name]
            axes.axhline(level, color="grey", linestyle="--", linewidth=1, label="fused, random weights")
            axes.axhline(SHARES[name] * level, color=COLOURS[3], linestyle=":", label="alarm (fused)")
        axes.set(title=f"{name.replace('_', ' ')}, {encoder}", xlabel="step")
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    last = grid.flat[len(panels)]
    for part in PARTS:
        points = [(entry["step"], entry[f"grad_norm_{part}"]) for entry in log if f"grad_norm_{part}" in entry]
        if points:
            last.plot(*zip(*points), linewidth=1.2, label=part.replace("_", " "))
    last.set(title="norms of the gradients", xlabel="step", yscale="log")
    for axes in grid.flat[: len(panels) + 1]:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize="small")
    figure.legend(*last.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    for axes in grid.flat[len(panels) + 1 :]:
        axes.remove()
    save_figure(figure, path, figure_format)
