"""Writes the output folder of a pretraining: model, results, figures, the unreadable clips, and a model card."""

import shutil
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from model_cards.card import pretraining_card

from ..base import outputs, reproduction
from ..base.figures import draw_spectrogram, new_figure, save_figure
from ..base.page import picture_uris, public_model_name, write_page
from ..data.unreadable import UnreadableLog
from ..files import write_csv
from . import health, probe

TEMPLATE = Path(__file__).with_name("report.html")
PICTURES = {
    "learning_curves.png": "learning curves",
    "health.png": "features and gradients",
    "reconstruction.png": "reconstructions of validation clips",
}


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
    Plots each part of the loss in training and validation, the learning rate, and the score of the probe with its
    baselines, over the epochs.

    Args:
        kept_epoch: epoch of the weights that the run keeps
    """
    names = [name for name in names if any(name in entry or f"eval_{name}" in entry for entry in log)]
    scores = probe.table_of(log)
    num_panels = len(names) + 1 + (len(scores) > 0)
    columns = (num_panels + 1) // 2
    figure, grid = new_figure(2, columns, size=(4 * columns, 6), squeeze=False)
    for axes, name in zip(grid.flat, [*names, "learning_rate"]):
        for key, label in ((name, "training"), (f"eval_{name}", "validation")):
            points = [(entry["epoch"], entry[key]) for entry in log if key in entry]
            if points:
                axes.plot(*zip(*points), marker="." if len(points) < 50 else None, label=label)
        axes.set(title=name.replace("_", " "))
    if len(scores):
        _plot_probe(scores, grid.flat[num_panels - 1])
    for axes in grid.flat[:num_panels]:
        axes.axvline(kept_epoch, color="grey", linestyle=":", label="weights kept")
        axes.set(xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    for axes in grid.flat[num_panels:]:
        axes.remove()
    save_figure(figure, path, figure_format)


def _plot_probe(scores, axes):
    """Plots the scores of `probe.table_of`: the encoder's over the epochs, and a line per baseline."""
    own = scores[scores["features"] == probe.ENCODER]
    axes.plot(own["epoch"], own["value"], marker="." if len(own) < 50 else None, label="this encoder")
    for (name, colour), style in zip(probe.BASELINES.items(), ("--", "-.")):
        for row in scores[scores["features"] == name].head(1).to_dict("records"):
            axes.axhline(row["value"], color=colour, linestyle=style, label=name.replace("_", " "))
    axes.set(title=f"frozen probe: {scores['metric'].iloc[0].replace('_', ' ')}")


def health_results(log: list[dict]) -> dict:
    """Returns the part of results.json about the features: the alarms, and the last measurement of the fused ones."""
    table, (raised, _) = health.table_of(log), health.alarms(log)
    if not len(table):
        return {}
    last = table[(table["place"] == health.FUSED)].drop_duplicates("encoder", keep="last")
    fused = {row["encoder"]: {name: row[name] for name in health.SHARES} for row in last.to_dict("records")}
    return {"health": {"alarms": len(raised), "raised": [alarm._asdict() for alarm in raised], "fused": fused}}


def probe_results(trainer, log: list[dict]) -> dict:
    """Returns the part of results.json about the probe: the score of the kept weights, and the baselines."""
    scores = probe.table_of(log)
    if not len(scores):
        return {}
    last = scores[scores["step"] <= trainer.kept_step].drop_duplicates("features", keep="last").set_index("features")
    values = {name: last.loc[name, "value"] for name in last.index}
    return {"probe": {"metric": scores["metric"].iloc[0], **values, "step": int(last.loc[probe.ENCODER, "step"])}}


