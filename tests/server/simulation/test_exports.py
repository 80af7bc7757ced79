"""The simulator's table of contents is exact."""

from rootlet_server import simulation


def test_every_name_is_there_and_sorted():
    assert simulation.__all__ == sorted(simulation.__all__)
    assert set(simulation.__all__) == set(simulation._MODULES)
    for name in simulation.__all__:
        found = getattr(simulation, name)
        assert getattr(found, "__name__", name) == name
    assert dir(simulation) == simulation.__all__
