"""
Scans the folder of a model, here or on the Hub, before anything of it is loaded: for settings that would fetch or run
code, for pickles, and for weights that lie elsewhere.
"""

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

CODE = sorted(path.name for path in (Path(__file__).parent.parent / "modeling_dual_ssast").glob("*_*.py"))
CONFIGS = "*config*.json"  # Transformers also reads processor_config.json, and files such as config.5.0.0.json
INDEXES = "*.index.json"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill"}
# What Trainer and Accelerate leave in a checkpoint. No program here reads them, except to resume a training.
STATES = (
    "training_args.bin", "optimizer*.*", "scheduler*.*", "scaler*.pt", "rng_state*.pth", "random_states_*.pkl",
)  # fmt: skip
NAMES_OF_CLASSES = ("id2label", "label2id")  # a class may have any name
PLAIN = re.compile(r"\w+")  # sdpa, eager, ...; a kernel of the Hub has a slash


class UnsafeModelError(ValueError):
    """Reports a folder that must not be loaded, in one line with the file, the key and the remedy."""


def scan_model(name: str | Path, revision: str | None = None, *, resumes: bool = False):
    """
    Checks what `from_pretrained` would take from a model. Names that cannot be listed pass: they cannot be loaded.

    Args:
        name: folder or Hub name
        revision: branch, tag or commit on the Hub
        resumes: whether a training continues there, whose adapter may belong to another model

    Raises:
        UnsafeModelError: see [`scan_settings`]; or a file is a pickle, or names weights or a base model elsewhere.
    """
    files = _files(name, revision)
    _scan_settings(name, revision, files)
    for file in files:
        if PurePosixPath(file).suffix.lower() in PICKLES and not any(fnmatch(file, pattern) for pattern in STATES):
            raise UnsafeModelError(
                f"{name}: {file} is a pickle, which can run any code when it is read; remove it, or convert it with "
                "python -m conversion and name the new folder"
            )
        if fnmatch(file, INDEXES):
            content = _read(name, file, revision)
            shards = content.get("weight_map") if isinstance(content, dict) else None
            for shard in shards.values() if isinstance(shards, dict) else ():
                if not re.fullmatch(r"[^/\\]+\.safetensors", str(shard)):
                    raise UnsafeModelError(
                        f"{name}: {file} names weights in {shard!r}, which is no .safetensors file beside it; save the "
                        "model again"
                    )
        if file == "adapter_config.json" and not resumes:
            content = _read(name, file, revision)
            base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
            if base is not None and str(base) != str(name) and Path(str(base)).resolve() != Path(name).resolve():
                raise UnsafeModelError(
                    f"{name}: adapter_config.json belongs to another model (base_model_name_or_path is {base!r}); name "
                    "the folder that the finished run has merged, or remove the adapter_* files"
                )


def scan_settings(name: str | Path, revision: str | None = None):
    """
    Checks the settings of a model (`config.json`, `preprocessor_config.json` and the like), at any depth.

    Args:
        name: folder or Hub name
        revision: branch, tag or commit on the Hub

    Raises:
        UnsafeModelError: a key makes Transformers fetch a kernel from the Hub (CVE-2026-4372), decides whether its code
            is trusted (CVE-2026-5241), or names code that is not this project's.
    """
    _scan_settings(name, revision, _files(name, revision))


def _scan_settings(name: str | Path, revision: str | None, files: list[str]):
    for file in files:
        if not fnmatch(file, CONFIGS):
            continue
        for key, value in _items(_read(name, file, revision)):
            if reason := _wrong(key.rsplit(".", 1)[-1], value, str(name)):
                raise UnsafeModelError(
                    f"{name}: {file} has {key} = {_shorten(value)}, which {reason}; remove the key if you trust the "
                    "rest"
                )


def _wrong(key: str, value, name: str) -> str | None:
    """Returns why a setting is refused, or `None`."""
    if re.fullmatch(r"_\w+_implementation\w*", key):
        # Transformers 4.48 stored "_attn_implementation_autoset": true.
        return None if value is None or isinstance(value, bool) else "can make Transformers run code from the Hub"
    if re.fullmatch(r"\w+_implementation", key):
        is_plain = all(part is None or PLAIN.fullmatch(str(part)) for part in _leaves(value))
        return None if is_plain else "can make Transformers run code from the Hub"
    if key == "trust_remote_code":
        return "would decide for you whether the folder's code runs" if value else None
    if key == "transformers_weights":
        is_near = re.fullmatch(r"[^/\\]+\.safetensors(\.index\.json)?", str(value))
        return None if value is None or is_near else "names weights that are no .safetensors file beside it"
    if key == "custom_pipelines":
        return "names code that is not this project's" if value else None
    if key == "auto_map":
        for entry in _leaves(value):
            module, _, _ = str(entry).removeprefix(f"{name}--").rpartition(".")
            if entry is not None and f"{module}.py" not in CODE:
                return "names code that is not this project's"
    return None


def _items(value, path: str = "") -> Iterator[tuple[str, object]]:
    """Yields the dotted key and the value of every entry, at any depth, except those below the names of classes."""
    waiting = [(path, value)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            for key, item in value.items():
                inner = f"{place}.{key}" if place else str(key)
                yield inner, item
                if key not in NAMES_OF_CLASSES:
                    waiting.append((inner, item))
        elif isinstance(value, list):
            waiting += [(f"{place}[{index}]", item) for index, item in enumerate(value)]


def _leaves(value) -> list:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if inner is None else [leaf for item in inner for leaf in _leaves(item)]


def _files(name: str | Path, revision: str | None) -> list[str]:
    """Returns the names of the files beside config.json; without a network those that are cached."""
    folder = Path(name)
    if not folder.exists():
        try:
            siblings = HfApi().model_info(str(name), revision=revision, timeout=10).siblings or ()
            return [sibling.rfilename for sibling in siblings if "/" not in sibling.rfilename]
        except Exception:  # no network, no such repository, no permission: the cache, else from_pretrained says it
            try:
                cached = try_to_load_from_cache(str(name), "config.json", revision=revision)
            except ValueError:  # no name of a repository
                return []
            folder = Path(cached).parent if isinstance(cached, str) else folder
    return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _read(name: str | Path, file: str, revision: str | None):
    """Returns the content of a JSON file, `None` if it cannot be read: then from_pretrained cannot read it either."""
    try:
        path = Path(name, file)
        path = path if path.exists() else Path(hf_hub_download(str(name), file, revision=revision))
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UnsafeModelError(f"{name}: {file} is nested too deeply; it is not a model's, remove it") from None
    except (OSError, ValueError):
        return None


def _shorten(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
