"""Tests benchmarks/fusion_results.py: its clips of packages, a small run of all it does, and the page."""

import csv
import json
import sys
from collections import Counter

import pytest
import soundfile
from audio_files import write_tone
from benchmark_scripts import imported

MODULES = ("training_runs", "package_clips", "fusion_page", "fusion_runs", "fusion_results")


@pytest.fixture(scope="module")
def scripts():
    """The modules of the benchmark."""
    with imported(*MODULES) as scripts:
        yield scripts


# ---- the page ----


def test_the_page_has_the_committed_figures(scripts):
    page = scripts.fusion_page
    report = json.loads(page.FIGURES.read_text(encoding="utf-8"))
    text = page.PAGE.read_text(encoding="utf-8")
    assert text.split(page.BEGIN)[1].split(page.END)[0].strip() == page.text_of(report).strip()


def row(name: str, accuracy: float, difference: float | None = None, p_holm: float = 1.0, verdict: str = "") -> dict:
    found = {"configuration": name, "accuracy": accuracy, "seeds": 2, "deviation_of_seeds": 0.01}
    if difference is None:
        return found
    ends = {"lower": difference - 0.1, "upper": difference + 0.1}
    return found | {"difference": difference, **ends, "p_holm": p_holm, "verdict": verdict}


def a_report() -> dict:
    """Two tables, and a sweep with a measure that is undefined."""
    base = {"encoder": "random", "test_clips": 20, "permutations": 9999}
    frozen = [row("last", 0.5), row("max", 0.75, 0.25, 0.001, "better"), row("min", 0.4, -0.1, 1.0, "not told apart")]
    tuned = [row("last", 0.6), row("max", 0.3, -0.3, 0.002, "worse")]
    unlabelled = {
        "readout": "patches", "pooling": "mean", "best_layer": 4,
        "effective_rank_correlation": 0.5, "effective_rank_layer": 2, "effective_rank_loss": 0.02,
        "iso_score_correlation": None, "iso_score_layer": None, "iso_score_loss": None,
    }  # fmt: skip
    chosen = {"fusion_layers": [2, 3], "readout": "patches", "pooling": ["mean", "max"], "pooling_combination": "sum"}
    sweep = {"data_set": "a", "encoder": "random", "clips": 40, "candidates": 9, "chosen": chosen, "accuracy": 0.8,
             "nested": 0.7, "unlabelled": [unlabelled]}  # fmt: skip
    return {
        "versions": "torch 0",
        "seeds": 2,
        "tables": [
            {"data_set": "a", "half": "frozen", "rows": frozen, **base},
            {"data_set": "a", "half": "fine-tuned", "rows": tuned, **base},
        ],
        "sweeps": [sweep],
        "unmeasured": ["klettres-data"],
    }


