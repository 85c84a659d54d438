"""
Lists the published values of a converted checkpoint, and measures them again on local data.

    python -m training.expect ast-audioset-10-10-0.4593
    python -m training.expect checkpoints/ast --run ESC50 --from esc50
    python -m training.expect checkpoints/ast --run evar:esc50 --from prepared/esc50

A program above the wings: it needs the catalogue of `conversion`, the probe of `embeddings` and the bootstrap of
`classification`. MTEB's tasks run in examples/mteb_dual_ssast.py, which is loaded by its path: that file must work
without this package, and there should be one wrapper.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoFeatureExtractor
from transformers.utils import logging

from conversion.catalogue import ORIGIN, Published, read_catalogue, read_protocols, weights_of

from .base import reproduction
from .base.arguments import ModelArguments
from .base.bootstrap import LEVEL, NUM_RESAMPLES, interval_of
from .base.inference import check_checkpoint, check_folder, explained
from .console import ArgumentParser, print_table, run_program
from .data.arguments import FrozenDataArguments
from .data.labels import find_labels
from .data.splits import load_splits
from .embeddings import probe
from .embeddings.arguments import ProbeArguments
from .embeddings.probe_outputs import interval
from .errors import LIBRARY_ERRORS, InputError, nearest, one_line, short
from .files import check_writable, write_json

MTEB_SCRIPT = Path(__file__).parent.parent / "examples" / "mteb_dual_ssast.py"
RUNNABLE = ("maeb", "evar")
HEADER = ("name", "protocol", "data set", "metric", "value", "data")
VERDICTS = {
    "within": "the published value lies in our interval",
    "below": "our interval lies below the published value",
    "above": "our interval lies above the published value",
    "no interval": "there is one experiment, and so no interval",
    "not compared": "no value is published for this folder",
}

logger = logging.get_logger(__name__)


@dataclass
class Measured:
    """
    Holds our result, in the unit of the published value.

    interval: of `LEVEL`; `None` if there is nothing to resample
    resampled: what the bootstrap draws
    """

    value: float
    interval: list[float] | None
    resampled: str


def program(argv: list[str]) -> None:
    arguments = parser().parse_args(argv)
    if arguments.batch_size < 1:
        raise InputError(f"--batch-size: must be 1 or more, got {arguments.batch_size}")
    if arguments.output is not None:
        check_writable(arguments.output)
    logging.disable_progress_bar()  # of the loading of weights
    folder = Path(arguments.model)
    if arguments.run is None:
        published = find_published(folder, arguments.compare_with)
        rows = list(figure_rows(published, arguments.model if folder.is_dir() else "MODEL"))
        print_figures(published, rows)
        content = {"checkpoint": published.name, "values": rows}
    else:
        content = compare(folder, arguments)
        print_comparison(content)
    if arguments.output is not None:
        write_json(arguments.output, content)


def parser() -> ArgumentParser:
    found = ArgumentParser(
        prog="python -m training.expect",
        description="Lists the published values of a converted checkpoint, or measures one of them on local data.",
    )
    found.add_argument("model", metavar="MODEL", help="converted folder, or name of the catalogue")
    found.add_argument("--run", metavar="NAME", help="task to measure, such as ESC50 (of MAEB) or evar:esc50")
    found.add_argument("--from", dest="data", type=Path, metavar="FOLDER", help="local copy of the task's data")
    found.add_argument(
        "--as", dest="compare_with", metavar="NAME",
        help="checkpoint of the catalogue to compare with, where the folder's card names none",
    )  # fmt: skip
    found.add_argument("--output", type=Path, metavar="FILE.json", help="JSON file for what is printed")
    found.add_argument("--batch-size", type=int, default=8, help="clips per encoder pass (default: %(default)s)")
    return found


def main() -> int:
    return run_program(program, sys.argv[1:], "nothing was written; give the same command again")


# ---- which checkpoint a folder is ----


def find_published(folder: Path, compare_with: str | None = None) -> Published:
    """
    Finds the catalogue's entry of a folder or a name.

    Raises:
        InputError: unknown name, or the folder is not known to be a published checkpoint.
    """
    catalogue = read_catalogue()
    if compare_with is not None or not folder.is_dir():
        name = str(folder) if compare_with is None else compare_with
        if name not in catalogue:
            where = "--as " if compare_with else ""
            kind = "no name of the catalogue" if compare_with else "neither a folder nor a name of the catalogue"
            known = f"known are {', '.join(catalogue)}"
            raise InputError(f"{where}{name}: is {kind}; {nearest(name, list(catalogue), known)}")
        return catalogue[name]
    published = identify(folder)
    if published is None:
        raise InputError(
            f"{folder}: its card names no published checkpoint; convert the original again with python -m conversion, "
            "or say with --as NAME which one it is"
        )
    return published


def identify(folder: Path) -> Published | None:
    """
    Returns the published checkpoint that a converted folder is, as its card states it; `None` if the card states none.

    Raises:
        InputError: weights or grid are no longer those of the published checkpoint.
    """
    try:
        origin = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.to_dict().get(ORIGIN)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    published = read_catalogue().get(origin.get("checkpoint")) if isinstance(origin, dict) else None
    if published is None:
        return None
    remedy = f"so the values of {published.name} do not apply; convert the original again, without options for its grid"
    if origin.get("sha256") != weights_of(folder):
        raise InputError(f"{folder}: its weights are not those that were converted, {remedy}")
    check_checkpoint(str(folder))
    with explained(str(folder), "cannot be read", "convert the original again"):
        found = AutoConfig.from_pretrained(folder), AutoFeatureExtractor.from_pretrained(folder)
    # Embeddings do not depend on the classifier.
    wrong = [text for text in published.wrong_shapes(*found) if not text.startswith("num_labels")]
    if wrong:
        raise InputError(f"{folder}: {wrong[0]}, {remedy}")
    return published


# ---- the list ----


def figure_rows(published: Published, model: str) -> Iterator[dict]:
    """Yields what is known of each published value, for the table and the JSON file."""
    for figure in published.figures:
        protocol = figure.get("protocol", "itself" if "type" in figure else "")
        name = f"{protocol}:{figure['task']}" if "task" in figure else ""
        named = {
            "name": name.removeprefix("maeb:"),
            "protocol": protocol,
            "data_set": figure["name"] if "task" in figure else figure.get("dataset", ""),
            "metric": figure["metric"] if "task" in figure else figure["name"],
        }
        yield {
            **named,
            "value": figure["value"],
            "source": figure["source"] if "task" in figure else f"{published.repository}: {figure['source']}",
            "note": figure.get("note"),
            "data": figure.get("data"),
            "get_data": get_data(protocol, figure.get("data")),
            "command": command(protocol, named["name"], figure.get("data"), model),
        }


def get_data(protocol: str, data: str | None) -> str | None:
    """Returns the command that brings, or describes, the data of a task; `None` if this project has none."""
    if data is None:
        return None
    if protocol == "maeb":
        return f"hf download {data} --repo-type dataset --local-dir DATA"
    return f"python -m training.prepare {data}"


def command(protocol: str, name: str, data: str | None, model: str) -> str | None:
    """Returns the command of this project that measures a value; `None` if there is none."""
    if data is None:
        return None
    place = "DATA" if protocol == "maeb" else f"prepared/{data}"
    return {
        "fine-tuned": f"python train_hf.py recipes/datasets/{data}.yaml --model_name_or_path {model}",
        "itself": (
            f"python train_hf.py recipes/evaluation.yaml --model_name_or_path {model} --test_file {place}/test.csv"
        ),
    }.get(protocol, f"python -m training.expect {model} --run {name} --from {place}")


def print_figures(published: Published, rows: list[dict]):
    """Prints the values; of each protocol its source and the commands of its first task."""
    if not rows:
        print(f"{published.name}: no values are published")
    named, others = [row for row in rows if row["name"]], [row for row in rows if not row["name"]]
    if named:
        keys = ("name", "protocol", "data_set", "metric")
        values = [(*(row[key] for key in keys), f"{row['value']:g}", row["data"] or "-") for row in named]
        print_table(values, HEADER)
    firsts = {row["protocol"]: row for row in reversed(named)}  # the first row of each
    titles = {name: read_protocols()[name]["title"] for name in reversed(firsts)}
    lines = [(f"{name}: {title}", firsts[name]) for name, title in titles.items()]
    lines += [(" ".join(filter(None, (row["data_set"], row["metric"], f"{row['value']:g}"))), row) for row in others]
    for title, row in lines:
        print(f"\n{title}. Source: {row['source']}")
        if row["note"]:
            print(f"  note: {row['note']}")
        print(f"  data: {row['get_data'] or 'not prepared by this project'}")
        print(f"  run:  {row['command'] or 'no command of this project'}")


# ---- the comparison ----


def compare(folder: Path, arguments: argparse.Namespace) -> dict:
    """
    Measures one value, and compares it with the published one.

    Raises:
        InputError: unknown folder, task or data.
    """
    name = arguments.run
    protocol, task = name.split(":", 1) if ":" in name else ("maeb", name)
    check_run(name, protocol, task, arguments)
    check_checkpoint(str(folder))
    check_folder(str(folder))
    recognised = None if arguments.compare_with else identify(folder)
    published = find_published(folder, arguments.compare_with) if arguments.compare_with else recognised
    if published is None:
        logger.warning(
            f"{folder}: its card names no published checkpoint, so the result is compared with nothing; --as NAME says "
            "which one it is"
        )
    figures = [] if published is None else published.figures
    figure = next((one for one in figures if (one.get("protocol"), one.get("task")) == (protocol, task)), {})
    measure = measure_maeb if protocol == "maeb" else measure_evar
    measured = measure(folder, task, arguments.data, figure, arguments.batch_size)
    facts = read_protocols()[protocol]
    return {
        "model": str(folder),
        "checkpoint": None if published is None else published.name,
        "recognised": recognised is not None,
        "name": name,
        "protocol": protocol,
        "metric": figure.get("metric") or metric_of(protocol, task),
        "ours": measured.value,
        "interval": measured.interval,
        "level": LEVEL,
        "resampled": measured.resampled,
        "published": figure.get("value"),
        "verdict": verdict(measured, figure.get("value"), facts["decimals"]),
        "source": figure.get("source"),
        "note": figure.get("note"),
        "settings": figure.get("settings", {}),
        "data": str(arguments.data),
        "versions": versions(protocol),
    }


def check_run(name: str, protocol: str, task: str, arguments: argparse.Namespace):
    """Raises `InputError` for a task that cannot be run here, for missing data, and for a model that is no folder."""
    protocols, model = read_protocols(), arguments.model
    known = protocols.get(protocol, {}).get("tasks", {})
    if protocol not in protocols or (protocol != "maeb" and task not in known):  # mteb has more tasks
        names = [f"{key}:{one}".removeprefix("maeb:") for key in RUNNABLE for one in protocols[key]["tasks"]]
        raise InputError(f"--run {name}: is unknown; {nearest(name, names, 'known are ' + ', '.join(names))}")
    data = known.get(task, {}).get("data")
    if protocol not in RUNNABLE:
        other = command(protocol, name, data, model) or "this project has no command for it"
        raise InputError(f"--run {name}: needs a training of its own; {other}")
    if not Path(model).is_dir():
        made = f"python -m conversion build-official --download-dir DIR --only {model} converts it"
        raise InputError(
            f"{model}: is no folder, and --run needs the converted one; "
            + (made if model in read_catalogue() else "name one")
        )
    remedy = get_data(protocol, data) if data else "its page in mteb names its data set"
    if arguments.data is None:
        raise InputError(f"--run {name}: needs its data, --from FOLDER; {remedy}")
    if not arguments.data.exists():
        raise InputError(f"--from {arguments.data}: does not exist; {remedy}")


def metric_of(protocol: str, task: str) -> str:
    """Returns the metric of a task that has no published value."""
    known = read_protocols()[protocol]["tasks"]
    return known[task]["metric"] if task in known else load_mteb().find_tasks([task])[0].metadata.main_score


def versions(protocol: str) -> dict:
    found = reproduction.versions()
    return found | {"mteb": load_mteb().mteb.__version__} if protocol == "maeb" else found


def verdict(measured: Measured, published: float | None, decimals: int) -> str:
    """Returns one of `VERDICTS`; the published value is rounded to `decimals`."""
    if published is None:
        return "not compared"
    if measured.interval is None:
        return "no interval"
    (lower, upper), half = measured.interval, 0.5 * 10.0**-decimals * (1 + 1e-9)
    if upper < published - half:
        return "below"
    return "above" if lower > published + half else "within"


def print_comparison(content: dict):
    interval = content["interval"]
    number = "{:.4f}" if read_protocols()[content["protocol"]]["scale"] == 1 else "{:.2f}"
    shown = "-" if interval is None else " to ".join(number.format(end) for end in interval)
    published = "-" if content["published"] is None else f"{content['published']:g}"
    row = (content["name"], content["metric"], number.format(content["ours"]), shown, published, content["verdict"])
    print_table([row], ("name", "metric", "ours", f"{LEVEL:.0%} interval", "published", "verdict"))
    print(f"{content['verdict']}: {VERDICTS[content['verdict']]}")
    if interval is not None:
        print(f"interval: {NUM_RESAMPLES} bootstrap resamples of the {content['resampled']}")
    if content["checkpoint"] and not content["recognised"]:
        print(f"note: {content['model']} is not known to be {content['checkpoint']}; --as says so")
    if content["note"]:
        print(f"note: {content['note']}")


# ---- MAEB ----


def load_mteb():
    """
    Loads examples/mteb_dual_ssast.py.

    Raises:
        InputError: mteb is not installed.
    """
    if MTEB_SCRIPT.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(MTEB_SCRIPT.stem, MTEB_SCRIPT)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            raise InputError(f"a task of MAEB needs mteb ({one_line(error)}); pip install mteb") from error
        sys.modules[MTEB_SCRIPT.stem] = module
    return sys.modules[MTEB_SCRIPT.stem]


def measure_maeb(folder: Path, name: str, data: Path, figure: dict, batch_size: int) -> Measured:
    """
    Runs a task of MTEB, with its own evaluator, on a local copy of its data.

    Raises:
        InputError: an unknown task, or data that are not the task's.
    """
    script = load_mteb()
    try:
        task, *others = script.find_tasks([name])
        if others:
            raise ValueError("is a benchmark of several tasks; name one of them")
        first_window, settings = figure.get("first_window", False), figure.get("settings", {})
        encoder = script.load_encoder(str(folder), first_window=first_window, **settings)
    except ValueError as error:
        raise InputError(f"--run {name}: {one_line(error)}") from error
    with script.decoding_with_soundfile():
        load_task(task, data)
        try:
            results = script.mteb.evaluate(
                encoder, task, co2_tracker=False, cache=None, encode_kwargs={"batch_size": batch_size}
            ).task_results
        except LIBRARY_ERRORS as error:
            raise InputError(
                f"--run {name}: failed ({short(one_line(error))}); check clips and labels of {data}"
            ) from error
    experiments = experiments_of(results[0], task.metadata.main_score)
    interval = None
    if experiments is not None and len(experiments) > 1:
        draws = np.random.default_rng(0).integers(len(experiments), size=(NUM_RESAMPLES, len(experiments)))
        interval = interval_of(experiments[draws].mean(axis=1))
    count = 1 if experiments is None else len(experiments)
    return Measured(float(results[0].get_score()), interval, f"{count} experiments")


def load_task(task, data: Path):
    """
    Loads a task's data from a folder that `datasets.load_dataset` reads in place of the task's name on the Hub.

    Raises:
        InputError: the folder cannot be read, or lacks a split or a column of the task.
    """
    metadata = task.metadata
    splits = [*metadata.eval_splits, getattr(task, "train_split", metadata.eval_splits[0])]
    columns = [getattr(task, f"{kind}_column_name", None) for kind in ("input", "label")]
    columns = [column for column in columns if isinstance(column, str)]
    place = f"--from {data}: is no copy of {metadata.dataset['path']}, the data of {metadata.name}"
    need = f"it needs the splits {', '.join(dict.fromkeys(splits))} with the columns {', '.join(columns)}"
    source = {**metadata.dataset, "path": str(data.resolve())}
    if not (data / "README.md").is_file():  # which names the configurations of a copy
        source.pop("name", None)
    task.metadata = metadata.model_copy(update={"dataset": source})
    try:
        task.load_data()
    except LIBRARY_ERRORS as error:
        raise InputError(f"{place} ({short(one_line(error), 160)}); {need}") from error
    parts = task.dataset if metadata.eval_splits[0] not in task.dataset else {"default": task.dataset}
    for part in parts.values():
        for split in splits:
            if split not in part:
                raise InputError(f"{place} (no split {split}); {need}")
            missing = [column for column in columns if column not in part[split].column_names]
            if missing:
                raise InputError(f"{place} (no column {missing[0]} in split {split}); {need}")


def experiments_of(result, main_score: str) -> np.ndarray | None:
    """Returns the scores of a result's experiments, means over its splits and subsets; `None` if it stores none."""
    found = []
    for scores in (scores for subsets in result.scores.values() for scores in subsets):
        if "scores_per_experiment" in scores:
            found.append([one[main_score] for one in scores["scores_per_experiment"]])
        elif main_score == "v_measure" and "v_measures" in scores:
            found += scores["v_measures"].values()
        else:
            return None
    return np.mean(found, axis=0) if len({len(one) for one in found}) == 1 else None


