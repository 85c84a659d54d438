"""
Runs the benchmarks whose figures the README and docs/results.md show, one after the other, and makes one page of them:
`make bench`. Every figure stands beside its anchor, which the same script measured in the same minutes.

`make bench-gpu` is `--only gpu`, on a machine with an NVIDIA GPU.

Prints the page while it is made. Writes `bench.md`, `bench.json` (all tables) and `growth.png` into the output folder.
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

from report import TABLES_VARIABLE, versions

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
            "error": _last_line(errors) if status else None,
            "text": "".join(lines),
            "tables": [json.loads(line) for line in tables],
        }


def _last_line(file) -> str:
    file.seek(0)
    return (file.read().strip().splitlines() or ["no message"])[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "bench", help="folder to write to")
    parser.add_argument(
        "--only", nargs="+", choices=[*SCRIPTS, *APART], default=[*SCRIPTS], help="some of the benchmarks"
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    machine = f"{processor()}; {versions()}"
    page, outcomes = [f"# Benchmarks\n\n{machine}\n"], []
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
        (arguments.output / "bench.md").write_text("\n".join(page), encoding="utf-8")
        figures = json.dumps({"machine": machine, "benchmarks": outcomes}, indent=2)
        (arguments.output / "bench.json").write_text(figures + "\n", encoding="utf-8")
    print(f"\npage and figures: {arguments.output / 'bench.md'}, .json")
    failed = [f"{outcome['script']}.py ({outcome['error']})" for outcome in outcomes if outcome["status"]]
    if failed:
        raise SystemExit(f"stopped: {', '.join(failed)}")


if __name__ == "__main__":
    main()
