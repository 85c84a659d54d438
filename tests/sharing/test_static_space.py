"""Tests the static Space: its files, what it refuses and the push; `make test-browser` opens it in Chromium."""

import json
import re
from html.parser import HTMLParser

import pytest
import yaml
from audio_files import ROOT

from hub import __main__ as hub_command
from hub import space
from hub.push import PushError
from training.export import javascript

WEIGHTS = (b"eight", b"sixteen bits", b"thirty-two bits")


def save_export(folder):
    """Makes a folder with the names of an export."""
    (folder / "onnx").mkdir(parents=True)
    for name, content in zip(space.WEIGHTS.values(), WEIGHTS, strict=True):
        (folder / "onnx" / name).write_bytes(content)
    for name in ("config.json", "preprocessor_config.json", "export.json"):
        (folder / name).write_text("{}")
    return folder


def push(*words) -> int:
    return hub_command.main(["push-space", "user/page", "--static", *map(str, words)])


def test_a_static_space_holds_the_page_the_weights_and_no_code_of_python(hub, tmp_path):
    folder = save_export(tmp_path / "a `b`")
    assert push("--models", folder, "user/pushed") == 0
    files = hub.files("user/page", "spaces")
    assert hub.repository("user/page", "spaces").sdk == "static"
    header = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert header["sdk"] == "static" and header["app_file"] == "index.html" and header["models"] == ["user/pushed"]
    assert header["custom_headers"] == space.ISOLATION
    assert "`a 'b'`" in files["README.md"].decode()
    settings = json.loads(files["space.json"])
    sizes = dict(zip(space.WEIGHTS, map(len, WEIGHTS)))
    assert settings["models"] == [
        {"name": "a `b`", "source": "models/1", "isLocal": True, "sizes": sizes},
        {"name": "user/pushed", "source": "user/pushed", "isLocal": False},
    ]
    assert files["models/1/onnx/model_fp16.onnx"] == b"sixteen bits" and "models/1/export.json" not in files
    assert settings["examples"] and set(settings["examples"]) <= set(files)
    assert not [name for name in files if name.endswith(".py")] and str(ROOT) not in files["space.json"].decode()


def test_another_push_leaves_nothing_of_the_one_before(hub, tmp_path):
    assert hub_command.main(["push-space", "user/page", "--models", "user/a"]) == 0
    assert push("--models", save_export(tmp_path / "a"), save_export(tmp_path / "b"), "--examples") == 0
    files = hub.files("user/page", "spaces")
    assert "models/2/config.json" in files and not {"app.py", "app.yaml", "requirements.txt"} & set(files)
    assert not [name for name in files if name.startswith(("examples/", "training/", "hub/", "modeling_dual_ssast/"))]
    assert push("--models", "user/a", "--examples") == 0
    assert not [name for name in hub.files("user/page", "spaces") if name.startswith("models/")]


@pytest.mark.parametrize("missing", ["config.json", "preprocessor_config.json", "onnx/model_quantized.onnx"])
def test_a_folder_that_a_browser_cannot_load_is_refused(missing, tmp_path, capsys):
    folder = save_export(tmp_path / "model")
    (folder / missing).unlink()
    assert push("--models", folder) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"has no {missing}" in error and "--format transformers-js" in error
    with pytest.raises(PushError, match="is not the name of a model"):
        space.static_files(["no-such-folder"])


def test_the_page_names_what_it_loads():
    """Every file that a page or a script names is pushed; the names of weights are the export's; the CDN is pinned."""
    files = space.static_files(["user/a"], [])
    texts = {name: content.read_text("utf-8") for name, content in files.items() if name.endswith((".html", ".js"))}
    named = {name for text in texts.values() for name in re.findall(r'[\w-]+\.(?:js|css|json)\b(?=")', text)}
    assert named <= set(files) and {"page.js", "worker.js", "analysis.js", "recorder.js", "space.json"} <= named
    assert {dtype: javascript.DTYPES[dtype] for dtype in space.WEIGHTS} == space.WEIGHTS
    assert json.loads(files["space.json"])["library"].startswith(
        "https://cdn.jsdelivr.net/npm/@huggingface/transformers@4."
    )
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write", "".join(texts.values()))


def test_every_input_of_the_page_has_a_label():
    found = Elements()
    found.feed((space.STATIC / "index.html").read_text("utf-8"))
    inputs = {attributes["id"] for tag, attributes in found.elements if tag in ("input", "select")}
    labels = {attributes["for"] for tag, attributes in found.elements if tag == "label"}
    assert inputs == labels and len(inputs) == 9
    identifiers = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    script = (space.STATIC / "page.js").read_text("utf-8")
    assert set(re.findall(r'\$\("([\w-]+)"\)', script)) <= set(identifiers)


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.elements = []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