# ---- EVAR ----


def measure_evar(folder: Path, name: str, data: Path, figure: dict, batch_size: int) -> Measured:
    """
    Runs the probe by EVAR's rules on local data.

    Raises:
        InputError: data that are not the task's.
    """
    task, scale = read_protocols()["evar"]["tasks"][name], read_protocols()["evar"]["scale"]
    data_arguments = evar_data(data, task.get("folds"))
    model_arguments = ModelArguments(model_name_or_path=str(folder), config_overrides=figure.get("settings", {}))
    with tempfile.TemporaryDirectory() as output:
        arguments = ProbeArguments(
            output_dir=output, protocol="evar", clip_s=task["clip_s"], per_device_eval_batch_size=batch_size
        )
        outcomes = probe.run_evar(model_arguments, data_arguments, arguments)
    scores = [outcomes.scores(seed) for seed in outcomes.by_seed]
    targets = np.asarray(list(outcomes.dataset.encoded_labels()))
    found = interval(scores, targets, outcomes.label_set, None, outcomes.folds)
    # EVAR's number is the mean over the seeds of the means over the folds.
    value = np.mean([np.mean([fold.test for fold in folds]) for folds in outcomes.by_seed.values()])
    return Measured(float(value) * scale, found and [end * scale for end in found], f"{len(targets)} test clips")


def evar_data(data: Path, num_folds: int | None) -> FrozenDataArguments:
    """
    Describes a task's local data: a manifest, a folder with splits, or what `training.prepare` writes.

    Raises:
        InputError: the task's folds or its test split are missing.
    """
    table = data if data.is_file() else data / "clips.csv" if num_folds else None
    source = {"train_file": str(table)} if table and table.is_file() else {"dataset_name": str(data)}
    folds = {"fold_column": "fold"} if num_folds else {}
    arguments = FrozenDataArguments(**source, **folds, problem_type="single_label_classification")
    splits = load_splits(arguments)
    find_labels(splits["train"]["label"], arguments.problem_type)
    if num_folds:
        found = len(set(splits["train"]["fold"])) if "test" not in splits else 0
        if found != num_folds:
            raise InputError(
                f"--from {data}: has {found} folds; EVAR takes the data set's own {num_folds}, in a column fold of all "
                "clips, without a test split"
            )
    elif "test" not in splits:
        raise InputError(f"--from {data}: has no test split; EVAR needs train, validation and test")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
