"""
What a classifier looked at in a file, as one picture: `python -m training.explain MODEL FILE`.

The spectrogram with its patches; Grad-CAM (Selvaraju et al., ICCV 2017) on the fused layers, for the likeliest class or
the one that is asked for; attention rollout (Abnar and Zuidema, ACL 2020); and the attention of every layer.
"""

import argparse
import os
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from transformers.utils import logging

from .base.inference import load_classifier
from .data.audio import read_audio
from .errors import InputError, one_line

matplotlib.use("Agg")
from matplotlib import pyplot


def explain(model, input_values: torch.Tensor, label: int | None = None) -> dict:
    """
    Args:
        model: a classifier with patches (`DualSSASTForAudioClassification` and what inherits from it)
        input_values: (1, frames, mel)
        label: index of the class; `None` for the likeliest

    Returns:
        `label` and `logits` (labels,); `attention` (layers, rows, columns), from the prefix tokens to the patches, the
        mean over heads; `rollout` (rows, columns); `relevance`, fused layer -> (rows, columns), at least 0; `attended`,
        fused layer -> (rows, columns), from the tokens that are read out; the patch embedding, layer 0, attends to none
    """
    config = model.config
    num_prefix, rows = config.num_prefix_tokens, config.grid_shape[0]
    outputs = model(input_values, output_attentions=True, output_hidden_states=True, return_dict=True)
    logits = outputs.logits[0]
    label = int(logits.argmax()) if label is None else label
    states = [outputs.hidden_states[layer] for layer in config.fused_layers]
    gradients = torch.autograd.grad(logits[label], states)

    def on_grid(patches: torch.Tensor) -> np.ndarray:
        return patches.detach().unflatten(-1, (rows, -1)).float().cpu().numpy()

    attentions = torch.stack([weights[0].mean(dim=0) for weights in outputs.attentions]).detach()  # (layers, to, from)
    rollout = torch.eye(attentions.shape[-1], device=attentions.device, dtype=attentions.dtype)
    for weights in attentions:
        mixed = (weights + torch.eye(len(weights), device=weights.device, dtype=weights.dtype)) / 2
        rollout = mixed @ rollout
    relevance = {
        layer: on_grid((state[0] * gradient[0]).sum(dim=-1)[num_prefix:].clamp(min=0))
        for layer, state, gradient in zip(config.fused_layers, states, gradients)
    }
    read_out = slice(0, num_prefix) if config.readout == "prefix" else slice(num_prefix, None)
    return {
        "label": label,
        "logits": logits.detach(),
        "attention": on_grid(attentions[:, :num_prefix, num_prefix:].mean(dim=1)),
        "rollout": on_grid(rollout[:num_prefix, num_prefix:].mean(dim=0)),
        "relevance": relevance,
        "attended": {
            layer: on_grid(attentions[layer - 1, read_out, num_prefix:].mean(dim=0))
            for layer in config.fused_layers
            if layer > 0
        },
    }


