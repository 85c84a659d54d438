"""
Decides which files of a folder are clips, and gives the reason for every other file. All programs list folders here, so
that they agree, and warn in the same words.
"""

import codecs
import errno
import importlib.util
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers.utils import logging

from ..errors import printable
from ..files import LOCK
from .audio import is_audio

logger = logging.get_logger(__name__)


def _set(words: str, separator: str | None = None) -> frozenset[str]:
    return frozenset(words.split(separator))


# Taken by name, without being opened: soundfile reads them, and a damaged one is reported when it is read.
AUDIO_EXTENSIONS = _set(
    ".aif .aifc .aiff .au .bwf .caf .flac .mp2 .mp3 .mpga .nist .oga .ogg .opus .rf64 .sph .voc .w64 .wav .wave"
)
# Taken by content: what is in them, or what is installed, decides.
OTHER_AUDIO_EXTENSIONS = _set(
    ".3ga .3gp .8svx .aa .aac .ac3 .aax .adts .alac .amr .ape .asf .avi .avr .awb .dsf .dts .eac3 .flv .gsm .htk .iff "
    ".ircam .m4a .m4b .m4p .m4r .mka .mkv .mov .mp1 .mp4 .mpa .mpc .mpeg .mpg .ogv .ogx .paf .pcm .pvf .qcp .ra .raw "
    ".rm .sd2 .sds .sf .shn .snd .spx .svx .tak .tta .vox .weba .webm .wma .wmv .wv .wve .xi"
)
# Never opened, and not worth a warning: they stand beside clips in most data sets.
COMPANION_EXTENSIONS = _set(
    ".arrow .asd .bib .bin .bmp .c .cfa .cfg .ckpt .conf .cpp .css .csv .ctm .cue .db .dll .doc .docx .dot .eaf .eps "
    ".exe .feather .gif .gpk .gpx .h5 .hdf5 .heic .html .ico .ini .ipynb .jams .jpeg .jpg .js .json .jsonl .kml .lab "
    ".lnk .log .lrc .m3u .m3u8 .md .md5 .mid .midi .mlf .npy .npz .o .ods .odt .onnx .ovw .parquet .pdf .peak .pek "
    ".phn .pickle .pkf .pkl .pls .png .ppt .pptx .prompts .ps .pt .pth .py .pyc .rda .rds .reapeaks .rst .rtf "
    ".safetensors .sfk .sh .sha1 .sha256 .so .sqlite .srt .stm .svg .tex .textgrid .tfrecord .tif .tiff .toml .trn "
    ".tsv .txt .url .vtt .webp .wrd .xls .xlsx .xml .yaml .yml"
)
ARCHIVE_EXTENSIONS = _set(".7z .bz2 .gz .lz4 .rar .tar .tgz .xz .zip .zst")
# Folders and files that systems, disks and network drives make, beside those that begin with a dot; in lower case.
SERVICE_NAMES = _set(
    "$extend|$recycle.bin|@eadir|@recently-snapshot|@recycle|@sharebin|@tmp|#recycle|#snapshot|__macosx|__pycache__|"
    "desktop.ini|ehthumbs.db|ehthumbs_vista.db|icon\r|lost+found|lost.dir|network trash folder|"
    "system volume information|temporary items|thumbs.db|~snapshot",
    "|",
)

# Reasons of `Listing.left_out`; those of `QUIET` are no cause for a warning.
HIDDEN = "hidden, or a file of the system"
COMPANION = "no audio"
EMPTY_FOLDER = "an empty folder"
ARCHIVE = "an archive: unpack it"
NOT_UTF8 = "its name is not UTF-8; rename it"
DERIVED = "not a clip, because another extension follows: rename or remove it"
UNREADABLE = "not readable as audio: convert or remove it"
NEEDS_FORMATS = 'not readable: convert it, or install PyAV with pip install "modeling-dual-ssast[formats]"'
CIRCLE = "a link in a circle: remove it"
DANGLING = "a link to nothing: bring what it names, or remove it"
NOT_FETCHED = "a link to nothing (git-annex: datalad get)"
NOT_A_FILE = "not a file (a pipe, socket or device): remove it"
QUIET = frozenset({HIDDEN, COMPANION, EMPTY_FOLDER})
CONTROL_CHARACTERS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")  # every header of audio has some
MOST_LINES, MOST_FOLDERS = 8, 3  # of a report


