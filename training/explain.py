"""
Draws the parts of a file that a classification rests on: `python -m training.explain MODEL FILE`.

The figure shows the spectrogram with its patches; Grad-CAM (Selvaraju et al., ICCV 2017) on the fused layers, for the
likeliest class or a given one; what the model has learned to read out: the weights of the layers, the attention of the
pooling, and where the sound is like the prototypes of the class; attention rollout (Abnar and Zuidema, ACL 2020); and
the attention of every layer. Of a classifier of time frames, it explains some of the frames: those of a moment, or of
an event.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers.utils import logging

from modeling_dual_ssast.fusion_dual_ssast import TokenAttention

from .base.figures import (
    COLOURS,
    FORMATS,
    draw_spectrogram,
    label_mel_axis,
    label_time_axis,
    mel_centres,
    plain,
    save_figure,
)
from .base.finite import OVERFLOW
from .base.inference import load_classifier
from .base.label_frames import TOLERANCE, FrameGrid, frame_grid
from .console import run_program
from .data.audio import num_samples, read_stretch
from .errors import InputError, nearest, printable
from .files import check_writable
from .recipe import Arguments, described, parse_program

USAGE = "python -m training.explain MODEL FILE [--key value ...]"
KEPT = "nothing was written; give the same command again"
MAP = "inferno"  # colours of the maps: dark ones are transparent over the spectrogram


@dataclass
class ExplainArguments(Arguments):
    """Defines the options of training.explain."""

    model: str | None = described(None, "Folder or Hub name of a classifier; the first word.")
    file: str | None = described(
        None, "Audio file, cut to the longest input of the model (around at_s); the second word."
    )
    output: Path | None = described(
        None, "The figure, as png, pdf or svg; FILE-looked-at.png in the current folder if unset."
    )
    label: str | None = described(None, "Class to explain; the likeliest if unset.")
    at_s: list[float] | None = described(
        None,
        "Second of the file, or onset and offset of an event in it, that a classifier of time frames is explained at; "
        "where the class is likeliest if unset.",
        at_least=0,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.at_s and (len(self.at_s) > 2 or self.at_s != sorted(self.at_s)):
            raise InputError(f"at_s: must be one time, or an onset and an offset after it, got {self.at_s}")
        if not self.model or not self.file:
            raise InputError(f"usage: {USAGE}")
        self.output = self.output or Path(f"{Path(self.file).stem}-looked-at.png")
        if self.output.suffix[1:].lower() not in FORMATS:
            raise InputError(f"output: {self.output} must end in .{', .'.join(FORMATS[:-1])} or .{FORMATS[-1]}")


def explain(model, input_values: torch.Tensor, label: int | None = None, frames: tuple[int, int] | None = None) -> dict:
    """
    Computes maps over the patches of a clip.

    Args:
        model: a classifier with patches (`DualSSASTForAudioClassification` and its subclasses), of clips or time frames
        input_values: (1, frames, mel)
        label: index of the class; `None` for the likeliest
        frames: of a classifier of time frames, the first and the last one whose mean logit is explained; `None` for the
            likeliest of the class

    Returns:
        `label`, `logits` (labels,) and `frames`, `None` for clips;
        `relevance`: fused layer -> Grad-CAM (rows, columns), at least 0;
        `rollout`: attention rollout from the prefix tokens, or the patches of the frames (rows, columns);
        `attention`: from the same tokens to the patches, the mean over heads (layers, rows, columns);
        `attended`: fused layer -> attention of the tokens that are read out (rows, columns), without layer 0, the patch
        embedding;
        `weights`: fused layer -> its weight, if `fusion` is learned;
        `pooled`: fused layer -> weights of its attention pooling, the mean over heads (rows, columns);
        `likeness`: highest cosine of each patch with a prototype of the class (rows, columns), or `None`
    """
    config = model.config
    num_prefix, rows = config.num_prefix_tokens, config.grid_shape[0]
    outputs = model(input_values, output_attentions=True, output_hidden_states=True, return_dict=True)
    logits = outputs.logits[0]
    if logits.ndim == 2:  # (time frames, labels)
        if frames is None:
            best = int((logits if label is None else logits[:, [label]]).max(dim=1).values.argmax())
            frames = (best, best)
        first, last = (min(frame, len(logits) - 1) for frame in frames)
        frames, logits = (first, last), logits[first : last + 1].mean(dim=0)
    label = int(logits.argmax()) if label is None else label
    states = [outputs.hidden_states[layer] for layer in config.fused_layers]
    gradients = torch.autograd.grad(logits[label], states)

    def on_grid(patches: torch.Tensor) -> np.ndarray:
        return patches.detach().unflatten(-1, (rows, -1)).float().cpu().numpy()

    def on_rows(values: torch.Tensor) -> np.ndarray:  # a time step is one token with `readout="frames"`
        return on_grid(values.repeat(rows) if config.readout == "frames" else values)

    attentions = torch.stack([weights[0].mean(dim=0) for weights in outputs.attentions]).detach()  # (layers, to, from)
    rollout = torch.eye(attentions.shape[-1], device=attentions.device, dtype=attentions.dtype)
    for weights in attentions:
        mixed = (weights + torch.eye(len(weights), device=weights.device, dtype=weights.dtype)) / 2
        rollout = mixed @ rollout
    relevance = {
        layer: on_grid((state[0] * gradient[0]).sum(dim=-1)[num_prefix:].clamp(min=0))
        for layer, state, gradient in zip(config.fused_layers, states, gradients)
    }
    learned, likeness = learned_readout(model, outputs, label)
    tokens = torch.arange(attentions.shape[-1])
    reading, read_out = tokens[:num_prefix], tokens[:num_prefix] if config.readout == "prefix" else tokens[num_prefix:]
    if frames is not None:
        columns = tokens[num_prefix:].unflatten(0, (rows, -1))
        first, last = columns_of(model, frames, columns.shape[1])
        reading = read_out = columns[:, first : last + 1].flatten()
    return {
        "label": label,
        "logits": logits.detach(),
        "frames": frames,
        "attention": on_grid(attentions[:, reading, num_prefix:].mean(dim=1)),
        "rollout": on_grid(rollout[reading, num_prefix:].mean(dim=0)),
        "relevance": relevance,
        "attended": {
            layer: on_grid(attentions[layer - 1, read_out, num_prefix:].mean(dim=0))
            for layer in config.fused_layers
            if layer > 0
        },
        "weights": model.base_model.layer_weights,
        "pooled": {layer: on_rows(weights) for layer, weights in learned.items()},
        "likeness": None if likeness is None else on_rows(likeness),
    }


def columns_of(model, frames: tuple[int, int], num_columns: int) -> tuple[int, int]:
    """Returns the first and the last column of patches of time frames, first and last."""
    ratio = model.base_model.label_frame_stride / model.config.time_stride  # 1 unless `readout` is `tokens`
    first, last = int(frames[0] * ratio + 1e-6), int(np.ceil((frames[1] + 1) * ratio - 1e-6)) - 1
    return min(first, num_columns - 1), min(max(last, first), num_columns - 1)


@torch.no_grad()
def learned_readout(model, outputs, label: int) -> tuple[dict[int, torch.Tensor], torch.Tensor | None]:
    """
    Returns fused layer -> weights of its attention pooling, and each token's highest cosine with a prototype of the
    class: (patches,) frequency-major, or (columns,) with `readout="frames"`.
    """
    config, encoder = model.config, model.base_model
    pooled, states = {}, encoder.fused_states(outputs.hidden_states)
    for layer, state, attention in zip(config.fused_layers, states, encoder.fusion.attention):
        if isinstance(attention, TokenAttention):
            tokens = encoder.fusion.frame_tokens(state)[0]  # (columns, rows, size): what is pooled in time frames
            if outputs.logits.ndim == 2:
                tokens = tokens.flatten(0, 1)[None]
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            weights = attention.weights(tokens, mask).mean(dim=-1)
            pooled[layer] = weights.reshape(-1, 1 if config.readout == "frames" else config.grid_shape[0]).T.flatten()
    if config.classifier != "prototypes" or config.readout not in ("patches", "frames"):
        return pooled, None
    cosines = model.classifier.cosines(encoder.label_tokens(outputs))[0, ..., label, :]  # (columns, rows, prototypes)
    return pooled, cosines.amax(dim=-1).T.flatten()


def draw(
    model,
    extractor,
    input_values: torch.Tensor,
    found: dict,
    title: str,
    path: Path,
    start_s: float = 0.0,
    is_end: bool = True,
):
    """
    Draws all maps as one figure.

    Args:
        input_values: (1, frames, mel)
        found: as `explain` returns it
        title: names in it are `plain`
        path: ends in one of `FORMATS`
        start_s: second of the file at which the input begins
        is_end: whether the file ends with the input, whose last time frame then has the rest
    """
    config, spectrogram = model.config, input_values[0].mT.cpu().numpy()  # (mel, frames)
    columns = 4
    maps = [
        (f"relevance for the class in layer {layer} (Grad-CAM): bright is highest, transparent none", values)
        for layer, values in found["relevance"].items()
    ]
    seconds = spectrogram.shape[1] * extractor.hop_s
    marks_s = (
        None if found["frames"] is None else edges_of(model, extractor, found["frames"], len(input_values[0]), is_end)
    )

    def finish(axes, most_ticks: int = 10):
        """Marks the frames that are explained, and labels the time."""
        for edge_s in marks_s or ():
            axes.axvline(edge_s, color=COLOURS[5], linewidth=1.5)
        label_time_axis(axes, seconds, start_s, most_ticks)

    brightest = "bright is highest, transparent lowest"
    maps += [
        (f"attention of the pooling in layer {layer}: {brightest}", map_) for layer, map_ in found["pooled"].items()
    ]
    if found["likeness"] is not None:
        maps.append((f"likeness to the nearest prototype of the class: {brightest}", found["likeness"]))
    maps.append(("attention rollout over all layers: " + brightest, found["rollout"]))
    small = [(f"attention, layer {index + 1}", values) for index, values in enumerate(found["attention"])]
    weights = found["weights"]
    rows = 1 + len(maps) + -(-len(small) // columns) + bool(weights)
    figure = Figure(figsize=(12, 2.1 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    first = figure.add_subplot(grid[0, :])
    draw_spectrogram(first, spectrogram, extractor, cmap="gray")
    if marks_s is None:
        draw_patch_grid(first, config, seconds, extractor.hop_s)
    finish(first)
    first.set_title(f"{title}; lines: {'where patches begin' if marks_s is None else 'what is explained'}")
    for row, (name, values) in enumerate(maps, start=1):
        axes = figure.add_subplot(grid[row, :])
        draw_spectrogram(axes, spectrogram, extractor, cmap="gray")
        draw_overlay(axes, values, config, extractor)
        finish(axes)
        axes.set_title(name)
    for place, (name, values) in enumerate(small):
        axes = figure.add_subplot(grid[1 + len(maps) + place // columns, place % columns])
        axes.set(xlim=(0, seconds), ylim=(0, config.num_mel_bins), xlabel="time (s)")
        label_mel_axis(axes, mel_centres(extractor))
        draw_overlay(axes, values, config, extractor, opaque=True)
        finish(axes, most_ticks=3)
        axes.set_title(name, fontsize="small")
    if weights:
        axes = figure.add_subplot(grid[-1, :])
        axes.bar([str(layer) for layer in sorted(weights)], [weights[layer] for layer in sorted(weights)])
        axes.set(title="learned weights of the layers", xlabel="layer (0: patch embedding)", ylabel="weight")
    save_figure(figure, path, path.suffix[1:], dpi=100)


def edges_of(model, extractor, frames: tuple[int, int], num_frames: int, is_end: bool) -> tuple[float, float]:
    """
    Returns where time frames, first and last, begin and end: in seconds from the beginning of their input.

    Args:
        num_frames: of the spectrogram
        is_end: see `draw`
    """
    count = max(int(model.base_model.num_label_frames(torch.tensor(num_frames))), 1)
    num_samples = round(num_frames * extractor.hop_s * extractor.sampling_rate)
    edges_s = frame_grid(model, extractor).edges_s(count + (not is_end), num_samples)
    return float(edges_s[frames[0]]), float(edges_s[frames[1] + 1])


def draw_patch_grid(axes, config, seconds: float, frame_s: float):
    """Draws lines where patches begin; with more than 100 columns only some."""
    rows, columns = config.grid_shape
    columns = min(columns, int(seconds / frame_s / config.time_stride) + 1)
    for column in range(0, columns, max(1, columns // 100)):
        axes.axvline(column * config.time_stride * frame_s, color=COLOURS[5], linewidth=0.4)
    for row in range(rows):
        axes.axhline(row * config.frequency_stride, color=COLOURS[5], linewidth=0.4)
    axes.set_xlim(0, seconds)
    axes.set_ylim(0, config.num_mel_bins)


def draw_overlay(axes, values: np.ndarray, config, extractor, opaque: bool = False):
    """
    Draws a map over the patches (rows, columns): each value as wide as the stride, in the middle of its patch. Low
    values are transparent, unless the map is opaque.
    """
    low, high = values.min(), values.max()
    alpha = None if opaque or high == low else 0.8 * (values - low) / (high - low)
    frame_s = extractor.hop_s
    rows, columns = values.shape
    left = (config.patch_shape[1] - config.time_stride) / 2 * frame_s
    bottom = (config.patch_shape[0] - config.frequency_stride) / 2
    right, top = left + columns * config.time_stride * frame_s, bottom + rows * config.frequency_stride
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(values, origin="lower", aspect="auto", cmap=MAP, alpha=alpha, extent=(left, right, bottom, top))
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def load(name: str):
    """
    Loads a classifier with eager attention, which returns its weights, and its feature extractor.

    Raises:
        InputError: the model cannot be loaded, or has no patches.
    """
    model, extractor = load_classifier(name, of_frames=True, attn_implementation="eager")
    if not has_patches(model):
        raise InputError(
            f"{name}: is a {type(model).__name__}, which has no patches; name a Dual SSAST or ASiT classifier"
        )
    return model, extractor


def has_patches(model) -> bool:
    """Returns whether `explain` supports a classifier: it must have patches."""
    return hasattr(model, "dual_ssast")


def choose_label(model, name: str | None) -> int | None:
    """
    Returns the index of a class; `None` without a name.

    Raises:
        InputError: the model does not have such a class.
    """
    if name is None:
        return None
    labels = {label: index for index, label in model.config.id2label.items()}
    if name not in labels:
        shown = ", ".join(list(labels)[:20])
        raise InputError(
            f"--label: {name!r} is no class of the model; {nearest(name, list(labels), f'it has {shown}')}"
        )
    return int(labels[name])


def main(argv: list[str]) -> int:
    logging.set_verbosity_error()
    return run_program(draw_file, argv, KEPT)


def draw_file(argv: list[str]):
    """Draws the explanation of the file that the command line names."""
    arguments = parse_program(argv, ExplainArguments, USAGE, "model", "file")
    check_writable(arguments.output.parent, is_folder=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    check_writable(arguments.output)
    model, extractor = load(arguments.model)
    label = choose_label(model, arguments.label)
    waveform, start, frames = read_part(model, extractor, arguments.file, arguments.at_s)
    batch = extractor([torch.from_numpy(waveform)], extractor.sampling_rate, return_tensors="pt")
    found = explain(model, batch["input_values"].to(model.device), label, frames)
    if not torch.isfinite(found["logits"]).all():
        raise InputError(f"{arguments.file}: {OVERFLOW}")
    name = model.config.id2label[found["label"]]
    logit = float(found["logits"][found["label"]])
    title = f"{plain(Path(arguments.file).name, 60)}: {plain(name)} (logit {logit:.2f})"
    rate = extractor.sampling_rate
    is_end = start + len(waveform) >= num_samples(arguments.file, rate)
    draw(model, extractor, batch["input_values"], found, title, arguments.output, start / rate, is_end)
    print(printable(f"{name}: {arguments.output}"))


def read_part(model, extractor, file: str, at_s: list[float] | None) -> tuple[np.ndarray, int, tuple[int, int] | None]:
    """
    Reads the longest input of a model: the beginning of a file, or what is around the times that are explained.

    Returns:
        waveform (samples,), its first sample in the file, and the first and the last frame at these times; `None`
        without them

    Raises:
        InputError: an unreadable file, times after its end, or of a model that knows no times, or an event that is
            longer than the input.
    """
    rate, total = extractor.sampling_rate, num_samples(file, extractor.sampling_rate)
    if at_s is None:
        return _read(file, rate, 0, min(extractor.max_samples or total, total)), 0, None
    if "FrameClassification" not in type(model).__name__:
        raise InputError(f"at_s: {type(model).__name__} classifies clips, not time frames; leave it out")
    if at_s[-1] * rate > total:
        raise InputError(f"at_s: {file} ends at {total / rate:g} s, before {at_s[-1]:g} s; name an earlier time")
    grid = frame_grid(model, extractor)
    if (at_s[-1] - at_s[0]) * rate > grid.length:
        raise InputError(f"at_s: the model takes {grid.length / rate:g} s, less than {at_s}; name a shorter part")
    # The window begins at a frame of the file, so that its frames are those of predict_hf.py. What comes after the last
    # whole window is explained in the window that ends with the file.
    unit, latest = grid.step * grid.group, max(total - grid.length, 0)
    first, last = _frames_at(grid, at_s, 0)
    start = min(max(first + last + 1 - grid.frames, 0) // 2 * grid.step, latest) // unit * unit
    if start == latest // unit * unit and last >= start // grid.step + grid.frames:
        start = latest
    first, last = _frames_at(grid, at_s, start)
    waveform = _read(file, rate, start, min(start + grid.length, total))
    return waveform, start, (min(first, grid.frames - 1), min(last, grid.frames - 1))  # the last one has the rest


def _frames_at(grid: FrameGrid, at_s: list[float], start: int) -> tuple[int, int]:
    """Returns the first and the last frame, from a sample on, at a time or from an onset to an offset."""
    places = grid.places(np.array([at_s[0], at_s[-1]]) * grid.rate - start)
    first = max(int(np.floor(places[0] + TOLERANCE)), 0)
    return first, max(int(np.ceil(places[1] - TOLERANCE)) - 1, first)


def _read(file: str, rate: int, start: int, stop: int) -> np.ndarray:
    waveform = read_stretch(file, rate, start, stop)
    return waveform if len(waveform) else np.zeros(1, dtype=np.float32)  # the file holds less than it says


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
