"""Virtual time: who is there, who answers in time, how long a round takes."""

import math

import numpy as np
import pytest

from rootlet_server.errors import SimulationConfigError, SimulationError
from rootlet_server.simulation import draws
from rootlet_server.simulation.availability import DAY_S, Always, Diurnal, Recorded
from rootlet_server.simulation.latency import Latency
from rootlet_server.simulation.pace import Pace, outcome, select, timed

MANY = np.arange(200_000)


def test_draws_are_uniform_and_normal_and_belong_to_their_key():
    u, z = draws.uniform(MANY, 1, 2), draws.normal(MANY, 1, 3)
    assert 0 < u.min() < u.max() < 1
    # five standard errors: of a mean of n uniforms 1 / sqrt(12 n), of a variance sqrt(2 / n)
    assert abs(u.mean() - 0.5) < 5 / math.sqrt(12 * len(u))
    assert abs(z.mean()) < 5 / math.sqrt(len(z))
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / len(z))
    for other in (draws.uniform(MANY, 1, 3), draws.uniform(MANY, 2, 2), np.roll(u, 1)):
        assert abs(np.corrcoef(u, other)[0, 1]) < 5 / math.sqrt(len(u))
    assert draws.uniform(np.array([7]), 1, 2) == u[7]


def test_a_wrong_shift_of_the_draws_would_be_seen():
    """The negative control of the test above."""
    u = draws.uniform(MANY, 1, 2) ** 1.02
    assert abs(u.mean() - 0.5) > 5 / math.sqrt(12 * len(u))


def test_availability_by_the_hour():
    by_hour = Diurnal(low=0.1, high=0.7, peak_hour=2.0, zones=0.0, seed=1)
    for hour, expected in ((2, 0.7), (14, 0.1), (8, 0.4)):
        share = by_hour.available(MANY, hour * 3600.0).mean()
        assert share == pytest.approx(expected, abs=5 * 0.5 / math.sqrt(len(MANY)))
    spread = Diurnal(low=0.1, high=0.7, zones=24.0).available(MANY, 0.0).mean()
    assert spread == pytest.approx(0.4, abs=5 * 0.5 / math.sqrt(len(MANY)))
    same_slot = [by_hour.available(MANY, 7200.0 + each) for each in (0.0, 1.0)]
    assert (same_slot[0] == same_slot[1]).mean() > 0.999  # the wave moves, the draw does not


def test_availability_as_recorded(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("device,start_s,end_s\na,0,100\nb,50,60\na,200,300\n")
    recorded = Recorded.from_csv(trace)
    clients = np.arange(4)  # 0 and 2 follow a, 1 and 3 follow b
    for time_s, expected in (
        (0, [1, 0, 1, 0]), (55, [1, 1, 1, 1]), (60, [1, 0, 1, 0]), (100, [0, 0, 0, 0]),
        (250, [1, 0, 1, 0]), (DAY_S + 55, [1, 1, 1, 1]),
    ):  # fmt: skip
        assert recorded.available(clients, time_s).tolist() == [bool(e) for e in expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("device,start_s\na,1\n", "no column end_s"),
        ("device,start_s,end_s\na,5,5\n", "line 2"),
        ("device,start_s,end_s\na,1,x\n", "line 2"),
        ("device,start_s,end_s\n", "no interval"),
    ],
)
def test_traces_that_cannot_be_read(tmp_path, text, message):
    trace = tmp_path / "trace.csv"
    trace.write_text(text)
    with pytest.raises(SimulationConfigError, match=message):
        Recorded.from_csv(trace)


