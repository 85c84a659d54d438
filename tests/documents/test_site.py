"""Tests the documentation site: it builds without warnings, loads only its own files, and has every public name."""

import ast
import re
import subprocess
import sys

import pytest
from audio_files import ROOT

pytestmark = pytest.mark.slow

# Elements that a browser fetches: scripts, styles, fonts and pictures, but not links.
FETCHED = re.compile(r"<(script|img|iframe|source)[^>]*\ssrc=\W?(https?:)?//|<link[^>]*\shref=\W?(https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return folder


def test_every_page_of_docs_is_built_and_fetches_nothing_from_elsewhere(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert len(pages) > 20
    for page in pages:
        text = (site / page).read_text(encoding="utf-8")
        assert not FETCHED.search(text), page
    assert (site / "search" / "search_index.json").stat().st_size > 100_000


def test_every_public_class_and_function_is_in_the_reference(site):
    described = "".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    for path in (ROOT / "modeling_dual_ssast").glob("*_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                assert f'id="modeling_dual_ssast.{path.stem}.{node.name}"' in described, f"{path.name}: {node.name}"


def test_options_come_from_the_programs(site):
    tasks = (site / "reference" / "train_hf.html").read_text(encoding="utf-8")
    for option in ("lora_rank", "num_folds", "readouts", "few_shot", "train_sources", "min_learning_rate", "test_file"):
        assert f"--{option}" in tasks
    programs = (site / "reference" / "programs.html").read_text(encoding="utf-8")
    for option in ("--windows", "--level", "--opset", "--verify", "--download-dir", "--private", "--dry-run"):
        assert option in programs
