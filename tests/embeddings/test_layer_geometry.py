"""Tests the ranking of layers without labels: the measures by hand, and sweeps with and without labels."""

import json

import numpy as np
import pandas
import pytest
from audio_files import write_class_folders, write_tone
from scipy import stats
from tiny_models import save_tiny_classifier

from training import tasks
from training.base.geometry import effective_rank, iso_score
from training.data.audio import read_audio
from training.embeddings import sweep
from training.embeddings.unlabelled import MEASURES, UnlabelledClips, agreement, geometry, warn_of_ignored
from training.errors import InputError


@pytest.mark.parametrize(("clips", "size"), [(30, 8), (8, 30), (12, 12)])
def test_the_effective_rank_is_the_entropy_of_the_singular_values(clips, size):
    features = np.random.default_rng(0).normal(2, 1, size=(clips, size)) * 1e20
    values = np.linalg.svd(features, compute_uv=False)
    assert effective_rank(features) == pytest.approx(np.exp(stats.entropy(values)), rel=1e-6)
    assert effective_rank(np.eye(clips, size)) == pytest.approx(min(clips, size))
    assert effective_rank(np.outer(np.arange(1, clips + 1), np.ones(size))) == pytest.approx(1, abs=1e-4)
    assert np.isnan(effective_rank(np.zeros((clips, size))))


@pytest.mark.parametrize(("clips", "size"), [(300, 6), (10, 40)])
def test_the_iso_score_is_that_of_its_paper(clips, size):
    """By the seven steps of Rudman et al.: principal components, their variances, and the distance from equal ones."""
    features = np.random.default_rng(0).normal(5, np.arange(1, size + 1), size=(clips, size))
    variances = np.linalg.eigvalsh(np.cov(features.T))
    normalised = np.sqrt(size) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(normalised - 1) / np.sqrt(2 * (size - np.sqrt(size)))
    used = (size - defect**2 * (size - np.sqrt(size))) ** 2 / size**2
    assert iso_score(features) == pytest.approx((size * used - 1) / (size - 1))
    assert iso_score(np.repeat(features[:, :1], size, axis=1)) == pytest.approx(0, abs=1e-9)
    assert np.isnan(iso_score(np.ones((clips, size))))


def test_equal_variances_are_isotropic():
    around = np.concatenate([np.eye(5), -np.eye(5)]) + 7
    assert iso_score(around) == pytest.approx(1)


def test_the_agreement_is_spearmans():
    table = pandas.DataFrame({
        "readout": "patches", "pooling": "mean", "layer": range(4), "effective_rank": [1.0, 3.0, 2.0, 4.0],
        "iso_score": [0.4, 0.3, 0.2, 0.1], "accuracy": [0.5, 0.7, 0.8, 0.6],
    })  # fmt: skip
    (row,) = agreement(table, "accuracy").to_dict("records")
    expected = stats.spearmanr(table["effective_rank"], table["accuracy"]).statistic
    assert row["effective_rank_correlation"] == pytest.approx(expected)
    assert (row["best_layer"], row["effective_rank_layer"], row["iso_score_layer"]) == (2, 3, 0)
    assert row["effective_rank_loss"] == pytest.approx(0.2) and row["iso_score_loss"] == pytest.approx(0.3)


def test_features_that_overflow_have_no_measure():
    arrays = {"prefix.0": np.array([[1.0, np.inf], [2.0, 0.0]]), "prefix.1": np.eye(2)}
    table = geometry(arrays, ["prefix"], [0, 1])
    assert table["effective_rank"].isna().tolist() == table["iso_score"].isna().tolist() == [True, False]


def test_a_sweep_without_labels_measures_what_one_with_labels_does(tmp_path, capsys):
    clips = write_class_folders(tmp_path / "clips", 6)
    encoder = save_tiny_classifier(tmp_path / "model", initializer_range=0.2)

    def run(name: str, data: dict, **values) -> pandas.DataFrame:
        recipe = {"task": "sweep", "model_name_or_path": str(encoder), "output_dir": str(tmp_path / name)}
        (tmp_path / "recipe.json").write_text(json.dumps(recipe | {"num_folds": 3} | data | values))
        sweep.run(*tasks.parse([str(tmp_path / "recipe.json")])[1:])
        # The prefix tokens of layer 0 are the same for all clips, and have no IsoScore.
        empty = {measure: [""] for measure in MEASURES}
        return pandas.read_csv(tmp_path / name / "unlabelled.csv", keep_default_na=False, na_values=empty)

    files = sorted(clips.rglob("*.wav"))
    pandas.DataFrame({"file_name": list(map(str, files))}).to_csv(tmp_path / "bare.csv", index=False)
    labelled = {"dataset_name": str(clips), "validation_fraction": 0, "test_fraction": 0}
    with_labels = run("labelled", labelled)
    bare = run("bare", {"train_file": str(tmp_path / "bare.csv")}, unlabelled=True)
    assert "12 clips without labels: the layers with the highest" in capsys.readouterr().out
    assert bare["iso_score"].isna().sum() == 1
    np.testing.assert_allclose(bare[[*MEASURES]], with_labels[[*MEASURES]], rtol=1e-3)
    assert len(bare) == 3 * 7 and "accuracy" in with_labels and (tmp_path / "bare" / "unlabelled.png").exists()
    results = json.loads((tmp_path / "labelled" / "results.json").read_text())
    assert len(results["unlabelled"]) == 7
    assert len(run("few", {"dataset_name": str(clips)}, unlabelled=True, max_clips=10, readouts=["prefix"])) == 3
    assert json.loads((tmp_path / "few" / "results.json").read_text())["clips"] == 10
    with pytest.raises(InputError, match="holds a sweep already"):
        run("few", {"dataset_name": str(clips)}, unlabelled=True)


