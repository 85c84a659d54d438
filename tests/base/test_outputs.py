"""Tests that nothing is lost in the last step: places to write to, closed pipes, narrow consoles, full disks."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from audio_files import ROOT, error_line, run_program, write_class_folders, write_tone
from safetensors import SafetensorError
from tiny_models import save_tiny_classifier

import conversion.__main__ as conversion
import embed_hf
import predict_hf
import train_hf
from training import check, explain
from training.base.arguments import TrainingArguments
from training.base.outputs import best_step, check_free, dispensable, earlier_results, kept_epoch, written_alone
from training.compare.runs import read_runs
from training.console import ArgumentParser, LastingStream, lasting_streams
from training.console import run_program as run_here
from training.embeddings.arguments import SweepArguments
from training.errors import InputError
from training.export import __main__ as export
from training.files import check_writable, complete_file, read_json, write_json
from training.prepare import __main__ as prepare
from training.tasks import Task

# ---- places to write to ----


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a file, a folder, a pipe, and links; one folder refuses every file."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "target")
    touch = Path.touch

    def refuse(path, *arguments, **settings):  # root may write everywhere
        if path.parent == tmp_path / "full":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        touch(path, *arguments, **settings)

    monkeypatch.setattr(Path, "touch", refuse)
    return tmp_path


FREE = ("new", "file", "folder/new", "x" * 255, "\u65e5" * 85, "a.b c", "link", "caf\udce9")
REFUSED = {
    "folder": "is a folder; name a file in it",
    "nowhere/new": "nowhere does not exist; make it or name another file",
    "dangling": "nowhere does not exist; make it or name another file",
    "file/new": "file is not a folder; name another file",
    "file/no/new": "file/no does not exist",
    "x" * 256: "cannot be written (File name too long); name another file",
    "\u65e5" * 86: "cannot be written (File name too long)",
    "full/new": "cannot be written (Read-only file system)",
    "nul\0nul": "cannot be written (embedded null byte)",
    "pipe": "is a device or a pipe",
}
FREE_FOLDERS = ("folder", "new", "nowhere/new/newer", "x" * 255, "link")
REFUSED_FOLDERS = {
    "file": "file is not a folder; name another folder",
    "file/new": "is not a folder",
    "pipe": "is not a folder",
    "x" * 256: "File name too long",
    f"nowhere/{'x' * 256}/new": "File name too long",
    "full": "Read-only file system",
    "full/a/b": "Read-only file system",
    "nul\0nul": "embedded null byte",
}


@pytest.mark.parametrize(
    ("name", "is_folder"), [*((name, False) for name in FREE), *((name, True) for name in FREE_FOLDERS)]
)
def test_free_places_stay_as_they_are(place, name, is_folder):
    before = sorted(place.rglob("*"))
    check_writable(place / name, is_folder)
    assert sorted(place.rglob("*")) == before and (place / "file").read_text() == "old"
    if not is_folder:
        write_json(place / name, 1)  # what was promised
        assert json.loads((place / name).read_text()) == 1


@pytest.mark.parametrize(
    ("name", "is_folder", "message"),
    [(n, False, m) for n, m in REFUSED.items()] + [(n, True, m) for n, m in REFUSED_FOLDERS.items()],
)
def test_other_places_are_refused_in_one_line(place, name, is_folder, message):
    before = sorted(place.rglob("*"))
    with pytest.raises(InputError) as error:
        check_writable(place / name, is_folder)
    assert message in str(error.value) and str(error.value).startswith(f"{place / name}: ")
    assert sorted(place.rglob("*")) == before


def test_devices_are_not_replaced():
    with pytest.raises(InputError, match="is a device"):
        check_writable(Path(os.devnull))


def test_what_a_link_leads_to_is_replaced(place):
    with complete_file(place / "link") as unfinished:
        unfinished.write_text("new")
    assert (place / "link").is_symlink() and (place / "folder" / "target").read_text() == "new"


def test_a_file_of_brackets_is_a_damaged_one(tmp_path):
    """JSON's reader gives up on deep nesting with an error of its own kind."""
    path = tmp_path / "results.json"
    path.write_text("[" * 200_000)
    with pytest.raises(InputError, match="results.json: is damaged .*; make it again"):
        read_json(path, "make it again")
    with pytest.raises(InputError, match="results.json: is no record of a run"):
        read_runs(tmp_path, "run")
    assert earlier_results(tmp_path) == {}


