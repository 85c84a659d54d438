"""Pushes models to the Hub: one commit with all that a model needs, and no private data."""

import ast
import contextlib
import fnmatch
import itertools
import json
import multiprocessing
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResultEntry,
    HfApi,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import disable_progress_bars, validate_repo_id
from safetensors import SafetensorError, safe_open

from .finite import non_finite_weights
from .scan import CODE, UnsafeModelError, scan_settings

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
UNFINISHED = "unfinished-outputs"  # training.base.outputs.STAGING_NAME; a test compares the two
EVALUATIONS = ".eval_results/model-index.yaml"  # the Hub's newer form of the card's model-index
SETTINGS = ("config.json", "preprocessor_config.json")
PICTURES = (
    "calibration.png", "confusion_matrix.png", "layer_weights.png", "learning_curves.png", "reconstruction.png",
)  # fmt: skip
CONFUSION_TABLE = "confusion_matrix.csv"  # to which the card of many classes refers; it names classes only
# Files of an earlier push: the next one deletes those that the folder no longer has. If an adapter's files stayed,
# Transformers would load the adapter's own model.
ADAPTER = ("adapter_config.json", "adapter_model.*")
SENTENCES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
OPEN_SET = "open_set.safetensors"  # training.base.open_set.FILE
# Of another kind of model: what Transformers prefers to SETTINGS, and pickles, for which `scan` refuses a model.
FOREIGN = ("processor_config.json", "config.*.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")
PUBLISHED = (
    *SETTINGS, OPEN_SET, WEIGHTS, INDEX, "model-*-of-*.safetensors", "README.md", EVALUATIONS, "results.json",
    *PICTURES, CONFUSION_TABLE, *CODE, *ADAPTER, *SENTENCES, "handler.py", "requirements.txt", *FOREIGN,
)  # fmt: skip
NO_TRAINING = ("cross_validation", "evaluation", "event_evaluation", "sweep")  # tasks whose results are of no one model
CHECKPOINT_CARD = Path(__file__).parent / "checkpoint.md"
ENDPOINT = Path(__file__).parent / "endpoint"  # what an Inference Endpoint runs; a classifier's folder may have its own

# Pattern of names -> why such a file or folder of a run is not pushed.
LEFT = {
    "checkpoint-*": "a checkpoint, with optimiser states; push its folder by itself",
    "optimizer*": "optimiser states",
    "scheduler.pt": "optimiser states",
    "scaler.pt": "optimiser states",
    "rng_state*": "states of the random generators",
    "training_args.bin": "a pickle, with paths of this machine",
    "trainer_state.json": "the state of the training",
    "predictions.csv": "names of clips",
    "report.html": "holds recordings",
    "adapter": "merged into the weights",
    "adapter_*": "merged into the weights",
    "runs": "logs",
}
# Tokens of the Hub, GitHub and OpenAI; module names such as hf_ast are not.
TOKEN = re.compile(r"(?<![A-Za-z0-9])(?:(?:hf_|api_org_|gh[pousr]_|github_pat_)[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,})")
AUDIOSET_LABEL = re.compile(r"/[mgt]/\w+")  # such as /m/09x0r
PART = r"""(?:[/\\]+[^/\\\s"'`<>|():]+)"""  # of a path
ABSOLUTE_PATH = re.compile(
    rf"""
    (?<![\w/.<])                 # not in the middle of a relative one
    (?!/[mgt]/\w+(?![\w/]))      # a label of AudioSet, /m/09x0r
    (?!(?<=:)//\w)               # the host of an address
    (?:file:|~\w*|[A-Za-z]:)?    # a home folder, a drive
    {PART}{{2,}}[/\\]?
    """,
    re.VERBOSE,
)
HOME_OR_FILE = re.compile(r"(?:~\w*|file:)[/\\]")
NO_PATH = re.compile("(?!)")  # matches nothing
USAGE_LINE = re.compile(r'^(\s*repository = )"(?:[^"\\\n]|\\.)*"', re.MULTILINE)