def write_outputs(trainer, sources, clips, log: UnreadableLog, metrics: dict, recipe: dict):
    """
    Writes the output folder, every file complete before it takes its place. Called by every process.

    Args:
        sources: the recipe's sources
        clips: the training clips of each source
        metrics: the metrics of the last evaluation, empty if there was none
    """
    folder = Path(trainer.args.output_dir)
    staging = folder / outputs.STAGING_NAME
    if not trainer.save_outputs(staging):
        return
    unreadable, log_entries = log.entries(), trainer.state.log_history
    names = [name for name in ("loss", *trainer.components) if f"eval_{name}" in metrics]
    results = {
        "task": trainer.task,
        "metrics": {"validation": {name: metrics[f"eval_{name}"] for name in names}} if metrics else {},
        "sources": [describe_source(source, opened) for source, opened in zip(sources, clips)],
        "validation_clips": len(trainer.eval_dataset) if trainer.eval_dataset is not None else 0,
        "training": {
            "seconds": trainer.training_s,
            "steps": trainer.state.global_step,
            "epochs": trainer.state.global_step / trainer.epoch_steps,
            "epoch_steps": trainer.epoch_steps,
            **trainer.meter.totals(),
        },
        **health_results(log_entries),
        **probe_results(trainer, log_entries),
        "unreadable": {"clips": len(unreadable), "first": dict(list(unreadable.items())[:20])},
        "normalisation": {"mean": trainer.processing_class.mean, "std": trainer.processing_class.std},
        "versions": reproduction.versions(),
        "recipe": recipe,
        "log": log_entries,
    }
    kept_epoch = trainer.kept_step / trainer.epoch_steps
    names = ("loss", *trainer.components)
    curves = staging / "learning_curves.png"
    with outputs.dispensable(curves.name):
        plot_curves(log_entries, names, kept_epoch, curves, trainer.args.figure_format)
    if "health" in results:
        write_csv(health.table_of(log_entries), staging / health.TABLE)
        with outputs.dispensable("health.png"):
            health.plot(log_entries, staging / "health.png", trainer.args.figure_format)
    if "probe" in results:
        write_csv(probe.table_of(log_entries), staging / probe.TABLE)
    picture = trainer.picture_path(trainer.kept_step)
    for file in picture.parent.glob(f"{picture.stem}.*"):
        shutil.copy(file, staging / f"reconstruction{file.suffix}")
    with outputs.dispensable("README.md"):
        write_card(trainer, results, staging / "README.md")
    if trainer.args.html_report:
        with outputs.dispensable("report.html"):
            write_report(trainer, results, staging)
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
        f"{training['audio_hours_per_second']:.3f} hours of audio per second"
    )
    if "model_flops_utilisation" in training:
        share = training["model_flops_utilisation"]
        lines[-1] += f", {share:.0%} of the device's rate in large matrix products"
    else:
        lines.append(f"model FLOPs utilisation: {training['mfu_note']}")
    if "probe" in results:
        found = results["probe"]
        lines.append(
            f"frozen probe at step {found['step']}: {found['metric'].replace('_', ' ')} {found[probe.ENCODER]:.3f} "
            f"(random weights {found[probe.RANDOM]:.3f}, log-mel statistics {found[probe.LOG_MEL]:.3f})"
        )
    if first := first_alarm(results):
        count = results["health"]["alarms"]
        lines.append(f"{count} alarm{'s' if count > 1 else ''} about the features; the first: {first}")
    for split, metrics in results["metrics"].items():
        lines.append(f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    unreadable = results["unreadable"]
    if unreadable["clips"]:
        lines.append(f"{unreadable['clips']} unreadable clips were skipped:")
        lines += [f"  {clip}: {reason}" for clip, reason in list(unreadable["first"].items())[:5]]
    lines.append(f"pretrained for {training['seconds']:.0f} s; everything is in {folder}")
    return "\n".join(lines)


def first_alarm(results: dict) -> str | None:
    """Returns the line of the first alarm about the features; `None` if there was none, or nothing was measured."""
    raised = results.get("health", {}).get("raised")
    return str(health.Alarm(**raised[0])) if raised else None


def write_card(trainer, results: dict, path: Path):
    """Writes the model card from the template and the run's results."""
    card = pretraining_card(
        Path(trainer.args.output_dir).resolve().name,
        trainer.model.config,
        trainer.processing_class,
        results,
        title=trainer.title,
        num_parameters=trainer.model.base_model.num_parameters(),
        has_picture=(path.parent / "reconstruction.png").exists(),
    )
    path.write_text(str(card), encoding="utf-8")


def write_report(trainer, results: dict, folder: Path):
    """Writes `report.html` into the folder that holds the figures already."""
    write_page(
        folder / "report.html",
        TEMPLATE,
        name=Path(trainer.args.output_dir).resolve().name,
        title=trainer.title,
        results=outputs.without_nan(results),
        alarm=first_alarm(results),
        pictures=picture_uris(folder, PICTURES),
        captions=PICTURES,
        config=trainer.model.config,
        extractor=trainer.processing_class,
        arguments=trainer.args,
        num_parameters=trainer.model.base_model.num_parameters(),
        model_name=public_model_name(results["recipe"]["EncoderArguments"]["model_name_or_path"]),
        dataset_name=", ".join(source["name"] for source in results["sources"]),
        unit="clips",
    )
