"""Says how large and how long the recordings may be that strangers send: for the demo page and for the service."""

from ..errors import InputError
from .audio import AudioSource, audio_format, audio_name

MAX_MB = 100  # of an upload
MAX_SAMPLES = 60_000_000  # decoded samples of all channels: 240 MB; of hub/endpoint/handler.py too


class TooLarge(InputError):
    """An upload beyond the limits."""


def check_size(name: str, size: int, max_mb: float):
    """Raises `TooLarge` for an upload of too many bytes."""
    if size > max_mb * 2**20:
        raise TooLarge(f"{name}: has {size / 2**20:.1f} MB, more than {max_mb:g}; cut it or convert it to FLAC")


def readable_s(source: AudioSource, max_s: float) -> float:
    """Returns how many seconds of a recording may be decoded, at most `max_s`; raises `InputError` as `read_audio`."""
    rate, channels = audio_format(source)
    return min(max_s, MAX_SAMPLES / (rate * channels))


def check_seconds(source: AudioSource, seconds: float, max_s: float):
    """Raises `TooLarge` for a recording of more seconds than may be decoded."""
    limit_s = readable_s(source, max_s)
    if seconds > limit_s:
        raise TooLarge(f"{audio_name(source)}: has {seconds:.1f} s, more than {limit_s:g}; cut the recording")
