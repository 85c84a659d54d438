"""Reads and splits data sets of emotions in acted speech: CREMA-D, TESS, RAVDESS, and all of them with SAVEE."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from transformers.utils import logging

from ..errors import InputError
from .common import (
    Clip,
    Reader,
    as_authors,
    as_given,
    audio_below,
    files_called,
    read_lines,
    readable,
    shared_out,
    tested_on,
    warn_of_missing,
)

logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Describes the file names of a corpus: a pattern with `speaker` and `emotion`, and emotion code -> label."""

    name: str
    example: str
    pattern: str
    labels: dict[str, str]


CREMA_D = Corpus(
    "crema_d",
    "1001_DFA_ANG_XX",  # actor, sentence, emotion, level
    r"(?P<speaker>1\d{3})_[A-Z]{3}_(?P<emotion>[A-Z]{3})_\w+",
    {"ANG": "angry", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"},
)
TESS = Corpus(
    "tess",
    "OAF_back_angry",  # the older or the younger actress, word, emotion; one file is called OA_bite_neutral
    r"(?P<speaker>OA|YA)F?_(?P<group>[a-z]+)_(?P<emotion>[a-z]+)",
    {"ps": "surprise", **{name: name for name in ("angry", "disgust", "fear", "happy", "neutral", "sad")}},
)
RAVDESS = Corpus(
    "ravdess",
    "03-01-06-01-02-01-12",  # modality (03: audio only), channel, emotion, intensity, statement, repetition, actor
    r"03-0[12]-(?P<emotion>\d\d)-\d\d-\d\d-\d\d-(?P<speaker>\d\d)",
    {
        "01": "neutral",
        "02": "calm",
        "03": "happy",
        "04": "sad",
        "05": "angry",
        "06": "fear",
        "07": "disgust",
        "08": "surprise",
    },
)
RAVDESS_SPEECH = replace(RAVDESS, pattern=RAVDESS.pattern.replace("0[12]", "01"))  # 02 is song
SAVEE = Corpus(
    "savee",
    "DC_a01",
    r"(?P<speaker>DC|JE|JK|KL)_(?P<emotion>[a-z]+)\d\d",
    {"a": "angry", "d": "disgust", "f": "fear", "h": "happy", "n": "neutral", "sa": "sad", "su": "surprise"},
)


def read_crema_d(folder: Path) -> list[Clip]:
    """Reads AudioWAV/1001_DFA_ANG_XX.wav."""
    return _read(folder, CREMA_D)


def read_tess(folder: Path) -> list[Clip]:
    """Reads OAF_angry/OAF_back_angry.wav; the words are the groups."""
    return _read(folder, TESS)


def read_ravdess(folder: Path) -> list[Clip]:
    """Reads Actor_12/03-01-06-01-02-01-12.wav, without the songs."""
    return _read(folder, RAVDESS_SPEECH)


def read_emotions(folder: Path) -> list[Clip]:
    """
    Reads the four corpora in any folders, by the names of their files; RAVDESS with its songs and without `calm`.
    SAVEE's files may also be called a01.wav in a folder DC. The authors' fold1_test.csv gives the test clips if it is
    there.
    """
    clips, unknown = {}, []
    for path in audio_below(folder, ".wav"):
        # The collection contains second copies of some RAVDESS clips, with a 1 before the name.
        name = path.stem.removeprefix("1") if path.stem.startswith("103-") else path.stem
        called, clip = _clip_of_any(path, name)
        if clip is None:
            unknown.append(path)
        elif clip.label != "calm":
            clips.setdefault(called, clip)
    if not clips:
        raise InputError(f"{folder}: holds no files that are called like those of CREMA-D, TESS, RAVDESS or SAVEE")
    if unknown:
        logger.warning(
            f"{len(unknown)} files are called like those of no corpus and are left out, such as {unknown[0]}"
        )
    names = _listed(folder)
    if names:
        warn_of_missing(names, clips, "test clips")
        for called, clip in clips.items():
            clip.split = "test" if called in names else "train"
    clips = readable(list(clips.values()))
    if names and {clip.split for clip in clips} != {"train", "test"}:
        raise InputError(
            f"{folder}: all its clips are {clips[0].split} clips by the fold1_test.csv in it; remove the file"
        )
    return clips


def _listed(folder: Path) -> set[str]:
    """Returns the names, without extension, of the authors' test clips; empty without their list."""
    lists = files_called(folder, "fold1_test.csv")
    if len(lists) > 1:
        raise InputError(
            f"{folder}: holds several fold1_test.csv, such as {lists[0]} and {lists[1]}; keep that of the emotions"
        )
    lines = read_lines(lists[0]) if lists else []
    paths = [Path(line.split("\t")[0]) for line in lines]
    return {path.stem for path in paths if path.suffix}  # the header has none


def split_emotions(clips: list[Clip], seed: int) -> dict[str, list[Clip]]:
    """Returns the authors' test clips if they are known, else a random fifth of every class; draws validation clips."""
    if clips[0].split is None:
        return shared_out()(clips, seed)
    given = as_given(clips, seed)
    return {**shared_out(test=0)(given["train"], seed), "test": given.get("test", [])}


def _read(folder: Path, corpus: Corpus) -> list[Clip]:
    """Reads the clips of one corpus, each name once: some downloads contain everything twice."""
    paths = {path.name: path for path in reversed(audio_below(folder, ".wav"))}
    clips = [clip for path in sorted(paths.values()) if (clip := _clip(path, corpus, path.stem))]
    if not clips:
        raise InputError(f"{folder}: holds no files that are called like {corpus.example}.wav")
    return readable(clips)


def _clip(path: Path, corpus: Corpus, name: str) -> Clip | None:
    """Makes a clip of a file name of the corpus; `None` for any other name."""
    match = re.fullmatch(corpus.pattern, name)
    if match is None or match["emotion"] not in corpus.labels:
        return None
    label = corpus.labels[match["emotion"]]
    return Clip(path, label, speaker=match["speaker"], group=match.groupdict().get("group"))


def _clip_of_any(path: Path, name: str) -> tuple[str, Clip | None]:
    """Returns the clip's name in its corpus, and the clip; `None` as clip if no corpus has such names."""
    names = {CREMA_D: (name,), TESS: (name,), RAVDESS: (name,), SAVEE: (name, f"{path.parent.name}_{name}")}
    for corpus, called in ((corpus, called) for corpus, options in names.items() for called in options):
        if clip := _clip(path, corpus, called):
            return called, replace(clip, speaker=f"{corpus.name}_{clip.speaker}", group=None)
    return name, None


RAVDESS_TEST = ("04", "05", "06", "18", "22")
UNPACK = "the test actors or all others are missing; unpack everything"

READERS = {
    "crema_d": Reader(read_crema_d, {"paper": shared_out(), "speaker": shared_out("speaker", test=0.21)}),
    "tess": Reader(
        read_tess,
        {
            "paper": tested_on("OA", validation_by="group"),
            "speaker": tested_on("OA", validation_by="group"),
            "random": shared_out(),
            "authors": as_authors(lambda clip: clip.speaker == "OA", UNPACK),
        },
    ),
    "ravdess": Reader(
        read_ravdess,
        {
            "paper": tested_on(*RAVDESS_TEST, validation_by="speaker"),
            "speaker": shared_out("speaker"),
            "random": shared_out(),
            "authors": as_authors(lambda clip: clip.speaker in RAVDESS_TEST, UNPACK),
        },
    ),
    "emotions": Reader(
        read_emotions,
        {
            "paper": split_emotions,
            "speaker": shared_out("speaker"),
            "authors": as_authors(
                lambda clip: clip.split == "test",
                "--split authors: needs the authors' list fold1_test.csv in the folder; get it from "
                "github.com/PhDHyosunChoi/hssast, src/finetune/Emotions/data/evaluation_setup",
            ),
        },
    ),
}
