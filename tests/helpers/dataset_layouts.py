"""Writes miniatures of published data sets: a function of a folder per data set, with tones of 0.1 to 1 s."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas
import soundfile
from audio_files import write_tone

EMOTION_CODES = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
TESS_EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")
ESC50_CLASSES = ("dog", "rain", "clock_tick")
WORDS = ("yes", "no", "stop", "bed", "cat")


def _table(path: Path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def crema_d(folder: Path):
    for actor in range(1001, 1011):
        for code in EMOTION_CODES:
            write_tone(folder / "AudioWAV" / f"{actor}_DFA_{code}_XX.wav", seconds=0.1)


def tess(folder: Path):
    for speaker in ("OAF", "YAF"):
        for word in ("back", "bar", "base"):
            for emotion in TESS_EMOTIONS:
                write_tone(folder / f"{speaker}_{emotion}" / f"{speaker}_{word}_{emotion}.wav", seconds=0.1)
    write_tone(folder / "OAF_neutral" / "OA_bite_neutral.wav", seconds=0.1)
    write_tone(folder / "TESS data" / "OAF_angry" / "OAF_back_angry.wav", seconds=0.1)  # the second copy


def ravdess(folder: Path):
    for actor in (1, 2, 3, 4, 5, 6, 18, 22):
        for emotion in range(1, 9):
            name = f"-0{emotion}-01-01-01-{actor:02d}.wav"
            write_tone(folder / f"Actor_{actor:02d}" / f"03-01{name}", seconds=0.1)
    write_tone(folder / "Actor_01" / "03-02-01-01-01-01-01.wav", seconds=0.1)


def emotions(folder: Path):
    crema_d(folder / "CREMA-D")
    tess(folder / "TESS")
    ravdess(folder / "RAVDESS")
    write_tone(folder / "Neutral" / "103-01-01-01-01-01-01.wav", seconds=0.1)  # a copy under another name
    for speaker in ("DC", "JE"):
        for code in ("a", "sa", "su"):
            write_tone(folder / "SAVEE" / speaker / f"{code}01.wav", seconds=0.1)
    write_tone(folder / "SAVEE" / "KL_n30.wav", seconds=0.1)


def isolated_urban(folder: Path):
    for name in ("bird", "cityCar", "stepPark", "stepCity"):
        for index in range(1, 6):
            write_tone(folder / "event" / name.lower() / f"{name}0{index}.wav", seconds=1.0)
    write_tone(folder / "event" / "bell" / "bell01.wav", seconds=1.0)  # a class that the paper omits
    write_tone(folder / "background" / "bird99.wav", seconds=1.0)


def birdcall(folder: Path):
    rows = []
    for species in ("aldfly", "ameavo"):
        for index in range(5):
            name = f"XC{species}{index}.mp3"
            write_tone(folder / "train_audio" / species / name, seconds=21.0, rate=8000)
            rows.append((species, name, f"recordist {index}"))
    write_tone(folder / "train_audio" / "aldfly" / "XCshort.mp3", seconds=3.0, rate=8000)
    (folder / "train_audio" / "aldfly" / "XCdamaged.mp3").write_bytes(b"nothing")
    rows += [("aldfly", "XCshort.mp3", "somebody"), ("aldfly", "XCdamaged.mp3", "somebody")]
    _table(folder / "train.csv", ("ebird_code", "filename", "recordist"), *rows)


def esc50(folder: Path):
    rows = []
    for fold in range(1, 6):
        for target, label in enumerate(ESC50_CLASSES):
            rows.append((f"{fold}-{target}00-A-{target}.wav", fold, target, label, False, f"{target}00", "A"))
            write_tone(folder / "audio" / rows[-1][0], seconds=0.2, hz=300 * (target + 1))
    header = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    _table(folder / "meta" / "esc50.csv", header, *rows)


def urbansound8k(folder: Path):
    rows = []
    for fold in range(1, 11):
        for index, label in enumerate(("siren", "drilling")):
            for part in range(2):
                name = f"{fold}{index}-{index}-0-{part}.wav"
                rows.append((name, f"{fold}{index}", 0.0, 0.2, 1, fold, index, label))
                write_tone(folder / "audio" / f"fold{fold}" / name, seconds=0.2, hz=300 * (index + 1))
    header = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
    _table(folder / "metadata" / "UrbanSound8K.csv", header, *rows)


def audioset(folder: Path):
    """Writes files with four kinds of names, and a segment without audio."""
    mids = ("/m/09x0r", "/m/068hy", "/t/dd00088")
    names = ["Speech", "Domestic animals, pets", "Gush"]
    _table(
        folder / "class_labels_indices.csv",
        ("index", "mid", "display_name"),
        *((index, mid, name) for index, (mid, name) in enumerate(zip(mids, names))),
    )
    calls = ("{}", "Y{}", "{}_30.000", "Y{}_30000_40000")
    for part, name in enumerate(("balanced_train", "unbalanced_train", "eval")):
        lines = ["# Segments csv", "# num_ytids=9", "# YTID, start_seconds, end_seconds, positive_labels"]
        for index in range(8):
            ytid = f"_-Y{part}{index}bcdefg"
            labels = ",".join(mids[: 1 + index % 3])
            lines.append(f'{ytid}, 30.000, 40.000, "{labels}"')
            write_tone(folder / "audio" / name / f"{calls[index % 4].format(ytid)}.wav", seconds=0.2)
        lines.append(f'gone{part}abcdef, 0.000, 10.000, "{mids[0]}"')
        (folder / f"{name}_segments.csv").write_text("\n".join(lines) + "\n")


audioset20k = audioset


def speech_commands_v2(folder: Path):
    for word in WORDS:
        for speaker in range(8):
            write_tone(folder / word / f"{speaker:08x}_nohash_0.wav", seconds=0.2)
    for name, speaker in (("validation", 6), ("testing", 7)):
        lines = [f"{word}/{speaker:08x}_nohash_0.wav\n" for word in WORDS]
        (folder / f"{name}_list.txt").write_text("".join(lines))
    for noise in ("doing_the_dishes", "running_tap", "exercise_bike"):
        write_tone(folder / "_background_noise_" / f"{noise}.wav", seconds=3.5)


speech_commands_v1 = speech_commands_v2


def iemocap(folder: Path):
    for session in range(1, 6):
        root = folder / f"Session{session}"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for index, emotion in enumerate(("neu", "exc", "hap", "sad", "ang", "fru", "xxx")):
            for sex in "FM":
                turn = f"Ses0{session}F_impro01_{sex}{index:03d}"
                lines += [f"[6.2901 - 8.2357]\t{turn}\t{emotion}\t[2.5000, 2.5000, 2.5000]", "C-E2:\tNeutral;\t()", ""]
                write_tone(root / "sentences" / "wav" / f"Ses0{session}F_impro01" / f"{turn}.wav", seconds=0.1)
        path = root / "dialog" / "EmoEvaluation" / f"Ses0{session}F_impro01.txt"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines) + "\n")


def voxceleb1(folder: Path):
    lines = []
    for person in ("id10001", "id10002", "id10003"):
        for part, video in ((1, "aaa"), (1, "bbb"), (2, "ccc"), (3, "ddd")):
            name = f"{person}/{video}/00001.wav"
            root = "test/wav" if person == "id10003" else "dev/wav"
            write_tone(folder / root / name, seconds=0.1)
            lines.append(f"{part} {name}\n")
    (folder / "iden_split.txt").write_text("".join(lines))


def voxforge(folder: Path):
    for language in ("de", "en", "es", "fr", "it", "ru"):
        for name in ("ann-1", "ann-2", "bob-1", "cid-1", "anonymous-1", "anonymous-2", "dora-1", "eve-1"):
            write_tone(folder / language / "Trunk" / f"{name}" / "wav" / "de1-01.wav", seconds=0.1)


def gtzan(folder: Path):
    lists = {"train": [], "valid": [], "test": []}
    for genre in ("blues", "jazz"):
        for index in range(10):
            write_tone(folder / "genres" / genre / f"{genre}.{index:05d}.wav", seconds=0.1)
            if index:  # the first is faulty and not in the lists
                lists["train" if index < 6 else "valid" if index < 8 else "test"].append(
                    f"{genre}/{genre}.{index:05d}.wav\n"
                )
    for name, lines in lists.items():
        path = folder / "GTZAN_split" / f"{name}_filtered.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(lines))


def nsynth(folder: Path):
    for split, count in (("train", 6), ("valid", 2), ("test", 2)):
        notes = {}
        for family in ("bass", "organ"):
            for index in range(count):
                name = f"{family}_synthetic_{split}{index}-060-050"
                notes[name] = {"instrument_family_str": family, "instrument_str": f"{family}_{split}"}
                write_tone(folder / f"nsynth-{split}" / "audio" / f"{name}.wav", seconds=0.1)
        (folder / f"nsynth-{split}" / "examples.json").write_text(json.dumps(notes))


def surge(folder: Path):
    for preset in range(10):
        for note in (60, 61, 72):
            write_tone(folder / f"surge-patches-{preset}-velocity64" / f"{note}.ogg", seconds=0.2)


def wav(frequency: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * frequency * np.arange(4000) / 16000), 16000, format="WAV")
    return file.getvalue()


def tones() -> dict[str, bytes]:
    """Returns the Parquet files of a data set of two classes, as on the Hub."""
    content = {}
    for split in ("train", "test"):
        rows = [(wav(f + index), label) for label, f in (("high", 3000), ("low", 200)) for index in range(6)]
        table = {
            "audio": [{"bytes": audio, "path": f"{index}.wav"} for index, (audio, _) in enumerate(rows)],
            "label": [label for _, label in rows],
        }
        content[f"data/{split}-00000-of-00001.parquet"] = pandas.DataFrame(table).to_parquet()
    header = "dataset_info:\n  features:\n  - name: audio\n    dtype: audio\n  - name: label\n    dtype: string"
    return content | {"README.md": f"---\n{header}\n---\n".encode()}