def test_a_folder_with_a_checkpoint_is_not_free(tmp_path):
    check_free(tmp_path, "sweep", overwrite=False)
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(InputError, match="holds a sweep already; add --overwrite true"):
        check_free(tmp_path, "sweep", overwrite=False)
    check_free(tmp_path, "sweep", overwrite=True)


HOLDER = """
import sys
from types import SimpleNamespace
from training.base import outputs
with outputs.written_alone([SimpleNamespace(), SimpleNamespace(output_dir=sys.argv[1])]):
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_two_tasks_do_not_share_a_folder(tmp_path):
    """The system frees the lock of a process that is killed, so that its run can be resumed at once."""
    run = tmp_path / "run"
    parts = [TrainingArguments(output_dir=str(run), use_cpu=True)]
    command = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        try:
            assert other.stdout.readline() == "holds\n"
            with (
                pytest.raises(InputError, match="run: is being written by another process; choose another output_dir"),
                written_alone(parts),
            ):
                pass
            parts[0].output_dir = str(tmp_path / "other" / "run")
            with written_alone(parts):
                pass
            assert not (tmp_path / "other").exists()  # nothing was written
        finally:
            other.kill()
    parts[0].output_dir = str(run)
    with written_alone(parts):
        (run / "results.json").touch()
    assert os.listdir(run) == ["results.json"]


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("classification.train", partial(TrainingArguments, use_cpu=True)),
        ("embeddings.sweep", SweepArguments),
    ],
    ids=["training", "sweep"],
)
def test_a_task_holds_its_folder(tmp_path, monkeypatch, module, make):
    seen = []
    monkeypatch.setattr(f"training.{module}.run", lambda part: seen.extend(os.listdir(part.output_dir)))
    Task(module, ()).run(make(output_dir=str(tmp_path / "run")))
    assert seen == [".lock"]


def test_the_kept_weights_are_those_of_the_best_checkpoint():
    """An evaluation between two checkpoints can be better than both."""
    state = SimpleNamespace(
        best_model_checkpoint="run/checkpoint-2",
        best_global_step=3,
        log_history=[{"step": 2, "epoch": 0.5}, {"step": 3, "epoch": 0.75}],
    )
    trainer = SimpleNamespace(state=state, args=SimpleNamespace(load_best_model_at_end=True))
    assert best_step(state) == 2 and kept_epoch(trainer) == 0.5


PROGRAMS = {
    "predict": lambda place: predict_hf.main(["nobody/model", "nowhere.wav", "--output", place("x.csv")]),
    "windows": lambda place: predict_hf.main(["nobody/model", "nowhere.wav", "--windows", place("x.csv")]),
    "embed": lambda place: embed_hf.main(["nobody/model", "nowhere.wav", "--output", place("x.npz")]),
    "explain": lambda place: explain.main(["nobody/model", "nowhere.wav", "--output", place("x.png")]),
    "check": lambda place: check.main(["nowhere", "--output", place("x.json")]),
    "export": lambda place: export.main(["nobody/model", place("x"), "--format", "safetensors-fp16"]),
    "conversion": lambda place: conversion.main(["ssast", "nowhere.pth", place("x")]),
    "export-ssast": lambda place: conversion.main(["export-ssast", "nobody/model", place("x/x.pth")]),
    "prepare": lambda place: prepare_program(["esc50", "--from", "nowhere", "--output", place("x")]),
    **{
        task: lambda place, task=task: train_hf.main([recipe(task), "--output_dir", place("x")])
        for task in ("classification", "cross_validation", "evaluation", "mspm", "asit", "probe", "sweep")
    },
}


def prepare_program(words: list[str]) -> int:
    return run_here(prepare.program, words)


def recipe(task: str) -> str:
    sources = {"train_sources": ["nowhere"]} if task in ("mspm", "asit") else {"dataset_name": "nowhere"}
    model = {} if task in ("mspm", "asit", "classification", "cross_validation") else {"model_name_or_path": "nobody/m"}
    Path("recipe.json").write_text(json.dumps({"task": task, **sources, **model}))
    return "recipe.json"


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_tries_its_output_before_its_work(program, tmp_path, monkeypatch, capsys):
    """Neither the model nor the data exists: the output is what they complain of, since it comes first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert PROGRAMS[program](lambda name: f"file/{name}") == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ") and "file is not a folder" in error[-1], error
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "recipe.json") == ["file"]


def test_a_picture_that_fails_costs_no_run(caplog):
    import transformers

    transformers.utils.logging.enable_propagation()
    with dispensable("confusion_matrix.png"):
        raise MemoryError("too\nlarge")
    transformers.utils.logging.disable_propagation()
    assert "confusion_matrix.png is left out (MemoryError: too large); the model and" in caplog.text


