"""
Makes a corpus without labels from packages of Debian 12, to pretrain on: music, effects and speech of games and
telephones. Nothing of them is part of this repository.

The packages come by `apt-get download NAME ...` into a folder; the script names those that it lacks. It writes mono
FLAC of 16 kHz, cuts without overlap, their table `train.csv`, `left_out.csv` with all that was left out and why, and
`corpus.json` with the SHA-256 of each package and the hours. The same packages give the same bytes on any number of
threads, by the same versions of the libraries that `corpus.json` names.

Packages that labelled clips are made of are refused, and recordings that are clips of `--held_out` are left out: a
check on clips that a model was pretrained on says little.
"""

import argparse
import csv
import fnmatch
import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field, fields
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr
from clips import at_rate, read_mono
from debian_packages import archive_of, extracted, version_of
from package_clips import CHECKS

ROOT = Path(__file__).parent.parent
RATE = 16_000  # Hz
STEP = 2.0**-15  # of 16 bits
MUSIC, EFFECTS, SPEECH = "music", "effects", "speech"
UNREADABLE, NOT_FINITE, DUPLICATE, HELD_OUT = "unreadable", "not finite", "duplicate", "held out"
TOO_SHORT, SILENT = "too short", "silent"
# Ending -> what the file itself does not say.
ENDINGS = {ending: {} for ending in (".wav", ".ogg", ".oga", ".opus", ".flac", ".mp3", ".aiff")}
ENDINGS[".gsm"] = {"format": "RAW", "subtype": "GSM610", "samplerate": 8000, "channels": 1}

# What labelled clips are made of: packages of package_clips.py, others that hold the same recordings, and the one that
# data/instruments is from.
CHECKED = (
    *(package for package, _ in CHECKS.values()),
    "hydrogen-drumkits*", "fluid-soundfont-*", "fluidr3mono-*", "musescore-general-*", "sonic-pi-samples",
)  # fmt: skip


@dataclass(frozen=True)
class Package:
    """
    Says what the recordings of a package are.

    kind: of all but those whose path matches a pattern of `others`, pattern -> kind
    licence: by the package's file `copyright`, which names authors and exceptions
    languages: of its speech
    """

    kind: str
    licence: str
    languages: str = ""
    others: dict[str, str] = field(default_factory=dict)


MUSIC_FOLDER = {"*/music/*": MUSIC, "*/Music/*": MUSIC}
CORPUS = {
    "asterisk-core-sounds-en-wav": Package(SPEECH, "CC-BY-SA-3.0", "en"),
    "asterisk-core-sounds-es-wav": Package(SPEECH, "CC-BY-SA-3.0", "es"),
    "asterisk-core-sounds-fr-wav": Package(SPEECH, "CC-BY-SA-3.0", "fr"),
    "asterisk-core-sounds-it-wav": Package(SPEECH, "CC-BY-3.0", "it"),
    "asterisk-core-sounds-ru-wav": Package(SPEECH, "CC-BY-3.0", "ru"),
    "asterisk-moh-opsound-wav": Package(MUSIC, "CC-BY-SA-3.0"),
    "asterisk-prompt-es-co": Package(SPEECH, "GPL-2", "es"),
    "asterisk-prompt-fr-armelle": Package(SPEECH, "BSD-2-clause, without use of names", "fr"),
    "asterisk-prompt-it-menardi-wav": Package(SPEECH, "CC-BY-SA-3.0-it", "it"),
    "colobot-common-sounds": Package(EFFECTS, "GPL-3+", others=MUSIC_FOLDER),
    "drascula-music": Package(MUSIC, "Drascula-License"),
    "fillets-ng-data-cs": Package(SPEECH, "GPL-2", "cs"),
    "fillets-ng-data-nl": Package(SPEECH, "GPL-2", "nl"),
    "freedroidrpg-data": Package(EFFECTS, "GPL-2+", others=MUSIC_FOLDER),
    "hedgewars-data": Package(EFFECTS, "GFDL-1.3, GPL-2", "many", {"*/voices/*": SPEECH, **MUSIC_FOLDER}),
    "hyperrogue-music": Package(EFFECTS, "CC-BY-SA-3.0, CC-BY-SA-4.0, CC-BY-3.0, CC0-1.0", others=MUSIC_FOLDER),
    "ktuberling-data": Package(SPEECH, "GPL-2+", "many"),
    "lincity-ng-data": Package(EFFECTS, "GPL-2+", others=MUSIC_FOLDER),
    "megaglest-data": Package(EFFECTS, "CC-BY-SA-3.0", "en", MUSIC_FOLDER),
    "starfighter-data": Package(EFFECTS, "GPL-2+", others=MUSIC_FOLDER),
    "supertux-data": Package(EFFECTS, "GPL-3+, GPL-2+", others=MUSIC_FOLDER),
    "supertuxkart-data": Package(EFFECTS, "GPL-3+, CC-BY-SA-3.0 and others by file", others=MUSIC_FOLDER),
    "tuxpaint-stamps-default": Package(EFFECTS, "GPL-2", "many", {"*_desc*": SPEECH, "*/symbols/*": SPEECH}),
    "unknown-horizons": Package(EFFECTS, "CC-BY-SA-3.0", "many", {"*/voice/*": SPEECH, **MUSIC_FOLDER}),
    "warzone2100-music": Package(MUSIC, "GPL-2+"),
    "wesnoth-1.16-music": Package(MUSIC, "GPL-2+"),
    "widelands-data": Package(EFFECTS, "GPL-2+, CC-BY-SA-3.0", others=MUSIC_FOLDER),
}


