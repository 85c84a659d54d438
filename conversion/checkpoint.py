"""Reads checkpoint files safely, and checks that every tensor is used exactly once."""

import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch

from hub.finite import is_finite


class ConversionError(ValueError):
    """Reports an error to the user in one line that names the file and the remedy."""


def read_checkpoint(path: Path, allowed: tuple = ()):
    """
    Loads the object in a file of `torch.save` on the CPU, without running code from the file.

    Args:
        allowed: classes and functions beside tensors and containers that the file may refer to, in the form of
            `torch.serialization.safe_globals`

    Raises:
        ConversionError: the file is missing, empty, truncated, damaged, no checkpoint, or needs more than tensors and
            containers.
    """
    if not path.exists():
        raise ConversionError(f"{path} does not exist")
    if path.is_dir():
        raise ConversionError(
            f"{path} is a folder, but a checkpoint file (.pth) is needed: a folder of Transformers' AST has the family "
            "hf-ast"
        )
    if path.stat().st_size == 0:
        raise ConversionError(f"{path} is empty: download it again")
    # Files since PyTorch 1.6 are zip archives with their directory at the end: a truncated file lacks it.
    is_zip = zipfile.is_zipfile(path)
    if not is_zip and path.open("rb").read(4) == b"PK\x03\x04":
        raise ConversionError(f"{path} is truncated: download it again")
    if is_zip and (damaged := _damaged_member(path)):
        raise ConversionError(f"{path} is damaged: the checksum of {damaged} is wrong; download it again")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")  # on the protocol of pickles that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # damaged bytes can raise any exception
        raise ConversionError(_why_unreadable(path, error)) from error


