"""Tests the embedded data sets: complete, with separate splits and folds, as their READMEs describe them."""

import re
from itertools import combinations

import numpy as np
import pandas
import pytest
import soundfile
from audio_files import ROOT

from training.data.columns import Columns
from training.data.tables import load_table

SPLITS = ("train", "validation", "test")
LABELS = {"voice_prompts": "language", "instruments": "category"}
RATES = {"voice_prompts": 8000, "instruments": 16000}
# Groups that a split must not divide: the same words in several languages, takes of one instrument.
GROUPS = {"voice_prompts": "prompt", "instruments": "group"}
DATA_SETS = tuple(LABELS)


def read_split(name: str, split: str) -> pandas.DataFrame:
    """Reads the table as texts, with the column `split`."""
    path = ROOT / "data" / name / f"{split}.csv"
    return pandas.read_csv(path, dtype=str, keep_default_na=False).assign(split=split)


def read_clips(name: str) -> pandas.DataFrame:
    return pandas.concat([read_split(name, split) for split in SPLITS], ignore_index=True)


def readme_table(name: str) -> list[dict[str, str]]:
    """The rows of the README's first table."""
    text = (ROOT / "data" / name / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(header, row)) for row in rows]


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_clip_is_listed_once_and_can_be_decoded(name):
    clips = read_clips(name)
    folder = ROOT / "data" / name
    assert sorted(clips["file_name"]) == sorted(f"audio/{path.name}" for path in (folder / "audio").iterdir())
    seen = {}
    for file_name, seconds in zip(clips["file_name"], clips["seconds"]):
        audio, rate = soundfile.read(folder / file_name)
        assert rate == RATES[name] and audio.ndim == 1, file_name
        assert len(audio) / rate == pytest.approx(float(seconds), abs=1e-6), file_name
        assert np.isfinite(audio).all() and audio.any(), file_name
        assert seen.setdefault(audio.tobytes(), file_name) == file_name  # a copy under another name


@pytest.mark.parametrize("name", DATA_SETS)
def test_splits_share_no_group_and_hold_every_class(name):
    tables = [read_split(name, split) for split in SPLITS]
    for first, second in combinations(tables, 2):
        assert not set(first[GROUPS[name]]) & set(second[GROUPS[name]])
    assert len({frozenset(table[LABELS[name]]) for table in tables}) == 1


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_readme_says_what_the_tables_hold(name):
    clips = read_clips(name)
    label, group = LABELS[name], GROUPS[name]
    rows = readme_table(name)
    assert {row[label] for row in rows} == set(clips[label])
    for row in rows:
        own = clips[clips[label] == row[label]]
        facts = {"clips": len(own), "groups": own[group].nunique()}
        facts |= {split: (own["split"] == split).sum() for split in SPLITS}
        facts["prefix in Sonic Pi"] = own["file_name"].iloc[0].removeprefix("audio/").split("_")[0]
        for column, value in row.items():
            assert column not in facts or value == str(facts[column]), (row[label], column)
    text = (ROOT / "data" / name / "README.md").read_text(encoding="utf-8")
    assert str(len(clips)) in text and text.count("|---") >= 3
    for split in SPLITS:
        share = re.search(rf"`{split}\.csv` \((\d+) %\)", text)
        assert float(share[1]) == pytest.approx(100 * (clips["split"] == split).mean(), abs=0.6)
    megabytes = sum(path.stat().st_size for path in (ROOT / "data" / name / "audio").iterdir()) / 1e6
    assert f"{megabytes:.1f} MB" in text


def test_a_group_of_instruments_is_of_one_class_and_lies_in_one_fold():
    clips = read_clips("instruments")
    for group, own in clips.groupby("group"):
        assert own["category"].nunique() == own["fold"].nunique() == 1, group
        assert {name.removeprefix("audio/").split("_")[0] for name in own["file_name"]} == {group.split("_")[0]}
    assert set(clips[clips["split"] == "test"]["fold"]) == {""}
    held_in = clips[clips["split"] != "test"]
    assert set(held_in["fold"]) == set("01234")
    counts = pandas.crosstab(held_in["category"], held_in["fold"])
    assert (counts > 0).all(axis=None) and counts.sum().max() <= 1.3 * counts.sum().min()


def test_folds_of_instruments_are_read():
    columns = Columns(label="category", fold="fold")
    table = load_table(ROOT / "data" / "instruments" / "train.csv", columns)
    assert set(table["fold"]) == set("01234") and len(set(table["label"])) == 9