@dataclass(frozen=True)
class Row:
    """Describes a cut of the corpus; `source` is the path in the package."""

    file_name: str
    package: str
    version: str
    source: str
    kind: str
    licence: str
    seconds: float


@dataclass(frozen=True)
class LeftOut:
    """Describes a recording, or the part from `start_s` on, that is not in the corpus."""

    package: str
    source: str
    start_s: float
    seconds: float
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Cutting:
    """Says how recordings are cut: parts of `seconds`, of which a last one under `shortest_s` is left out."""

    seconds: float = 10.0
    shortest_s: float = 1.0


def check_names(names: Iterable[str], packages: Path) -> list[str]:
    """
    Returns the names in the order of the table, so that duplicates are taken from the same package each time.

    Raises:
        SystemExit: a package that labelled clips are made of, one without a row in the table, or one that is missing.
    """
    for name in names:
        if any(fnmatch.fnmatch(name, pattern) for pattern in CHECKED):
            raise SystemExit(f"{name}: labelled clips are made of it, to check models on; leave it out")
        if name not in CORPUS:
            raise SystemExit(f"{name}: has no row in CORPUS of {Path(__file__).name}; add its kind and licence")
    missing = [name for name in CORPUS if name in names and archive_of(packages, name) is None]
    if missing:
        raise SystemExit(f"{packages}: lacks {len(missing)} packages; there, run: apt-get download {' '.join(missing)}")
    return [name for name in CORPUS if name in names]


def key_of(samples: np.ndarray, rate: int) -> str:
    """Returns the SHA-256 of decoded samples, float32 (samples,), and their rate."""
    return hashlib.sha256(f"{rate} ".encode() + samples.astype("<f4").tobytes()).hexdigest()