class PushError(ValueError):
    """Reports a folder that cannot be pushed, or that the Hub refused, in one line with the reason and the remedy."""


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "push",
        help="push a finished folder to the Hub",
        description="Pushes the folder of a model to the Hub, in one commit.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder of a run, a checkpoint or a converted model"
    )
    parser.add_argument("repo", metavar="REPO", help="user/name on the Hub; created if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="a new repository is private")
    parser.add_argument("--message", help="commit message")
    parser.set_defaults(run=run)


def run(args):
    push_folder(args.folder, args.repo, private=args.private, message=args.message)


def push_folder(folder: Path, repo_id: str, *, private: bool | None = None, message: str | None = None) -> str:
    """
    Pushes the folder of a model: a run of train_hf.py, one of its checkpoints, or a conversion. Prints which files are
    pushed and which are not.

    Returns:
        URL of the commit

    Raises:
        PushError: the folder is incomplete or contains a token, or the Hub did not accept it.
    """
    files, left = choose_files(Path(folder), repo_id)
    for name, content in files.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        print(f"  {name} ({size:,} bytes)")
    for name, reason in left.items():
        print(f"  not {name}: {reason}")
    if ModelCard(files["README.md"].decode()).data.license is None:
        print("warning: README.md names no license, so nobody may use the model; name one at its top", file=sys.stderr)
    url = push_files(
        files,
        repo_id,
        message=message or f"Push {Path(folder).resolve().name}",
        private=private,
        delete=PUBLISHED,
        repeat=repeat_command(folder, repo_id, private, message),
    )
    print(f"pushed to {url}")
    return url


def repeat_command(folder: Path, repo_id: str, private: bool | None = None, message: str | None = None) -> str:
    """Returns the command that pushes a folder."""
    options = [*(["--private"] if private else []), *(["--message", message] if message else [])]
    return shlex.join(["python", "-m", "hub", "push", str(folder), repo_id, *options])


def push_files(
    files: dict[str, Path | bytes],
    repo_id: str,
    *,
    message: str,
    repo_type: str = "model",
    private: bool | None = None,
    space_sdk: str | None = None,
    delete: Sequence[str] = (),
    repeat: str | None = None,
) -> str:
    """
    Pushes files in one commit, and creates the repository if it does not exist. The Hub accepts a commit whole or not
    at all, and refuses it if somebody else has committed meanwhile.

    Args:
        files: name in the repository -> file or its content
        private: whether a new repository is private
        delete: patterns of names; files on the Hub that match and are not pushed are deleted in the same commit
        repeat: the command that repeats the push, for the error's message

    Returns:
        URL of the commit

    Raises:
        PushError: no token, no permission, no network, or the Hub did not accept it.
    """
    api = HfApi()
    try:
        open_repository(api, repo_id, repo_type, private, space_sdk)
        info = api.repo_info(repo_id, repo_type=repo_type, files_metadata=False)
        existing = [sibling.rfilename for sibling in info.siblings or ()]
        stale = [name for name in existing if name not in files and any(_matches(name, pattern) for pattern in delete)]
        additions = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.preupload_lfs_files(repo_id, additions, repo_type=repo_type)
        if ignored := [addition.path_in_repo for addition in additions if getattr(addition, "_should_ignore", False)]:
            raise PushError(f"its .gitignore there leaves out {', '.join(ignored)}: remove it from the repository")
        commit = api.create_commit(
            repo_id,
            [*additions, *map(CommitOperationDelete, stale)],
            commit_message=message,
            repo_type=repo_type,
            parent_commit=info.sha,
        )
    except Exception as error:
        print(file=sys.stderr)  # ends the line of a progress bar
        again = f"; to repeat: {repeat}" if repeat else ""
        raise PushError(
            f"{repo_id}: {explain(error)}; nothing half-written is on the Hub, which takes a commit whole or not "
            f"at all{again}"
        ) from error
    return commit.commit_url


def prepare_push_process():
    """Prepares a process that pushes for a training: no bars, Ctrl-C is the training's to handle; both end together."""
    disable_progress_bars()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def check_repository(repo_id: str, *, private: bool | None = None):
    """
    Creates the repository of a model if it does not exist, and checks the permission to write to it.

    Raises:
        PushError: it cannot be written to.
    """
    api = HfApi()
    try:
        open_repository(api, repo_id, "model", private, None)
        # This request needs write permission, and uploads nothing.
        api.preupload_lfs_files(repo_id, [CommitOperationAdd("README.md", b"-")])
    except Exception as error:
        raise PushError(f"{repo_id}: {explain(error)}") from error


def open_repository(api: HfApi, repo_id: str, repo_type: str, private: bool | None, space_sdk: str | None):
    """
    Creates the repository if it does not exist.

    Raises:
        PushError: the name has no user, no token is set, or `private` is set but the existing repository is public.
    """
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise PushError("name the repository with its owner, as in user/name")
    if get_token() is None:
        raise PushError("no token: run `hf auth login`, or set HF_TOKEN, with a token that may write")
    api.create_repo(repo_id, repo_type=repo_type, private=private, space_sdk=space_sdk, exist_ok=True)
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise PushError("the repository exists and is public: make it private on the Hub, or take another name")


def _matches(name: str, pattern: str) -> bool:
    """Returns whether a name matches; a pattern without a folder matches only names without one."""
    return fnmatch.fnmatch(name, pattern) and ("/" in pattern or "/" not in name)


def explain(error: Exception) -> str:
    """Returns one line that names what failed between this machine and the Hub, and the remedy."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for cause in chain:
        if isinstance(cause, PushError):
            return str(cause)
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set: unset it"
        if isinstance(cause, HFValidationError):
            return f"is not a repository name ({_one_line(cause)})"
        if isinstance(cause, HfHubHTTPError):
            return _explain_status(cause.response.status_code, cause.server_message)
        if found := re.search(r"\(([45]\d\d) [A-Z]", str(cause)):  # the storage's client has no error class
            return _explain_status(int(found[1]), "")
        # huggingface_hub 1 uses httpx, 2 uses httpx2
        if isinstance(cause, ConnectionError) or type(cause).__module__.startswith(("httpx", "httpcore")):
            return f"the connection to the Hub failed ({_one_line(cause) or type(cause).__name__}): check the network"
    return f"{type(error).__name__}: {_one_line(error)}"


def _explain_status(status: int, message: str | None) -> str:
    detail = f" ({_one_line(message)})" if message else ""
    known = {
        400: "the Hub refuses the content",
        401: "the Hub refuses the token (401): run `hf auth login`, or set HF_TOKEN, with a valid one",
        403: "the token may not write there (403): use one with write access, or a name of your own",
        404: "the repository does not exist, or the token may not see it (404)",
        409: "the Hub is processing another change (409): wait a little",
        412: "somebody else has changed the repository meanwhile (412)",
        429: "too many requests (429): wait some minutes",
    }
    if status in known:
        return known[status] + detail
    return (
        f"the Hub has an internal error ({status}): try again later" if status >= 500 else f"the Hub answered {status}"
    ) + detail


def choose_files(folder: Path, repo_id: str) -> tuple[dict[str, Path | bytes], dict[str, str]]:
    """
    Chooses the files of a model's folder that are pushed, checks them and removes paths of this machine.

    Returns:
        name -> file or content; name of an unpushed file -> reason

    Raises:
        PushError: the folder is incomplete, or a file contains a token.
    """
    if not folder.is_dir():
        raise PushError(f"{folder}: is not a folder; name the folder of a model")
    if (folder / UNFINISHED).exists():
        raise PushError(
            f"{folder}: a run is writing its outputs there, or was stopped while it did; wait for its end, or continue "
            "with --resume_from_checkpoint true"
        )
    weights = weight_files(folder)
    settings = {name: _read_json(folder / name, "is the run finished?") for name in SETTINGS}
    code = code_files(folder, settings)
    try:
        scan_settings(folder)
    except UnsafeModelError as error:
        raise PushError(str(error)) from None
    kept = (*PICTURES, CONFUSION_TABLE, *SENTENCES, OPEN_SET)
    names = {*code, *(name for name in kept if (folder / name).is_file())}
    labels = frozenset((settings["config.json"].get("id2label") or {}).values())
    results = _read_results(folder)
    known = _pattern_of(set(_paths_in(results or {})) - labels)
    files: dict[str, Path | bytes] = {
        name: _clean_json(folder / name, content, labels, known) for name, content in settings.items()
    }
    files |= {name: folder / name for name in (*sorted(names), *weights)}
    if "ForAudioClassification" in str(settings["config.json"].get("architectures")):
        own = folder if (folder / "handler.py").is_file() else ENDPOINT
        files |= {path.name: path for path in (own / "handler.py", own / "requirements.txt") if path.is_file()}
    if results is not None:
        files["results.json"] = _clean_json(folder / "results.json", results, labels, known)
    files["README.md"] = _card(folder, repo_id, settings["config.json"], labels, known)
    if evaluations := _evaluations(files["README.md"].decode()):
        files[EVALUATIONS] = evaluations
    for name, content in files.items():
        if not name.endswith((".safetensors", ".png")):
            _refuse_tokens(folder / name, content if isinstance(content, bytes) else content.read_bytes())
    left = {path.name: _why_left(path) for path in sorted(folder.iterdir()) if path.name not in files}
    return files, left


def weight_files(folder: Path) -> list[str]:
    """
    Returns the names of the weight files after checking that each can be read.

    Raises:
        PushError: a file or a tensor is missing or broken, or a number is not finite.
    """
    if (folder / INDEX).is_file():
        weight_map = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise PushError(f"{folder / INDEX}: has no weight_map; save the model again")
        names = [INDEX, *sorted(set(weight_map.values()))]
    elif (folder / WEIGHTS).is_file():
        weight_map, names = {}, [WEIGHTS]
    elif list(folder.glob("adapter_model.*")):
        raise PushError(f"{folder}: holds an adapter without its model; push the finished run, which merges them")
    else:
        raise PushError(f"{folder}: has no {WEIGHTS}; let the run finish, or save the model with save_pretrained")
    for name in names:
        if name == INDEX:
            continue
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise PushError(f"{folder / INDEX}: names {name!r}, which is not a safetensors file beside it; save again")
        try:
            with safe_open(folder / name, framework="pt") as file:
                held, about = set(file.keys()), str(file.metadata() or "")
                broken = non_finite_weights((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118  no dict
        except (SafetensorError, OSError) as error:
            raise PushError(f"{folder / name}: cannot be read ({_one_line(error)}); save the model again") from error
        if TOKEN.search(about) or ABSOLUTE_PATH.search(about):
            raise PushError(
                f"{folder / name}: its metadata holds a token or a path of this machine; save the model again"
            )
        if broken:
            raise PushError(f"{folder / name}: {broken}; push an earlier checkpoint, or train anew")
        missing = {key for key, place in weight_map.items() if place == name} - held
        if missing:
            raise PushError(f"{folder / name}: lacks {min(missing)}, which {INDEX} names; save the model again")
    return names


def code_files(folder: Path, settings: dict[str, dict]) -> list[str]:
    """
    Returns the names of the Python files in the auto_map of the settings, and of those that they import.

    Raises:
        PushError: no auto_map, or a file is missing.
    """
    waiting = []
    for name, content in settings.items():
        entries = [entry for value in (content.get("auto_map") or {}).values() for entry in _as_list(value) if entry]
        if not entries:
            raise PushError(
                f"{folder / name}: has no auto_map, so nobody could load the model; save it with save_pretrained of "
                "modeling_dual_ssast"
            )
        if elsewhere := next((entry for entry in entries if "--" in entry), None):
            raise PushError(
                f"{folder / name}: auto_map leaves the code in another repository ({elsewhere}); save the model with "
                "save_pretrained of modeling_dual_ssast"
            )
        waiting += [f"{entry.split('.')[0]}.py" for entry in entries]
    found = []
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        if not (folder / name).is_file():
            raise PushError(
                f"{folder}: lacks {name}, which the model's code needs; save it with save_pretrained of "
                "modeling_dual_ssast"
            )
        found.append(name)
        try:
            waiting += _neighbours((folder / name).read_text(encoding="utf-8"))
        except (SyntaxError, ValueError) as error:
            raise PushError(
                f"{folder / name}: is not valid Python ({_one_line(error)}); save the model again"
            ) from error
    return found


@cache  # every checkpoint of a run holds the same code
def _neighbours(source: str) -> tuple[str, ...]:
    """Returns the names of the files beside this one that Python code imports."""
    nodes = ast.walk(ast.parse(source))
    return tuple(f"{node.module}.py" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1)


def _card(folder: Path, repo_id: str, config: dict, labels: frozenset[str], known: re.Pattern) -> bytes:
    """Returns the model card; its code example loads the model from the Hub."""
    path = folder / "README.md"
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise PushError(f"{path}: is not UTF-8 ({error}); save it in that encoding") from error
    elif (folder / "trainer_state.json").is_file():
        state = _read_json(folder / "trainer_state.json")
        saved = (config.get("architectures") or ["?"])[0]
        names = (auto for auto, place in config["auto_map"].items() if str(place).endswith(f".{saved}"))
        auto_class = next(names, "AutoModel")
        card_data = ModelCardData(
            library_name="transformers",
            pipeline_tag="audio-classification" if auto_class == "AutoModelForAudioClassification" else None,
            tags=["audio", "dual-ssast"],
        )
        text = str(
            ModelCard.from_template(
                card_data, template_path=str(CHECKPOINT_CARD), repository=repo_id, state=state, auto_class=auto_class
            )
        )
    else:
        raise PushError(f"{path}: does not exist; a model needs its card: write one, or let the run finish")
    text = USAGE_LINE.sub(lambda found: f'{found[1]}"{repo_id}"', text)
    text = _clean_text(text, labels, known)
    try:
        ModelCard(text)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        reason = _one_line(error).partition(" Pass `ignore_metadata_errors")[0]
        raise PushError(f"{path}: the metadata at its top cannot be read ({reason}); correct it") from error
    return text.encode()


def _evaluations(card: str) -> bytes | None:
    """Returns the card's figures on data sets of the Hub as `.eval_results` file: the first metric of each split."""
    entries = {}
    for result in ModelCard(card).data.eval_results or ():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(result.dataset_type)):
            continue  # a local folder
        notes = f"{result.metric_name or result.metric_type}, split {result.dataset_split}"
        entry = EvalResultEntry(
            dataset_id=result.dataset_type,
            task_id=str(result.dataset_config or "default"),
            value=result.metric_value,
            source_url=result.source_url,
            source_name=result.source_name if result.source_url else None,
            notes=notes,
        )
        entries.setdefault((entry.dataset_id, entry.task_id, str(result.dataset_split)), entry)
    if not entries:
        return None
    return yaml.safe_dump(eval_result_entries_to_yaml(list(entries.values())), sort_keys=False).encode()


