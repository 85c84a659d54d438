"""Tests benchmarks/pretraining_pays.py: its choice of labelled clips, and its summary of finished runs."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
from audio_files import ROOT, run_program
from benchmark_scripts import imported

SCRIPT = ROOT / "benchmarks" / "pretraining_pays.py"


@pytest.fixture(scope="module")
def script():
    with imported("pretraining_pays") as scripts:
        yield scripts.pretraining_pays


def test_few_labels_are_among_the_more_and_none_is_of_the_test(script):
    table = script.CLIPS / "train.csv"
    drawn = {count: script.draw_labelled(count, 1, table) for count in (2, 4, 32)}
    names = {count: {row["file_name"] for row in rows} for count, rows in drawn.items()}
    for count, rows in drawn.items():
        assert set(Counter(row["language"] for row in rows).values()) == {count}
    assert names[2] < names[4] < names[32]
    assert names[4] != {row["file_name"] for row in script.draw_labelled(4, 2, table)}
    with open(script.CLIPS / "test.csv", encoding="utf-8", newline="") as file:
        assert not names[32] & {row["file_name"] for row in csv.DictReader(file)}
    with pytest.raises(SystemExit, match="57 were asked for"):
        script.draw_labelled(57, 0, table)


@pytest.mark.slow
def test_finished_runs_are_not_repeated_but_told_of(tmp_path):
    folders = {"pretrained": 0.5}
    for side, base in (("pretrained", 0.6), ("random_weights", 0.3)):
        for count in (2, 4):
            folders |= {f"finetuned/{side}-{count}-seed{seed}": base + 0.1 * seed for seed in range(2)}
    for name, accuracy in folders.items():
        (tmp_path / name).mkdir(parents=True)
        results = {"metrics": {"test": {"accuracy": accuracy}}}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    (tmp_path / "pretrained" / "preprocessor_config.json").write_text(json.dumps({"mean": -6.0, "std": 4.0}))
    process = run_program(SCRIPT, "--output", tmp_path, "--labels", 2, 4, "--seeds", 2)
    assert process.returncode == 0, process.stderr[-2000:]
    assert "0.65 (0.60-0.70)" in process.stdout and "+0.30" in process.stdout
    report = json.loads((tmp_path / "pretraining_pays.json").read_text())
    assert report["accuracy"]["random weights"]["4"] == pytest.approx([0.3, 0.4])
    (few, more) = (np.mean(report["accuracy"]["log-mel statistics"][count]) for count in ("2", "4"))
    assert 0.3 < few < more  # five languages
    assert (tmp_path / "pretraining_pays.png").stat().st_size > 10_000
    assert not list(tmp_path.rglob("*.log"))  # nothing was run
