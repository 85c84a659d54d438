"""Tests training/base/loading.py: it checks the name of a checkpoint before it asks the Hub."""

import pytest
import torch

from training.base import loading
from training.errors import InputError


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("model.pth", "model.pth is an original checkpoint; convert it with python -m conversion FAMILY model.pth OUT"),
        ("./runs/mien", r"./runs/mien does not exist; did you mean runs/mine\?"),
        ("runs/mien", r"runs/mien does not exist; did you mean runs/mine\?"),
        ("run", r"run does not exist; did you mean runs\?"),
        ("/nowhere/at/all", "does not exist; python -m conversion turns published checkpoints into folders"),
    ],
)
def test_a_mistyped_checkpoint_is_answered_at_once(name, pattern, tmp_path, monkeypatch):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=pattern):
        loading.check_checkpoint(name)
    for name in ("runs/mine", "user/model"):  # a folder; and what only the Hub can answer
        loading.check_checkpoint(name)


def test_random_weights_are_counted(monkeypatch):
    messages = []
    monkeypatch.setattr(loading.logger, "warning", messages.append)
    loading.tell_random_weights(torch.nn.Linear(1000, 1000))
    assert len(messages) == 1 and messages[0].startswith("Training 1,001,000 random weights: model_name_or_path can")
