"""
Runs the benchmarks whose figures the README and docs/results.md show, one after the other, and makes one page of them:
`make bench`. Every figure stands beside its anchor, which the same script measured in the same minutes.

`make bench-gpu` is `--only gpu`, on a machine with an NVIDIA GPU.

Prints the page while it is made. Writes `bench.md`, `bench.json` (all tables) and `growth.png` into the output folder.
Until all benchmarks are done, and if one stopped, the page is `bench.unfinished.md`, with its `.json`. A page with
benchmarks that `--only` leaves out is not replaced: the new one is named after those of `--only`.
"""

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import TABLES_VARIABLE, last_line, versions

ROOT = Path(__file__).parent.parent
SCRIPTS = {
    "features": "Log-mel features beside Transformers' AST",
    "variable_length": "Clips of any length beside Transformers' AST",
    "data_path": "The data of a training beside Transformers' AST with datasets",
    "startup": "Start of the programs beside Transformers' AST",
    "inference": "Inference from the files to the table",
    "pretraining_step": "Steps of pretraining",
    "bfloat16": "bfloat16 on a CPU",
    "sweep": "A sweep over layers and poolings",
    "growth": "Growth of time and memory",
}
# Words of the command line; inference of all clips would take longer than all other benchmarks.
WORDS = {"inference": ["--clips", "20", "--limit", "40", "--threads", "2"], "growth": ["--output", "{folder}"]}
KINDS = ((".unfinished.md", ".unfinished.json"), (".md", ".json"))
APART = {"gpu": "On a GPU"}  # only where --only names it: `make bench-gpu`


def processor() -> str:
    """Returns the name of the processor and its number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def run(script: str, folder: Path) -> dict:
    """Runs a benchmark, printing what it prints; returns its text, tables, seconds and exit status."""
    temporary = functools.partial(tempfile.NamedTemporaryFile, "w+", encoding="utf-8")
    with temporary() as tables, temporary() as errors:
        words = [word.format(folder=folder) for word in WORDS.get(script, [])]
        environment = os.environ | {TABLES_VARIABLE: tables.name, "PYTHONUNBUFFERED": "1"}
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *words],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        status = process.wait()
        return {
            "script": script,
            "seconds": round(time.perf_counter() - started, 1),
            "status": status,
            "error": last_line(errors) if status else None,
            "text": "".join(lines),
            "tables": [json.loads(line) for line in tables],
        }


def name_of(scripts: list[str], folder: Path) -> str:
    """Returns the name of the page of some benchmarks: no page is replaced that has others."""
    path = folder / "bench.json"
    earlier = json.loads(path.read_text(encoding="utf-8"))["benchmarks"] if path.exists() else []
    return "bench" if {outcome["script"] for outcome in earlier} <= set(scripts) else f"bench-{'-'.join(scripts)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "bench", help="folder to write to")
    parser.add_argument(
        "--only", nargs="+", choices=[*SCRIPTS, *APART], default=[*SCRIPTS], help="some of the benchmarks"
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    machine = f"{processor()}; {versions()}"
    page, outcomes, name = [f"# Benchmarks\n\n{machine}\n"], [], name_of(arguments.only, arguments.output)
    unfinished, finished = ([arguments.output / f"{name}{kind}" for kind in kinds] for kinds in KINDS)
    print(machine)
    for script in arguments.only:
        title = (SCRIPTS | APART)[script]
        print(f"\n## {title}: benchmarks/{script}.py\n", flush=True)
        outcome = run(script, arguments.output)
        outcomes.append(outcome)
        remark = f"\n*Stopped: {outcome['error']}*\n" if outcome["status"] else ""
        text = outcome["text"].strip()
        page.append(f"## {title}\n\n`benchmarks/{script}.py`\n\n```\n{text}\n```\n{remark}")
        # After every benchmark, so that a stopped run keeps what it has measured.
        unfinished[0].write_text("\n".join(page), encoding="utf-8")
        figures = json.dumps({"machine": machine, "benchmarks": outcomes}, indent=2)
        unfinished[1].write_text(figures + "\n", encoding="utf-8")
    failed = [f"{outcome['script']}.py ({outcome['error']})" for outcome in outcomes if outcome["status"]]
    if not failed:
        for source, target in zip(unfinished, finished):
            source.replace(target)
    print(f"\npage and figures: {(unfinished if failed else finished)[0]}, .json")
    if failed:
        raise SystemExit(f"stopped: {', '.join(failed)}")


if __name__ == "__main__":
    main()
