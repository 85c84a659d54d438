"""Tests the suite of `make test-versions` in the present environment, and that it finds planted faults."""

import shutil
import sys

import numpy as np
import pytest
from hub_server import HubServer
from versions import run, suite


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("versions") / "saved"
    run.save_models(folder)
    return folder


@pytest.mark.slow
def test_the_suite_passes_here(saved, tmp_path):
    row = run.check(sys.executable, saved, tmp_path / "work")
    assert row["difference"] <= suite.TOLERANCE
    assert set(row) >= {"python", "transformers", "torch", "numpy", "huggingface_hub", "accelerate"}
    names = {path.stem for path in (tmp_path / "work" / "saved").glob("*.npz")}
    assert names == {"asit_classifier", "dual_ssast", "mspm", "mspm_classifier", "panns_cnn14", "vggish"}


@pytest.mark.slow
def test_the_suite_stops_at_other_numbers_and_at_missing_code(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "saved")
    expected = suite.read(saved / "vggish")
    np.savez(tmp_path / "saved" / "vggish.npz", **{**expected, "logits": expected["logits"] + 2e-5})
    with HubServer() as hub:
        with pytest.raises(run.Failed, match=r"FAILED  infer \S+vggish: AssertionError: logits differs by 2.0e-05"):
            run.run_suite(sys.executable, hub, tmp_path / "work", "load", tmp_path / "saved")
        (tmp_path / "saved" / "asit" / "corruption_asit.py").unlink()
        with pytest.raises(run.Failed, match=r"(?s)FAILED  load \S+asit: .*corruption_asit"):
            run.run_suite(sys.executable, hub, tmp_path / "work", "load", tmp_path / "saved")


def test_versions_are_chosen_by_how_they_begin():
    assert [versions.torch for versions in run.choose(["4.48"])] == ["2.6.0", "2.13.0"]
    assert [versions.transformers for versions in run.choose(["5"], with_torch="2.6.0")] == ["5.23.0"]
    assert run.choose([]) == list(run.MATRIX)
    assert not run.choose(["4.4"])


@pytest.mark.slow
def test_a_build_that_fails_is_no_environment(tmp_path):
    with pytest.raises(run.Failed, match="No matching distribution"):
        run.build(run.Versions("0.0.0", "0.0.0"), tmp_path, sys.executable, options=["--no-index"])
    assert not list(tmp_path.rglob("ready"))
