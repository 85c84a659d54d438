"""Lists the audio files of folders."""

from pathlib import Path

AUDIO_EXTENSIONS = {".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav"}


def find_audio_files(folder: Path) -> list[Path]:
    """Returns all audio files below a folder, sorted, without hidden ones."""
    return sorted(path for path in folder.rglob("*") if _is_audio(path) and path.is_file())


def _is_audio(path: Path) -> bool:
    # macOS leaves "._clip.wav" beside "clip.wav" on foreign disks.
    return path.suffix.lower() in AUDIO_EXTENSIONS and not path.name.startswith(".")
