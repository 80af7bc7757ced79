"""Loads flwr once, before warnings are errors.

typer, which flwr's logger imports, uses names that click 8.5 deprecates: a warning about two
libraries that are neither ours nor the tests' concern.
"""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "'click", DeprecationWarning)
    from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture
def in_a_run(monkeypatch):
    """Flower makes messages inside a task only."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
