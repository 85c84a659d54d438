"""Tests that runs of predict_hf.py and embed_hf.py survive SIGKILL at any moment, and that memory does not grow."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from audio_files import ROOT, run_program, tone
from tiny_models import save_tiny_classifier

from training.data.audio import read_audio

KILLS = 50
NUM_CLIPS = 500
LAUNCH = ("-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no")
LAUNCH += ("--dynamo_backend", "no", "--cpu", "--num_processes", "2")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_classifier(tmp_path_factory.mktemp("model"), initializer_range=0.3)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Short clips, unreadable ones, and two whose parts alone take a while."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for index in range(NUM_CLIPS):
        seconds = 700 if index in (7, 460) else rng.uniform(0.05, 3)
        if index % 97 == 5:
            (folder / f"{index:03}.wav").write_bytes(b"RIFFrubbish")
        else:
            soundfile.write(folder / f"{index:03}.wav", tone(seconds, seed=index), 16000)
    return folder


PROGRAMS = {
    "predict_hf.py": ("scores.csv", "--windows", "windows.parquet"),
    "embed_hf.py": ("frames.parquet", "--level", "frames"),
}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_fifty_kills_change_nothing(model_folder, clips, tmp_path, program):
    """Two processes, killed together at any moment; the tables are those of one undisturbed process, byte by byte."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONPATH": str(ROOT)}

    def words(folder) -> list[str]:
        folder.mkdir(exist_ok=True)
        output, *others = PROGRAMS[program]
        others = [folder / word if "." in word else word for word in others]
        found = [ROOT / program, model_folder, clips, "--output", folder / output, *others, "--shard_clips", "5"]
        return list(map(str, [*found, "--hop_s", "0.05"] if program == "predict_hf.py" else found))

    whole, killed, rng = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    undisturbed = run_program(*words(whole), timeout=900)
    assert undisturbed.returncode == int(program == "predict_hf.py"), undisturbed.stderr[-2000:]
    store = killed / f"{PROGRAMS[program][0]}.shards"
    kills, killed_with, log = 0, set(), tmp_path / "log.txt"
    command = [sys.executable, *LAUNCH, *words(killed)]
    for _ in range(KILLS):
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=tmp_path, env=environment, start_new_session=True, stdout=file, stderr=file
            )
        deadline = time.monotonic() + 240
        before = set(store.iterdir()) if store.exists() else set()
        # Progress first, or the run would never end; a run that has no shards left is killed while it writes.
        while process.poll() is None and time.monotonic() < deadline and set_of(store) <= before:
            time.sleep(0.001)
        time.sleep(rng.choice([0, rng.uniform(0, 0.05), rng.uniform(0, 0.5)]))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        killed_with.add(len(set_of(store)))
        assert not (killed / PROGRAMS[program][0]).exists() or (killed / PROGRAMS[program][0]).stat().st_size
    last = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert "goes on: " in last.stderr or (kills < KILLS and not store.exists()), last.stderr[-2000:]
    assert kills == KILLS and len(killed_with) > KILLS // 2, (kills, killed_with, log.read_text()[-2000:])
    for path in whole.iterdir():
        assert (killed / path.name).read_bytes() == path.read_bytes(), path.name
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())


def set_of(folder) -> set:
    try:
        return {path for path in folder.iterdir() if ".unfinished" not in path.name}
    except FileNotFoundError:
        return set()


MEMORY = """
import resource, sys
import predict_hf, embed_hf
program = {"predict": predict_hf, "embed": embed_hf}[sys.argv[1]]
assert program.main(sys.argv[2:]) == 0
print("peak:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", ["predict", "embed", "frames"])
def test_memory_does_not_depend_on_the_length(tmp_path, program):
    """A minute, an hour and ten hours of embedded recordings, looped: within 100 MB."""
    model_folder = save_tiny_classifier(tmp_path / "model", max_length=1024)
    loop = np.concatenate([read_audio(str(file), 8000) for file in sorted((ROOT / "data").rglob("*.flac"))[:40]])
    peaks = {}
    for hours in (1 / 60, 1, 10):
        path, samples = tmp_path / f"{hours:.3f}.wav", round(hours * 3600 * 8000)
        with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16") as file:
            for first in range(0, samples, len(loop)):
                file.write(loop[: samples - first])
        words = ["--output", tmp_path / "out.parquet", "--overwrite", *(["--level", "frames"] * (program == "frames"))]
        words += ["--windows", tmp_path / "windows.csv"] if program == "predict" else []
        name = "predict" if program == "predict" else "embed"
        process = run_program("-c", MEMORY, name, model_folder, path, *words, timeout=1800)
        assert process.returncode == 0, process.stderr[-2000:]
        peaks[hours] = int(process.stdout.rsplit("peak: ", 1)[1])
        path.unlink()
    print(peaks)
    assert max(peaks.values()) - min(peaks.values()) < 100, peaks
