"""What a pretraining leaves in its folder: model, results, pictures, the unreadable clips, and a model card."""

import os
import shutil
from pathlib import Path

import matplotlib

from model_cards.card import pretraining_card

from ..data.unreadable import UnreadableLog

matplotlib.use("Agg")
from matplotlib import pyplot

from ..base import outputs, reproduction


def draw_reconstructions(trainer, path: Path):
    """One row per clip: what it is, what the model saw, what it painted. Drawn whole under another name first."""
    panels = trainer.panels()
    extractor = trainer.processing_class
    rows, columns = len(next(iter(panels.values()))), len(panels)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(4 * columns, 1.7 * rows), squeeze=False, layout="constrained", sharex="row"
    )
    for row in range(rows):
        lowest, highest = (float(panels["clip"][row].quantile(q)) for q in (0.01, 0.99))
        for column, (title, clips) in enumerate(panels.items()):
            axes = grid[row, column]
            spectrogram = clips[row]  # (frames, mel)
            seconds = len(spectrogram) * extractor.frame_shift_ms / 1000
            axes.imshow(
                spectrogram.mT.numpy(),
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=lowest,
                vmax=highest,
                extent=(0, seconds, 0, spectrogram.shape[1]),
                interpolation="none",
            )
            axes.set_facecolor("lightgrey")  # what is masked is not drawn
            if row == 0:
                axes.set_title(title)
            if row == rows - 1:
                axes.set_xlabel("seconds")
            if column == 0:
                axes.set_ylabel("mel bin")
    figure.suptitle(f"step {trainer.state.global_step}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, dpi=100, format="png")
    pyplot.close(figure)
    os.replace(unfinished, path)


def plot_curves(log: list[dict], names: tuple[str, ...], path: Path):
    """Each part of the loss in training and validation, and the learning rate, over the epochs."""
    names = [name for name in names if any(name in entry for entry in log)]
    columns = (len(names) + 2) // 2
    figure, grid = pyplot.subplots(2, columns, figsize=(4 * columns, 6), squeeze=False, layout="constrained")
    for axes, name in zip(grid.flat, [*names, "learning_rate"]):
        for key, label in ((name, "training"), (f"eval_{name}", "validation")):
            points = [(entry["epoch"], entry[key]) for entry in log if key in entry]
            if points:
                axes.plot(*zip(*points), marker="." if len(points) < 50 else None, label=label)
        axes.set(title=name.replace("_", " "), xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    for axes in grid.flat[len(names) + 1 :]:
        axes.remove()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write_outputs(trainer, task, sources, clips, log: UnreadableLog, metrics: dict, recipe: dict, seconds: float):
    """
    Writes the output folder as `reporting.write_outputs` does for classifiers. Called by every process.

    Args:
        sources, clips: of the recipe, and what they hold for training
        metrics: of the last evaluation, empty where there was none
        seconds: of the training, since it began or was resumed
    """
    folder = Path(trainer.args.output_dir)
    staging = folder / outputs.STAGING_NAME
    trainer.save_model(str(staging), _internal_call=True)  # without the push that an ordinary call would make
    if not trainer.is_world_process_zero():
        return
    (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle with paths of this machine
    unreadable = log.entries()
    names = [name for name in ("loss", *task.components) if f"eval_{name}" in metrics]
    results = {
        "task": task.name,
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
    plot_curves(trainer.state.log_history, ("loss", *task.components), staging / "learning_curves.png")
    picture = trainer.picture_path(trainer.kept_step)
    if picture.exists():
        shutil.copy(picture, staging / "reconstruction.png")
    write_card(trainer, task, results, staging / "README.md")
    outputs.write_results(results, staging)
    outputs.publish(staging, folder)
    print(summary(results, folder))


def describe_source(source, clips) -> dict:
    """Its name in public: a path of this machine says nothing to others, its last part may."""
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
    """What the run did, in a few lines."""
    training = results["training"]
    clips = sum(source["training_clips"] or 0 for source in results["sources"])
    lines = [
        f"{training['steps']} steps ({training['epochs']:.1f} epochs) on "
        + ", ".join(source["name"] for source in results["sources"])
        + (f" ({clips} clips)" if clips else "")
    ]
    lines.append(
        f"{training['audio_hours']:.2f} hours of audio heard; {training['clips_per_second']:.1f} clips and "
        f"{training['audio_hours_per_second']:.3f} hours of audio per second, "
        f"{training['model_flops_utilisation']:.0%} of what the device makes of large matrix products"
    )
    for split, metrics in results["metrics"].items():
        lines.append(f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    unreadable = results["unreadable"]
    if unreadable["clips"]:
        lines.append(f"{unreadable['clips']} unreadable clips were skipped:")
        lines += [f"  {clip}: {reason}" for clip, reason in list(unreadable["first"].items())[:5]]
    lines.append(f"pretrained for {training['seconds']:.0f} s; everything is in {folder}")
    return "\n".join(lines)


def write_card(trainer, task, results: dict, path: Path):
    """The model card, from the template and the run's own figures."""
    card = pretraining_card(
        Path(trainer.args.output_dir).resolve().name,
        trainer.model.config,
        trainer.processing_class,
        results,
        title=task.title,
        num_parameters=sum(parameter.numel() for parameter in trainer.model.base_model.parameters()),
        has_picture=(path.parent / "reconstruction.png").exists(),
    )
    path.write_text(str(card), encoding="utf-8")
