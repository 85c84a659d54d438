"""What `catalogue.yaml` says of published checkpoints, and whether a file is one of them."""

import dataclasses
import functools
import hashlib
import urllib.parse
from pathlib import Path

import yaml

PATH = Path(__file__).with_name("catalogue.yaml")
CHOSEN_SHAPES = ("grid_shape", "num_labels")  # by the options of a conversion, and not by the file


@dataclasses.dataclass(frozen=True)
class Published:
    """
    One checkpoint: its fields in `catalogue.yaml`, and those of its family.

    file: its name as published; url: `None` where there is no link, of which `url_note` says more
    md5, sha256, size: hexadecimal (of `sha256` also only the beginning), bytes; `None` where not published
    options: of the conversion, keywords of `conversion.options.Options`; `labels` is the name of a file beside it
    shapes: attributes that the converted configuration or feature extractor must have
    """

    name: str
    family: str
    family_title: str
    repository: str
    papers: list[str]
    license: str | None
    license_note: str
    sources: list[str]
    file: str
    url: str | None
    shapes: dict
    data: str
    url_note: str = ""
    md5: str | None = None
    sha256: str | None = None
    size: int | None = None
    options: dict = dataclasses.field(default_factory=dict)
    datasets: list[str] = dataclasses.field(default_factory=list)
    language: list[str] = dataclasses.field(default_factory=list)
    pretraining: str = ""
    figures: list[dict] = dataclasses.field(default_factory=list)

    @property
    def is_hashed(self) -> bool:
        return bool(self.md5 or self.sha256)

    @property
    def is_published(self) -> bool:
        """Whether there is such a file: of some only the name is known, which others have too."""
        return self.url is not None or self.is_hashed

    def is_named(self, path: Path) -> bool:
        """Whether a file has the published name, as browsers or wget save it."""
        return published_name(path) == self.file

    def wrong_content(self, path: Path) -> str | None:
        """What of the file is not as published, in words; `None` where all that is published fits."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"has {size:,} bytes, published are {self.size:,}"
        for kind, expected in (("md5", self.md5), ("sha256", self.sha256)):
            if expected is not None:
                found = digest(path, kind)
                if not found.startswith(expected):
                    return f"has the {kind} {found}, published is {expected}"
        return None

    def wrong_shapes(self, config, extractor) -> list[str]:
        """Where a converted model differs from `shapes`, in words."""
        found = {name: getattr(config, name, getattr(extractor, name, None)) for name in self.shapes}
        found = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
        return [
            f"{name} is {found[name]}, published is {expected}"
            for name, expected in self.shapes.items()
            if found[name] != expected
        ]


@functools.cache
def read_catalogue(path: Path = PATH) -> dict[str, Published]:
    """Name -> checkpoint, in the catalogue's order. An unknown field is a TypeError."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = {}
    for name, own in content["checkpoints"].items():
        family = content["families"][own["family"]]
        family = {("family_title" if key == "title" else key): value for key, value in family.items()}
        found[name] = Published(name=name, **family, **own)
    return found


def recognise(family: str, path: Path, config, extractor) -> Published | None:
    """
    The published checkpoint that a converted file is, by its name and what is published of its bytes, or else by its
    shapes. Of one with another grid or other outputs the figures of the original as it was are left out.
    """
    for published in read_catalogue().values():
        if published.family != family or not published.is_published or not published.is_named(path):
            continue
        wrong = published.wrong_shapes(config, extractor)
        foreign = [text for text in wrong if not text.startswith(CHOSEN_SHAPES)]
        if published.wrong_content(path) is not None or (foreign and not published.is_hashed):
            return None
        if wrong:
            figures = [figure for figure in published.figures if "type" not in figure]
            return dataclasses.replace(published, figures=figures)
        return published
    return None


def published_name(path: Path) -> str:
    """The name before a browser or wget has added the query: `a%3D1.pth?download=1` is `a=1.pth`."""
    return urllib.parse.unquote(path.name).split("?")[0]


def digest(path: Path, kind: str) -> str:
    found = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()
