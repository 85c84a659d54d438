"""Makes the clips and recipes of tiny pretrainings."""

import numpy as np
import pytest
import soundfile
from tiny_pretrainings import COMMON, OWN
from tiny_runs import write_recipe


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """40 clips of 0.2 to 0.8 s: shorter and longer than the input of the model."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for index in range(40):
        samples = rng.normal(0, 0.1, rng.integers(3200, 12800))
        soundfile.write(folder / f"{index:02}.wav", samples, 16000)
    return folder


@pytest.fixture
def recipe(tmp_path):
    """Writes a tiny recipe and returns its path and the output folder."""
    return lambda task, name="run", **values: write_recipe(tmp_path, {"task": task} | COMMON | OWN[task] | values, name)