def recordings_in(folder: Path) -> list[Path]:
    """Returns the files below a folder whose endings are those of sound, without links."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    return sorted((path for path in files if path.is_file() and not path.is_symlink()), key=os.fsencode)


def keys_held_out(places: Iterable[Path]) -> dict[str, tuple[str, str]]:
    """
    Returns the key of each clip in some folders -> why a recording of the same samples is left out.

    Raises:
        SystemExit: a folder has no clips.
    """
    known = {}
    for place in places:
        clips = recordings_in(place)
        if not clips:
            raise SystemExit(f"{place}: has no clips to hold out; name a folder that has, or none after --held_out")
        known |= {key_of(*read(path)): (HELD_OUT, f"is {place.name}/{path.relative_to(place)}") for path in clips}
    return known


def read(path: Path) -> tuple[np.ndarray, int]:
    return read_mono(path, **ENDINGS[path.suffix.lower()])


def kind_of(name: str, source: str) -> str:
    kinds = (kind for pattern, kind in CORPUS[name].others.items() if fnmatch.fnmatchcase(source, pattern))
    return next(kinds, CORPUS[name].kind)


def cut(path: Path, root: Path, name: str, version: str, audio: Path, cutting: Cutting) -> tuple:
    """
    Writes the cuts of a recording.

    Returns:
        Its key, its seconds, the rows of its cuts, and what is left out of it. The key is `None` where it cannot be
        read.
    """
    source = str(path.relative_to(root))
    try:
        samples, rate = read(path)
    except (OSError, soundfile.SoundFileError) as error:
        message = " ".join(str(error).replace(f"{root}/", "").split())
        return None, 0.0, [], [LeftOut(name, source, 0.0, 0.0, UNREADABLE, message)]
    key, seconds = key_of(samples, rate), len(samples) / rate
    if not np.isfinite(samples).all():
        return key, seconds, [], [LeftOut(name, source, 0.0, seconds, NOT_FINITE)]
    samples = at_rate(samples, rate, RATE)
    rows, left_out = [], []
    stem = hashlib.sha256(os.fsencode(source)).hexdigest()[:16]
    length, shortest = round(cutting.seconds * RATE), round(cutting.shortest_s * RATE)
    for index in range(max(1, math.ceil(len(samples) / length))):
        part = samples[index * length : (index + 1) * length]
        reason = TOO_SHORT if len(part) < shortest else SILENT if np.abs(part).max() < STEP else None
        if reason:
            left_out.append(LeftOut(name, source, index * cutting.seconds, len(part) / RATE, reason))
            continue
        file = audio / name / f"{stem}_{index:03}.flac"
        soundfile.write(file, part, RATE, subtype="PCM_16")
        file_name = f"{audio.name}/{name}/{file.name}"
        licence = CORPUS[name].licence
        rows.append(Row(file_name, name, version, source, kind_of(name, source), licence, len(part) / RATE))
    return key, seconds, rows, left_out


def make_corpus(
    packages: Path,
    folder: Path,
    names: Iterable[str] = CORPUS,
    held_out: Iterable[Path] = (),
    cutting: Cutting = Cutting(),
    threads: int = 1,
) -> dict:
    """
    Makes the corpus in `folder`, which appears when it is complete, and returns what `corpus.json` says.

    Args:
        packages: holds the .deb files
        held_out: folders with clips; recordings of the same samples are left out

    Raises:
        SystemExit: a package is refused or missing, the folder exists, or one of `held_out` has no clips.
    """
    names = check_names(list(names), packages)
    if folder.exists():
        raise SystemExit(f"{folder}: exists; remove it or name another folder")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    known = keys_held_out(held_out)
    rows, left_out, archives = [], [], {}
    with ThreadPoolExecutor(threads) as pool:
        for name in names:
            archive = archive_of(packages, name)
            version = version_of(archive)
            archives[name] = {"version": version, "file": archive.name, "sha256": sha256_of(archive)}
            (unfinished / "audio" / name).mkdir(parents=True)
            with extracted(archive) as root:
                job = partial(cut, root=root, name=name, version=version, audio=unfinished / "audio", cutting=cutting)
                files = recordings_in(root)
                archives[name]["recordings"] = len(files)
                for path, (key, seconds, own, without) in zip(files, pool.map(job, files)):
                    source = str(path.relative_to(root))
                    if key in known:
                        for row in own:
                            (unfinished / row.file_name).unlink()
                        own, without = [], [LeftOut(name, source, 0.0, seconds, *known[key])]
                    elif key is not None:
                        known[key] = DUPLICATE, f"is {name}: {source}"
                    rows += own
                    left_out += without
            print(f"{name} {version}: {hours_of(row for row in rows if row.package == name):.2f} hours", flush=True)
    report = report_on(rows, left_out, archives, cutting)
    write_rows(unfinished / "train.csv", Row, rows)
    write_rows(unfinished / "left_out.csv", LeftOut, left_out)
    (unfinished / "corpus.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    unfinished.rename(folder)
    return report


def sha256_of(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def hours_of(rows: Iterable[Row | LeftOut]) -> float:
    return round(sum(row.seconds for row in rows) / 3600, 4)


def report_on(rows: list[Row], left_out: list[LeftOut], archives: dict, cutting: Cutting) -> dict:
    """Returns what `corpus.json` says."""
    for name, facts in archives.items():
        own = [row for row in rows if row.package == name]
        facts |= {"kinds": hours_by_kind(own), "licence": CORPUS[name].licence, "languages": CORPUS[name].languages}
        facts |= {"cuts": len(own), "hours": hours_of(own)}
    counts = Counter(row.reason for row in left_out)
    return {
        "cuts": len(rows),
        "hours": hours_of(rows),
        "kinds": hours_by_kind(rows),
        "rate": RATE,
        "cut_s": cutting.seconds,
        "shortest_s": cutting.shortest_s,
        "left_out": {
            reason: {"count": counts[reason], "hours": hours_of(row for row in left_out if row.reason == reason)}
            for reason in sorted(counts)
        },
        "packages": archives,
        "versions": {
            "libsndfile": soundfile.__libsndfile_version__,
            "soundfile": soundfile.__version__,
            "soxr": soxr.__version__,
            "numpy": np.__version__,
        },
    }


def hours_by_kind(rows: list[Row]) -> dict[str, float]:
    kinds = sorted({row.kind for row in rows})
    return {kind: hours_of(row for row in rows if row.kind == kind) for kind in kinds}


def write_rows(path: Path, kind: type, rows: list):
    """Writes dataclasses as a table; a name that is not UTF-8 stands with its bytes written out."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([column.name for column in fields(kind)])
        writer.writerows(astuple(row) for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder with .deb files")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "pretraining_corpus", help="must not exist")
    parser.add_argument("--names", nargs="+", default=list(CORPUS), help="packages to take")
    parser.add_argument("--held_out", type=Path, nargs="*", default=[ROOT / "data"], help="folders with labelled clips")
    parser.add_argument("--seconds", type=float, default=Cutting.seconds, help="length of a cut")
    parser.add_argument("--shortest", type=float, default=Cutting.shortest_s, help="shorter cuts are left out, seconds")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    if not 0 < args.shortest <= args.seconds:
        raise SystemExit(f"--shortest {args.shortest}: must be above 0 and at most --seconds, {args.seconds}")
    if args.threads < 1:
        raise SystemExit(f"--threads {args.threads}: must be at least 1")
    cutting = Cutting(args.seconds, args.shortest)
    output = args.output.resolve()
    report = make_corpus(args.packages, output, args.names, args.held_out, cutting, args.threads)
    kinds = ", ".join(f"{kind} {hours:.1f}" for kind, hours in report["kinds"].items())
    print(f"{output}: {report['cuts']} cuts, {report['hours']:.1f} hours ({kinds})")
    for reason, found in report["left_out"].items():
        print(f"left out, {reason}: {found['count']} ({found['hours']:.2f} hours), named in left_out.csv")


if __name__ == "__main__":
    main()
