"""
Stores decoded clips on a disk, so that a training decodes and resamples each of them once and not in every epoch.

A folder holds pairs of files: `NAME.f32`, the float32 samples of clips one after the other at the model's rate, and
`NAME.npz`, which clips these are and where each one ends. A clip is found by a key of all that its samples depend on,
in whichever pair it is: folds of the same clips share them, and a changed file is another clip.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import filelock
import numpy as np
import soundfile
import soxr

from ..errors import InputError, one_line
from ..files import UNFINISHED, complete_file
from .audio import AudioSource, audio_name, num_samples, read_audio
from .columns import audio_of
from .screening import each_clip

FORMAT = 1  # of the files
SAMPLES, INDEX, LOCK = ".f32", ".npz", ".lock"
ITEM = np.dtype("<f4")
MB, GB = 1e6, 1e9
REMEDY = "free some space, name another folder as decoded_cache, or leave it out"


class DecodedClips:
    """
    Gives the decoded clips of a split, mapped into memory: only what is used of a clip is read.

    Args:
        paths: files of samples
        places: (clips, 3): number of the file, first sample of the clip in it, and the one after its last; the file of
            a clip that is not stored is -1
    """

    def __init__(self, paths: Sequence[Path], places: np.ndarray):
        self.paths, self.places = list(paths), places
        self._open()

    def _open(self):
        self._files = [np.memmap(path, dtype=ITEM, mode="r") for path in self.paths]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> np.ndarray | None:
        """Returns a clip (samples,), which cannot be written to; `None`: it is not stored."""
        file, start, stop = map(int, self.places[index])
        return None if file < 0 else np.asarray(self._files[file][start:stop])

    def __getstate__(self) -> dict:
        """Leaves out the mapped files, which would be copied to each worker of a data loader that does not fork."""
        return {"paths": self.paths, "places": self.places}

    def __setstate__(self, state: dict):
        self.__dict__.update(state)
        self._open()


class DecodedCache:
    """
    Finds decoded clips in a folder, and adds those that it lacks.

    Processes may share the folder: one decodes, the others wait and find what it has stored. Files are written whole or
    not at all.

    Args:
        folder: is made where it is missing
        sampling_rate: Hz, to which clips are resampled
        reports: print what is found and stored
    """

    def __init__(self, folder: str | Path, sampling_rate: int, reports: bool = True):
        self.folder, self.sampling_rate, self.reports = Path(folder), sampling_rate, reports
        self.versions = [soundfile.__libsndfile_version__, soxr.__version__, np.__version__, _pyav_version()]

    def open(self, split: str, clips: datasets.Dataset) -> DecodedClips:
        """
        Returns the decoded clips of a split, after storing those that are missing. Recordings with an address are
        decoded at each use: whether they have changed is unknown.

        Args:
            clips: with the columns `audio`, and possibly `start` and `end`

        Raises:
            InputError: an unreadable clip, a folder that cannot be written to, a full disk, or damaged files.
        """
        keys = np.array([self.key(audio_of(clip)) for clip in clips], dtype="S32")
        found, paths = self._find(keys)
        missing = _missing(keys, found)
        if len(missing):
            with self._alone(split):
                found, paths = self._find(keys)
                missing = _missing(keys, found)
                if len(missing):
                    self._add(split, clips, keys, missing)
                    found, paths = self._find(keys)
        self._report(split, found, len(missing))
        return DecodedClips(paths, found)

    def key(self, source: AudioSource) -> str:
        """
        Returns a text that changes with all that the samples of a clip depend on, the decoders included; empty for a
        recording with an address. A file counts as changed when its size, or the time at which the system last wrote
        anything about it, has changed.

        Raises:
            InputError: the file is missing.
        """
        source = {"path": source} if isinstance(source, str) else source
        if source.get("bytes") is not None:
            content = hashlib.sha256(source["bytes"]).hexdigest()
        elif "://" in (source.get("path") or ""):
            return ""
        else:
            path = os.path.abspath(source.get("path") or "")
            try:
                facts = os.stat(path)
            except (OSError, ValueError) as error:
                raise InputError(f"{audio_name(source)}: cannot be opened ({one_line(error)})") from None
            # The time of the last change of the file's entry cannot be set back, as that of its content can.
            content = [path, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
        parts = [FORMAT, self.versions, self.sampling_rate, content, source.get("start"), source.get("end")]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def _find(self, keys: np.ndarray) -> tuple[np.ndarray, list[Path]]:
        """Returns `places` and `paths` of `DecodedClips`."""
        places, paths = np.full((len(keys), 3), -1, dtype=np.int64), []
        for index in sorted(self.folder.glob(f"[!.]*{INDEX}")):
            stored, ends = _read_index(index)
            order = np.argsort(stored)
            rows = np.searchsorted(stored, keys, sorter=order)
            rows = order[np.minimum(rows, len(stored) - 1)]
            is_found = (stored[rows] == keys) & (places[:, 0] < 0)
            if not is_found.any():
                continue
            path = index.with_suffix(SAMPLES)
            if not path.is_file() or path.stat().st_size != int(ends[-1]) * ITEM.itemsize:
                raise InputError(f"{index}: its samples {path.name} are missing or cut off; remove both files")
            rows = rows[is_found]
            starts = np.concatenate([[0], ends[:-1]])[rows]
            places[is_found] = np.stack([np.full(len(rows), len(paths)), starts, ends[rows]], axis=1)
            paths.append(path)
        return places, paths

    def _add(self, split: str, clips: datasets.Dataset, keys: np.ndarray, missing: np.ndarray):
        """Decodes clips and writes them as a pair of files, the index last: it says that the samples are complete."""
        with self._blames_disk(split):
            for path in self.folder.glob(f".*{UNFINISHED}.*"):  # of a process that was killed
                path.unlink(missing_ok=True)
            free = shutil.disk_usage(self.folder).free
        clips, rate = clips.select(missing), self.sampling_rate
        lengths = each_clip(clips, lambda source: num_samples(source, rate), f"measuring {split} clips")
        wanted = ITEM.itemsize * sum(lengths)
        if wanted > free:
            raise InputError(
                f"{self.folder}: the decoded {split} clips take {_size(wanted)}, and {_size(free)} are free; {REMEDY}"
            )
        if self.reports:
            print(f"decoding {len(missing)} {split} clips to {self.folder}, {_size(wanted)}", flush=True)
        stem = f"{split}-{hashlib.sha256(b''.join(keys[missing])).hexdigest()[:12]}"
        path, ends = self.folder / f"{stem}{SAMPLES}", []
        decoded = each_clip(clips, lambda source: read_audio(source, rate), f"decoding {split} clips")
        with (
            self._blames_disk(split),
            complete_file(path) as unfinished,
            open(unfinished, "wb") as file,
            contextlib.closing(decoded),  # ends its threads when a write fails
        ):
            for samples in decoded:
                file.write(samples.astype(ITEM, copy=False).data)
                ends.append(len(samples))
        with self._blames_disk(split), complete_file(path.with_suffix(INDEX)) as unfinished:
            np.savez(unfinished, keys=keys[missing], ends=np.cumsum(ends, dtype=np.int64))

    @contextlib.contextmanager
    def _alone(self, split: str) -> Iterator[None]:
        """Waits until no other process adds clips. The system frees the lock of a process that was killed."""
        with self._blames_disk(split):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.folder / LOCK)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                if self.reports:
                    print(f"waiting for another process that decodes to {self.folder}", flush=True)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _blames_disk(self, split: str) -> Iterator[None]:
        """Turns a fault of the disk into a message."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise InputError(f"{self.folder}: cannot store the decoded {split} clips ({reason}); {REMEDY}") from error

    def _report(self, split: str, found: np.ndarray, num_new: int):
        if not self.reports:
            return
        size = ITEM.itemsize * int((found[:, 2] - found[:, 1]).sum())
        others = int((found[:, 0] < 0).sum())
        remark = f"; {others} with an address are decoded at each use" if others else ""
        print(
            f"decoded {split} clips: {len(found) - others} in {self.folder}, {_size(size)}, {num_new} new{remark}",
            flush=True,
        )


def _missing(keys: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Returns the rows of clips to decode, one of each key."""
    rows = np.flatnonzero((found[:, 0] < 0) & (keys != b""))
    return np.sort(rows[np.unique(keys[rows], return_index=True)[1]])


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the keys of the clips of a pair of files, and the end of each in its samples."""
    try:
        with np.load(path, allow_pickle=False) as index:
            keys, ends = index["keys"], index["ends"]
        if keys.dtype != "S32" or ends.dtype != np.int64 or keys.shape != ends.shape or not len(keys):
            raise ValueError("other arrays than those of decoded clips")
    except Exception as error:  # the reader of zip files has errors of many classes
        raise InputError(
            f"{path}: does not list decoded clips ({one_line(error)}); remove it, or name another folder as "
            "decoded_cache"
        ) from None
    return keys, ends


def _pyav_version() -> str | None:
    """Returns the version of PyAV, which decodes what libsndfile cannot; `None`: it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("av")
    return None


def _size(num_bytes: float) -> str:
    """Returns a number of bytes in words."""
    return f"{num_bytes / GB:.3g} GB" if num_bytes >= GB else f"{num_bytes / MB:.3g} MB"