@pytest.fixture
def clips_of(tmp_path):
    """Returns the sample of a recipe with these values; the encoder's features play no part."""

    def sample(*values: str, max_clips: int = 1000) -> UnlabelledClips:
        words = ["--model_name_or_path", "x", "--unlabelled", "true", "--output_dir", str(tmp_path), *map(str, values)]
        _, _, data, _ = tasks.parse(["recipes/sweep.yaml", *words])
        return UnlabelledClips(data, None, None, max_clips, 0, tmp_path)

    return sample


@pytest.mark.parametrize("form", ["folders", "tables"])
def test_clips_without_labels_are_those_of_the_training_split(tmp_path, clips_of, form):
    for split, count in (("training", 4), ("test", 3)):
        for number in range(count):
            (tmp_path / "data" / split).mkdir(parents=True, exist_ok=True)
            write_tone(tmp_path / "data" / split / f"{number}.wav", seconds=0.1)
        if form == "tables":
            (tmp_path / "data" / "audio").mkdir(exist_ok=True)
            (tmp_path / "data" / split).rename(tmp_path / "data" / "audio" / split)
            names = [f"audio/{split}/{number}.wav" for number in range(count)]
            pandas.DataFrame({"file_name": names}).to_csv(tmp_path / "data" / f"{split}.csv", index=False)
    data = tmp_path / "data"
    assert len(clips_of("--dataset_name", data)) == 4 and len(clips_of("--dataset_name", data, max_clips=2)) == 2
    found = clips_of("--dataset_name", data, "--train_split", "test")
    assert len(found) == 3 and all("test" in name for name in found.names())
    with pytest.raises(InputError, match="no split 'tset'; set train_split to one of test, training"):
        clips_of("--dataset_name", data, "--train_split", "tset")


def test_clips_without_labels_have_their_times(tmp_path, clips_of):
    path = write_tone(tmp_path / "long.wav", seconds=1.0)
    rows = [{"file_name": str(path), "start": start, "end": start + 0.25} for start in (0, 0.5)]
    pandas.DataFrame(rows).to_csv(tmp_path / "parts.csv", index=False)
    found = clips_of("--train_file", tmp_path / "parts.csv", "--start_column", "start", "--end_column", "end")
    assert found.names() == [f"{path}#t=0,0.25", f"{path}#t=0.5,0.75"]
    assert [len(read_audio(found[index], 16000)) for index in range(2)] == [4000, 4000]
    with pytest.raises(InputError, match="start_column: .* is no table"):
        clips_of("--dataset_name", write_class_folders(tmp_path / "clips", 2), "--start_column", "from")


def test_unreadable_clips_without_labels_stop_the_sweep_or_are_left_out(tmp_path, clips_of):
    clips = write_class_folders(tmp_path / "clips", 6)
    broken = sorted(clips.rglob("*.wav"))[3]
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(InputError, match=broken.name):
        clips_of("--dataset_name", clips)
    skip = ["--dataset_name", clips, "--on_bad_audio", "skip"]
    with pytest.raises(InputError, match="1 of 12 clips are unreadable"):
        clips_of(*skip)
    found = clips_of(*skip, "--max_unreadable_share", "0.5")
    assert len(found) == 11 and str(broken) not in found.names()


def test_options_without_effect_on_clips_without_labels_are_named(caplog):
    words = ["--dataset_name", "x", "--group_column", "speaker", "--ridge", "3", "--choice", "one_standard_error"]
    warn_of_ignored(*tasks.parse(["recipes/sweep.yaml", *words])[2:])
    assert "group_column, ridge, choice: no effect in a sweep without labels" in caplog.text
    caplog.clear()
    warn_of_ignored(*tasks.parse(["recipes/sweep.yaml", "--dataset_name", "x"])[2:])
    assert not caplog.text
