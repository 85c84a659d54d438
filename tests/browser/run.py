"""
Tests exports for Transformers.js in Node and the static page in Chromium: `python tests/browser/run.py [-k WORDS]`.

Fetches Transformers.js from npm's registry, once, with the runtimes that it names, and runs `suite.py`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".venvs" / "browser"
PACKAGE = "@huggingface/transformers"


def main() -> int:
    parser = argparse.ArgumentParser(description="Tests exports for Transformers.js in Node and in Chromium.")
    parser.add_argument("-k", default="", metavar="WORDS", help="only tests that pytest -k WORDS selects")
    arguments = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]
    from hub.space import TRANSFORMERS_JS

    if not fetch(TRANSFORMERS_JS):
        return 1
    os.environ |= {"NODE_MODULES": str(CACHE / "node_modules"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return int(pytest.main(["-p", "no:cacheprovider", "-q", str(HERE / "suite.py"), "-k", arguments.k]))


def fetch(version: str) -> bool:
    """Installs the library into the cache, if it is not there; prints a line and returns False if it cannot."""
    described = CACHE / "node_modules" / PACKAGE / "package.json"
    if described.is_file() and json.loads(described.read_text())["version"] == version:
        return True
    if not (shutil.which("node") and shutil.which("npm")):
        print("node and npm are not installed (Debian: apt-get install nodejs npm)")
        return False
    CACHE.mkdir(parents=True, exist_ok=True)
    # The scripts would only fetch onnxruntime's libraries for graphics cards, from elsewhere.
    command = ["npm", "install", "--prefix", CACHE, "--ignore-scripts", "--no-audit", "--no-fund", "--save-exact"]
    found = subprocess.run([*command, f"{PACKAGE}@{version}"], capture_output=True, text=True)
    if found.returncode:
        reason = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"{PACKAGE} {version} cannot be fetched from npm's registry ({reason})")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