def test_tables_mark_what_is_told_apart(scripts, tmp_path):
    page, report = scripts.fusion_page, a_report()
    text = page.text_of(report)
    assert "| last | 0.500 | 0.010 |  |  | baseline |" in text
    assert "| max | 0.750 | 0.010 | +0.250 (+0.150 to +0.350) | 0.0010 | **better** |" in text
    assert "| min | 0.400 | 0.010 | -0.100 (-0.200 to +0.000) | 1.0000 | not told apart |" in text
    # Counts of better, worse and not told apart, and the mean difference, of both halves.
    assert "| max | 0, 1, 0 | -0.300 | 1, 0, 0 | +0.250 |" in text
    assert "| min |  |  | 0, 0, 1 | -0.100 |" in text
    assert "| a | random weights | +0.50 (1 of 1 positive) | 0.020 |  |  |" in text
    assert "    | a | random weights | patches mean | 4 | +0.50 | 2: 0.020 |  |  |" in text
    assert "klettres-data" in text and "20 test clips, 2 seeds." in text
    assert "**only 2 of 5 planned seeds are finished**" in page.text_of(report | {"seeds": 5})
    target = tmp_path / "page.md"
    target.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    page.write(report, target)
    page.write(report, target)  # the second time in the place of the first
    assert target.read_text() == f"before\n{page.BEGIN}\n\n{text}\n{page.END}\nafter\n"
    page.plot(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


# ---- clips of packages ----


def read_rows(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_letters_lie_in_one_split_for_all_languages(scripts, tmp_path, monkeypatch):
    clips = scripts.package_clips
    monkeypatch.setattr(clips, "FEWEST", 3)
    monkeypatch.setattr(clips, "MOST", 20)
    letters = [f"letter{number}" for number in range(24)]
    for language in ("de", "fr"):
        for letter in letters:
            write_tone(tmp_path / f"klettres-data/usr/share/klettres/{language}/alpha/{letter}.ogg", seconds=0.1)
    write_tone(tmp_path / "klettres-data/usr/share/klettres/id/alpha/a.ogg", seconds=0.1)  # too few
    folder = tmp_path / "out"
    assert clips.make_clips(tmp_path, "klettres-data", folder)
    tables = {split: read_rows(folder / f"{split}.csv") for split in clips.SPLITS}
    groups = {split: {found["group"] for found in rows} for split, rows in tables.items()}
    assert all(groups.values()) and sum(map(len, groups.values())) == len(set.union(*groups.values()))
    rows = [found for part in tables.values() for found in part]
    assert Counter(found["label"] for found in rows) == {"de": 20, "fr": 20}
    assert all((folder / found["file_name"]).exists() and found["licence"] for found in rows)
    before = (folder / "train.csv").stat().st_mtime_ns
    assert clips.make_clips(tmp_path, "klettres-data", folder)
    assert (folder / "train.csv").stat().st_mtime_ns == before
    assert not clips.make_clips(tmp_path / "empty", "klettres-data", tmp_path / "none")


def test_drums_are_named_by_the_kits_and_divided_by_their_authors(scripts, tmp_path):
    clips = scripts.package_clips
    root = tmp_path / "hydrogen-drumkits/usr/share/hydrogen/data/drumkits"
    names = ("Kick 1", "Snare Rock", "Tom Hi", "Closed HH", "Hi Hat Open", "Ride Jazz", "Cowbell")
    for kit in clips.KITS:
        instruments = "".join(
            f"<instrument><name>{name}</name><layer><filename>{index}.wav</filename></layer>"
            "<layer><filename>missing.wav</filename></layer></instrument>"
            for index, name in enumerate(names)
        )
        for index in range(len(names)):
            write_tone(root / kit / f"{index}.wav", seconds=3.0 if index == 5 else 0.1, rate=44100, channels=2)
        text = f'<drumkit_info xmlns="http://example.org/drumkit" xmlns:x="y">{instruments}</drumkit_info>'
        (root / kit / "drumkit.xml").write_text(text)
    folder = tmp_path / "out"
    assert clips.make_clips(tmp_path, "hydrogen-drumkits", folder)
    tables = {split: read_rows(folder / f"{split}.csv") for split in clips.SPLITS}
    kinds = {"bass drum": 1, "snare": 1, "tom": 1, "hi-hat": 2, "cymbal": 1}  # a kit's; no cowbell
    found_authors, authors = [], {author for author, _, _ in clips.KITS.values()}
    for split, rows in tables.items():
        kits = sum(place == split for _, _, place in clips.KITS.values())
        assert Counter(found["label"] for found in rows) == {kind: count * kits for kind, count in kinds.items()}
        found_authors += {found["group"] for found in rows}
    assert sorted(found_authors) == sorted(authors)  # none in two splits
    facts = [soundfile.info(path) for path in (folder / "audio").iterdir()]
    assert {found.samplerate for found in facts} == {clips.RATE} and {found.channels for found in facts} == {1}
    assert max(found.frames for found in facts) == clips.MAX_S * clips.RATE


# ---- runs ----


def test_finished_runs_are_not_repeated_and_failed_ones_name_their_log(scripts, tmp_path):
    runs = scripts.training_runs
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "results.json").write_text("{}")
    runs.train_here(tmp_path / "done", tmp_path / "missing.yaml")
    assert not (tmp_path / "done.log").exists()
    before = list(sys.argv), list(sys.path)
    with pytest.raises(SystemExit, match=r"stopped with 1; .*new\.log says why"):
        runs.train_here(tmp_path / "new", tmp_path / "missing.yaml")
    assert "missing.yaml" in (tmp_path / "new.log").read_text()
    assert (sys.argv, sys.path) == before


def tiny_clips(scripts, folder, name: str):
    """Two classes of tones in three splits."""
    for split, count in (("train", 8), ("validation", 4), ("test", 6)):
        rows = [["file_name", "label"]]
        for index in range(count):
            label = ("high", "low")[index % 2]
            file = f"{split}_{index}.wav"
            write_tone(folder / file, seconds=0.3, hz=(900.0, 300.0)[index % 2], seed=index)
            rows.append([file, label])
        with open(folder / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    return scripts.fusion_runs.Clips(name, folder, "label", epochs=1, own_epochs=1)


def times_of_runs(folder) -> dict:
    """When each run was finished; the models of probes have a file of their own."""
    files = [path for path in folder.rglob("results.json") if path.parent.name != "model"]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_two_configurations_from_clips_to_page(scripts, tmp_path, monkeypatch):
    """Encoders, sweeps, probes, fine-tunings, comparison, page and picture; the second time nothing is run again."""
    script, runs = scripts.fusion_results, scripts.fusion_runs
    own = {name: tiny_clips(scripts, tmp_path / name, name) for name in ("voice_prompts", "instruments")}
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    patched = runs.ENCODER | size
    for module in (script, runs):
        monkeypatch.setattr(module, "OWN", own)
        monkeypatch.setattr(module, "ENCODER", patched)

    def some(everything, *names: str):
        return lambda num_layers: {name: everything(num_layers)[name] for name in names}

    monkeypatch.setattr(script, "configurations", some(runs.configurations, "last-mean", "sweep"))
    monkeypatch.setattr(script, "probes", some(runs.probes, "last-mean", "dual-max"))
    page = tmp_path / "page.md"
    page.write_text(f"{scripts.fusion_page.BEGIN}\n{scripts.fusion_page.END}\n")
    words = ["fusion_results.py", "--output", tmp_path / "out", "--json", tmp_path / "figures.json", "--page", page]
    words += ["--picture", tmp_path / "picture.png", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    script.main()
    report = json.loads((tmp_path / "figures.json").read_text())
    assert len(report["tables"]) == 6  # two data sets: frozen with two encoders each, and fine-tuned
    for table in report["tables"]:
        names = [found["configuration"] for found in table["rows"]]
        assert names[0] == "last layer, mean" and table["test_clips"] == 6
        if table["half"] == "fine-tuned":
            assert names == ["last layer, mean", "best of the sweep"]
        else:
            assert names[1:] == ["last layer, attention", "all layers, gated, mean",
                                 "all layers, weighted, attention", "dual, max"]  # fmt: skip
    assert {found["data_set"] for found in report["sweeps"]} == set(own)
    assert report["unmeasured"] == ["hydrogen-drumkits", "klettres-data"]
    text = page.read_text()
    assert scripts.fusion_page.text_of(report) in text and (tmp_path / "picture.png").exists()
    written = times_of_runs(tmp_path / "out")
    assert len(written) == 2 + 4 + 8 + 4  # encoders, sweeps, probes, fine-tunings
    script.main()
    assert times_of_runs(tmp_path / "out") == written
    assert page.read_text() == text
