"""Makes clips with several labels each of data/soundscapes, for benchmarks/fusion_results.py."""

import csv
from pathlib import Path

import soundfile
from training_runs import ROOT

from training.data.events import read_events

CLIP_S = 2.0  # an event lasts 0.5 to 2.0 s
LEAST_S = 0.2  # an event counts in a clip that has at least as much of it
SEPARATOR = ";"
WORDS = ("--problem_type", "multi_label_classification", "--label_separator", SEPARATOR, "--start_column", "start",
         "--end_column", "end")  # fmt: skip


def make_tags(folder: Path, source: Path = ROOT / "data" / "soundscapes"):
    """
    Writes `train.csv`, `validation.csv` and `test.csv` that cut the recordings into clips of `CLIP_S` and name the
    classes of each, or none. `group` is the recording, which lies in one split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        rows = []
        events = read_events(source / split)
        for path in sorted((source / split).glob("*.flac")):
            own = events.get(path.stem, [])
            for number in range(int(soundfile.info(path).duration // CLIP_S)):
                start, end = number * CLIP_S, (number + 1) * CLIP_S
                # Times are multiples of 10 ms: half of it keeps rounding out of the comparison.
                found = {
                    event.label
                    for event in own
                    if min(event.offset_s, end) - max(event.onset_s, start) > LEAST_S - 0.005
                }
                rows.append((path, start, end, SEPARATOR.join(sorted(found)), path.stem))
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("file_name", "start", "end", "labels", "group"))
            writer.writerows(rows)
