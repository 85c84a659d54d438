"""Reads the published checkpoints of `catalogue.yaml`, and recognises their files."""

import dataclasses
import functools
import hashlib
import urllib.parse
from pathlib import Path

import yaml

PATH = Path(__file__).with_name("catalogue.yaml")
# In the metadata of a card: `checkpoint`, a name of the catalogue, and `sha256` of the weights.
ORIGIN = "converted_from"
CHOSEN_SHAPES = ("grid_shape", "num_labels")  # depend on the options of a conversion, not on the file


@dataclasses.dataclass(frozen=True)
class Published:
    """
    Describes a checkpoint: its fields in `catalogue.yaml`, and those of its family.

    file: its name as published; url: `None` without a link, see `url_note`
    md5, sha256, size: hexadecimal (`sha256` may be a prefix), bytes; `None` if not published
    options: keywords of `conversion.options.Options`; `labels` is the name of a file beside the checkpoint
    shapes: attributes that the converted configuration or feature extractor must have
    figures: published results: `name`, `value`, `source`; those of a protocol also `protocol`, `title`, `task`,
        `metric` and what else the protocol and the checkpoint's table say, and their `name` is that of the data set
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
    ports: list[str] = dataclasses.field(default_factory=list)

    @property
    def is_hashed(self) -> bool:
        return bool(self.md5 or self.sha256)

    @property
    def is_published(self) -> bool:
        """Returns whether a link or a hash is published: any training may give a file the same name."""
        return self.url is not None or self.is_hashed

    def is_named(self, path: Path) -> bool:
        """Returns whether a file has the published name, or its form after a download by a browser or wget."""
        return published_name(path) == self.file

    def wrong_content(self, path: Path) -> str | None:
        """Describes how the file's size or hash differs from the published one; `None` if they match."""
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
        """Lists where a converted model differs from `shapes`."""
        found = {name: getattr(config, name, getattr(extractor, name, None)) for name in self.shapes}
        found = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
        return [
            f"{name} is {found[name]}, published is {expected}"
            for name, expected in self.shapes.items()
            if found[name] != expected
        ]


@functools.cache
def read_catalogue(path: Path = PATH) -> dict[str, Published]:
    """Returns name -> checkpoint, in the catalogue's order. Raises TypeError for an unknown field."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = {}
    for name, own in content["checkpoints"].items():
        family = content["families"][own["family"]]
        family = {("family_title" if key == "title" else key): value for key, value in family.items()}
        own = {key: value for key, value in own.items() if key != "tables"} | {
            "figures": [*own.get("figures", ()), *table_figures(own.get("tables", ()), content["protocols"])]
        }
        found[name] = Published(name=name, **family | own)
    return found


@functools.cache
def read_protocols(path: Path = PATH) -> dict[str, dict]:
    """Returns name -> `title`, `source`, `decimals`, `scale` and `tasks` of the published tables."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))["protocols"]


def table_figures(tables: list[dict], protocols: dict[str, dict]) -> list[dict]:
    """Returns a figure for each value of a checkpoint's tables."""
    figures = []
    for table in tables:
        protocol = protocols[table["protocol"]]
        shared = {key: protocol[key] for key in ("title", "source")}
        shared |= {key: item for key, item in table.items() if key != "values"}
        figures += [
            {**shared, "task": task, **protocol["tasks"][task], "value": value}
            for task, value in table["values"].items()
        ]
    return figures


def recognise(family: str, path: Path, config, extractor) -> Published | None:
    """
    Returns the catalogue's entry of a converted file, by its name and its published hash, or its shapes if no hash is
    published. The original's figures are left out if grid or outputs differ.
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


def recognise_port(path: Path, config, extractor) -> Published | None:
    """Returns the catalogue's entry of a converted folder of Transformers' AST, by the folder's name and its shapes."""
    for published in read_catalogue().values():
        if any(path.resolve().name == port.rsplit("/", 1)[1] for port in published.ports):
            return None if published.wrong_shapes(config, extractor) else published
    return None


def weights_of(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 sums of a saved model's weights, by the names of the files."""
    return {path.name: digest(path, "sha256") for path in sorted(folder.glob("*.safetensors"))}


def published_name(path: Path) -> str:
    """Removes what a browser or wget adds to a name: `a%3D1.pth?download=1` is `a=1.pth`."""
    return urllib.parse.unquote(path.name).split("?")[0]


def digest(path: Path, kind: str) -> str:
    found = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()