def _read_json(path: Path, remedy: str = "save the model again") -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PushError(f"{path}: does not exist; {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PushError(f"{path}: cannot be read ({_one_line(error)}); {remedy}") from error
    if not isinstance(content, dict):
        raise PushError(f"{path}: holds no JSON object; {remedy}")
    return content


def _read_results(folder: Path) -> dict | None:
    """
    Returns the content of results.json, `None` without the file.

    Raises:
        PushError: it cannot be read, or is of a task that trains no model.
    """
    path = folder / "results.json"
    if not path.is_file():
        return None
    results = _read_json(path)
    recipe = results.get("recipe")
    task = recipe.get("task") if isinstance(recipe, dict) else None
    if task in NO_TRAINING:
        raise PushError(
            f"{path}: is of the task {task}, not of the training of the model beside it; move it to another folder"
        )
    return results


def _clean_json(path: Path, content: dict, labels: frozenset[str], known: re.Pattern) -> Path | bytes:
    """Returns the file itself if it holds nothing private, else its content with the last part of each path."""
    cleaned = without_paths(content, labels, known)
    if isinstance(unreadable := cleaned.get("unreadable"), dict):
        unreadable.pop("first", None)  # names of clips
    return path if cleaned == content else (json.dumps(cleaned, indent=2) + "\n").encode()


def without_paths(value, labels: frozenset[str] = frozenset(), known: re.Pattern = NO_PATH):
    """
    Replaces every absolute path in a JSON value by its last part, except class names (`labels`). Keys that become the
    same get numbers.

    Args:
        known: matches paths with spaces inside a text, see `_pattern_of`
    """
    if isinstance(value, dict):
        cleaned = {}
        for name, item in value.items():
            short = without_paths(name, labels, known)
            spellings = itertools.chain([short], (f"{short} ({number})" for number in itertools.count(2)))
            cleaned[next(key for key in spellings if key not in cleaned)] = without_paths(item, labels, known)
        return cleaned
    if isinstance(value, list):
        return [without_paths(item, labels, known) for item in value]
    if not isinstance(value, str) or value in labels:
        return value
    if _is_path(value):  # spaces belong to it
        return _last_part(value) or value
    if (content := _stored_json(value)) is not None:
        cleaned = without_paths(content, labels, known)
        return value if cleaned == content else json.dumps(cleaned, ensure_ascii=False)
    if "::" in value:  # of chained addresses such as zip://*.wav::/clips.zip
        return "::".join(without_paths(part, labels, known) for part in value.split("::"))
    return _clean_text(value, labels, known)


def _is_path(text: str) -> bool:
    """Returns whether a whole text is an absolute path; `/clips/a.wav: not readable` is a text with a path."""
    is_absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or HOME_OR_FILE.match(text)
    return bool(is_absolute) and not AUDIOSET_LABEL.fullmatch(text) and not re.search(r":\s", text)


def _stored_json(text: str) -> dict | list | None:
    """Returns the content of a text that is JSON, as recipes store a source with its weight; else `None`."""
    if text.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return None


def _paths_in(value) -> Iterator[str]:
    """Yields the absolute paths that are whole texts of a JSON value."""
    for _, text in _strings(value):
        if _is_path(text):
            yield text
        elif (content := _stored_json(text)) is not None:
            yield from _paths_in(content)


def _pattern_of(paths: set[str]) -> re.Pattern:
    """Returns a pattern of paths and of what lies below them. ABSOLUTE_PATH would end at their first space."""
    several = (path.rstrip("/\\") for path in paths if len(re.findall(r"[/\\]+[^/\\]", path)) > 1)
    texts = "|".join(map(re.escape, sorted(several, key=len, reverse=True)))
    return re.compile(rf"(?<![\w/.<])(?:{texts}){PART}*[/\\]?") if texts else NO_PATH


def _clean_text(text: str, labels: frozenset[str], known: re.Pattern = NO_PATH) -> str:
    text = known.sub(lambda found: _last_part(found[0]), text)
    home = str(Path.home())
    if len(home) > 1:  # contains the user's name, in which spaces are possible
        text = text.replace(home, "~")
    return ABSOLUTE_PATH.sub(lambda found: found[0] if found[0] in labels else _last_part(found[0]), text)


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _refuse_tokens(path: Path, content: bytes):
    """
    Checks a file for access tokens.

    Raises:
        PushError: a text or a key looks like an access token; the message names the file and the key or line.
    """
    text = content.decode("utf-8", errors="replace")
    if not TOKEN.search(text):
        return
    place = f"line {text[: TOKEN.search(text).start()].count(chr(10)) + 1}"
    if path.suffix == ".json":
        place = next((key for key, value in _strings(json.loads(text)) if TOKEN.search(value)), place)
    raise PushError(f"{path}: {place} holds what looks like an access token; remove it, and revoke the token")


def _strings(value, key: str = "") -> Iterator[tuple[str, str]]:
    """Yields (key, text) of every text in a JSON value; keys are texts too, under a neutral name."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield f"a key of {key or 'the file'}", name
            yield from _strings(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, str):
        yield key, value


def _why_left(path: Path) -> str:
    reasons = (reason for pattern, reason in LEFT.items() if fnmatch.fnmatch(path.name, pattern))
    return next(reasons, "not part of a model")


def _as_list(value) -> list:
    return value if isinstance(value, list) else [value]


def _one_line(error) -> str:
    return " ".join(str(error).split())
