"""Pushing the demo page to the Hub, as a Space: app.py with the modules that it imports, its requirements, examples."""

import argparse
import ast
import configparser
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from .push import PushError, push_files

ROOT = Path(__file__).parent.parent
APP = ROOT / "app.py"
# The Hub installs Gradio itself, as the card says; app.py was tested with this one.
GRADIO_VERSION = "6.31.0"
PYTHON_VERSION = "3.11"
SETTINGS = ROOT / "app.yaml"
TITLE = "What is in this recording?"
EXAMPLES_NOTE = (
    "\nThe examples come with [Sonic Pi](https://sonic-pi.net) and are in the public domain "
    "([CC0](https://creativecommons.org/publicdomain/zero/1.0)).\n"
)
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
DISTRIBUTIONS = {"yaml": "PyYAML"}  # packages that are installed under another name than they are imported
# What comes with Gradio and Transformers.
INCLUDED = {"fsspec", "gradio", "safetensors"}
TEXT = """
# {title}

Record, upload or pick a clip: {models} will say what it is, and show what the answer rests on.

`app.yaml` names the models and the examples. The variable `MODELS`, names with spaces between them, goes before its
models. `python -m hub push-space` made everything here.
"""


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "push-space", help="the demo page to the Hub", description="Pushes the demo page as a Space, in one commit."
    )
    parser.add_argument("repo", metavar="REPO", help="user/name of the Space; made where it does not exist")
    parser.add_argument("--models", nargs="+", required=True, metavar="MODEL", help="user/name of classifiers")
    parser.add_argument(
        "--examples",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="short clips to try (default: those of app.yaml)",
    )
    parser.add_argument("--private", action="store_true", default=None, help="a new Space is private")
    parser.add_argument("--dry-run", type=Path, metavar="FOLDER", help="write the files there, and push nothing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    files = space_files(args.models, args.examples)
    if args.dry_run:
        write_files(files, args.dry_run)
        print(f"{len(files)} files in {args.dry_run}; nothing was pushed")
        return
    words = ["python", "-m", "hub", "push-space", args.repo, "--models", *args.models]
    words += ["--examples", *map(str, args.examples)] if args.examples is not None else []
    words += ["--private"] if args.private else []
    url = push_files(
        files,
        args.repo,
        message="The demo page",
        repo_type="space",
        private=args.private,
        space_sdk="gradio",
        delete=["training/*", "modeling_dual_ssast/*", "examples/*"],
        repeat=shlex.join(words),
    )
    print(f"pushed to {url}")


def space_files(models: list[str], examples: list[Path] | None = None) -> dict[str, Path | bytes]:
    """
    All that a Space needs: name -> file or content.

    Raises:
        PushError: a model that is not on the Hub, or an example that is not there.
    """
    check_models(models)
    if examples is None:
        examples, note = (
            [ROOT / name for name in yaml.safe_load(SETTINGS.read_text("utf-8"))["examples"]],
            EXAMPLES_NOTE,
        )
    else:
        note = ""
    clips = {f"examples/{path.name}": path for path in examples}
    for path in examples:
        if not path.is_file():
            raise PushError(f"{path}: no such file; correct --examples")
        if clips[f"examples/{path.name}"] != path:
            raise PushError(f"{path}: another example has the same name; rename one of them")
    settings = {"models": models, "examples": list(clips)}
    links = ", ".join(f"[{model}](https://huggingface.co/{model})" for model in models)
    header = {
        "title": TITLE,
        "emoji": "🎧",
        "colorFrom": "blue",
        "colorTo": "indigo",
        "sdk": "gradio",
        "sdk_version": GRADIO_VERSION,
        "python_version": PYTHON_VERSION,
        "app_file": APP.name,
        "models": models,
        "license": "apache-2.0",
        "tags": ["audio-classification"],
    }
    card = f"---\n{_yaml(header)}---\n{TEXT.format(title=TITLE, models=links)}"
    code, packages = imported(APP, ROOT)
    return {
        "README.md": (card + note).encode(),
        "requirements.txt": ("\n".join(requirements(packages)) + "\n").encode(),
        "app.yaml": _yaml(settings).encode(),
        **{path.relative_to(ROOT).as_posix(): path for path in sorted(code)},
        **clips,
        "LICENSE": ROOT / "LICENSE",
    }


def check_models(models: list[str]):
    """
    Raises:
        PushError: a folder of this machine, which a Space cannot read, or no name of the Hub.
    """
    for model in models:
        if Path(model).is_dir():
            raise PushError(
                f"{model}: is a folder of this machine, which a Space cannot read; push it first: python -m "
                f"hub push {shlex.quote(model)} USER/NAME"
            )
        if not REPO.fullmatch(model):
            raise PushError(f"{model}: is no name of a model on the Hub; give it as user/name")


def imported(program: Path, root: Path) -> tuple[set[Path], set[str]]:
    """
    The files below `root` that a program consists of, itself among them, and the packages from elsewhere that they
    import when they are loaded (not those that a function imports when it is called).
    """
    waiting, files, packages = [program], set(), set()
    while waiting:
        path = waiting.pop()
        if path in files:
            continue
        files.add(path)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_once = set(_outside_functions(tree))
        for node in ast.walk(tree):
            for name in _names(node, path, root):
                found = list(_files(name, root))
                waiting += found
                top = name.partition(".")[0]
                if not found and node in at_once and not _is_here(top, root) and top not in sys.stdlib_module_names:
                    packages.add(top)
    return files, packages


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from _outside_functions(child)


def _names(node: ast.AST, path: Path, root: Path) -> list[str]:
    """Dotted names that a statement may import as modules; `from a import b` may mean a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    parts = [node.module] if node.module else []
    if node.level:
        parts = [
            *path.parent.relative_to(root).parts[: len(path.parent.relative_to(root).parts) - node.level + 1],
            *parts,
        ]
    module = ".".join(parts)
    return [module, *(f"{module}.{alias.name}" for alias in node.names)]


def _files(name: str, root: Path) -> Iterator[Path]:
    """The files that are run to import a module of this project: its own, and those of the packages around it."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:length])
        yield from (path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file())


def _is_here(name: str, root: Path) -> bool:
    return (root / f"{name}.py").is_file() or (root / name / "__init__.py").is_file()


def requirements(packages: set[str]) -> list[str]:
    """
    A line for each package that the Space has to install, with the oldest version that setup.cfg names.

    Raises:
        PushError: setup.cfg does not know a package.
    """
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [settings["options"]["install_requires"], *settings["options.extras_require"].values()]
    # What the extras say comes last, since app.py runs with what train_hf.py needs.
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
    Raises:
        PushError: the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PushError(f"{folder}: holds something already; name a new folder")
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())


def _yaml(values: dict) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
