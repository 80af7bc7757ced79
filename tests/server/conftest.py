"""What several tests of the federation need."""

import pytest
from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture
def in_a_run(monkeypatch):
    """Flower makes messages inside a task only."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
