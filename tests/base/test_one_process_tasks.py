"""Tests that tasks whose processes would replace each other's outputs run in one process."""

import pytest

from training import tasks
from training.errors import InputError


@pytest.mark.parametrize("name", ["sweep", "probe", "event_evaluation"])
def test_several_processes_are_refused(name, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=f"^task: {name} runs in one process, and this launch has 2; run it by python"):
        tasks.TASKS[name].run()
    assert [key for key, task in tasks.TASKS.items() if not task.divides] == ["event_evaluation", "sweep", "probe"]
