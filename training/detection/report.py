"""Writes the output folder of a finished training: model, results, events and model card."""

from pathlib import Path

from model_cards.card import detection_card, with_interval

from ..base.detection_scores import detection_metrics
from ..base.event_detection import event_settings, has_event_settings, median_filtered
from ..base.outputs import STAGING_NAME, clean_metrics, dispensable, kept_epoch, publish, without_nan, write_results
from ..base.page import public_model_name
from ..base.plots import loss_note, plot_learning_curves
from ..data.events import write_events
from ..data.labels import LabelSet
from .crops import WindowDataset
from .html_report import Findings, draw_figures, write_report
from .metrics import METRICS, find_all, score_events
from .recordings import Stretch
from .trainer import DetectionTrainer

PRINTED = ("loss", *METRICS, "psds1", "psds2")


def write_outputs(
    trainer: DetectionTrainer,
    datasets: dict,
    splits: dict[str, list[Stretch]],
    labels: LabelSet,
    outcomes: dict,
    recipe: dict,
    circumstances: dict,
):
    """
    Writes the output folder. Every file is complete before it takes its place, and `results.json` comes last. Called by
    every process; the main one writes.

    Args:
        outcomes: split -> what `predict` of the trainer returns
        circumstances: the entries `versions`, `machine` and `data` of `results.json`
    """
    folder = Path(trainer.args.output_dir)
    staging = folder / STAGING_NAME
    if not trainer.save_outputs(staging):
        return
    config = trainer.model.config
    results = {
        "metrics": {split: clean_metrics(outcome.metrics, split) for split, outcome in outcomes.items()},
        "recordings": {split: describe(own) for split, own in splits.items()},
        "labels": list(labels.names),
        "problem_type": labels.problem_type,
        "frame_hop_s": config.frame_hop_s,
        "event_detection": config.event_detection,
        "training": {"seconds": trainer.training_s, "steps": trainer.state.global_step, "epochs": trainer.state.epoch}
        | trainer.num_parameters,
        "normalisation": {name: getattr(trainer.processing_class, name, None) for name in ("mean", "std")},
        **circumstances,
        "recipe": recipe,
        "log": trainer.state.log_history,
    }
    settings = recipe["DetectionDataArguments"] | recipe["AugmentationArguments"] | recipe["TuningArguments"]
    curves, figure_format = staging / "learning_curves.png", trainer.args.figure_format
    with dispensable(curves.name):
        note = loss_note(settings, "binary_cross_entropy")
        plot_learning_curves(trainer.state.log_history, curves, figure_format, kept_epoch(trainer), note)
    findings = None
    if outcomes:
        split = list(outcomes)[-1]
        findings, found = write_split(trainer, datasets[split], outcomes[split], staging)
        results["metrics"][split] |= found.pop("metrics")
        results |= found
        draw_figures(staging, findings, figure_format)
    with dispensable("README.md"):
        write_card(trainer, results, staging / "README.md")
    if trainer.args.html_report:
        with dispensable("report.html"):
            write_page(trainer, results, findings, staging)
    write_results(results, staging)
    publish(staging, folder)
    for name, metrics in results["metrics"].items():
        found = results.get("confidence_intervals") if name == list(results["metrics"])[-1] else None
        shown = [f"{key} {with_interval(key, metrics[key], found)}" for key in PRINTED if key in metrics]
        print(f"{name}: {', '.join(shown)}")
    print(f"trained for {trainer.training_s:.0f} s; everything is in {folder}")


def describe(stretches: list[Stretch]) -> dict:
    """Returns how many recordings, seconds and events of each label a split has."""
    counts: dict[str, int] = {}
    for one in stretches:
        for event in one.events:
            counts[event.label] = counts.get(event.label, 0) + 1
    return {
        "count": len(stretches),
        "seconds": round(sum(one.duration_s for one in stretches), 3),
        "events": dict(sorted(counts.items())),
    }


def write_split(trainer: DetectionTrainer, dataset: WindowDataset, outcome, staging: Path) -> tuple[Findings, dict]:
    """
    Writes the events that the model finds in the reported split.

    Returns:
        what was found, and all metrics of the split: the entries `metrics`, `confidence_intervals` and `per_class`
    """
    names, stretches = dataset.labels.names, dataset.stretches
    scores = trainer.scores_of(dataset, outcome.predictions)
    edges_s = [dataset.edges_s(index) for index in range(len(scores))]
    settings = event_settings(trainer.model.config)
    found = find_all(scores, edges_s, names, settings)
    highest_hz = dataset.feature_extractor.sampling_rate / 2
    with dispensable("events.csv"):  # labels and names of files may hold what no table can
        events = {one.name: own for one, own in zip(stretches, found)}
        write_events(staging / "events.csv", events, highest_hz=highest_hz)
    filtered = [median_filtered(own, settings.get("median_steps", 1)) for own in scores]  # for PSDS
    first = detection_metrics(
        dataset.known_scores(filtered),
        {one.name: one.events for one in stretches},
        {one.name: one.duration_s for one in stretches},
        names,
        frame_scores=dataset.known_scores(scores),
    )
    intervals = first["confidence_intervals"]
    # As many for all metrics: results.json states one number.
    num_resamples = 0 if intervals is None else intervals["resamples"]
    second = score_events(found, stretches, names, trainer.collar_s, num_resamples)
    if intervals is not None:
        intervals["intervals"] |= second["confidence_intervals"]["intervals"]
    findings = Findings(
        stretches,
        names,
        found,
        trainer.collar_s,
        extractor=dataset.feature_extractor,
        scores=scores,
        edges_s=edges_s,
        settings=settings,
    )
    return findings, {
        "metrics": first["metrics"] | second["metrics"],
        "confidence_intervals": intervals,
        "per_class": {name: first["per_class"][name] | second["per_class"][name] for name in names},
    }


def write_page(trainer: DetectionTrainer, results: dict, findings: Findings | None, folder: Path):
    """Writes `report.html`."""
    recipe = results["recipe"]
    model_name = recipe["ModelArguments"]["model_name_or_path"]
    data = recipe["DetectionDataArguments"]
    place = Path(data["train_annotations"])
    was_chosen = trainer.args.choose_postprocessing and "metric" in (trainer.model.config.event_detection or {})
    write_report(
        folder,
        Path(trainer.args.output_dir).resolve().name,
        results,
        findings,
        trainer.args.report_clips,
        config=trainer.model.config,
        extractor=trainer.processing_class,
        arguments=trainer.args,
        num_parameters=trainer.model.num_parameters(),
        model_name=public_model_name(model_name),
        dataset_name=(place if place.is_dir() else place.parent).resolve().name,
        has_own=has_event_settings(trainer.model.config),
        how_chosen="validation" if was_chosen else None,
    )


def write_card(trainer: DetectionTrainer, results: dict, path: Path):
    """Writes the model card, from the template and the results of the run."""
    model, name = trainer.model, Path(trainer.args.output_dir).resolve().name
    card = detection_card(
        name, model.config, trainer.processing_class, without_nan(results), num_parameters=model.num_parameters()
    )
    path.write_text(str(card), encoding="utf-8")
