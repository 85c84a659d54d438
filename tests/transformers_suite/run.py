"""
Runs Transformers' own suites on this project's classes: `python tests/transformers_suite/run.py [-k WORDS]`.

Fetches the source distribution from the package index, once, unpacks its tests beside stubs of the few modules that
it leaves out, and runs `suite.py`. Prints a table in Markdown: passed, failed, skipped, per class.
"""

import argparse
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter, defaultdict
from fnmatch import fnmatch
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".venvs" / "transformers_suite"
VERSION = "5.23.0"
# What is fetched, and its sha256; `parameterized` is imported by the suites and needed by nothing else here.
FILES = {
    f"transformers-{VERSION}.tar.gz": "19d647a4d5d903a7c644ca5cde2d86efc3dde7d8c687ae7988806ff2205efa71",
    "parameterized-0.9.0-py2.py3-none-any.whl": "4e0758e3d41bea3bbd05ec14fc2c24736723f243b28d702081aef438c9372b1b",
}
PACKAGE = "transformers_tests"  # the name `tests` would be this project's
# Modules that the suites import and the source distribution lacks.
STUBS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = dict(return_dict=False, output_hidden_states=True, dtype='float16',\n"
        "    chunk_size_feed_forward=5, architectures=['AModel'], id2label={0: 'a'}, label2id={'a': 0},\n"
        "    problem_type='regression')\n"
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs Transformers' own suites on this project's classes.")
    parser.add_argument("-k", default="", metavar="WORDS", help="only tests that pytest -k WORDS selects")
    arguments = parser.parse_args()
    installed = importlib.metadata.version("transformers")
    if installed != VERSION:
        print(f"transformers {installed} is installed, but the suites are those of {VERSION}: they change every month")
        return 1
    for name, digest in FILES.items():
        if not fetch(name, digest):
            return 1
    lay_out()
    import suite  # after the layout: it imports what was laid

    results = Results()
    start = time.monotonic()
    options = ["--noconftest", "-p", "no:cacheprovider", "-q", "--no-header", "--no-summary", "-o", "addopts=", "-n"]
    options += [os.environ.get("PYTEST_WORKERS", str(os.cpu_count())), str(HERE / "suite.py"), "-k", arguments.k]
    status = pytest.main(options, plugins=[results])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return int(status)
    return results.report(suite.EXPECTED_FAILURES, time.monotonic() - start, is_whole=not arguments.k)


def fetch(name: str, digest: str, cache: Path = CACHE) -> bool:
    """Downloads a file into the cache with pip, if it is not there; prints a line and returns False if it cannot."""
    path = cache / name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        package, version = name.removesuffix(".tar.gz").split("-")[:2]
        kind = "--no-binary" if name.endswith(".tar.gz") else "--only-binary"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        found = subprocess.run(
            [*command, kind, package, "--dest", cache, f"{package}=={version}"], capture_output=True, text=True
        )
        if found.returncode:
            reason = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"{name} cannot be fetched from the package index ({reason}); put it into {cache} and run again")
            return False
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        print(f"{path} has another sha256 than {digest}; remove it and run again")
        return False
    return True


def lay_out():
    """Unpacks the suites and the stubs, and puts them on the path, also for pytest's processes."""
    archive, wheel = (CACHE / name for name in FILES)
    folder = CACHE / PACKAGE
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            if fnmatch(member.name, f"transformers-{VERSION}/tests/test_*_common.py"):
                member.name = f"{PACKAGE}/{Path(member.name).name}"
                tar.extract(member, CACHE, filter="data")
    for name, text in STUBS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    paths = [str(CACHE), str(wheel), str(HERE), str(ROOT)]
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Results:
    """Collects the outcome of every test; a pytest plugin."""

    def __init__(self):
        self.outcomes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report):
        name = "::".join(report.nodeid.split("::")[1:])
        if report.failed or ((report.when == "call" or report.skipped) and self.outcomes.get(name) != "failed"):
            self.outcomes[name] = report.outcome
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.reasons[name] = (crash.message if crash else str(report.longrepr)).splitlines()[0]

    def pytest_collectreport(self, report):
        if report.failed:
            self.outcomes["collection"] = "failed"
            self.reasons["collection"] = str(report.longrepr).splitlines()[-1]

    def report(self, expected: dict[str, str], seconds: float, is_whole: bool) -> int:
        """Prints the table; returns 1 for a failure that is not expected, or an expected failure that passed."""
        failed = sorted(name for name, outcome in self.outcomes.items() if outcome == "failed")
        pattern_of = {name: next((p for p in expected if fnmatch(name, p)), None) for name in self.outcomes}
        table = defaultdict(Counter)
        for name, outcome in self.outcomes.items():
            is_expected = outcome == "failed" and pattern_of[name]
            table[name.split("::")[0]]["expected" if is_expected else outcome] += 1
        print("\n\n| class | passed | failed, expected | failed | skipped |\n|---|---|---|---|---|")
        for name, counts in [*sorted(table.items()), ("all", sum(table.values(), Counter()))]:
            row = (counts[kind] for kind in ("passed", "expected", "failed", "skipped"))
            print(f"| {name} | {' | '.join(map(str, row))} |")
        print(f"\n{seconds:.0f} s. Expected failures:")
        for pattern, reason in expected.items():
            count = sum(pattern_of[name] == pattern for name in failed)
            print(f"- {pattern} ({count}): {reason}")
        wrong = [f"{name}: {self.reasons[name]}" for name in failed if pattern_of[name] is None]
        for name, outcome in sorted(self.outcomes.items()):
            if outcome == "passed" and pattern_of[name]:
                wrong.append(f"{name}: passes, but {pattern_of[name]!r} expects a failure; correct EXPECTED_FAILURES")
        for pattern in expected:
            if is_whole and pattern not in {pattern_of[name] for name in failed}:
                wrong.append(f"{pattern}: expected to fail, but no test of this name failed; correct EXPECTED_FAILURES")
        print("\n".join(["", *wrong]) if wrong else "\nNo other failure.")
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
