"""
Evaluates every model of this project as an encoder of MTEB (https://github.com/embeddings-benchmark/mteb), with its
audio tasks, MAEB. It needs only the saved folder, which contains the code of the model.

    python examples/mteb_dual_ssast.py MODEL --tasks ESC50 CREMA_DClustering
    python examples/mteb_dual_ssast.py MODEL --tasks "MAEB(v1, audio-only)"

Needs mteb, transformers, torch, soundfile and soxr; neither torchcodec nor torchaudio.
"""

import argparse
import contextlib
import difflib
import functools
import hashlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

import datasets
import fsspec
import mteb
import numpy as np
import soundfile
import soxr
import torch
from huggingface_hub import ModelCard
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import Licenses
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModel
from transformers.utils import logging

BATCH_SIZE = 8
MODEL_FILES = ("config.json", "preprocessor_config.json", "model*.safetensors", "pytorch_model*.bin")


class DualSSASTEncoder(AbsEncoder):
    """
    Embeds the audio of MTEB's batches by `model.embed`: clips of any rate and length, long ones in windows.

    Args:
        model: loaded, with the feature extractor beside it
        meta: the name and revision under which MTEB stores the results
        first_window: of a long clip, embed only as much as the model takes at once, like MTEB's own AST
    """

    def __init__(self, model: torch.nn.Module, meta: ModelMeta, first_window: bool = False):
        self.model = model.eval()
        self.mteb_model_meta = meta
        self.first_window = first_window

    def encode(
        self,
        inputs: DataLoader,
        *,
        task_metadata,
        hf_split: str,
        hf_subset: str,
        prompt_type=None,
        batch_size: int = BATCH_SIZE,
        show_progress_bar: bool = True,
        **kwargs,
    ) -> np.ndarray:
        """
        Embeds the clips of a task, in their order: float32 (clips, config.fused_size).

        Raises:
            ValueError: the task has no audio, or a clip is empty or not finite.
        """
        found = [np.zeros((0, self.model.config.fused_size), np.float32)]
        count = 0
        for batch in tqdm(inputs, desc=task_metadata.name, disable=not show_progress_bar):
            if "audio" not in batch:
                raise ValueError(f"{task_metadata.name}: has {', '.join(batch)} and no audio; name a task of audio")
            clips = [_samples_and_rate(item) for item in batch["audio"]]
            for number, (samples, _) in enumerate(clips, start=count):
                if not samples.size or not np.isfinite(samples).all():
                    where = f"clip {number} of split {hf_split!r}, subset {hf_subset!r}"
                    raise ValueError(f"{task_metadata.name}: {where} is empty or not finite; leave it out")
            if self.first_window:
                clips = [self._cut(*clip) for clip in clips]
            found.append(self._embed(clips, batch_size))
            count += len(clips)
        return np.concatenate(found)

    def _cut(self, samples: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
        """Returns a clip, or as much of a longer one as the model takes at once, with the rate."""
        extractor = self.model.own_feature_extractor()
        longest, own_rate = extractor.max_samples, extractor.sampling_rate
        if longest is None or len(samples) * own_rate <= longest * rate:
            return samples, rate
        samples = samples if rate == own_rate else soxr.resample(samples, rate, own_rate)
        return samples[:longest], own_rate

    def _embed(self, clips: list[tuple[np.ndarray, int]], batch_size: int) -> np.ndarray:
        """Embeds clips with their rates, one rate after the other: (clips, fused_size)"""
        embeddings = np.zeros((len(clips), self.model.config.fused_size), np.float32)
        for rate in dict.fromkeys(rate for _, rate in clips):
            places = [place for place, clip in enumerate(clips) if clip[1] == rate]
            chosen = [clips[place][0] for place in places]
            embeddings[places] = self.model.embed(chosen, rate, batch_size=batch_size).numpy()
        return embeddings


def load_encoder(
    model: str,
    model_name: str | None = None,
    revision: str | None = None,
    device: str | None = None,
    first_window: bool = False,
    **settings,
) -> DualSSASTEncoder:
    """
    Loads the encoder of a saved folder or a model of the Hub, for `mteb.evaluate`; `mteb_model_meta.load_model()` would
    require torchaudio.

    Args:
        model: folder or Hub name of a model of this project
        model_name: OWNER/NAME for MTEB; by default its Hub name, or local/FOLDER
        revision: of the Hub; the only revision of a folder is a fingerprint of its files
        device: by default the accelerator, if there is one
        first_window: see `DualSSASTEncoder`
        settings: fields of the configuration to change, such as `pooling`

    Raises:
        ValueError: the model cannot be loaded, lacks weights, or has another revision.
    """
    folder = Path(model) if Path(model).is_dir() else None
    found_revision = None if folder is None else _fingerprint(folder)
    if folder is not None and revision not in (None, found_revision):
        raise ValueError(f"{model}: is revision {found_revision} and not {revision}; load it without a revision")
    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity_error()  # missing weights are an error here, not a warning
        loaded, loading = AutoModel.from_pretrained(
            model,
            trust_remote_code=True,
            output_loading_info=True,
            **({"revision": revision} if folder is None and revision else {}),
            **settings,
        )
        if not hasattr(loaded, "embed"):
            raise ValueError(f"{type(loaded).__name__} has no embeddings")
        loaded.own_feature_extractor()  # fails here, not after the first data set is downloaded
    except (OSError, ValueError, TypeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"{model}: cannot be loaded ({reason}); name the folder or the Hub name of a model of this project"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    # Fusion weights may be missing: equal weights and norms without effect replace them. Others would be random.
    missing = [key for key in loading["missing_keys"] if not key.startswith("fusion.")]
    missing = sorted({*missing, *(key for key, *_ in loading["mismatched_keys"])})
    if missing:
        raise ValueError(
            f"{model}: {len(missing)} weights are missing or of another size, such as {missing[0]}; save it anew"
        )
    device = device or (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    parameters = list(loaded.parameters())
    meta = ModelMeta(
        loader=functools.partial(load_encoder, model, first_window=first_window, **settings),
        name=model_name or (model if folder is None else f"local/{folder.resolve().name}"),
        revision=found_revision or getattr(loaded.config, "_commit_hash", None) or revision,
        release_date=None,
        languages=None,
        n_parameters=sum(parameter.numel() for parameter in parameters),
        n_embedding_parameters=0,  # the model has no token embeddings
        memory_usage_mb=sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 2**20,
        max_tokens=None,
        embed_dim=loaded.config.fused_size,
        license=_licence(model),
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch", "Transformers"],
        reference=f"https://huggingface.co/{model}" if folder is None else None,
        similarity_fn_name="cosine",
        use_instructions=False,
        training_datasets=None,
        modalities=["audio"],
        experiment_kwargs=(settings | {"first_window": True} if first_window else settings) or None,  # in cached names
    )
    return DualSSASTEncoder(loaded.to(device), meta, first_window)


@contextlib.contextmanager
def decoding_with_soundfile() -> Iterator[None]:
    """
    Makes `datasets` decode and store audio with soundfile, unless the required torchcodec is installed.

        with decoding_with_soundfile():
            mteb.evaluate(load_encoder("runs/quickstart"), mteb.get_task("ESC50"))
    """
    if datasets.config.TORCHCODEC_AVAILABLE:
        yield
        return
    kept = datasets.Audio.encode_example, datasets.Audio.decode_example
    datasets.Audio.encode_example = lambda self, value: _as_stored(value)
    datasets.Audio.decode_example = lambda self, value, token_per_repo_id=None: _decode(value, self.sampling_rate)
    try:
        yield
    finally:
        datasets.Audio.encode_example, datasets.Audio.decode_example = kept


def find_tasks(names: list[str]) -> list:
    """
    Finds tasks by their names or the names of their benchmarks, without duplicates.

    Raises:
        ValueError: a name is unknown, or its task needs more than audio.
    """
    tasks = {}
    for name in names:
        try:
            found = [mteb.get_task(name)]
        except KeyError:
            found = _tasks_of_benchmark(name)
        if not found:
            raise ValueError(f"{name}: is no task or benchmark of mteb; {_near(name)}")
        for task in found:
            others = sorted({*task.metadata.modalities} - {"audio"})
            if others:
                label = task.metadata.name if len(found) == 1 else f"{name}: {task.metadata.name}"
                raise ValueError(
                    f"{label}: needs {' and '.join(others)}, and this encoder takes audio only; name tasks of audio "
                    'alone, or "MAEB(v1, audio-only)"'
                )
        tasks.update({task.metadata.name: task for task in found})
    return list(tasks.values())


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mteb_dual_ssast.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="folder or Hub name of a model of this project")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="NAME", help="tasks or benchmarks of mteb")
    parser.add_argument(
        "--output_folder", "--output-folder", type=Path, default=Path("results"), help="(default: %(default)s)"
    )
    parser.add_argument(
        "--batch_size",
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        help="clips per forward pass (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    if arguments.batch_size < 1:
        parser.error(f"--batch_size must be 1 or more, got {arguments.batch_size}")
    try:
        if arguments.output_folder.exists() and not arguments.output_folder.is_dir():
            raise ValueError(f"{arguments.output_folder}: is no folder; name another --output_folder")
        tasks = find_tasks(arguments.tasks)
        encoder = load_encoder(arguments.model)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with decoding_with_soundfile():
        # If a task fails, the others go on.
        result = mteb.evaluate(
            encoder,
            tasks,
            co2_tracker=False,
            raise_error=False,
            encode_kwargs={"batch_size": arguments.batch_size},
            cache=mteb.ResultCache(arguments.output_folder),
        )
    rows = [
        (task.metadata.name, task.metadata.type, task.metadata.main_score, f"{found.get_score():.4f}")
        for task in tasks
        for found in result.task_results
        if found.task_name == task.metadata.name
    ]
    if rows:
        meta = encoder.mteb_model_meta
        print_table([("task", "type", "metric", "score"), *rows])
        print(f"everything is in {arguments.output_folder / 'results' / meta.model_name_as_path() / meta.revision}")
    for failure in result.exceptions or ():
        print(f"error: {failure.task_name}: {' '.join(failure.exception.split()) or 'failed'}", file=sys.stderr)
    return 1 if result.exceptions else 0


def print_table(rows: list[tuple[str, ...]]):
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _tasks_of_benchmark(name: str) -> list:
    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError:
        return []


def _near(name: str) -> str:
    """Returns the names of similar audio tasks, or the command that lists all."""
    known = {task.metadata.name for task in mteb.get_tasks(modalities=["audio"], exclusive_modality_filter=True)}
    folded = {known_name.casefold(): known_name for known_name in sorted(known)}
    near = [folded[found] for found in difflib.get_close_matches(name.casefold(), folded, n=3)]
    return f"did you mean {' or '.join(near)}?" if near else "mteb available-tasks lists them"


def _samples_and_rate(item) -> tuple[np.ndarray, int]:
    """Returns the mono samples (samples,) and the rate in Hz of a clip, decoded or stored."""
    if isinstance(item, Mapping) and "array" not in item:
        item = _decode(item)
    samples = np.asarray(item["array"])
    return samples.reshape(-1, samples.shape[-1]).mean(axis=0) if samples.ndim > 1 else samples, item["sampling_rate"]


def _decode(stored: Mapping, sampling_rate: int | None = None) -> dict:
    """Decodes a clip that `datasets` stores to mono samples, at its own rate unless another is given."""
    path = stored.get("path")
    try:
        with io.BytesIO(stored["bytes"]) if stored.get("bytes") is not None else fsspec.open(path, "rb") as file:
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)  # (samples, channels)
    except soundfile.LibsndfileError as error:  # tasks expect RuntimeError, which torchcodec raises
        raise RuntimeError(f"{path or 'a clip without a name'}: not readable as audio ({error.error_string})") from None
    samples = samples.mean(axis=1)
    if sampling_rate is not None and rate != sampling_rate:
        samples, rate = soxr.resample(samples, rate, sampling_rate), sampling_rate
    return {"path": path, "array": samples, "sampling_rate": rate}


def _as_stored(value) -> dict:
    """Returns audio in any form that `datasets` accepts as {"bytes": ..., "path": ...}."""
    if isinstance(value, (str, os.PathLike)):
        return {"bytes": None, "path": os.fspath(value)}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value), "path": None}
    if "array" in value:
        buffer = io.BytesIO()
        samples = np.asarray(value["array"], np.float32).T  # soundfile has (samples, channels)
        soundfile.write(buffer, samples, value["sampling_rate"], format="WAV", subtype="FLOAT")
        return {"bytes": buffer.getvalue(), "path": value.get("path")}
    return {"bytes": value.get("bytes"), "path": value.get("path")}


def _fingerprint(folder: Path) -> str:
    """Returns a short text that changes with the files of the model."""
    digest = hashlib.sha256()
    for pattern in MODEL_FILES:
        for path in sorted(folder.glob(pattern)):
            digest.update(path.name.encode())
            with open(path, "rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _licence(model: str) -> str | None:
    """Returns the licence of the model card, if MTEB has it in its list."""
    card = Path(model, "README.md")
    try:
        licence = ModelCard.load(card if card.parent.is_dir() else model).data.get("license")
    except (OSError, ValueError):
        return None
    return licence if licence in get_args(Licenses) else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