def _damaged_member(path: Path) -> str | None:
    """Returns a member of an archive that is not what its checksum says: torch.load does not look at checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.save writes zeros where a setting of PyTorch turns its checksums off.
            return archive.testzip() if any(member.CRC for member in archive.infolist()) else None
    except Exception:  # torch.load reads less of an archive, and says what it lacks
        return None


def _why_unreadable(path: Path, error: Exception) -> str:
    wanted = re.search(r"GLOBAL (\S+)", str(error))  # "Unsupported global: GLOBAL posix.system was not an allowed ..."
    if isinstance(error, pickle.UnpicklingError) and wanted:
        return (
            f"{path} is refused: beside tensors it wants {wanted.group(1)}, and loading that could run any code. "
            "If you trust it, save its state_dict() alone with torch.save and convert that file"
        )
    return f"{path} is damaged or no PyTorch checkpoint ({type(error).__name__}): download it again"


def find_state_dict(checkpoint, path: Path) -> tuple[dict, list[str]]:
    """
    Finds the state dict inside a checkpoint, without DataParallel's `module.` or a wrapping module's `model.`.

    Returns:
        name -> tensor, and the names of other entries beside the state dict

    Raises:
        ConversionError: it contains no named tensors.
    """
    beside = []
    for wrapper in ("model", "state_dict", "model_state_dict"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(wrapper), dict):
            beside += [str(key) for key in checkpoint if key != wrapper]
            checkpoint = checkpoint[wrapper]
    if not isinstance(checkpoint, dict) or not any(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        raise ConversionError(
            f"{path} holds no state dict but {_describe(checkpoint)}: save model.state_dict() with torch.save"
        )
    for prefix in ("module.", "model."):
        if all(str(key).startswith(prefix) for key in checkpoint):
            checkpoint = {key.removeprefix(prefix): value for key, value in checkpoint.items()}
    return checkpoint, beside


def _describe(value) -> str:
    if isinstance(value, dict):
        return f"a dictionary of {shorten([str(key) for key in value]) or 'nothing'}"
    return f"a {type(value).__name__}"


def _unreadable(tensor: torch.Tensor) -> str:
    """Returns why the numbers of a tensor cannot be read, to follow its name; empty if they can be."""
    if tensor.layout != torch.strided:
        return f"is stored as {tensor.layout}, expected a dense tensor"
    return "holds no values (device meta): save it with its weights loaded" if tensor.is_meta else ""


class Tensors:
    """
    Provides the tensors of a checkpoint by name. `finish` raises if one was missing, left over or of another shape, so
    that a mapping is strict in both directions.

    Args:
        state: name -> tensor
        path: the file, for messages
        kind: assumed kind of the file, for messages: "an SSAST checkpoint"
    """

    def __init__(self, state: dict, path: Path, kind: str):
        self.state = dict(state)
        self.path = path
        self.kind = kind
        self.dropped: list[tuple[str, str]] = []  # names and the reason
        self.dtypes: set[torch.dtype] = set()
        self._problems: list[str] = []
        self._missing: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.state

    def names(self, prefix: str) -> list[str]:
        return [name for name in self.state if str(name).startswith(prefix)]

    def require(self, *names: str):
        """Raises `ConversionError` unless all `names` are tensors: otherwise the file is of another kind."""
        missing = [name for name in names if not isinstance(self.state.get(name), torch.Tensor)]
        if missing:
            raise ConversionError(
                f"{self.path} is not {self.kind}: missing {', '.join(missing)}; it holds "
                f"{shorten([str(name) for name in self.state])}. Give the family that the file comes from "
                "(ssast, dual-ssast, ast, asit, hf-ast, vggish or panns-cnn14)"
            )
        for name in names:
            self._check_readable(name, self.state[name])

    def _check_readable(self, name: str, tensor: torch.Tensor):
        if problem := _unreadable(tensor):
            raise ConversionError(f"{self.path}: {name} {problem}")

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        """Returns the shape of a tensor that `require` found; raises `ConversionError` unless it has `ndim` axes."""
        shape = tuple(self.state[name].shape)
        if len(shape) != ndim:
            raise ConversionError(f"{self.path} is not {self.kind}: {name} has shape {shape}, expected {ndim} axes")
        return shape

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """Removes and returns a tensor in float32, of the given shape; returns zeros if `finish` is going to raise."""
        tensor = self.state.pop(name, None)
        if tensor is None:
            self._missing.append(name)
        elif not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            self._problems.append(f"{name} is no floating-point tensor")
        elif problem := _unreadable(tensor):
            self._problems.append(f"{name} {problem}")
        elif tuple(tensor.shape) != shape:
            self._problems.append(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        elif not is_finite(single := tensor.detach().float()):  # large numbers of float64 are infinite in float32
            self._problems.append(f"{name} holds NaN or infinite values, or some beyond float32")
        else:
            self.dtypes.add(tensor.dtype)
            return single
        return torch.zeros(shape)

    def take_integer(self, name: str) -> int:
        """Removes and returns a whole number from 0, a tensor or not; 128.0 of a half-precision file is accepted."""
        value = self.state.pop(name)
        if isinstance(value, torch.Tensor):
            self._check_readable(name, value)
            if value.numel() != 1:
                raise ConversionError(f"{self.path}: {name} has shape {tuple(value.shape)}, expected one number")
            value = value.item()
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ConversionError(f"{self.path}: {name} is {_describe(value)}, expected a whole number")
        if value % 1 != 0 or not 0 <= value < 2**63:  # the rest is NaN for NaN and infinity
            raise ConversionError(f"{self.path}: {name} is {value}, expected a whole number from 0 to 2**63 - 1")
        return int(value)

    def drop(self, names: list[str], reason: str):
        """Removes tensors that are not converted, and notes the reason."""
        names = [name for name in names if self.state.pop(name, None) is not None]
        if names:
            self.dropped.append((", ".join(names), reason))

    def finish(self):
        """
        Checks that every tensor was used.

        Raises:
            ConversionError: tensors were missing, unknown or not as expected; the message names all.
        """
        problems = [f"missing {', '.join(self._missing)}"] if self._missing else []
        problems += self._problems
        if self.state:
            problems.append(f"unknown {', '.join(str(name) for name in self.state)}")
        if problems:
            raise ConversionError(
                f"{self.path} does not fit {self.kind}: {'; '.join(problems)}. Nothing is left out in silence: use an "
                "unchanged file, or remove what does not belong to the model"
            )


def shorten(names: list[str], count: int = 4) -> str:
    return ", ".join(names[:count]) + (f", ... ({len(names)} in all)" if len(names) > count else "")


def numbered_blocks(tensors: Tensors, pattern: str) -> int:
    """
    Returns the number of blocks: one more than the highest N of names like `v.blocks.N.`; `finish` finds gaps. Raises
    `ConversionError` if the file holds fewer tensors: nobody could wait for so many gaps, or hold their zeros.
    """
    found = {int(found[1][:18]): name for name in tensors.state if (found := re.match(pattern, str(name)))}
    if max(found) >= len(tensors.state):
        raise ConversionError(
            f"{tensors.path} is not {tensors.kind}: it holds {found[max(found)][:80]}, but only {len(tensors.state)} "
            "tensors"
        )
    return 1 + max(found)


def open_checkpoint(path: Path, kind: str, allowed: tuple = ()) -> Tensors:
    """
    Opens a .pth file; entries beside its state dict are listed as dropped.

    Args:
        allowed: as for `read_checkpoint`
    """
    state, beside = find_state_dict(read_checkpoint(path, allowed), path)
    tensors = Tensors(state, path, kind)
    if beside:
        tensors.dropped.append((", ".join(beside), "stored beside the weights"))
    return tensors
