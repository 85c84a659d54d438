"""Tests the fuzzer: damaged inputs of every kind pass, its inputs depend on the seed alone, and its limits hold."""

import re

import pytest
from audio_files import ROOT, run_program

FUZZ = ROOT / "tests" / "fuzz" / "run.py"


def counts(output: str) -> dict[str, dict[str, int]]:
    """Kind -> column -> inputs, of the table that it prints."""
    rows = [line.split() for line in output.splitlines() if re.match(r"\w+ +(inputs|\d+) ", line)]
    return {row[0]: dict(zip(rows[0][1:], map(int, row[1:]))) for row in rows[1:]}


@pytest.mark.slow
def test_damaged_inputs_of_every_kind(tmp_path):
    process = run_program(FUZZ, "--inputs", 300, "--failures", tmp_path / "kept", timeout=600)
    assert process.returncode == 0, process.stdout
    found = counts(process.stdout)
    assert set(found) == {"audio", "upload", "manifest", "recipe", "checkpoint", "config", "safetensors", "all"}
    assert found["all"]["inputs"] == 300 == found["all"]["accepted"] + found["all"]["refused"]
    assert all(row["inputs"] for row in found.values()) and not (tmp_path / "kept").exists()


# What a reader could do to its process -> the column of the table.
DEEDS = {
    "raise KeyError(path)": "error",
    "raise SystemExit(1)": "error",
    "import ctypes; ctypes.string_at(0)": "crash",
    "while True: pass": "hang",
    "bytes = bytearray(5 * 2**26)": "memory",
    "held = [bytearray(2**24) for _ in range(25)]; import time; time.sleep(60)": "memory",
    "raise InputError('')": "error",
    "raise InputError('one line')": "refused",
    "_check_finite([float('nan')], 'features')": "non-finite",
    "assert False": "silent",
    "pass": "accepted",
}


@pytest.mark.slow
def test_the_limits(tmp_path):
    """Every deed is found, also after those that end their process."""
    script = f"""
import multiprocessing, sys
sys.path[:0] = [{str(FUZZ.parent)!r}]
import run

def work(connection, log, bases):
    import targets
    targets.TARGETS["recipe"] = lambda path, *rest: exec(open(path).read(), {{**vars(targets), "path": path}})
    run_work(connection, log, bases)

run_work, run.work = run.work, work
run.MEMORY = 2**28  # filling 2 GB takes some machines more processor time than a hang is given
from inputs import Input
if __name__ == "__main__":
    from pathlib import Path
    folder = Path({str(tmp_path)!r})
    inputs = [Input("recipe", "deed.py", deed.encode(), {{}}) for deed in {list(DEEDS)!r}]
    for number, _, column, _ in run.judge_all(enumerate(inputs), 2, folder, folder):
        print("outcome", number, column)
"""
    (tmp_path / "program.py").write_text(script)
    process = run_program(tmp_path / "program.py", timeout=600)
    outcomes = dict(re.findall(r"outcome (\d+) (\S+)", process.stdout))
    assert [outcomes.get(str(number)) for number in range(len(DEEDS))] == list(DEEDS.values()), process.stderr[-2000:]


@pytest.mark.slow
def test_the_seed_makes_the_inputs(tmp_path):
    script = f"""
import hashlib, sys
from pathlib import Path
sys.path[:0] = [{str(FUZZ.parent)!r}]
import run, inputs
seeds = inputs.make_seeds(Path(sys.argv[1]))
for seed in (0, 0, 1):
    made = [inputs.make_input(seeds, seed, number) for number in range(200)]
    known = [(item.kind, item.name, item.facts) for item in made]  # some contents hold the time of their making
    print("inputs", hashlib.sha256(ascii(known).encode()).hexdigest())
"""
    first, second = (
        re.findall("inputs (.*)", run_program("-c", script, tmp_path / name).stdout) for name in ("a", "b")
    )
    assert first == second and len(first) == 3 and first[0] == first[1] != first[2]