@dataclass(frozen=True)
class Listing:
    """
    Holds what lies below a folder.

    Args:
        folder: the folder
        files: the clips, sorted by folder and name
        left_out: every other file -> reason. A folder that was not entered (hidden, without permission, a link in a
            circle), and one that holds nothing, is one entry. With `files` these are all files below the folder, and
            below the links that were followed
        folders: the folders below, sorted, without hidden ones, but with those that could not be entered
    """

    folder: Path
    files: list[Path]
    left_out: dict[Path, str]
    folders: list[Path] = field(default_factory=list)

    def below(self, folder: Path) -> "Listing":
        """Returns the part of the listing that lies below one of its folders, with that folder's own reason."""
        start = f"{folder}{os.sep}"
        return Listing(
            folder,
            [path for path in self.files if str(path).startswith(start)],
            {path: reason for path, reason in self.left_out.items() if f"{path}{os.sep}".startswith(start)},
            [path for path in self.folders if str(path).startswith(start)],
        )

    def left_out_rows(self) -> list[dict]:
        """Returns what deserves a warning, by reason and extension: `files`, `kind`, `in` (folders) and `reason`."""
        groups, folders = defaultdict(list), {self.folder, *self.folders}
        for path, reason in self.left_out.items():
            if reason not in QUIET:
                if path in folders:
                    groups[reason, "folder"].append(path)
                else:
                    groups[reason, printable(path.suffix.lower()) or "without extension"].append(path.parent)
        return [
            {"files": len(places), "kind": kind, "in": self.places(places), "reason": reason}
            for (reason, kind), places in sorted(groups.items())
        ]

    def report(self) -> list[str]:
        """Returns a line per kind of files that deserves a warning: "5 .m4a files in bird are not readable: ..."."""
        return as_lines(self.left_out_rows())

    def places(self, folders: list[Path]) -> str:
        """Returns the names of the most frequent folders, and the number of the others."""
        counts = Counter(folders)
        names = [os.path.relpath(folder, self.folder) for folder, _ in counts.most_common(MOST_FOLDERS)]
        names = [printable(Path(os.path.abspath(self.folder)).name or "/" if name == "." else name) for name in names]
        more = len(counts) - len(names)
        return ", ".join(names) + (f" and {more} more folders" if more else "")


def as_lines(rows: list[dict]) -> list[str]:
    """Returns the first rows of a report as sentences, and the number of the others."""
    more = len(rows) - MOST_LINES
    return [*map(_describe, rows[:MOST_LINES]), *([f"files of {more} more kinds are left out"] if more > 0 else [])]


def _describe(row: dict) -> str:
    count, kind, reason = row["files"], row["kind"], row["reason"]
    is_one = count == 1
    if not is_one:
        for singular, plural in (("its name is", "their names are"), ("an? (archive|link)", r"\1s"), ("it", "them")):
            reason = re.sub(rf"\b{singular}\b", plural, reason)
    verb = ("is " if is_one else "are ") + ("left out: " if reason.startswith(("its", "their")) else "")
    if kind == "folder":
        return f"{count} folder{'' if is_one else 's'} ({row['in']}) {verb}{reason}"
    noun = "file" if is_one else "files"
    noun = f"{kind} {noun}" if kind.startswith(".") else f"{noun} {kind}"
    return f"{count} {noun} in {row['in']} {verb}{reason}"


def list_audio_files(folder: str | os.PathLike) -> Listing:
    """
    Lists all files below a folder: clips, and others with the reason why they are none.

    Usual audio files are clips by their extension. Unknown and unusual extensions are opened: a file that can be read
    is a clip. Texts, tables, pictures, archives and models are not opened, nor are pipes. Hidden and service folders
    are not entered. Links are followed, but not in circles, and below a link every folder is listed once.
    """
    return _list(Path(folder), _why_no_clip)


def find_files(folder: str | os.PathLike, extensions: Collection[str]) -> list[Path]:
    """
    Returns the files with these extensions (lower case) below a folder, by the rules of `list_audio_files`, without
    opening them, and warns of those that cannot be read.
    """
    listing = _list(Path(folder), lambda path, name: None if Path(name.lower()).suffix in extensions else COMPANION)
    folders = {*listing.folders}
    left_out = {
        path: reason
        for path, reason in listing.left_out.items()
        if path in folders or path.suffix.lower() in extensions
    }
    warn(folder, replace(listing, left_out=left_out).report())
    return listing.files


