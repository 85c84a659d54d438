"""
Runs the notebook in a fresh kernel. `python tests/helpers/run_notebook.py` runs it on data/instruments and stores its
outputs, without the audio players, in notebooks/finetune_your_clips.ipynb: for readers on the web.
"""

import base64
import io
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import nbclient
import nbformat
import pandas
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "finetune_your_clips.ipynb"
PLAYER = "IPython.lib.display.Audio"


def execute(parameters: dict, folder: Path) -> nbformat.NotebookNode:
    """Runs the notebook in a folder, with other values of some parameters; returns it with its outputs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    position = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    written = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    notebook.cells.insert(position + 1, nbformat.v4.new_code_cell(written))
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=3600, startup_timeout=180, resources=where).execute()
    del notebook.cells[position + 1]
    return notebook


def zip_instruments(path: Path, classes: tuple[str, ...] | None = None) -> Path:
    """Writes a zip with one folder per class, inside a folder, as file managers do."""
    data = ROOT / "data" / "instruments"
    table = pandas.concat(pandas.read_csv(data / f"{split}.csv") for split in ("train", "validation", "test"))
    with zipfile.ZipFile(path, "w") as archive:
        for row in table.itertuples():
            if classes is None or row.category in classes:
                archive.write(data / row.file_name, f"sounds/{row.category}/{Path(row.file_name).name}")
    return path


def link_checkout(folder: Path) -> Path:
    """Makes a checkout of links, with its own runs/."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name != "runs" and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    return folder


def shrink(picture: str) -> str:
    """Reduces a PNG, in base64, to at most 800 pixels in width and 96 colours."""
    image, smaller = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"), io.BytesIO()
    image.thumbnail((800, 10_000))
    image.quantize(96, dither=Image.Dither.NONE).save(smaller, "png", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()


def main():
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as temporary:
        checkout = link_checkout(Path(temporary, "checkout"))
        clips_zip = zip_instruments(Path(temporary, "instruments.zip"))
        notebook = execute({"PROJECT": str(checkout), "CLIPS_ZIP": str(clips_zip)}, Path(temporary))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        cell.metadata.pop("execution", None)  # times
        cell.outputs = [output for output in cell.outputs if PLAYER not in str(output)]
        cell.execution_count = number
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = shrink(output.data["image/png"])
    unfinished = NOTEBOOK.with_name(f".{NOTEBOOK.name}")
    unfinished.write_text(nbformat.writes(notebook).rstrip() + "\n", encoding="utf-8")
    os.replace(unfinished, NOTEBOOK)
    print(f"{NOTEBOOK.relative_to(ROOT)}: {NOTEBOOK.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    sys.exit(main())
