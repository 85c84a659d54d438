"""
Writes model cards: the metadata for the Hub and the text for people, from the templates in templates/.

Imports only public libraries: any object with the same fields serves as configuration or feature extractor.
"""

import functools
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from . import limits

TEMPLATES = Path(__file__).parent / "templates"
TAGS = {
    "dual_ssast": ["dual-ssast", "audio-spectrogram-transformer"],
    "asit": ["dual-ssast", "asit", "audio-spectrogram-transformer"],
    "vggish_composed": ["vggish", "composed-features"],
    "panns_cnn14": ["panns", "cnn14", "composed-features"],
}
TITLES = {"asit": "ASiT", "vggish_composed": "VGGish", "panns_cnn14": "PANNs' CNN14"}
# As in training/errors.py: control characters, line breaks, marks of direction, halves of surrogate pairs.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
MARKUP = re.compile(r"[\\`*~|$\[\]]|(?<!\w)_|_(?!\w)|^[#+-]")
# Keys of papers.bib. Every card cites the model's own paper, then the four systems of this project.
SYSTEMS = ("gong2022ssast", "choi2025dual", "atito2024asit", "niizumi2022composing")
PAPERS = {
    "asit": ("atito2024asit",),
    "vggish_composed": ("hershey2017cnn", "niizumi2022composing"),
    "panns_cnn14": ("kong2020panns", "niizumi2022composing"),
}


def classifier_card(
    name: str, config, extractor, results: Mapping, *, dataset_name: str, num_parameters: int, settings: Mapping
) -> ModelCard:
    """
    Writes the card of a fine-tuned classifier.

    Args:
        name: name of its folder
        results: content of `results.json`
        dataset_name: display name of the data set
        settings: the recipe's settings of model, tuning and augmentation
    """
    return _clip_card(
        "classifier.md", name, config, extractor, results, dataset_name, num_parameters, settings=settings
    )


def probe_card(name: str, config, extractor, results: Mapping, *, dataset_name: str, num_parameters: int) -> ModelCard:
    """
    Writes the card of a head on a frozen encoder, which a probe has chosen.

    Args:
        name: name of its folder
        results: content of its `results.json`; `head` describes the head
        dataset_name: display name of the data set
    """
    return _clip_card("probe.md", name, config, extractor, results, dataset_name, num_parameters)


def _clip_card(
    template: str, name: str, config, extractor, results: Mapping, dataset_name: str, num_parameters: int, **facts
) -> ModelCard:
    """Writes the card of a classifier of clips, with the finite metrics of its last split."""
    recipe = results["recipe"]
    training = recipe.get("TrainingArguments", {})  # a probe has none
    split, metrics = list(results["metrics"].items())[-1] if results["metrics"] else ("", {})
    dataset = hub_name(recipe["DataArguments"]["dataset_name"])
    evaluations = [
        EvalResult(
            task_type="audio-classification",
            task_name="audio classification",
            dataset_type=dataset or dataset_name,
            dataset_name=dataset_name,
            dataset_config=recipe["DataArguments"]["dataset_config_name"] if dataset else None,
            dataset_split=split,
            metric_type=key,
            metric_name=key.replace("_", " "),
            metric_value=round(value, 4),
        )
        for key, value in metrics.items()
        if key != "loss" and value is not None and math.isfinite(value)
    ]
    data = metadata(
        name,
        config,
        pipeline_tag="audio-classification",
        base_model=hub_name(recipe["ModelArguments"]["model_name_or_path"]),
        datasets=[dataset] if dataset else [],
        license=training.get("license"),
        language=training.get("language"),
        evaluations=evaluations,
    )
    results = markdown(results)
    return render(
        template,
        data,
        name=name,
        config=config,
        extractor=extractor,
        results=results,
        dataset_name=markdown(dataset_name),
        num_parameters=num_parameters,
        split=split,
        metrics={key: value for key, value in metrics.items() if value is not None},
        training=training,
        limits=limits.of_classifier(config, extractor, results, split),
        citations=citations(config),
        is_regression=results["problem_type"] == "regression",
        **facts,
    )


