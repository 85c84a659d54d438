"""Every test runs offline. Set before anything imports huggingface_hub, which reads it once."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from types import SimpleNamespace

import pytest
from hub_server import HubServer


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """A running Hub on loopback, which huggingface_hub in this process takes for the Hub; retries do not wait."""
    from huggingface_hub import constants

    with HubServer() as server:
        for name, value in server.environment(tmp_path_factory.mktemp("hub")).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.path.join(os.environ["HF_HOME"], "token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", os.path.join(os.environ["HF_HOME"], "hub"))
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
        yield server