# ---- consoles and pipes ----


@pytest.mark.parametrize("option", ["--batch-size", "--batch_size"])
@pytest.mark.parametrize("written", ["--batch-size", "--batch_size"])
def test_an_option_is_the_same_with_either_sign(written, option):
    parser = ArgumentParser()
    command = parser.add_subparsers().add_parser("run")
    command.add_argument(written, type=int, required=True)
    assert parser.parse_args(["run", option, "3"]).batch_size == 3
    with pytest.raises(SystemExit):
        parser.parse_args(["run", "--batch", "3"])


PRINT = """
import sys
from training.console import run_program
from training.errors import InputError

def program(argv):
    for _ in range(1000):
        print(argv[0], "caf\\udce9", "\\u65e5\\u672c", flush=True)
        print("to stderr", "\\u65e5\\u672c", file=sys.stderr)
    open(argv[0], "w").write("the work is done")
    if argv[1:]:
        raise InputError("caf\\udce9 is\\nbad")

sys.exit(run_program(program, sys.argv[1:]))
"""


def run(tmp_path, words=("done",), before="", **environment):
    """Runs a program that prints a thousand lines, with redirections of a shell."""
    command = f'{before} "$@"' if before.startswith("exec") else f'"$@" {before}'
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}", "bash", sys.executable, "-c", PRINT, *words],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("redirection", "status"),
    [
        ("", 0),
        ("| head -1", 141),
        ("2>&1 >/dev/null | head -1", 0),
        (">&-", 0),
        ("2>&-", 0),
        (">&- 2>&- <&-", 0),
        (">/dev/full", 1),
        ("2>/dev/full", 0),
    ],
)
def test_the_work_is_done_whoever_listens(tmp_path, redirection, status):
    process = run(tmp_path, before=redirection)
    assert (tmp_path / "done").read_text() == "the work is done"
    assert process.returncode == status
    error = process.stderr.decode()
    assert "Traceback" not in error and "Exception ignored" not in error
    assert ("error: standard output: No space left on device; free some space" in error) == (
        redirection == ">/dev/full"
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "shift_jis"])
def test_a_narrow_console_shows_escapes(tmp_path, encoding):
    process = run(tmp_path, ("done", "fail"), PYTHONIOENCODING=encoding)
    assert process.returncode == 1 and (tmp_path / "done").exists()
    lines, errors = process.stdout.decode(encoding).splitlines(), process.stderr.decode(encoding).splitlines()
    japanese = "\u65e5\u672c" if encoding in ("utf-8", "shift_jis") else "\\u65e5\\u672c"
    assert lines == [f"done caf\\udce9 {japanese}"] * 1000
    assert errors[-1] == "error: caf\\udce9 is bad"


def test_streams_are_given_back(capsys):
    original = sys.stdout, sys.stderr
    with lasting_streams() as output:
        assert sys.stdout is output and isinstance(sys.stderr, LastingStream)
        print("one", file=sys.stderr)
        assert output.isatty() is False and output.encoding
    assert (sys.stdout, sys.stderr) == original and capsys.readouterr().err == "one\n"


def test_a_full_disk_is_one_line(capsys):
    def program(argv):
        raise OSError(errno.ENOSPC, "No space left on device", "scores.csv")

    assert run_here(program, []) == 1
    assert capsys.readouterr().err.startswith("error: scores.csv: No space left on device; free some space")
    with pytest.raises(OSError, match="odd"):  # not the disk's fault
        run_here(lambda argv: (_ for _ in ()).throw(OSError(errno.ENOTTY, "odd")), [])


@pytest.mark.parametrize("size", [9, 10**6])
def test_a_full_disk_is_one_line_while_torch_saves(capsys, size):
    """As the state of an optimizer in a checkpoint."""
    assert run_here(lambda argv: torch.save({"x": torch.zeros(size)}, "/dev/full"), []) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the disk took only a part of a file of torch") and error.count("\n") == 1
    with pytest.raises(RuntimeError, match="cannot be multiplied|size mismatch"):
        run_here(lambda argv: torch.zeros(2, 3) @ torch.zeros(2, 3), [])