def detection_card(name: str, config, extractor, results: Mapping, *, num_parameters: int) -> ModelCard:
    """
    Writes the card of a detector of sound events.

    Args:
        name: name of its folder
        results: content of `results.json`, NaN as `None`
    """
    recipe = results["recipe"]
    split, metrics = list(results["metrics"].items())[-1] if results["metrics"] else ("", {})
    data = metadata(
        name,
        config,
        pipeline_tag="audio-classification",
        tags=["sound-event-detection"],
        base_model=hub_name(recipe["ModelArguments"]["model_name_or_path"]),
        license=recipe["TrainingArguments"].get("license"),
        language=recipe["TrainingArguments"].get("language"),
    )
    results = markdown(results)
    return render(
        "detection.md",
        data,
        name=name,
        config=config,
        extractor=extractor,
        results=results,
        num_parameters=num_parameters,
        split=split,
        metrics={key: value for key, value in metrics.items() if value is not None},
        training=recipe["TrainingArguments"],
        has_own=bool((config.event_detection or {}).keys() - {"window_s", "hop_s"}),
        was_chosen=recipe["TrainingArguments"]["choose_postprocessing"] and "metric" in (config.event_detection or {}),
        limits=limits.of_detector(config, extractor, results, split),
        citations=citations(config),
    )


def pretraining_card(
    name: str, config, extractor, results: Mapping, *, title: str, num_parameters: int, has_picture: bool
) -> ModelCard:
    """
    Writes the card of a pretrained model.

    Args:
        title: name of the pretraining method
        num_parameters: number of parameters of the encoder
        has_picture: whether `reconstruction.png` lies beside the card
    """
    recipe = results["recipe"]
    datasets = [hub_name(source["name"]) for source in results["sources"] if source["kind"] == "data set"]
    data = metadata(
        name,
        config,
        pipeline_tag="feature-extraction",
        tags=["self-supervised"],
        base_model=hub_name(recipe["EncoderArguments"]["model_name_or_path"]),
        datasets=[dataset for dataset in datasets if dataset],
        license=recipe["TrainingArguments"].get("license"),
        language=recipe["TrainingArguments"].get("language"),
    )
    results = markdown(results)
    return render(
        "pretraining.md",
        data,
        name=name,
        title=title,
        config=config,
        extractor=extractor,
        results=results,
        num_parameters=num_parameters,
        has_picture=has_picture,
        training=recipe["TrainingArguments"],
        limits=limits.of_pretraining(config, extractor, results),
        citations=citations(config),
    )


def converted_card(
    name: str,
    config,
    extractor,
    *,
    title: str,
    file_name: str,
    is_classifier: bool,
    is_detector: bool,
    is_pretraining: bool,
    num_parameters: int,
    notes: Sequence[str] = (),
    dropped: Sequence[tuple[str, str]] = (),
    new: Sequence[str] = (),
    verified: tuple[int, float] | None = None,
    origin=None,
) -> ModelCard:
    """
    Writes the card of a converted checkpoint.

    Args:
        title: kind of model in the file
        file_name: name of the original file, without its folder
        is_classifier, is_detector: whether it classifies clips or time frames; whether time frames
        notes, dropped, new: notes of the conversion
        verified: number of tensors that were compared with the saved file, and their largest difference
        origin: entry of the catalogue, a `catalogue.Published`; `None` if the file is not in it
    """
    data = metadata(
        name,
        config,
        pipeline_tag="audio-classification" if is_classifier else "feature-extraction",
        tags=["self-supervised"] if is_pretraining else ["sound-event-detection"] if is_detector else [],
        datasets=origin.datasets if origin else [],
        license=origin.license if origin else None,
        language=origin.language if origin else None,
        evaluations=[
            EvalResult(
                task_type="audio-classification",
                task_name="audio classification",
                dataset_type=figure["dataset_id"],
                dataset_name=figure["dataset"],
                dataset_split=figure["split"],
                metric_type=figure["type"],
                metric_name=figure["name"],
                metric_value=figure["value"],
                source_name=f"{origin.family_title}: {figure['source']}",
                source_url=origin.repository,
            )
            for figure in (origin.figures if origin else ())
            if "type" in figure
        ],
    )
    return render(
        "converted.md",
        data,
        name=name,
        config=config,
        extractor=extractor,
        title=title,
        file_name=origin.file if origin else file_name,
        is_classifier=is_classifier,
        is_detector=is_detector,
        is_pretraining=is_pretraining,
        num_parameters=num_parameters,
        notes=notes,
        dropped=dropped,
        new=new,
        verified=verified,
        origin=origin,
        limits=limits.of_converted(config, extractor, is_classifier, bool(new), origin),
        citations=citations(config, first=origin.papers if origin else ()),
        is_regression=is_classifier and config.num_labels == 1,
    )


