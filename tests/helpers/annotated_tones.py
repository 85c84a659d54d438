"""Writes recordings of tones in noise with a table of when each tone is there."""

from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
TONES = {"high": 2500.0, "low": 600.0}  # label -> Hz


def write_annotated_tones(
    folder: Path, num_recordings: int = 8, seconds: float = 4.0, events_each: int = 3, seed: int = 0
) -> Path:
    """
    Writes recordings and `events.csv` with the columns file, onset_s, offset_s and label; tones of one label do not
    overlap. Returns the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(seed), ["file,onset_s,offset_s,label"]
    for number in range(num_recordings):
        samples = 0.01 * rng.standard_normal(round(seconds * RATE))
        time_s = np.arange(len(samples)) / RATE
        for label, hz in TONES.items():
            for place in range(events_each):
                if rng.random() < 0.3:
                    continue
                slot_s = seconds / events_each
                onset_s = round(slot_s * (place + rng.uniform(0.05, 0.3)), 3)
                offset_s = round(onset_s + slot_s * rng.uniform(0.3, 0.6), 3)
                is_on = (time_s >= onset_s) & (time_s < offset_s)
                samples += 0.2 * is_on * np.sin(2 * np.pi * hz * time_s)
                lines.append(f"r{number}.wav,{onset_s},{offset_s},{label}")
        soundfile.write(folder / f"r{number}.wav", samples.astype(np.float32), RATE)
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    return folder / "events.csv"
