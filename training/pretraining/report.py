"""Writes the output folder of a pretraining: model, results, figures, the unreadable clips, and a model card."""

import shutil
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from model_cards.card import pretraining_card

from ..base import outputs, reproduction
from ..base.figures import draw_spectrogram, new_figure, save_figure
from ..data.unreadable import UnreadableLog


def draw_reconstructions(trainer, path: Path):
    """Draws a row per clip: the clip, the model's input, and the reconstruction, with one colour scale per row."""
    panels = trainer.panels()
    rows, columns = len(next(iter(panels.values()))), len(panels)
    figure, grid = new_figure(rows, columns, size=(4 * columns, 1.9 * rows + 0.4), squeeze=False, sharex="row")
    for row in range(rows):
        lowest, highest = (float(panels["clip"][row].quantile(q)) for q in (0.01, 0.99))
        for column, (title, clips) in enumerate(panels.items()):
            axes = grid[row, column]
            spectrogram = clips[row].mT.numpy()  # (mel, frames)
            draw_spectrogram(axes, spectrogram, trainer.processing_class, vmin=lowest, vmax=highest)
            axes.set_facecolor("lightgrey")  # masked patches are not drawn
            if row == 0:
                axes.set_title(f"{title} (grey: hidden)" if title == "masked" else title)
            if row < rows - 1:
                axes.set_xlabel("")
            if column > 0:
                axes.set_ylabel("")
    figure.suptitle(f"step {trainer.state.global_step}")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path, trainer.args.figure_format)


def plot_curves(log: list[dict], names: tuple[str, ...], kept_epoch: float, path: Path, figure_format: str):
    """
    Plots each part of the loss in training and validation, and the learning rate, over the epochs.

    Args:
        kept_epoch: epoch of the weights that the run keeps
    """
    names = [name for name in names if any(name in entry or f"eval_{name}" in entry for entry in log)]
    columns = (len(names) + 2) // 2
    figure, grid = new_figure(2, columns, size=(4 * columns, 6), squeeze=False)
    for axes, name in zip(grid.flat, [*names, "learning_rate"]):
        for key, label in ((name, "training"), (f"eval_{name}", "validation")):
            points = [(entry["epoch"], entry[key]) for entry in log if key in entry]
            if points:
                axes.plot(*zip(*points), marker="." if len(points) < 50 else None, label=label)
        axes.axvline(kept_epoch, color="grey", linestyle=":", label="weights kept")
        axes.set(title=name.replace("_", " "), xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    for axes in grid.flat[len(names) + 1 :]:
        axes.remove()
    save_figure(figure, path, figure_format)


def write_outputs(trainer, sources, clips, log: UnreadableLog, metrics: dict, recipe: dict, seconds: float):
    """
    Writes the output folder, every file complete before it takes its place. Called by every process.

    Args:
        sources: the recipe's sources
        clips: the training clips of each source
        metrics: the metrics of the last evaluation, empty if there was none
        seconds: duration of the training since its start or resumption
    """
    folder = Path(trainer.args.output_dir)
    staging = folder / outputs.STAGING_NAME
    trainer.save_model(str(staging), _internal_call=True)  # an ordinary call would also push
    if not trainer.is_world_process_zero():
        return
    (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle with paths of this machine
    unreadable = log.entries()
    names = [name for name in ("loss", *trainer.components) if f"eval_{name}" in metrics]
    results = {
        "task": trainer.task,
        "metrics": {"validation": {name: metrics[f"eval_{name}"] for name in names}} if metrics else {},
        "sources": [describe_source(source, opened) for source, opened in zip(sources, clips)],
        "validation_clips": len(trainer.eval_dataset) if trainer.eval_dataset is not None else 0,
        "training": {
            "seconds": seconds,
            "steps": trainer.state.global_step,
            "epochs": trainer.state.global_step / trainer.epoch_steps,
            "epoch_steps": trainer.epoch_steps,
            **trainer.meter.totals(),
        },
        "unreadable": {"clips": len(unreadable), "first": dict(list(unreadable.items())[:20])},
        "normalisation": {"mean": trainer.processing_class.mean, "std": trainer.processing_class.std},
        "versions": reproduction.versions(),
        "recipe": recipe,
        "log": trainer.state.log_history,
    }
    kept_epoch = trainer.kept_step / trainer.epoch_steps
    names = ("loss", *trainer.components)
    curves = staging / "learning_curves.png"
    with outputs.dispensable(curves.name):
        plot_curves(trainer.state.log_history, names, kept_epoch, curves, trainer.args.figure_format)
    picture = trainer.picture_path(trainer.kept_step)
    for file in picture.parent.glob(f"{picture.stem}.*"):
        shutil.copy(file, staging / f"reconstruction{file.suffix}")
    with outputs.dispensable("README.md"):
        write_card(trainer, results, staging / "README.md")
    outputs.write_results(results, staging)
    outputs.publish(staging, folder)
    print(summary(results, folder))


def describe_source(source, clips) -> dict:
    """Describes a source without paths of this machine: a folder by its own name, a data set by its Hub name."""
    is_local_path = Path(source.path).exists()
    return {
        "name": Path(source.path).resolve().name if is_local_path else source.path,
        "kind": "local files" if is_local_path else "data set",
        "split": source.split if not is_local_path else None,
        "streamed": source.streaming,
        "weight": source.weight,
        "training_clips": len(clips) if hasattr(clips, "__len__") else None,
    }


def summary(results: dict, folder: Path) -> str:
    """Summarises the run in a few lines."""
    training = results["training"]
    clips = sum(source["training_clips"] or 0 for source in results["sources"])
    lines = [
        f"{training['steps']} steps ({training['epochs']:.1f} epochs) on "
        + ", ".join(source["name"] for source in results["sources"])
        + (f" ({clips} clips)" if clips else "")
    ]
    lines.append(
        f"{training['audio_hours']:.2f} hours of audio processed; {training['clips_per_second']:.1f} clips and "
        f"{training['audio_hours_per_second']:.3f} hours of audio per second, "
        f"{training['model_flops_utilisation']:.0%} of the device's rate in large matrix products"
    )
    for split, metrics in results["metrics"].items():
        lines.append(f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    unreadable = results["unreadable"]
    if unreadable["clips"]:
        lines.append(f"{unreadable['clips']} unreadable clips were skipped:")
        lines += [f"  {clip}: {reason}" for clip, reason in list(unreadable["first"].items())[:5]]
    lines.append(f"pretrained for {training['seconds']:.0f} s; everything is in {folder}")
    return "\n".join(lines)


def write_card(trainer, results: dict, path: Path):
    """Writes the model card from the template and the run's results."""
    card = pretraining_card(
        Path(trainer.args.output_dir).resolve().name,
        trainer.model.config,
        trainer.processing_class,
        results,
        title=trainer.title,
        num_parameters=sum(parameter.numel() for parameter in trainer.model.base_model.parameters()),
        has_picture=(path.parent / "reconstruction.png").exists(),
    )
    path.write_text(str(card), encoding="utf-8")
