"""Writes small audio files for the tests, and runs the programs of the repository in fresh processes."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).parents[2]


def tone(seconds: float = 0.5, rate: int = 16000, hz: float = 440.0, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Returns a tone in a little noise: float32 (samples, channels), or (samples,) for one channel."""
    time_s = np.arange(max(1, round(seconds * rate))) / rate
    noise = np.random.default_rng(seed).standard_normal((len(time_s), channels))
    samples = (0.3 * np.sin(2 * np.pi * hz * time_s)[:, None] + 0.01 * noise).astype(np.float32)
    return samples[:, 0] if channels == 1 else samples


def write_tone(path: Path, subtype: str | None = None, **kwargs) -> Path:
    """Writes a tone in the format of the path's extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(**kwargs), kwargs.get("rate", 16000), subtype=subtype)
    return path


def write_tones(folder: Path, lengths_s: Iterable[float]) -> Path:
    """Writes 0.wav, 1.wav and so on, tones of these lengths in seconds, each at its own pitch."""
    for index, seconds in enumerate(lengths_s):
        write_tone(folder / f"{index}.wav", seconds=seconds, hz=150 * (index + 1), seed=index)
    return folder


def write_class_folders(
    folder: Path, clips_per_class: int = 8, classes: tuple[str, ...] = ("high", "low"), seconds: float = 0.2
) -> Path:
    """Writes a folder per class with short tones, each class at its own pitch."""
    for index, name in enumerate(classes):
        for clip in range(clips_per_class):
            hz = 300.0 * 3**index + 10 * clip
            write_tone(folder / name / f"{name}_{clip}.wav", seconds=seconds + 0.05 * (clip % 4), hz=hz, seed=clip)
    return folder


def num_left_out(listing) -> int:
    """Returns the number of files that a `Listing` leaves out: those below each folder too, but for a link to one."""

    def count(path: Path) -> int:
        if not os.path.isdir(path):
            return 1
        return 0 if path.is_symlink() else sum(len(files) for _, _, files in os.walk(path))

    return sum(map(count, listing.left_out))


def run_program(*words, cwd: Path = ROOT, timeout: int = 300, threads: int = 1) -> subprocess.CompletedProcess:
    """Runs a program of the repository in a fresh, offline process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment["OMP_NUM_THREADS"] = str(threads)
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )


def kill_after(checkpoint: Path, *words):
    """Runs train_hf.py into the checkpoint's folder, and kills it with its workers once the checkpoint is there."""
    command = [sys.executable, "train_hf.py", *map(str, words), "--output_dir", str(checkpoint.parent)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists() and not (checkpoint.parent / "results.json").exists()


def free_port() -> int:
    """Returns a port of this machine that nothing listens at."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def launch(num_processes: int, *words, timeout: int = 300) -> subprocess.CompletedProcess:
    """Runs a program of the repository by `accelerate launch`, at a free port: tests run side by side."""
    kind = ["--multi_gpu"] if num_processes > 1 else []
    settings = ["--num_processes", num_processes, "--num_machines", 1, "--main_process_port", 0]
    settings += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return run_program("-m", "accelerate.commands.launch", *kind, *settings, *words, timeout=timeout)


def new_imports(program: str, *words) -> set[str]:
    """
    Returns the top-level packages that `program.main(words)` imports in a fresh process, without those that
    Transformers' AST with its pipeline imports.
    """
    script = f"""
import sys
from transformers import ASTFeatureExtractor, ASTForAudioClassification, AudioClassificationPipeline
before = set(sys.modules)
import {program}
assert {program}.main(sys.argv[1:]) == 0
print("imported:", *{{name.partition(".")[0] for name in set(sys.modules) - before}})
"""
    process = run_program("-c", script, *words)
    assert process.returncode == 0, process.stderr[-2000:]
    return set(process.stdout.splitlines()[-1].split()[1:])


def error_line(process: subprocess.CompletedProcess) -> str:
    """Returns the one line with which a program stopped; fails on a traceback or on success."""
    assert process.returncode == 1, process.stderr[-2000:]
    assert "Traceback" not in process.stderr, process.stderr[-2000:]
    lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, process.stderr[-2000:]
    return lines[0]


def encoded(samples: np.ndarray, rate: int, format: str, subtype: str | None = None, **options) -> bytes:
    """Returns a file of libsndfile as bytes. options: bitrate_mode and compression_level"""
    buffer = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(buffer, "w", rate, channels, format=format, subtype=subtype, **options) as file:
        file.write(samples)
    return buffer.getvalue()


def patched(content: bytes, place: int, value: bytes) -> bytes:
    """Returns bytes with others at a place."""
    return content[:place] + value + content[place + len(value) :]
