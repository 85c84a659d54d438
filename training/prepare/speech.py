"""Reads speech data sets: Speech Commands, IEMOCAP, VoxCeleb1, VoxForge."""

import re
from pathlib import Path

from ..errors import InputError
from .common import (
    Clip,
    Reader,
    as_given,
    audio_below,
    check_present,
    damaged,
    in_folds,
    need,
    pieces,
    read_lines,
    shared_out,
)

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
NOISES = "_background_noise_"
V1_TEST_SET = "speech_commands_test_set_v0.01"
# Noise -> split that takes its silence from it; other noises: training. The published test set has its own silence.
NOISE_SPLITS = {"running_tap": "validation", "exercise_bike": "test"}

IEMOCAP_LABELS = {"neu": "neutral", "hap": "happy", "exc": "happy", "sad": "sad", "ang": "angry"}
VOXCELEB_SPLITS = {"1": "train", "2": "validation", "3": "test"}
VOXFORGE_LANGUAGES = ("de", "en", "es", "fr", "it", "ru")


def read_speech_commands_v2(folder: Path) -> list[Clip]:
    """Reads the 35 words of version 2; splits by validation_list.txt and testing_list.txt."""
    return _words(folder)


def read_speech_commands_v1(folder: Path) -> list[Clip]:
    """Reads version 1: ten words, `_unknown_` for all others, and `_silence_`, one-second pieces of the noises."""
    clips = _words(folder)
    for clip in clips:
        clip.label = clip.label if clip.label in KEYWORDS else "_unknown_"
    for path in audio_below(need(folder / NOISES), ".wav"):
        clips += pieces(Clip(path, "_silence_", NOISE_SPLITS.get(path.stem, "train"), group=path.stem), seconds=1.0)
    places = (folder / V1_TEST_SET, folder.resolve().parent / V1_TEST_SET)
    test_set = next((path for path in places if path.is_dir()), None)
    if test_set is not None:
        paths = audio_below(test_set, ".wav")
        clips = [clip for clip in clips if clip.split != "test"]
        clips += [Clip(path, path.parent.name, "test", speaker=path.stem.split("_")[0]) for path in paths]
    return clips


def _words(folder: Path) -> list[Clip]:
    """Reads bed/00176480_nohash_0.wav: the folder is the word, the first part of the name the speaker."""
    listed = dict.fromkeys(read_lines(folder / "validation_list.txt"), "validation")
    listed |= dict.fromkeys(read_lines(folder / "testing_list.txt"), "test")
    paths = (path for path in audio_below(folder, ".wav") if path.parent.parent == folder)
    present = {f"{path.parent.name}/{path.name}": path for path in paths if re.match("[a-z]", path.parent.name)}
    absent = sorted(set(listed) - set(present))
    if absent:
        raise InputError(f"{folder / absent[0]}: is listed but missing, and {len(absent) - 1} more of {len(listed)}")
    return [
        Clip(path, path.parent.name, listed.get(name, "train"), speaker=path.name.split("_")[0])
        for name, path in present.items()
    ]


def read_iemocap(folder: Path) -> list[Clip]:
    """Reads Session1/dialog/EmoEvaluation/Ses01F_impro01.txt and Session1/sentences/wav/Ses01F_impro01/*.wav."""
    line = re.compile(r"\[[\d. -]+\]\t(?P<turn>(?P<dialog>Ses\d\d[FM]_\w+)_(?P<sex>[FM])\d+)\t(?P<emotion>\w+)\t")
    clips = []
    for session in "12345":
        evaluations = need(folder / f"Session{session}" / "dialog" / "EmoEvaluation")
        wav = need(folder / f"Session{session}" / "sentences" / "wav")
        for match in (line.match(text) for path in sorted(evaluations.glob("Ses*.txt")) for text in read_lines(path)):
            if match and match["emotion"] in IEMOCAP_LABELS:
                path = wav / match["dialog"] / f"{match['turn']}.wav"
                speaker = f"{session}{match['sex']}"
                clips.append(Clip(path, IEMOCAP_LABELS[match["emotion"]], fold=session, speaker=speaker))
    if not clips:
        raise InputError(f"{folder}: its EmoEvaluation files hold no turns of the four emotions")
    return check_present(clips)


def read_voxceleb1(folder: Path) -> list[Clip]:
    """Reads iden_split.txt (`3 id10003/na8-QEFmj44/00003.wav`) and wav/, or dev/wav/ and test/wav/."""
    found = folder / "iden_split.txt"
    roots = [folder / root for root in ("wav", "dev/wav", "test/wav", ".")]
    people = {path.name: path.parent for root in reversed(roots) for path in sorted(root.glob("id*"))}
    clips = []
    for line in read_lines(found):
        words = re.fullmatch(r"([123])\s+(([^/]+)/([^/]+)/[^/]+)", line)
        if words is None:
            raise damaged(found, line, "3 id10003/na8-QEFmj44/00003.wav")
        part, name, person, video = words.groups()
        path = people.get(person, roots[0]) / name
        clips.append(Clip(path, person, VOXCELEB_SPLITS[part], group=f"{person}/{video}"))
    return check_present(clips)


def read_voxforge(folder: Path) -> list[Clip]:
    """Reads de/**/ralfherzog-20070822-de11/wav/de11-001.wav: language, submission and speaker."""
    clips = []
    for language in VOXFORGE_LANGUAGES:
        for path in audio_below(need(folder / language), ".wav", ".flac"):
            submission = path.parent.parent.name
            speaker = submission.split("-")[0]
            # Several speakers may be called anonymous.
            speaker = submission if speaker.lower() == "anonymous" else speaker
            clips.append(Clip(path, language, speaker=f"{language}/{speaker}", group=f"{language}/{submission}"))
    return clips


READERS = {
    "speech_commands_v1": Reader(read_speech_commands_v1, {"paper": as_given}),
    "speech_commands_v2": Reader(read_speech_commands_v2, {"paper": as_given}),
    "iemocap": Reader(read_iemocap, {"paper": in_folds}),
    "voxceleb1": Reader(read_voxceleb1, {"paper": as_given}),
    "voxforge": Reader(
        read_voxforge,
        {
            "paper": shared_out("group", validation=0.15, test=0.15),
            "speaker": shared_out("speaker", validation=0.15, test=0.15),
        },
    ),
}