def _list(folder: Path, why_left_out: Callable[[str, str], str | None]) -> Listing:
    """Lists all files below a folder; `why_left_out` takes path and name of a file, and returns `None` to take it."""
    files, left_out, folders = [], {}, []
    if not _is_storable(str(folder)):
        return Listing(folder, [], {folder: NOT_UTF8})
    stack = [(str(folder), frozenset(), None)]  # folder, the identities of those above, those seen below a link
    while stack:
        place, above, seen = stack.pop()
        try:
            own = identity(place)
            with os.scandir(place) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            left_out[Path(place)] = _reason_of(error)
            continue
        if not entries:
            left_out[Path(place)] = EMPTY_FOLDER
        above = above | {own}
        for entry in entries:
            path, name = Path(entry.path), entry.name
            if name.startswith(".") or name.lower() in SERVICE_NAMES:
                left_out[path] = COMPANION if name == LOCK else HIDDEN  # a task's folder is no class that lacks clips
                continue
            try:
                is_folder = entry.is_dir()
                is_link = entry.is_symlink()
                if is_folder or (is_link and not path.suffix and not os.path.exists(path)):
                    folders.append(path)
                if not _is_storable(name):
                    reason = NOT_UTF8
                elif is_folder:
                    key = identity(entry.path)
                    reason = CIRCLE if key in above or (is_link and key in (seen or ())) else None
                    if reason is None:
                        below = {key} if is_link and seen is None else seen
                        if below is not None:
                            below.add(key)
                        stack.append((entry.path, above, below))
                        continue
                elif entry.is_file():
                    reason = why_left_out(entry.path, name)
                else:
                    reason = NOT_A_FILE if os.path.exists(entry.path) else _why_broken(entry.path)
            except OSError as error:  # no permission, or a link to itself
                reason = _reason_of(error)
            if reason is None:
                files.append(path)
            else:
                left_out[path] = reason
    by_name = lambda path: path.parts  # noqa: E731
    return Listing(
        folder,
        sorted(files, key=by_name),
        {path: left_out[path] for path in sorted(left_out, key=by_name)},
        sorted(folders, key=by_name),
    )


def find_audio_files(folder: str | os.PathLike) -> list[Path]:
    """Returns the clips below a folder, sorted, and warns of files that deserve it; see `list_audio_files`."""
    listing = list_audio_files(folder)
    warn(listing.folder, listing.report())
    return listing.files


def warn(folder: str | os.PathLike, lines: list[str]):
    """Logs a warning per line; only in the first of several processes."""
    if os.environ.get("RANK", "0") == "0":
        for line in lines:
            logger.warning(f"{printable(folder)}: {line}")


def _why_no_clip(path: str, name: str) -> str | None:
    """Returns why a file is no clip; `None` for a clip."""
    stem, extension = os.path.splitext(name.lower())
    if extension in AUDIO_EXTENSIONS:
        return None
    if extension in COMPANION_EXTENSIONS:
        return COMPANION
    if extension in ARCHIVE_EXTENSIONS:
        return ARCHIVE
    if extension in OTHER_AUDIO_EXTENSIONS:
        if is_audio(path):
            return None
        return _why_denied(path) or (UNREADABLE if _has_formats() or extension == ".raw" else NEEDS_FORMATS)
    try:
        with open(path, "rb") as file:
            if _is_text(file.read(512)):
                return COMPANION
    except OSError as error:
        return _reason_of(error)
    # clip.wav.part, clip.wav.bak and clip.wav~ hold audio, but are no clips of their own.
    if {os.path.splitext(stem)[1], extension.rstrip("~#")} & (AUDIO_EXTENSIONS | OTHER_AUDIO_EXTENSIONS):
        return DERIVED
    return None if is_audio(path) else UNREADABLE


def _is_text(head: bytes) -> bool:
    """Returns whether a file begins with text of any encoding, or is empty. NIST's header is text."""
    is_utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return is_utf16 or not (head.startswith(b"NIST_1A") or CONTROL_CHARACTERS.search(head))


def _why_broken(path: str) -> str:
    target = os.readlink(path).replace("\\", "/")
    return NOT_FETCHED if ".git/annex/objects" in target else DANGLING


def _why_denied(path: str) -> str | None:
    try:
        with open(path, "rb"):
            return None
    except OSError as error:
        return _reason_of(error)


def _reason_of(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return CIRCLE
    return f"not readable ({(error.strerror or str(error)).lower()}): check it, or remove it"


def _has_formats() -> bool:
    return importlib.util.find_spec("av") is not None


def identity(path: str) -> tuple[int, int]:
    """Returns what identifies a file or folder, whatever its path."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _is_storable(name: str) -> bool:
    """Returns whether a table can store the name: names of other encodings hold surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
