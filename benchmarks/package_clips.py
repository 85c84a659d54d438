"""
Makes labelled clips from packages of Debian: `klettres-data` (spoken letters and syllables in many languages),
`hydrogen-drumkits` (drum kits) and `fluid-soundfont-gm` (notes of General MIDI) for benchmarks/fusion_results.py, and
`gcin-voice` (syllables of Mandarin by two speakers) for checks of pretrained models. Nothing of them is part of this
repository.

The packages come by `apt-get download klettres-data hydrogen-drumkits fluid-soundfont-gm gcin-voice` into a folder.
"""

import argparse
import csv
import hashlib
import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import soundfile
from clips import at_rate, read_at
from debian_packages import taken_apart
from soundfont import Sample, read_soundfont

RATE = 16_000  # Hz
MAX_S = 2.0  # what follows in a longer clip is cut off: the ends of cymbals
LABEL_COLUMN = "label"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Row:
    """
    Describes a clip of a table.

    group: lies in one split: the letter or syllable, the author of the kits, or the programs that share samples
    """

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
            name = f"{language}_{path.parent.name}_{path.stem}.flac"
            source = str(path.relative_to(package))
            yield path, Row(name, language, group, split_of(group), source, LETTERS_LICENCE)


def hash_of(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def split_of(group: str) -> str:
    """Returns `test` for three of ten groups, `validation` for two, `train` for five."""
    place = hash_of(group) % 10
    return SPLITS[2] if place < 3 else SPLITS[1] if place < 5 else SPLITS[0]


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


# ---- instrument families by program ----

FLUID_LICENCE = "MIT (Frank Wen and others)"
FAMILIES = (  # of General MIDI, eight programs each
    "piano", "chromatic percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass",
    "reed", "pipe", "synth lead", "synth pad", "synth effects", "ethnic", "percussive", "sound effects",
)  # fmt: skip
SHORTEST_S = 0.2  # shorter samples are single waves, which a player repeats
FEWEST_GROUPS, FEWEST_NOTES, MOST_NOTES = 3, 20, 60  # per family


def notes(package: Path) -> Iterator[tuple[tuple[np.ndarray, int], Row]]:
    """
    Yields samples of fluid-soundfont-gm as they are stored, without loops, envelopes and filters; the class is the
    family of the program that plays them.

    Programs of a family that share a sample are one group, and a group lies in one split: a test asks for a family by
    programs that no training clip is of. Left out are right channels, samples of no program or of several families, and
    families with fewer than `FEWEST_GROUPS` groups or `FEWEST_NOTES` samples. A family has at most `MOST_NOTES`, its
    groups as many each, by the hash of their names.
    """
    path = package / "usr" / "share" / "sounds" / "sf2" / "FluidR3_GM.sf2"
    samples, programs = read_soundfont(path)
    for number, family in enumerate(FAMILIES):
        groups = groups_of(samples, set(range(8 * number, 8 * number + 8)))
        if len(groups) < FEWEST_GROUPS:
            continue
        named = {programs[group[0]]: own for group, own in groups.items()}
        named = {
            name: sorted(own, key=lambda sample: hash_of(sample.name))[: MOST_NOTES // len(named)]
            for name, own in named.items()
        }
        if sum(map(len, named.values())) < FEWEST_NOTES:
            continue
        tested, validated = max(1, round(0.3 * len(named))), max(1, len(named) // 4)
        for place, name in enumerate(sorted(named, key=hash_of)):
            split = SPLITS[2] if place < tested else SPLITS[1] if place < tested + validated else SPLITS[0]
            for index, sample in enumerate(named[name]):
                file = re.sub(r"[^\w.]+", "-", f"{number:02}_{name}_{index:02}.flac")
                source = f"{path.relative_to(package)}: {sample.name}"
                found = sample.samples / np.float32(2**15), sample.rate
                yield found, Row(file, family, name, split, source, FLUID_LICENCE)


def groups_of(samples: list[Sample], family: set[int]) -> dict[tuple[int, ...], list[Sample]]:
    """Returns programs of a family that share samples -> the samples that no other family has, each once."""
    users, first = {}, {}
    for sample in samples:  # the same samples under two names are one
        content = sample.samples.tobytes()
        users[content] = users.get(content, frozenset()) | sample.programs
        if not sample.is_right and len(sample.samples) >= SHORTEST_S * sample.rate:
            first.setdefault(content, sample)
    kept = {content: sample for content, sample in first.items() if users[content] and users[content] <= family}
    groups = []
    for content in kept:
        joined = [group for group in groups if group & users[content]]
        groups = [group for group in groups if group not in joined] + [users[content].union(*joined)]
    found = {tuple(sorted(group)): [] for group in sorted(groups, key=min)}
    for content, sample in kept.items():
        found[next(group for group in found if users[content] <= set(group))].append(sample)
    return found


# ---- syllables of Mandarin ----

# The package's own writing, Bopomofo: a letter for the initial consonant, and one or two for the rest.
INITIALS = {
    "ㄅ": "b", "ㄆ": "p", "ㄇ": "m", "ㄈ": "f", "ㄉ": "d", "ㄊ": "t", "ㄋ": "n", "ㄌ": "l", "ㄍ": "g", "ㄎ": "k",
    "ㄏ": "h", "ㄐ": "j", "ㄑ": "q", "ㄒ": "x", "ㄓ": "zh", "ㄔ": "ch", "ㄕ": "sh", "ㄖ": "r", "ㄗ": "z",
    "ㄘ": "c", "ㄙ": "s",
}  # fmt: skip
FINALS = {
    "ㄚ": "a", "ㄛ": "o", "ㄜ": "e", "ㄝ": "eh", "ㄞ": "ai", "ㄟ": "ei", "ㄠ": "ao", "ㄡ": "ou", "ㄢ": "an", "ㄣ": "en",
    "ㄤ": "ang", "ㄥ": "eng", "ㄦ": "er", "ㄧ": "i", "ㄨ": "u", "ㄩ": "v",
}  # fmt: skip
WITHOUT_FINAL = "ㄓㄔㄕㄖㄗㄘㄙ"  # initials that are syllables alone; the others alone are names of letters
TONES = ("1", "2", "3", "4")
NEUTRAL = "1"  # at the end of a folder's name; the first tone is not written
VOICES = {  # name of its files -> licence by the package's file `copyright`
    "3": "GPL-3 or LGPL-3 (Edward Der-Hua Liu)",
    "5": "CC-BY-3.0 (ChionMeilin, voice of Chu Lo)",
}


@dataclass(frozen=True)
class Syllable:
    """Describes a recorded syllable: `letters` in Latin writing, one each for initial and final, and tone and voice."""

    path: Path
    initial: str
    letters: tuple[str, ...]
    tone: str
    voice: str

    @property
    def group(self) -> str:
        return "-".join(self.letters)

    def row(self, label: str, split: str, package: Path) -> Row:
        name = f"{self.group}_{self.tone}_{self.voice}.flac"
        return Row(name, label, self.group, split, str(self.path.relative_to(package)), VOICES[self.voice])


def syllables(package: Path) -> Iterator[Syllable]:
    """Yields the syllables of gcin-voice with one of the four tones, without names of letters."""
    for folder in sorted((package / "usr" / "share" / "gcin-voice" / "ogg").iterdir()):
        letters = folder.name.rstrip("".join(TONES))
        written = folder.name[len(letters) :]
        if written == NEUTRAL or (letters in INITIALS and letters not in WITHOUT_FINAL):
            continue
        latin = tuple((INITIALS | FINALS)[letter] for letter in letters)
        for path in sorted(folder.glob("*.ogg")):
            yield Syllable(path, INITIALS.get(letters[0], ""), latin, written or TONES[0], path.stem)


def initials(package: Path) -> Iterator[tuple[Path, Row]]:
    """
    Yields syllables of gcin-voice; the class is the consonant that they begin with.

    A syllable lies in one split with all its tones and both voices: a test asks for a consonant before sounds that no
    training clip has after it. The voices are the same in all splits.
    """
    for one in syllables(package):
        if one.initial:
            yield one.path, one.row(one.initial, split_of(one.group), package)


def tones(package: Path) -> Iterator[tuple[Path, Row]]:
    """
    Yields syllables of gcin-voice; the class is the tone.

    The test clips are of the second voice, and those of training and validation of the first: a test asks for a tone by
    another speaker, in another syllable.
    """
    first, second = VOICES
    for one in syllables(package):
        split = split_of(one.group)
        if one.voice == (second if split == SPLITS[2] else first):
            yield one.path, one.row(f"tone {one.tone}", split, package)


PACKAGES = {"hydrogen-drumkits": drums, "klettres-data": letters, "fluid-soundfont-gm": notes}
# Name -> package and its clips. benchmarks/fusion_results.py measures those above alone.
CHECKS = {name: (name, found) for name, found in PACKAGES.items()}
CHECKS |= {"mandarin-initials": ("gcin-voice", initials), "mandarin-tones": ("gcin-voice", tones)}


def make_clips(packages: Path, name: str, folder: Path) -> bool:
    """
    Writes `train.csv`, `validation.csv`, `test.csv` and their clips as mono FLAC of 16 kHz, unless they are there.

    Args:
        packages: holds the .deb files, or folders of their names into which they were taken apart
        name: of `CHECKS`

    Returns:
        Whether `packages` has this package.
    """
    if all((folder / f"{split}.csv").exists() for split in SPLITS):
        return True
    package, clips_of = CHECKS[name]
    with taken_apart(packages, package) as root:
        if root is None:
            return False
        rows = []
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        for found, row in clips_of(root):
            clip = read_at(found, RATE) if isinstance(found, Path) else at_rate(*found, RATE)
            clip = clip[: int(MAX_S * RATE)]
            if not clip.any():
                print(f"{row.source}: is silent, and left out")
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder with .deb files, or packages taken apart")
    parser.add_argument("--output", type=Path, required=True, help="gets a folder for each set of clips")
    parser.add_argument("--names", nargs="+", default=list(CHECKS), choices=list(CHECKS), help="sets of clips to make")
    args = parser.parse_args()
    made = {name: make_clips(args.packages, name, args.output / name) for name in args.names}
    missing = sorted({CHECKS[name][0] for name in made if not made[name]})
    if missing:
        raise SystemExit(f"{args.packages}: lacks packages; there, run: apt-get download {' '.join(missing)}")


if __name__ == "__main__":
    main()
