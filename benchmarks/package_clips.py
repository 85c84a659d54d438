"""
Makes labelled clips from packages of Debian, for benchmarks/fusion_results.py: `klettres-data` (spoken letters and
syllables in many languages) and `hydrogen-drumkits` (drum kits). Nothing of them is part of this repository.

The packages come by `apt-get download klettres-data hydrogen-drumkits` into a folder; `dpkg-deb -x` takes them apart.
"""

import csv
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from xml.etree import ElementTree

import soundfile
from clips import read_at

RATE = 16_000  # Hz
MAX_S = 2.0  # what follows in a longer clip is cut off: the ends of cymbals
LABEL_COLUMN = "label"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Row:
    """Describes a clip of a table. `group` lies in one split: the letter or syllable, or the author of the kits."""

    file_name: str
    label: str
    group: str
    split: str
    source: str
    licence: str


# ---- languages by letter ----

LETTERS_LICENCE = "GPL-2+ (Anne-Marie Mahfouf and others)"
FEWEST, MOST = 40, 60  # clips per language


def letters(package: Path) -> Iterator[tuple[Path, Row]]:
    """
    Yields the spoken letters and syllables of klettres-data; the class is the language.

    The file name, a letter or syllable in Latin writing, lies in one split for all languages. A language has one
    speaker or few, so that its class can also be told by the voice. Languages with fewer than `FEWEST` clips are left
    out, and of those with more than `MOST` as many are taken, by the hash of their names.
    """
    root = package / "usr" / "share" / "klettres"
    by_language = {}
    for path in sorted(root.glob("*/*/*.ogg")):
        by_language.setdefault(path.relative_to(root).parts[0], []).append(path)
    for language, paths in by_language.items():
        if len(paths) < FEWEST:
            continue
        for path in sorted(sorted(paths, key=lambda path: hash_of(str(path.relative_to(root))))[:MOST]):
            group = path.stem.lower()
            place = hash_of(group) % 10
            split = SPLITS[2] if place < 3 else SPLITS[1] if place < 5 else SPLITS[0]
            name = f"{language}_{path.parent.name}_{path.stem}.flac"
            yield path, Row(name, language, group, split, str(path.relative_to(package)), LETTERS_LICENCE)


def hash_of(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


# ---- drums by kit ----

# Kit -> author, licence by the package's file `copyright`, split: kits of one author lie in one split. Left out are a
# kit of percussion, one of hands and one of African drums, whose instruments have no kinds in common with the others.
KITS = {
    "BJA_Pacific": ("Luc Tunguay", "CC-BY-SA-3.0-us", "train"),
    "Millo-Drums_v.1": ("Emiliano Grilli", "GPL-2", "train"),
    "Millo_MultiLayered2": ("Emiliano Grilli", "GPL-2", "train"),
    "Millo_MultiLayered3": ("Emiliano Grilli", "GPL-2", "train"),
    "ElectricEmpireKit": ("Artemiy Pavlov", "GPL-2+", "train"),
    "HardElectro1": ("Artemiy Pavlov", "GPL-2+", "train"),
    "VariBreaks": ("Artemiy Pavlov", "GPL-2+", "train"),
    "Audiophob": ("Audiophob", "CC0", "validation"),
    "ColomboAcousticDrumkit": ("Marcos Guglielmetti", "GPL-2+ with composition exception", "validation"),
    "rumpf_kit_z01_h2": ("Emanuel Rumpf", "CC-BY-3.0", "validation"),
    "ForzeeStereo": ("Vladimir Sadovnikov, Alexander Belokurov", "GPL-2", "test"),
    "The Black Pearl 1.0": ("Glen MacArthur", "GPL-2", "test"),
}
KINDS = {  # the first pattern in an instrument's name counts
    "hi-hat": r"hi-?hat|\bo?hh\b|\bhat\b",
    "snare": r"snare",
    "tom": r"\btom|tom\b",
    "cymbal": r"crash|ride|splash|china|cymbal",
    "bass drum": r"kick|bass ?drum",
}


def drums(package: Path) -> Iterator[tuple[Path, Row]]:
    """Yields the samples of hydrogen-drumkits; the class is the kind of drum that the kit's own list names."""
    root = package / "usr" / "share" / "hydrogen" / "data" / "drumkits"
    for kit, (author, licence, split) in KITS.items():
        text = (root / kit / "drumkit.xml").read_text(encoding="utf-8", errors="replace")
        found = {}
        for instrument in ElementTree.fromstring(re.sub(r' (xmlns|xmlns:\w+|xsi:\w+)="[^"]*"', "", text)).iter(
            "instrument"
        ):
            name = (instrument.findtext("name") or "").lower()
            kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), None)
            files = [element.text for element in instrument.iter("filename") if element.text]
            found |= {file: kind for file in files if kind and (root / kit / file).exists()}
        for file, kind in sorted(found.items()):
            path = root / kit / file
            name = re.sub(r"[^\w.]+", "-", f"{kit}_{Path(file).stem}.flac")
            yield path, Row(name, kind, author, split, str(path.relative_to(package)), licence)


PACKAGES = {"hydrogen-drumkits": drums, "klettres-data": letters}


def make_clips(packages: Path, name: str, folder: Path) -> bool:
    """
    Writes `train.csv`, `validation.csv`, `test.csv` and their clips as mono FLAC of 16 kHz, unless they are there.

    Args:
        packages: holds the .deb files, or folders of their names into which they were taken apart

    Returns:
        Whether `packages` has this package.
    """
    if all((folder / f"{split}.csv").exists() for split in SPLITS):
        return True
    archives = sorted(packages.glob(f"{name}_*.deb"))
    if not archives and not (packages / name).is_dir():
        return False
    with tempfile.TemporaryDirectory() as taken_apart:
        root = packages / name
        if not root.is_dir():
            root = Path(taken_apart)
            subprocess.run(["dpkg-deb", "-x", archives[-1], root], check=True)
        rows = []
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        for path, row in PACKAGES[name](root):
            clip = read_at(path, RATE)[: int(MAX_S * RATE)]
            if not clip.any():
                print(f"{path}: is silent, and left out")
                continue
            soundfile.write(folder / "audio" / row.file_name, clip, RATE)
            rows.append(row)
    for split in SPLITS:
        part = [row for row in rows if row.split == split]
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([field.name for field in fields(Row)])
            writer.writerows((f"audio/{row.file_name}", *astuple(row)[1:]) for row in part)
    return True