def draw(model, extractor, input_values: torch.Tensor, found: dict, title: str, path: Path):
    """Writes the picture; it is whole before it has its name."""
    config, spectrogram = model.config, input_values[0].mT.cpu().numpy()  # (mel, frames)
    layers = len(found["attention"])
    columns = 4
    maps = [(f"relevance, layer {layer}", values) for layer, values in found["relevance"].items()]
    maps.append(("attention rollout", found["rollout"]))
    small = [(f"attention, layer {index + 1}", found["attention"][index]) for index in range(layers)]
    rows = 1 + len(maps) + -(-len(small) // columns)
    figure = pyplot.figure(figsize=(12, 2.1 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    seconds = spectrogram.shape[1] * extractor.hop_s
    first = figure.add_subplot(grid[0, :])
    draw_spectrogram(first, spectrogram, seconds)
    draw_patch_grid(first, config, seconds, extractor.hop_s)
    first.set_title(title)
    for row, (name, values) in enumerate(maps, start=1):
        axes = figure.add_subplot(grid[row, :])
        draw_spectrogram(axes, spectrogram, seconds)
        draw_overlay(axes, values, config, extractor)
        axes.set_title(name)
    for place, (name, values) in enumerate(small):
        axes = figure.add_subplot(grid[1 + len(maps) + place // columns, place % columns])
        axes.set_xlim(0, seconds)
        axes.set_ylim(0, config.num_mel_bins)
        draw_overlay(axes, values, config, extractor, opaque=True)
        axes.set_title(name, fontsize="small")
    unfinished = path.with_name(f".{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(unfinished, dpi=100, format="png")
    pyplot.close(figure)
    os.replace(unfinished, path)


def draw_spectrogram(axes, spectrogram: np.ndarray, seconds: float):
    """spectrogram: (mel, frames)"""
    low, high = np.quantile(spectrogram, (0.01, 0.99))
    extent = (0, seconds, 0, len(spectrogram))
    axes.imshow(spectrogram, origin="lower", aspect="auto", cmap="gray", vmin=low, vmax=high, extent=extent)
    axes.set(xlabel="seconds", ylabel="mel bin")


def draw_patch_grid(axes, config, seconds: float, frame_s: float):
    """Where patches begin; of very many, every few."""
    rows, columns = config.grid_shape
    columns = min(columns, int(seconds / frame_s / config.time_stride) + 1)
    for column in range(0, columns, max(1, columns // 100)):
        axes.axvline(column * config.time_stride * frame_s, color="tab:cyan", linewidth=0.4)
    for row in range(rows):
        axes.axhline(row * config.frequency_stride, color="tab:cyan", linewidth=0.4)
    axes.set_xlim(0, seconds)
    axes.set_ylim(0, config.num_mel_bins)


def draw_overlay(axes, values: np.ndarray, config, extractor, opaque: bool = False):
    """
    A map over the patches (rows, columns), each drawn as wide as the stride, in the middle of its patch. What is low
    lets the spectrogram through, unless the map is opaque.
    """
    low, high = values.min(), values.max()
    alpha = None if opaque or high == low else 0.8 * (values - low) / (high - low)
    frame_s = extractor.hop_s
    rows, columns = values.shape
    left = (config.patch_shape[1] - config.time_stride) / 2 * frame_s
    bottom = (config.patch_shape[0] - config.frequency_stride) / 2
    right, top = left + columns * config.time_stride * frame_s, bottom + rows * config.frequency_stride
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(values, origin="lower", aspect="auto", cmap="inferno", alpha=alpha, extent=(left, right, bottom, top))
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def load(name: str):
    """
    The classifier with attention written out, and its feature extractor.

    Raises:
        InputError: it cannot be loaded, or has no patches.
    """
    model, extractor = load_classifier(name, attn_implementation="eager")
    if not has_patches(model):
        raise InputError(
            f"{name}: is a {type(model).__name__}, which has no patches; name a Dual SSAST or ASiT classifier"
        )
    return model, extractor


def has_patches(model) -> bool:
    """Of a classifier: whether `explain` can look into it."""
    return hasattr(model, "dual_ssast")


def choose_label(model, name: str | None) -> int | None:
    if name is None:
        return None
    labels = {label: index for index, label in model.config.id2label.items()}
    if name not in labels:
        raise InputError(f"--label: {name!r} is no class of the model; it has {', '.join(labels)}")
    return int(labels[name])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.explain", description="What a classifier looked at.")
    parser.add_argument("model", help="folder or Hub name of a classifier")
    parser.add_argument("file", help="audio file; what the model can hear of it is explained")
    parser.add_argument("--output", type=Path, help="the picture; default: FILE-looked-at.png, in this folder")
    parser.add_argument("--label", help="the class to explain; default: the likeliest")
    arguments = parser.parse_args(argv)
    logging.set_verbosity_error()
    try:
        model, extractor = load(arguments.model)
        label = choose_label(model, arguments.label)
        waveform = read_audio(arguments.file, extractor.sampling_rate)[: extractor.max_samples]
        batch = extractor([torch.from_numpy(waveform)], extractor.sampling_rate, return_tensors="pt")
        found = explain(model, batch["input_values"].to(model.device), label)
        name = model.config.id2label[found["label"]]
        output = arguments.output or Path(f"{Path(arguments.file).stem}-looked-at.png")
        title = f"{Path(arguments.file).name}: {name} (logit {float(found['logits'][found['label']]):.2f})"
        draw(model, extractor, batch["input_values"], found, title, output)
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    print(f"{name}: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
