"""
Gives damaged files of all kinds to the code that reads them: `python tests/fuzz/run.py --inputs 10000 --seed 0`.

Every input is read in a worker process with limits of time and memory. The same seed makes the same inputs, except for
the time that some formats store. Inputs that fail are kept in a folder each, with the message; `--repeat FOLDER ...`
reads them again.
"""

import argparse
import collections
import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "tests" / "fuzz")]
sys.path[:0] = PATHS

HANG_S, WAIT_S = 5.0, 60.0  # processor time of an input; the clock, which other programs can slow down
MEMORY = 2 * 2**30  # bytes beyond what the worker had
GOOD, BAD = ("accepted", "refused"), ("error", "crash", "hang", "memory", "non-finite", "silent")


def work(connection, log: str, bases: str):
    """Judges the inputs that the connection brings, until it closes."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    import faulthandler

    import torch
    from targets import judge

    faulthandler.enable(all_threads=False)  # the stack of a crash, or of a hang that is ended by SIGABRT
    torch.set_num_threads(1)
    connection.send("ready")
    while True:
        try:
            kind, path, facts = connection.recv()
        except EOFError:
            return
        os.truncate(log, 0)
        before = psutil.Process().memory_info().rss
        outcome = judge(kind, path, facts, bases)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        connection.send(("memory", f"{most - before:,} bytes; {outcome}") if most - before > MEMORY else outcome)


class Worker:
    """Runs `work` in a process, and ends the process when an input exceeds a limit."""

    def __init__(self, folder: Path, bases: Path):
        self.log = folder / "log"
        folder.mkdir(exist_ok=True)
        self.connection, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("forkserver").Process(
            target=work, args=(theirs, str(self.log), str(bases)), daemon=True
        )
        self.process.start()
        theirs.close()
        self.input = None

    def start(self, number: int, item, path: Path):
        status = psutil.Process(self.process.pid)
        self.input, self.number, self.path, self.status = item, number, path, status
        self.since, self.used, self.memory = time.monotonic(), self._seconds(), status.memory_info().rss
        self.connection.send((item.kind, str(path), item.facts))

    def _seconds(self) -> float:
        times = self.status.cpu_times()
        return times.user + times.system

    def outcome(self) -> tuple[str, str] | None:
        """Returns the outcome of the input; `None` while it is read. After a failure the process may have ended."""
        try:
            if self.connection.poll():
                return self.connection.recv()
            if self._seconds() - self.used > HANG_S or time.monotonic() - self.since > WAIT_S:
                return "hang", self.end()
            if self.status.memory_info().rss - self.memory > MEMORY:
                return "memory", self.end()
        except (EOFError, ConnectionError, psutil.Error):
            return "crash", self.end()
        return None

    def end(self) -> str:
        """Ends the process; returns how it ended, and its stack."""
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGABRT)
        self.process.join(5)
        self.process.kill()
        return f"exit status {self.process.exitcode}\n{self.log.read_text(errors='replace')[-4000:]}"


def judge_all(inputs, workers: int, folder: Path, bases: Path):
    """Yields (number, input, column, message) of every (number, input), in the order in which they end."""
    inputs, pool = iter(inputs), [Worker(folder / str(index), bases) for index in range(workers)]
    for worker in pool:
        worker.connection.recv()  # "ready"
    waiting = True
    while waiting or any(worker.input for worker in pool):
        for index, worker in enumerate(pool):
            if worker.input and (found := worker.outcome()):
                yield worker.number, worker.input, *found
                shutil.rmtree(worker.path.parent)
                worker.input = None
                if found[0] in ("crash", "hang", "memory"):
                    worker.end()
                    pool[index] = Worker(folder / str(index), bases)
                    pool[index].connection.recv()
            elif waiting and not worker.input:
                number, item = next(inputs, (None, None))
                waiting = item is not None
                if waiting:
                    path = folder / str(index) / f"input-{number}" / item.name  # a recording is warned of once
                    path.parent.mkdir()
                    path.write_bytes(item.content)
                    worker.start(number, item, path)
        multiprocessing.connection.wait([worker.connection for worker in pool if worker.input], timeout=0.05)
    for worker in pool:
        worker.connection.close()
        worker.process.join(10)


def keep(folder: Path, item, column: str, message: str):
    """Keeps an input that failed, with all that is needed to repeat it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / item.name).write_bytes(item.content)
    (folder / "failure.json").write_text(
        json.dumps({"kind": item.kind, "name": item.name, "facts": item.facts, "column": column})
    )
    (folder / "message.txt").write_text(message, encoding="utf-8", errors="backslashreplace")


def kept(folder: Path):
    """Returns an input that `keep` has kept."""
    from inputs import Input

    facts = json.loads((folder / "failure.json").read_text())
    return Input(facts["kind"], facts["name"], (folder / facts["name"]).read_bytes(), facts["facts"])


def table(counts: dict[str, collections.Counter]) -> str:
    rows = [["kind", "inputs", *GOOD, *BAD]]
    for kind, count in (*counts.items(), ("all", sum(counts.values(), collections.Counter()))):
        rows.append([kind, sum(count.values()), *(count[column] for column in (*GOOD, *BAD))])
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            str(cell).rjust(width) if place else str(cell).ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--failures", type=Path, default=ROOT / "runs" / "fuzz", help="the folder to keep inputs in")
    parser.add_argument("--kinds", nargs="+", default=[], help="judge only inputs of these kinds")
    parser.add_argument("--repeat", nargs="+", type=Path, default=[], metavar="FOLDER", help="kept inputs")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(PATHS)}
    multiprocessing.set_forkserver_preload(["targets"])  # imports once, for all workers
    import inputs

    counts = {kind: collections.Counter() for kind in inputs.KINDS}
    began, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        folder, bases = Path(folder), Path(folder) / "bases"
        seeds = inputs.make_seeds(bases)
        made = ((number, inputs.make_input(seeds, arguments.seed, number)) for number in range(arguments.inputs))
        made = ((number, item) for number, item in made if not arguments.kinds or item.kind in arguments.kinds)
        made = enumerate(map(kept, arguments.repeat)) if arguments.repeat else made
        for number, item, column, message in judge_all(made, arguments.workers, folder, bases):
            counts[item.kind][column] += 1
            if arguments.repeat:
                print(f"{arguments.repeat[number]}: {column}\n{message}")
            elif column in BAD:
                failed += 1
                where = arguments.failures / f"{item.kind}-{arguments.seed}-{number}"
                keep(where, item, column, message)
                print(f"{column:<10} {where}: {(message.strip().splitlines() or [''])[-1][:200]}", flush=True)
    print(table({kind: count for kind, count in counts.items() if count}))
    print(f"seed {arguments.seed}, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
