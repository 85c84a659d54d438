"""
Finds in the bytes of a file what it holds, whatever its header claims: lengths, joined recordings, cut ends.

libsndfile believes the headers of WAV, AIFF, AU, CAF, FLAC and MP3, and stops at the end of the first link of a chained
Ogg file. Where the bytes say otherwise, `survey` gives files for libsndfile in which header and content agree: pieces
of the file in order, behind a mended header.
"""

from .chunks import look_at_aiff, look_at_au, look_at_caf, look_at_riff, look_at_w64
from .common import SEARCHED, Link, Pieces, Reader, Survey, after_id3
from .flac import START as FLAC_START
from .flac import look_at_flac
from .mpeg import look_at_mpeg, mpeg_frame
from .ogg import look_at_ogg

__all__ = ["Link", "Pieces", "Reader", "Survey", "survey", "survey_after_junk"]

# First bytes -> function of a reader and the place of these bytes; it returns `None` where it finds nothing to mend.
LOOKS = {
    b"RIFF": look_at_riff,
    b"RIFX": look_at_riff,
    b"RF64": look_at_riff,
    b"BW64": look_at_riff,
    b"FORM": look_at_aiff,
    b"caff": look_at_caf,
    b"riff": look_at_w64,
    b".snd": look_at_au,
    b"dns.": look_at_au,
    b"fLaC": look_at_flac,
    b"OggS": look_at_ogg,
}


def survey(reader: Reader) -> Survey:
    """Finds what a file holds. Reads all of an MP3 or Ogg file, little of any other; decodes nothing."""
    start = after_id3(reader, 0)
    look = LOOKS.get(reader.take(start, 4))
    if look is not None:
        return look(reader, start) or Survey()
    head = reader.take(start, 4)
    if start or head[:1] == b"\xff":
        return look_at_mpeg(reader, start, is_sure=mpeg_frame(head) is not None) or Survey()
    return Survey()


def survey_after_junk(reader: Reader) -> Survey | None:
    """Finds a FLAC, Ogg or MPEG recording that begins somewhere in the first bytes of a file."""
    for magic in (FLAC_START, b"OggS\0\x02"):
        found = reader.find(magic, 0, min(reader.size, SEARCHED))
        if found >= 0:
            return LOOKS[magic[:4]](reader, found)
    return look_at_mpeg(reader, 0, is_sure=False)
