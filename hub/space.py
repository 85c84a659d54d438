"""Pushes the demo page as a Space: app.py with the modules that it imports, or a static page for browsers."""

import argparse
import ast
import configparser
import json
import re
import shlex
import sys
from collections.abc import Iterator
from modulefinder import ModuleFinder
from pathlib import Path

import yaml

from .push import PushError, push_files

ROOT = Path(__file__).parent.parent
APP = ROOT / "app.py"
STATIC = Path(__file__).parent / "static"
# Version of Transformers.js that the static page loads from a CDN; `make test-browser` tests it.
TRANSFORMERS_JS = "4.3.1"
LIBRARY = f"https://cdn.jsdelivr.net/npm/@huggingface/transformers@{TRANSFORMERS_JS}/dist/transformers.min.js"
WEIGHTS = {"q8": "model_quantized.onnx", "fp16": "model_fp16.onnx", "fp32": "model.onnx"}  # of an export, in onnx/
# Version of Gradio that the Space's card requests; app.py was tested with it.
GRADIO_VERSION = "6.31.0"
PYTHON_VERSION = "3.11"
SETTINGS = ROOT / "app.yaml"
TITLE = "What is in this recording?"
EXAMPLES_NOTE = (
    "\nThe examples come with [Sonic Pi](https://sonic-pi.net) and are in the public domain "
    "([CC0](https://creativecommons.org/publicdomain/zero/1.0)).\n"
)
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
DISTRIBUTIONS = {"yaml": "PyYAML"}  # import name -> distribution, where they differ
# Packages that come with Gradio and Transformers.
INCLUDED = {"fsspec", "gradio", "safetensors"}
TEXT = """
# {title}

Record, upload or pick a clip: {models} will classify it and show which parts of the spectrogram the answer is based on.

`app.yaml` lists the models and the examples. The variable `MODELS` (names separated by spaces) overrides its models.
All files here were made by `python -m hub push-space`.
"""
STATIC_TEXT = """
# {title}

A static page: {models} will run in the visitor's browser, on a file or the microphone. No recording is sent anywhere.

`space.json` names the models, the examples and the library. All files here were made by `python -m hub push-space
--static`.
"""
# A browser uses several threads only on a page that others cannot read.
ISOLATION = {
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "cross-origin",
}
# What an earlier push of either kind may have left.
MADE = (
    "training/*", "hub/*", "modeling_dual_ssast/*", "examples/*", "models/*", "app.py", "app.yaml", "requirements.txt",
    "space.json", "index.html", "style.css", "analysis.js", "page.js", "recorder.js", "worker.js",
)  # fmt: skip


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "push-space",
        help="push the demo page to the Hub",
        description="Pushes the demo page as a Space, in one commit.",
    )
    parser.add_argument("repo", metavar="REPO", help="user/name of the Space; created if it does not exist")
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="MODEL",
        help="user/name of classifiers; with --static: folders of python -m training.export --format transformers-js, "
        "which become part of the page, or user/name of pushed ones",
    )
    parser.add_argument(
        "--static", action="store_true", help="a page without a server: the visitor's browser runs the model"
    )
    parser.add_argument(
        "--examples",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="short clips to try (default: those of app.yaml)",
    )
    parser.add_argument("--private", action="store_true", default=None, help="a new Space is private")
    parser.add_argument("--dry-run", type=Path, metavar="FOLDER", help="write the files to FOLDER and push nothing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    files = (static_files if args.static else space_files)(args.models, args.examples)
    if args.dry_run:
        write_files(files, args.dry_run)
        print(f"{len(files)} files in {args.dry_run}; nothing was pushed")
        return
    words = ["python", "-m", "hub", "push-space", args.repo, "--models", *args.models]
    words += ["--examples", *map(str, args.examples)] if args.examples is not None else []
    words += ["--static"] if args.static else []
    words += ["--private"] if args.private else []
    url = push_files(
        files,
        args.repo,
        message="The demo page",
        repo_type="space",
        private=args.private,
        space_sdk="static" if args.static else "gradio",
        delete=MADE,
        repeat=shlex.join(words),
    )
    print(f"pushed to {url}")


def space_files(models: list[str], examples: list[Path] | None = None) -> dict[str, Path | bytes]:
    """
    Returns all files of a Space: name -> file or content.

    Raises:
        PushError: a model that is not on the Hub, or a missing example.
    """
    check_models(models)
    clips, note = example_clips(examples)
    settings = {"models": models, "examples": list(clips)}
    header = {
        "sdk": "gradio",
        "sdk_version": GRADIO_VERSION,
        "python_version": PYTHON_VERSION,
        "app_file": APP.name,
        "models": models,
    }
    code, packages = imported(APP, ROOT)
    return {
        "README.md": _card(header, TEXT, _links(models), note),
        "requirements.txt": ("\n".join(requirements(packages)) + "\n").encode(),
        "app.yaml": _yaml(settings).encode(),
        **{path.relative_to(ROOT).as_posix(): path for path in sorted(code)},
        **clips,
        "LICENSE": ROOT / "LICENSE",
    }


def static_files(models: list[str], examples: list[Path] | None = None) -> dict[str, Path | bytes]:
    """
    Returns all files of a static Space: name -> file or content.

    Args:
        models: folders of exports for Transformers.js, or names on the Hub

    Raises:
        PushError: a folder that is not such an export, or a missing example.
    """
    clips, note = example_clips(examples)
    entries, weights = [], {}
    for place, model in enumerate(models):
        if not Path(model).is_dir():
            check_models([model])
            entries.append({"name": model, "source": model, "isLocal": False})
            continue
        folder, source = Path(model), f"models/{place + 1}"
        paths = {name: folder / "onnx" / name for name in WEIGHTS.values()}
        paths |= {name: folder / name for name in ("config.json", "preprocessor_config.json")}
        for path in paths.values():
            if not path.is_file():
                raise PushError(
                    f"{model}: has no {path.relative_to(folder)}, and a browser cannot load it; export it first: "
                    f"python -m training.export {shlex.quote(model)} OUT --format transformers-js, and name OUT"
                )
        weights |= {f"{source}/{path.relative_to(folder).as_posix()}": path for path in paths.values()}
        sizes = {dtype: paths[name].stat().st_size for dtype, name in WEIGHTS.items()}
        entries.append({"name": folder.resolve().name, "source": source, "isLocal": True, "sizes": sizes})
    settings = {"library": LIBRARY, "models": entries, "examples": list(clips)}
    on_hub = [entry["name"] for entry in entries if not entry["isLocal"]]
    header = {"sdk": "static", "app_file": "index.html", "models": on_hub, "custom_headers": ISOLATION}
    local = ["`{}`".format(" ".join(entry["name"].split()).replace("`", "'")) for entry in entries if entry["isLocal"]]
    names = ", ".join([*local, *([_links(on_hub)] if on_hub else [])])
    return {
        "README.md": _card(header, STATIC_TEXT, names, note),
        "space.json": (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode(),
        **{path.name: path for path in sorted(STATIC.iterdir())},
        **weights,
        **clips,
        "LICENSE": ROOT / "LICENSE",
    }


def example_clips(examples: list[Path] | None) -> tuple[dict[str, Path], str]:
    """
    Returns the examples of a Space, name -> file, and a note on where they come from.

    Raises:
        PushError: a missing file, or two of the same name.
    """
    note = EXAMPLES_NOTE if examples is None else ""
    if examples is None:
        examples = [ROOT / name for name in yaml.safe_load(SETTINGS.read_text("utf-8"))["examples"]]
    clips = {f"examples/{path.name}": path for path in examples}
    for path in examples:
        if not path.is_file():
            raise PushError(f"{path}: no such file; correct --examples")
        if clips[f"examples/{path.name}"] != path:
            raise PushError(f"{path}: another example has the same name; rename one of them")
    return clips, note


def _links(models: list[str]) -> str:
    return ", ".join(f"[{model}](https://huggingface.co/{model})" for model in models)


def _card(header: dict, text: str, models: str, note: str) -> bytes:
    header = {
        "title": TITLE,
        "emoji": "🎧",
        "colorFrom": "blue",
        "colorTo": "indigo",
        **header,
        "license": "apache-2.0",
        "tags": ["audio-classification"],
    }
    return f"---\n{_yaml(header)}---\n{text.format(title=TITLE, models=models)}{note}".encode()


def check_models(models: list[str]):
    """
    Checks the names of models.

    Raises:
        PushError: a folder of this machine, there or mistyped, or a name that the Hub does not allow.
    """
    for model in models:
        if Path(model).is_dir():
            raise PushError(
                f"{model}: is a folder of this machine, and a Space cannot read it; push it first: python -m "
                f"hub push {shlex.quote(model)} USER/NAME"
            )
        if not REPO.fullmatch(model):
            raise PushError(f"{model}: is not the name of a model on the Hub; give it as user/name")
        if (parent := Path(model).parent).is_dir():  # the rule of training.base.inference.check_checkpoint
            raise PushError(
                f"{model}: no such folder in {parent}; correct the name (for a model of the Hub, give the command "
                f"where no folder is called {parent})"
            )


def imported(program: Path, root: Path) -> tuple[set[Path], set[str]]:
    """
    Traces a program without running it.

    Returns:
        the files of the program below `root`, with the program itself; the other packages that these files import when
        they are loaded (imports inside functions do not count)
    """
    finder = ModuleFinder([str(root)])
    finder.run_script(str(program))
    files = {Path(module.__file__) for module in finder.modules.values() if module.__file__}
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in files)
    packages = {name.partition(".")[0] for tree in trees for name in _imports(tree)}
    here = {name.partition(".")[0] for name in finder.modules}
    return files, packages - here - sys.stdlib_module_names


def _imports(node: ast.AST) -> Iterator[str]:
    """Yields the absolute names that are imported outside of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and not child.level:
            yield child.module
        elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _imports(child)


def requirements(packages: set[str]) -> list[str]:
    """
    Returns a line for each package that the Space has to install, with the oldest version that setup.cfg names.

    Raises:
        PushError: setup.cfg names no version of a package.
    """
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [settings["options"]["install_requires"], *settings["options.extras_require"].values()]
    # The extras come last and override: app.py needs the same versions as train_hf.py.
    bounds = {re.match(r"[\w.-]+", line)[0].lower(): line for text in texts for line in text.split("\n") if line}
    lines = []
    for package in sorted(packages - INCLUDED):
        name = DISTRIBUTIONS.get(package, package).lower()
        if name not in bounds:
            raise PushError(f"setup.cfg: names no version of {package}, which app.py needs; add it to an extra")
        lines.append(bounds[name])
    return lines


def write_files(files: dict[str, Path | bytes], folder: Path):
    """
    Writes the files of a Space to a folder.

    Raises:
        PushError: the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PushError(f"{folder}: is not empty; name a new folder")
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())


def _yaml(values: dict) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