def test_a_full_disk_is_named_by_what_was_written(tmp_path, capsys):
    """The message named the file that a copy had read, or none."""
    output, full = tmp_path / "x.csv", (errno.ENOSPC, "No space left on device")

    def copy(argv):
        raise OSError(*full, "read.py", None, "written.py")  # as shutil.copy does

    def write(argv):
        with complete_file(output):
            raise OSError(*full, *argv)

    for program, argv, name in ((copy, [], "written.py"), (write, [], output), (write, ["other.csv"], "other.csv")):
        assert run_here(program, argv) == 1
        assert capsys.readouterr().err.startswith(f"error: {name}: No space left on device; free some space")
    with pytest.raises(SafetensorError, match="header"):
        run_here(lambda argv: (_ for _ in ()).throw(SafetensorError("invalid header")), [])
    message = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert run_here(lambda argv: (_ for _ in ()).throw(SafetensorError(message)), []) == 1
    assert capsys.readouterr().err.startswith("error: weights: No space left on device; free some space")
    with pytest.raises(OSError, match="odd") as raised, complete_file(output):
        raise OSError(errno.ENOTTY, "odd")
    assert raised.value.filename is None and not list(tmp_path.iterdir())


def test_a_full_disk_costs_no_printed_scores(tmp_path, monkeypatch, capsys):
    folder = save_tiny_classifier(tmp_path / "model")
    clip = write_tone(tmp_path / "a.wav", seconds=0.2)

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "x.csv")

    monkeypatch.setattr(predict_hf, "write_tables", fail)
    assert predict_hf.main([str(folder), str(clip), "--output", str(tmp_path / "x.csv")]) == 1
    out, error = capsys.readouterr()
    assert out.startswith(f"{clip}\t") and "error: x.csv: No space left" in error


@pytest.mark.slow
def test_every_program_outlasts_its_reader(tmp_path):
    clips = write_class_folders(tmp_path / "clips", 4)
    model = save_tiny_classifier(tmp_path / "model")
    programs = {
        "x.json": f"-m training.check {clips} --output",
        "x.png": f"-m training.explain {model} {clips}/high/high_0.wav --output",
        "x.npz": f"embed_hf.py {model} {clips} --output",
        "x.csv": f"predict_hf.py {model} {clips} --output",
        "x": f"-m training.export --format safetensors-fp16 {model}",
    }
    ways = (("PYTHONIOENCODING=ascii", ">&- 2>&-"), ("LANG=C", "2>&1 | true"))
    for number, (environment, redirection) in enumerate(ways):
        for name, words in programs.items():
            output = tmp_path / f"{number}-{name}"
            command = f"{environment} {sys.executable} {words} {output} {redirection}"
            subprocess.run(["bash", "-c", command], cwd=ROOT, timeout=300)
            assert output.exists(), command
    line = error_line(run_program("-m", "training.check", clips, "--output", tmp_path / "no" / "x.json"))
    assert "no does not exist" in line


def test_a_program_leaves_its_process_group(tmp_path):
    """Its threads end, although a trainer still holds the divided model: they can abort the process at its end."""

    def threads():
        names = []
        for file in Path("/proc/self/task").glob("*/comm"):
            with contextlib.suppress(OSError):  # it ends now
                names.append(file.read_text())
        return [name for name in names if "gloo" in name]

    def train(argv):
        torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
        trainer = SimpleNamespace(model=torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1)))
        trainer.callback = SimpleNamespace(trainer=trainer)
        assert threads() or sys.platform != "linux"

    assert run_here(train, []) == 0
    assert not torch.distributed.is_initialized()
    deadline = time.monotonic() + 30  # a thread that was joined is listed a moment longer
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()


# ---- memory ----

CONVOLVE = """
import sys
import torch
from training.console import run_program

def program(argv):
    convolution = torch.nn.Conv2d(1, 4, 3)
    for length in [*range(10, 90), *range(10, 90), 89]:
        with torch.backends.mkldnn.verbose(2):
            convolution(torch.zeros(2, 1, length, 16))

sys.exit(run_program(program, []))
"""


@pytest.mark.parametrize(("environment", "hits"), [({}, 1), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1000"}, 81)])
def test_few_shapes_are_kept_unless_the_user_says_more(environment, hits):
    """Eighty lengths, twice: the second time, 64 shapes are no longer those that come."""
    environment = {name: value for name, value in os.environ.items() if "ONEDNN" not in name} | environment
    process = subprocess.run(
        [sys.executable, "-c", CONVOLVE], env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    made = [line for line in process.stdout.splitlines() if ",convolution," in line and "create:" in line]
    assert process.returncode == 0, process.stderr
    if not made:
        pytest.skip("torch convolves without oneDNN on this processor")
    assert len(made) == 161
    assert sum("cache_hit" in line for line in made) == hits
