"""Tests training.check for annotated recordings: it finds the planted faults, and no others."""

import json
import shutil

import pytest
import yaml
from audio_files import write_tone

from training import check
from training.data import annotation_check
from training.data.annotations import AnnotatedRecording
from training.data.events import Event
from training.errors import InputError

HEADER = "file,onset,offset,label,low_hz,high_hz,site\n"


class Tables:
    """Recordings and their tables, in order until a test plants a fault."""

    def __init__(self, folder):
        self.folder, self.rows = folder, {"train": [], "test": []}
        for index, (split, rows) in enumerate(self.rows.items()):
            for number in range(2):
                name = f"{split}_{number}.wav"
                write_tone(folder / name, seconds=4.0, rate=2000, seed=10 * index + number)
                rows += [
                    f"{name},{start + number / 8},{start + 0.5},{label},100,900,{split}"
                    for start, label in ((0, "owl"), (1, "jay"), (2, "owl"), (3, "jay"))
                ]

    def add(self, split, *cells):
        self.rows[split].append(",".join(map(str, [*cells, "", "", split][:7])))

    def words(self, *words):
        for split, rows in self.rows.items():
            (self.folder / f"{split}.csv").write_text(HEADER + "\n".join(rows) + "\n")
        return [
            "--annotations", f"{self.folder}/train.csv", "--test_annotations", f"{self.folder}/test.csv", "--site",
            "site", *words,
        ]  # fmt: skip

    def check(self, *words):
        return check.check_annotations(check.parse(self.words(*words)))

    def found(self, *words):
        return {kind: own["items"] for kind, own in self.check(*words)["findings"].items() if own["count"]}


@pytest.fixture
def tables(tmp_path):
    return Tables(tmp_path)


def test_annotations_in_order_have_no_findings(tables):
    report = tables.check()
    assert report["errors"] == report["warnings"] == 0
    assert list(report["findings"]) == list(annotation_check.KINDS)
    assert report["splits"]["test"] == {
        "recordings": 2, "unlabelled": 0, "sites": 1, "events": 8, "hours": round(8 / 3600, 4),
        "hours of events": round(3.5 / 3600, 4), "unsure hours": 0, "empty hours": 0,
    }  # fmt: skip
    assert report["classes"]["owl"] == {
        "train": 4, "test": 4, "seconds": 3.5, "min_s": 0.375, "median_s": 0.4375, "max_s": 0.5,
    }  # fmt: skip
    assert list(report["classes"]) == ["jay", "owl"] and report["overlaps"] == []


@pytest.mark.parametrize(
    ("cells", "kinds"),
    [
        (("train_0.wav", 3.75, 5, "owl"), {"cut_at_end"}),
        (("train_0.wav", 4.5, 5, "owl"), {"begins_after_end"}),
        (("train_0.wav", 3.75, 3.75, "owl"), {"without_duration"}),
        (("train_0.wav", 3.75, 3.76, "owl"), {"shorter_than_a_frame"}),
        (("train_0.wav", 3.75, 3.78, "owl"), {"very_short"}),
        (("train_0.wav", 0.0, 0.5, "owl"), {"repeated_events"}),
        (("train_0.wav", 0.25, 0.75, "owl"), {"overlapping_events"}),
        (("train_0.wav", 0.5, 0.75, "owl"), {"overlapping_events"}),
        (("train_0.wav", 0.25, 0.75, "jay"), set()),  # of two classes: a fact, no finding
        (("train_0.wav", 0.6, 0.9, "Owl"), {"similar_classes", "single_event_classes", "missing_classes"}),
        (("train_0.wav", 0.6, 0.9, "owl", 1000), {"high_frequencies"}),
        (("test_0.wav", 0.6, 0.9, "owl"), {"recordings_across_splits", "sites_across_splits"}),
        (("train_0.wav", 0.6, 0.9, "unsure"), {"excluded"}),
        (("train_0.wav", 0.6, 0.9, "wind"), {"left_out"}),
    ],
)
def test_planted_faults(tables, cells, kinds):
    if "sites_across_splits" in kinds:
        tables.rows["test"] = [row for row in tables.rows["test"] if "test_1" in row]
        own = [row.replace("test_1", "test_0").replace(",test", ",train") for row in tables.rows["test"]]
        tables.rows["test"] += own
    tables.add("train", *cells)
    found = tables.found("--sampling_rate=2000", "--exclude_labels=unsure", "--label_map={wind: null}")
    assert set(found) == kinds
    for kind, items in found.items():
        assert len(items) == 1, kind
        if "label" in items[0]:
            wanted = {
                "split": "train",
                "recording": str(tables.folder / cells[0]),
                "label": cells[3],
                "onset_s": cells[1],
            }
            assert items[0].items() >= wanted.items()


