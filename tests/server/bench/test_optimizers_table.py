"""The table of optimisers: one real row, and how findings are shown."""

from __future__ import annotations

from rootlet_server.bench.optimizers import ROWS, Finding, run_one, table
from rootlet_server.training.config import OptimizerName


def test_every_optimiser_has_a_row():
    assert {row.name for row in ROWS} == set(OptimizerName.__args__)
    assert any(row.sam_rho for row in ROWS)
    assert {row.averaging for row in ROWS} == {"off", "ema", "swa"}


def test_a_row_ends_at_its_accuracy():
    (adam,) = (row for row in ROWS if row.words == "Adam")
    found = run_one(adam, 3e-3, target=0.5, epochs=4)
    assert found.reached
    assert 0 < found.steps < 4 * 20
    assert found.accuracy >= 0.5
    again = run_one(adam, 1e-9, target=0.5, epochs=1)
    assert not again.reached
    assert "not in 20" in table([(adam, again)])


def test_the_table_shows_what_was_found():
    found = Finding(rate=0.1, reached=True, steps=40, seconds=1.5, accuracy=0.953, mebibytes=7.2)
    row = table([(ROWS[0], found)]).splitlines()[-1]
    assert row == "| SGD, momentum | 0.1 | 40 | 1.50 | 95.3 | 7 |"
