"""Tests that runs of predict_hf.py and embed_hf.py survive SIGKILL at any moment, and that memory does not grow."""

import json

import numpy as np
import pytest
import soundfile
from audio_files import ROOT, run_program, tone
from tiny_models import save_tiny_classifier

from training.data.audio import read_audio

KILLS, NUM_CLIPS = 50, 500
# Forks two processes at a time, as a launch on one machine starts them, and kills both: importing 50 times would take
# most of an hour. What a process does after its imports is what the program does.
HARNESS = """
import json, os, random, signal, socket, sys, time
import accelerate, accelerate.utils, pyarrow.parquet, torch
import embed_hf, predict_hf
program = {"predict": predict_hf, "embed": embed_hf}[sys.argv[1]]
kills, num_shards, whole, killed = json.loads(sys.argv[2])
torch.set_num_threads(1)

def start(folder, count):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    processes = []
    for index in range(count):
        process = os.fork()
        if process:
            processes.append(process)
            continue
        os.environ.update(WORLD_SIZE=str(count), RANK=str(index), LOCAL_RANK=str(index), MASTER_ADDR="127.0.0.1")
        os.environ.update(MASTER_PORT=str(port), LOCAL_WORLD_SIZE=str(count), ACCELERATE_USE_CPU="1")
        if count == 1:
            del os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]
        status = program.main([word.replace("FOLDER", folder) for word in sys.argv[4:]])
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    return processes

def stored():
    try:
        return {name for name in os.listdir(sys.argv[3].replace("FOLDER", killed)) if name.startswith("shard-")}
    except FileNotFoundError:
        return set()

def ended(process):
    return os.waitpid(process, os.WNOHANG)[0] != 0

assert os.waitstatus_to_exitcode(os.waitpid(start(whole, 1)[0], 0)[1]) in (0, 1)
rng, places = random.Random(0), []
while len(places) < kills:
    before, late = stored(), rng.random() < 0.1  # some kills are to meet the writing of the tables
    processes, finished = start(killed, 2), False
    while not finished and (len(stored()) < num_shards if late else stored() <= before and len(before) < num_shards):
        finished = ended(processes[0])
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.5 if len(before) >= num_shards else 0.1))
    if not finished:
        places.append(len(stored()))
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
for process in start(killed, 2):
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) in (0, 1)
print("places:", json.dumps(places))
"""
PROGRAMS = {
    "predict": ["scores.csv", "--windows", "FOLDER/windows.parquet", "--hop_s", "0.2", "--overwrite", "false"],
    "embed": ["frames.parquet", "--level", "frames"],
}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_fifty_kills_change_nothing(tmp_path, program):
    """Two processes, killed together at any moment; the tables are those of one undisturbed process, byte by byte."""
    model_folder, rng = save_tiny_classifier(tmp_path / "model", initializer_range=0.3), np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    for index in range(NUM_CLIPS):
        seconds = 700 if index in (7, 460) else rng.uniform(0.05, 3)  # two have several parts
        path = tmp_path / "clips" / f"{index:03}.wav"
        if index % 97 == 5:
            path.write_bytes(b"RIFFrubbish")
        else:
            soundfile.write(path, tone(seconds, seed=index), 16000)
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    output, *others = PROGRAMS[program]
    words = [model_folder, tmp_path / "clips", "--output", f"FOLDER/{output}", "--shard_clips", 1, *others]
    plan = [KILLS, NUM_CLIPS + 10, *map(str, folders)]  # 700 s are six parts
    command = ("-c", HARNESS, program, json.dumps(plan), f"FOLDER/{output}.shards", *words)
    process = run_program(*command, timeout=3000)
    assert process.returncode == 0, process.stderr[-3000:]
    places = json.loads(process.stdout.rsplit("places: ", 1)[1])
    assert len(places) == KILLS and len(set(places)) > KILLS // 4, places
    assert "goes on: " in process.stderr
    whole, killed = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    killed = {name: content for name, content in killed.items() if ".unfinished" not in name}
    assert killed == whole


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
