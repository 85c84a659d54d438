"""Makes every test run offline, before any import of huggingface_hub, which reads the setting once."""

import gc
import os
import shutil
import time

os.environ["HF_HUB_OFFLINE"] = "1"

from types import SimpleNamespace

import pytest
import torch
from hub_server import HubServer
from hypothesis import settings
from matplotlib.figure import Figure
from PIL import Image

# The same examples in every run: a change that breaks nothing must not fail by chance.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

HEADLESS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)  # fmt: skip
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
SLOW_UNTIL = "SLOW_UNTIL"  # when slow tests begin no more, in seconds since 1970; unset: never
savefig = Figure.savefig


def save_blank(figure: Figure, file, **settings):
    """Saves a blank PNG or SVG of the figure's size, for tests that look at no figure: drawing takes long."""
    if settings.get("format") not in ("png", "svg"):
        savefig(figure, file, **settings)
        return
    width, height = (round(inches * settings["dpi"]) for inches in figure.get_size_inches())
    if settings["format"] == "png":
        Image.new("RGB", (width, height), "white").save(file, "png")
    else:
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"></svg>'
        file.write(svg) if hasattr(file, "write") else file.write_text(svg)


def pytest_collection():
    gc.disable()  # imports leave no garbage: to look for it would be a sixth of their time


def pytest_collection_finish():
    gc.freeze()  # what is imported by now stays: no collection looks at it again
    gc.enable()


def pytest_runtest_setup(item):
    Figure.savefig = savefig if item.get_closest_marker("figures") else save_blank
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    if item.get_closest_marker("slow") and time.time() > float(os.environ.get(SLOW_UNTIL, "inf")):
        pytest.skip(f"{item.nodeid} would begin later than {SLOW_UNTIL}")


@pytest.fixture(autouse=True, scope="session")
def float32():
    """Lets `--dtype auto` choose float32 on every machine: expected numbers are computed in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.inference.precision.has_bfloat16", lambda: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def quick_runs():
    """Spares runs of a second what only those of hours need."""
    with pytest.MonkeyPatch.context() as patch:
        # After a training it collects garbage among all that the tests have imported.
        patch.setattr("accelerate.utils.memory.gc", SimpleNamespace(collect=lambda: 0))
        # A second of matrix products, to find the fastest.
        patch.setattr("training.pretraining.throughput.CPU_SIZES", (256,))
        yield


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium, without a window; a microphone that hums."""
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip("no Chromium with its driver on this machine (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*HEADLESS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def own_datasets_cache(tmp_path_factory):
    """A folder of the test for the copies that `datasets` keeps: MTEB's tasks cannot say where."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """A running Hub on loopback, which huggingface_hub in this process takes for the Hub; retries do not wait."""
    from huggingface_hub import constants

    with HubServer() as server:
        for name, value in server.environment(tmp_path_factory.mktemp("hub")).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE")  # for processes that begin in a test
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.path.join(os.environ["HF_HOME"], "token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", os.path.join(os.environ["HF_HOME"], "hub"))
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
        yield server