def test_leaks_are_recordings_copies_and_sites(tables):
    shutil.copy(tables.folder / "train_0.wav", tables.folder / "copy.wav")
    tables.rows["test"].append("copy.wav,0,1,owl,,,train")
    found = tables.found()
    assert found["recordings_across_splits"] == [
        {"recordings": [f"train: {tables.folder}/train_0.wav", f"test: {tables.folder}/copy.wav"]}
    ]
    assert found["sites_across_splits"] == [{"site": "train", "train": 2, "test": 1}]


def test_recordings_without_a_site(tables):
    tables.rows["train"] = [row.removesuffix("train") if "_1.wav" in row else row for row in tables.rows["train"]]
    assert tables.found() == {"without_site": [{"split": "train", "recording": f"{tables.folder}/train_1.wav"}]}
    with pytest.raises(InputError, match="^site: no table has a column 'place' with sites, nor does it match"):
        tables.check("--site", "place")


def test_recordings_without_tables_and_unreadable_ones(tables):
    write_tone(tables.folder / "other.wav", seconds=3.6, rate=2000)
    (tables.folder / "bad.wav").write_bytes(b"notes" * 100)
    tables.add("train", "gone.wav", 0, 1, "owl")
    wanted = {"missing": 1, "unreadable": 1, "unlabelled": 1}
    assert {kind: len(items) for kind, items in tables.found().items()} == wanted
    report = tables.check("--unannotated", "empty")
    assert report["findings"]["empty"]["count"] == 1 and report["errors"] == 2
    assert report["splits"]["train"]["empty hours"] == 0.001


def _recording(duration_s, *events, unsure=()):
    return AnnotatedRecording(None, duration_s, tuple(events), None, tuple(unsure))


def test_overlaps_within_and_between_classes():
    events = [Event(0, 4, "owl"), Event(1, 2, "jay"), Event(1.5, 5, "owl"), Event(4, 6, "jay"), Event(6, 7, "jay")]
    assert annotation_check.describe_overlaps({"train": [_recording(9.0, *events), _recording(9.0, *events[:2])]}) == [
        {"class": "jay", "with": "owl", "pairs": 4, "seconds": 3.5},
        {"class": "owl", "with": "owl", "pairs": 1, "seconds": 2.5},
    ]


def test_long_gaps_are_those_of_recordings_with_events(monkeypatch):
    gaps = annotation_check.find_long_gaps(
        {
            "train": [
                _recording(20000.0, Event(0, 10, "owl"), Event(5000, 5010, "owl"), Event(7000, 7001, "owl")),
                _recording(20000.0),
                _recording(8000.0, Event(4000, 4001, "owl"), unsure=[Event(0, 3000, "x")]),
            ]
        }
    )
    assert [(item["onset_s"], item["offset_s"]) for item in gaps] == [(10, 5000), (7001, 20000.0), (4001, 8000.0)]


def test_recipes_and_the_command_line(tables, tmp_path):
    tables.words()
    recipe = {
        "task": "detection", "learning_rate": 1e-4, "train_annotations": f"{tmp_path}/train.csv",
        "exclude_labels": ["owl"], "label_map": {"jay": "bird"}, "output_dir": "runs/x",
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    arguments = check.parse([str(tmp_path / "r.yaml"), "--test_annotations", f"{tmp_path}/test.csv"])
    report = check.check_annotations(arguments)
    assert list(report["classes"]) == ["bird"] and report["findings"]["excluded"]["count"] == 8
    (tmp_path / "c.yaml").write_text(f"task: finetune\ntrain_file: {tmp_path}/clips.csv\nlabel_column: kind\n")
    arguments = check.parse([str(tmp_path / "c.yaml")])
    assert isinstance(arguments, check.CheckArguments) and arguments.label_column == "kind"
    with pytest.raises(InputError, match=r"did you mean train_annotations\?"):
        check.parse(["--annotations", "x.csv", "--train_anotations", "y.csv"])


def test_the_program_prints_and_writes_everything(tables, tmp_path, capsys):
    tables.add("train", "train_0.wav", 4.5, 5, "owl")
    words = tables.words("--output", tmp_path / "report.json")
    assert check.main(list(map(str, words))) == 1
    printed, problems = capsys.readouterr()
    assert "error: events that begin after the end of their recordings: is it the right recording? (1)" in printed
    *_, counts, place = printed.splitlines()
    assert counts.startswith("1 error") and place == f"everything is in {tmp_path}/report.json"
    assert problems == ""
    assert json.loads((tmp_path / "report.json").read_text()) == tables.check()
