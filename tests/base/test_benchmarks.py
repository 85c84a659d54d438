"""Tests what benchmarks keep of earlier runs, and what they say without measuring; their figures stay untested."""

import io
import json
import sys

import numpy as np
import pytest
from audio_files import ROOT
from benchmark_scripts import imported


@pytest.fixture(scope="module")
def scripts():
    with imported("run", "growth", "sweep", "serving", "labelling") as scripts:
        yield scripts


def main_of(module, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, words)])
    module.main()


def test_every_script_answers_help():
    """One that parses no words measures, or rewrites a page, whatever they are."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py")}
    programs = [name for name, text in texts.items() if '\nif __name__ == "__main__":' in text]
    assert len(programs) > 20
    assert [name for name in programs if "parse_args()" not in texts[name]] == []


# ---- pages ----


def test_a_page_is_replaced_by_a_whole_one_alone(scripts, tmp_path, monkeypatch):
    failing = set()

    def run(script, folder):
        status = int(script in failing)
        return {"script": script, "status": status, "error": "why" if status else None, "text": now, "tables": []}

    monkeypatch.setattr(scripts.run, "run", run)
    page, unfinished = tmp_path / "bench.md", tmp_path / "bench.unfinished.md"
    now = "first"
    main_of(scripts.run, monkeypatch, "--output", tmp_path)
    assert page.read_text().count("first") == len(scripts.run.SCRIPTS) and not unfinished.exists()
    whole = page.read_text(), (tmp_path / "bench.json").read_text()
    now = "second"
    main_of(scripts.run, monkeypatch, "--output", tmp_path, "--only", "features", "sweep")
    assert (page.read_text(), (tmp_path / "bench.json").read_text()) == whole
    assert (tmp_path / "bench-features-sweep.md").read_text().count("second") == 2
    assert len(json.loads((tmp_path / "bench-features-sweep.json").read_text())["benchmarks"]) == 2
    failing.add("growth")  # the last one
    with pytest.raises(SystemExit, match=r"stopped: growth\.py \(why\)"):
        main_of(scripts.run, monkeypatch, "--output", tmp_path)
    assert (page.read_text(), (tmp_path / "bench.json").read_text()) == whole
    assert unfinished.read_text().count("second") == len(scripts.run.SCRIPTS)
    failing.clear()
    main_of(scripts.run, monkeypatch, "--output", tmp_path)
    assert page.read_text().count("second") == len(scripts.run.SCRIPTS) and not unfinished.exists()
    main_of(scripts.run, monkeypatch, "--output", tmp_path / "gpu", "--only", "gpu")  # as `make bench-gpu`
    assert (tmp_path / "gpu" / "bench.md").exists() and (tmp_path / "gpu" / "bench.json").exists()


def test_some_curves_do_not_replace_all(scripts, tmp_path, monkeypatch):
    monkeypatch.setattr(scripts.growth, "measure", lambda curve, size, _: {"size": size, "seconds": 1.0, "mib": 1.0})
    monkeypatch.setattr(scripts.growth, "draw", lambda points, path: path.touch())
    main_of(scripts.growth, monkeypatch, "--output", tmp_path)
    main_of(scripts.growth, monkeypatch, "--output", tmp_path, "--curves", "rows", "--most", 1000)
    main_of(scripts.growth, monkeypatch, "--output", tmp_path, "--most", 100)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"growth{part}.{kind}" for part in ("", "-rows-1000", "-100") for kind in ("json", "png")
    }


# ---- measurements ----


def test_memory_is_that_of_the_process(scripts, tmp_path, monkeypatch):
    """The test holds more than a small program; what a child inherits of it is not the child's."""
    growth = scripts.growth
    monkeypatch.setattr(growth, "command_of", lambda *point: ["-c", growth.PEAK + "print(0.5)"])
    ballast = np.ones(2**27, dtype=np.uint8)  # 128 MiB
    found = growth.measure("rows", 100, tmp_path)
    assert ballast[-1] and found["seconds"] == 0.5
    if (tmp_path / "peak.txt").exists():
        assert 1 < found["mib"] < 100


def test_both_sides_of_the_sweep_have_the_same_threads(scripts, tmp_path, monkeypatch):
    given = {}

    def run(words, env, **options):
        given.update(env)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "results.json").write_text("{}")

    monkeypatch.setattr(scripts.sweep.subprocess, "run", run)
    scripts.sweep.sweep(tmp_path / "encoder", tmp_path / "out", nested=False)
    assert given["OMP_NUM_THREADS"] == given["MKL_NUM_THREADS"] == str(scripts.sweep.THREADS)


def test_a_service_that_does_not_start_says_why(scripts, monkeypatch):
    class Process:
        def __init__(self, words, stderr, **options):
            self.stdout = io.StringIO()
            stderr.write("a warning\nmodel: is no folder\n")

        terminate = wait = lambda self: None

    monkeypatch.setattr(scripts.serving.subprocess, "Popen", Process)
    message = r"^model: serve_hf\.py did not start: model: is no folder$"
    with pytest.raises(SystemExit, match=message), scripts.serving.served("model", []):
        pass


def test_intervals_of_saved_labels(scripts):
    """A strategy that needs half of the labels in every seed, and one of which half of the seeds need all of them."""
    labelling, counts = scripts.labelling, np.arange(1, 101)
    at_random = np.tile(counts / 100, (10, 1))
    half = np.minimum(2 * at_random, 1.0)
    assert labelling.ratios(counts, half, at_random) == pytest.approx(4 * [0.5])
    assert labelling.intervals(counts, half, at_random) == pytest.approx(np.full((2, 4), 0.5))
    mixed = np.where(np.arange(10)[:, None] < 5, half, at_random)
    low, high = labelling.intervals(counts, mixed, at_random)
    ratios = labelling.ratios(counts, mixed, at_random)
    assert (low < ratios).all() and (ratios < high).all() and low.min() >= 0.5 and high.max() <= 1
    never = labelling.intervals(counts, np.where(np.arange(10)[:, None] < 1, 0.0, at_random), at_random)
    assert never[1].max() == np.inf and not np.isnan(never).any()


def test_one_random_order_is_none_of_those_that_it_is_compared_with(scripts):
    rng = np.random.default_rng(0)
    classes = np.arange(60) % 2
    vectors = rng.standard_normal((60, 4)) + classes[:, None]
    divisions = scripts.labelling.divide(vectors, classes, np.arange(60), 2)
    counts, found = scripts.labelling.curves(divisions, 20, 2)
    assert counts.tolist() == [20, 40, 44] and {own.shape for own in found.values()} == {(2, 3)}
    orders = [[one.random_order(number) for number in range(3)] for one in divisions]
    expected = [[one.accuracy(own[2][:count]) for count in counts] for one, own in zip(divisions, orders)]
    assert found["random, one order"] == pytest.approx(np.reshape(expected, (2, 4, 3)).mean(axis=1))
