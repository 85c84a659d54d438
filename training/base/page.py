"""Writes pages that need no network: one file with its pictures and sounds, laid out by `page.html`."""

import base64
import functools
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2
import numpy as np
import soundfile
import soxr
import torch
from matplotlib.image import imsave

from ..errors import printable
from ..files import complete_file
from .figures import MAP

LAYOUT = Path(__file__).with_name("page.html")
# MP3 plays in every browser; 10 s at 16 kHz take 72 KiB at the best quality (16-bit WAV: 313, FLAC: 131).
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


def write_page(path: Path, template: Path, **values):
    """
    Writes a page, whole or not at all. Texts are escaped: file names and labels may contain HTML.

    Args:
        template: fills in the blocks of `page.html`
        values: what the template and `page.html` name
    """
    page = _template(template).render(values)
    with complete_file(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


@functools.cache
def _template(path: Path) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, LAYOUT.parent]),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # Markup is HTML already
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "quoted": lambda text: json.dumps(text, ensure_ascii=False)}
    return environment.get_template(path.name)


def number(value, digits: int | None = None) -> str:
    """Formats a number for a page, by default with three decimals, or one from 100 on; an undefined one is a dash."""
    if digits is None:
        digits = 1 if value is not None and abs(value) >= 100 else 3
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def public_clip_name(name: str, folder: str) -> str:
    """Returns a clip's path below the folder of its data set; for a clip elsewhere, only the name of its file."""
    relative = os.path.relpath(name, folder)
    return os.path.basename(name) if relative.startswith("..") else relative


def public_names(paths: Sequence[str]) -> list[str]:
    """Returns paths below the folder that all share."""
    try:
        folder = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    except ValueError:  # no such folder
        return [os.path.basename(path) for path in paths]
    return [public_clip_name(path, folder or ".") for path in paths]


def public_model_name(name: str | None) -> str | None:
    """Returns the name of a model without paths of this machine: a folder's own name, or the name on the Hub."""
    return Path(name).name if name and Path(name).exists() else name


def picture_uris(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the data URIs of the pictures of a folder that exist, by their names."""
    return {name: data_uri((folder / name).read_bytes()) for name in names if (folder / name).exists()}


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Returns a data URI that embeds a picture or a recording in a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def spectrogram_uri(waveform: np.ndarray, extractor, most_columns: int | None = None) -> str:
    """
    Returns the picture of a log-mel spectrogram, low frequencies at the bottom.

    Args:
        waveform: (samples,), at the rate of the feature extractor
        most_columns: columns above which neighbouring frames are averaged
    """
    # A copy: torch warns of arrays that cannot be written to, such as those of the decoded cache.
    log_mel = extractor.log_mel([torch.tensor(waveform)])[0].T.numpy()  # (mel, frames)
    if most_columns is not None and log_mel.shape[1] > most_columns:
        edges = np.linspace(0, log_mel.shape[1], most_columns, endpoint=False).astype(int)
        log_mel = np.add.reduceat(log_mel, edges, axis=1) / np.diff(edges, append=log_mel.shape[1])
    low, high = np.quantile(log_mel, (0.01, 0.995))
    image = io.BytesIO()
    imsave(image, log_mel, cmap=MAP, origin="lower", vmin=low, vmax=high, format="png")
    return data_uri(image.getvalue())


def audio_uri(waveform: np.ndarray, rate: int) -> str:
    """Returns a waveform (samples,) as MP3, at `rate` Hz or the next higher one that MP3 has."""
    audio, audio_rate = io.BytesIO(), next((mp3 for mp3 in MP3_RATES if mp3 >= rate), MP3_RATES[-1])
    waveform = soxr.resample(waveform, rate, audio_rate) if audio_rate != rate else waveform
    # 0 is the best quality of LAME's variable bit rate.
    soundfile.write(
        audio, np.clip(waveform, -1, 1), audio_rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.0
    )
    return data_uri(audio.getvalue(), "audio/mpeg")