def metadata(
    name: str,
    config,
    *,
    pipeline_tag: str,
    tags: Sequence[str] = (),
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    license: str | None = None,
    language: Sequence[str] | None = None,
    evaluations: Sequence[EvalResult] = (),
) -> ModelCardData:
    """Returns the metadata for the Hub, without unknown facts."""
    found = {"model_name": name, "eval_results": list(evaluations)} if evaluations else {}
    return ModelCardData(
        license=license,
        language=list(language) if language else None,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=[
            "audio",
            *([pipeline_tag] if pipeline_tag == "audio-classification" else []),
            *tags,
            *TAGS[config.model_type],
        ],
        base_model=base_model,
        datasets=list(dict.fromkeys(datasets)) or None,
        metrics=[result.metric_type for result in evaluations] or None,
        **found,
    )


def render(template: str, data: ModelCardData, **facts) -> ModelCard:
    """Fills in a template of templates/; raises an error for a missing fact."""
    text = _environment().get_template(template).render(card_data=data.to_yaml(), card=data, **facts)
    return ModelCard(re.sub(r"\n{3,}", "\n\n", text))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "code": code, "markdown": markdown, "quoted": quoted}
    environment.globals |= {"with_interval": with_interval, "titles": TITLES, "duration": limits.duration}
    return environment


def citations(config, first: Sequence[str] = ()) -> str:
    """Returns BibTeX: `first`, the papers of the model type, the four systems of the project, and AST."""
    keys = dict.fromkeys((*first, *PAPERS.get(config.model_type, ()), *SYSTEMS, "gong2021ast"))
    entries = bibliography()
    return "\n\n".join(entries[key] for key in keys)


@functools.cache
def bibliography() -> dict[str, str]:
    """Returns key -> entry of `papers.bib`."""
    text = (TEMPLATES / "papers.bib").read_text(encoding="utf-8")
    return {found[2]: found[1] for found in re.finditer(r"^(@\w+\{(\w+),.*?^\})", text, re.DOTALL | re.MULTILINE)}


def hub_name(name: str | None) -> str | None:
    """Returns the name if it is a possible Hub name; `None` for a local path."""
    if not name or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def cell(value) -> str:
    """Formats a text for a cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def markdown(value):
    """
    Returns a text as Markdown that shows it letter by letter, on one line; mappings and sequences with all their keys
    and texts.
    """
    if isinstance(value, Mapping):
        return {markdown(key): markdown(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [markdown(item) for item in value]
    if not isinstance(value, str):
        return value
    return MARKUP.sub(r"\\\g<0>", html.escape(_printable(value), quote=False))


def code(text: str) -> str:
    """Returns a text as code in Markdown, between more backticks than it holds."""
    text = _printable(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}{text}{ticks}" if len(ticks) == 1 else f"{ticks} {text} {ticks}"


def quoted(text: str) -> str:
    """Returns a text as a string of Python."""
    return _printable(json.dumps(text, ensure_ascii=False))


def _printable(text: str) -> str:
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def with_interval(name: str, value: float, found: Mapping | None) -> str:
    """Formats a value with its confidence interval, 0.9545 (0.909-0.989), or alone if it has none."""
    if not found or name not in found["intervals"]:
        return f"{value:.4f}"
    lower, upper = found["intervals"][name]
    return f"{value:.4f} ({lower:.3f}{'-' if lower >= 0 else ' to '}{upper:.3f})"