def test_a_round_by_hand():
    """Four clients: 10, 20 and 40 seconds, and one that is lost."""
    seconds, lost = np.array([20.0, 10.0, 40.0, 5.0]), np.array([False, False, False, True])
    found = outcome(Pace(), seconds, lost)
    assert found.status.tolist() == ["ok", "ok", "ok", "lost"]
    assert found.round_s == 40  # nobody stands in for the lost one
    found = outcome(Pace(deadline_s=30.0), seconds, lost)
    assert (found.status.tolist(), found.round_s) == (["ok", "ok", "late", "lost"], 30)
    found = outcome(Pace(over_selection=2.0), seconds, lost)
    assert (found.status.tolist(), found.round_s) == (["ok", "ok", "unused", "lost"], 20)


def test_how_long_a_client_takes():
    """Without any spread: 2 s + 1000 / 100 + 50 / 25 + 500 / 50."""
    even = Latency(
        examples_per_s=25, speed_spread=1, down_bytes_per_s=100, up_bytes_per_s=50,
        network_spread=1, overhead_s=2, jitter_spread=1,
    )  # fmt: skip
    found = even.seconds(np.arange(3), np.full(3, 50.0), 1000, 500, 1)
    np.testing.assert_allclose(found, 24.0)
    mixed = Latency(speed_spread=2.0, network_spread=1.0, jitter_spread=1.0, overhead_s=0.0)
    times = np.log(mixed.seconds(MANY, np.full(len(MANY), 200.0), 0, 0, 1))
    assert np.median(times) == pytest.approx(0.0, abs=0.02)
    assert times.std() == pytest.approx(math.log(2), rel=0.02)


def test_clients_are_lost_at_the_rate_and_anew_each_round():
    fleet = Latency(failure_rate=0.2)
    first, second = fleet.fails(MANY, 1), fleet.fails(MANY, 2)
    for lost in (first, second):
        assert lost.mean() == pytest.approx(0.2, abs=5 * 0.4 / math.sqrt(len(MANY)))
    assert (first & second).mean() == pytest.approx(0.04, abs=0.003)


def test_a_world_without_latency_has_no_time():
    found = timed(None, Pace(), np.arange(3), np.zeros(3), (1, 1), 1)
    assert (found.status.tolist(), found.round_s) == (["ok"] * 3, 0.0)


@pytest.mark.parametrize("population", [50, 1_000_000])
def test_a_cohort_is_uniform_and_of_those_who_are_there(population):
    rng = np.random.default_rng(0)
    chosen = select(rng, population, 20, None, 0.0)
    assert len(set(chosen.clients.tolist())) == 20
    assert chosen.clients.tolist() == sorted(chosen.clients.tolist())
    assert chosen.clients.max() < population
    half = Diurnal(low=0.5, high=0.5)
    chosen = select(rng, population, 20, half, 0.0)
    assert half.available(chosen.clients, chosen.waited_s).all()


def test_a_cohort_waits_for_enough_and_not_for_ever(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("device,start_s,end_s\na,0,90000\nb,3000,90000\n")
    recorded = Recorded.from_csv(trace, period_s=90000)
    assert select(np.random.default_rng(0), 2, 2, recorded, 0.0).waited_s == 3000
    never = Diurnal(low=0.0, high=1e-6)
    with pytest.raises(SimulationError, match="never so many were there"):
        select(np.random.default_rng(0), 2, 2, never, 0.0)


def test_everybody_is_always_there():
    assert Always().available(np.arange(3), 1e9).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pace(over_selection=0.5), "over_selection"),
        (lambda: Pace(deadline_s=0.0), "deadline_s"),
        (lambda: Pace(buffer_size=0), "buffer_size"),
        (lambda: Pace(buffer_size=2, deadline_s=1.0), "neither"),
        (lambda: Latency(examples_per_s=0.0), "examples_per_s"),
        (lambda: Latency(speed_spread=0.5), "speed_spread"),
        (lambda: Latency(failure_rate=1.0), "failure_rate"),
        (lambda: Diurnal(low=0.9, high=0.5), "low"),
        (lambda: Diurnal(zones=25.0), "zones"),
    ],
)
def test_bounds(make, message):
    with pytest.raises(SimulationConfigError, match=message):
        make()
