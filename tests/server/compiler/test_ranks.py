"""Ranks by explained variance: the laws of the allocation, and a case worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rootlet_server.compiler import CompileConfig, CompileError, LoraConfig, build
from rootlet_server.compiler.ranks import Spectrum, allocate


def spectrum(values, rank_bytes):
    shares = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    explained = (shares.cumsum(0) / shares.sum()).clamp_max(1)
    return Spectrum(explained=tuple(explained.tolist()), rank_bytes=rank_bytes)


spectra = st.dictionaries(
    st.sampled_from("abcd"),
    st.builds(
        spectrum,
        st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8),
        st.integers(1, 50).map(lambda n: 4 * n),
    ),
    min_size=1,
)
thresholds = st.floats(0.05, 1)


def taken(found, ranks):
    return sum(found[name].rank_bytes * rank for name, rank in ranks.items())


@given(spectra, thresholds, st.integers(0, 4000), st.integers(0, 4000))
@settings(max_examples=200, deadline=None)
def test_the_budget_is_kept_and_more_of_it_never_takes_a_rank_away(found, threshold, spare, more):
    least = taken(found, dict.fromkeys(found, 1))
    small = allocate(found, threshold, least + spare)
    large = allocate(found, threshold, least + spare + more)
    unbounded = allocate(found, threshold)
    assert taken(found, small) <= least + spare
    for name in found:
        assert 1 <= small[name] <= large[name] <= unbounded[name] <= len(found[name])


@given(spectra, thresholds, thresholds)
@settings(max_examples=100, deadline=None)
def test_a_higher_threshold_never_takes_a_rank_away(found, one, other):
    low, high = (allocate(found, t) for t in sorted((one, other)))
    for name, site in found.items():
        assert low[name] <= high[name]
        assert site.at(high[name]) >= max(one, other) or high[name] == len(site)
        assert high[name] == 1 or site.at(high[name] - 1) < max(one, other)


@given(spectra, thresholds, st.integers(0, 2000))
@settings(max_examples=100, deadline=None)
def test_no_rank_left_out_explains_more_per_byte_than_one_taken(found, threshold, spare):
    ranks = allocate(found, threshold, taken(found, dict.fromkeys(found, 1)) + spare)
    enough = allocate(found, threshold)

    def gain(name, rank):
        site = found[name]
        return (site.at(rank) - site.at(rank - 1)) / site.rank_bytes

    taken_gains = [gain(name, ranks[name]) for name in found if ranks[name] > 1]
    left_gains = [gain(name, ranks[name] + 1) for name in found if ranks[name] < enough[name]]
    if taken_gains and left_gains:
        assert min(taken_gains) >= max(left_gains) - 1e-12


def test_by_hand():
    """Shares .8 .1 .1 at 4 bytes a rank, .4 .4 .2 at 8: the second's two gains of .4 go first."""
    found = {"narrow": spectrum([8, 1, 1], 4), "wide": spectrum([4, 4, 2], 8)}
    assert allocate(found, 1.0) == {"narrow": 3, "wide": 3}
    assert allocate(found, 0.75) == {"narrow": 1, "wide": 2}
    assert allocate(found, 1.0, 12) == {"narrow": 1, "wide": 1}
    assert allocate(found, 1.0, 20) == {"narrow": 1, "wide": 2}  # .4 / 8 before .1 / 4
    assert allocate(found, 1.0, 24) == {"narrow": 2, "wide": 2}  # .1 / 4 ties .2 / 8; first wins
    with pytest.raises(CompileError, match="adapter_bytes=11 is less than the 12 bytes of rank 1"):
        allocate(found, 1.0, 11)


def test_directions_that_are_not_there_get_no_rank():
    x = torch.randn(50, 3, dtype=torch.float64) @ torch.randn(3, 10, dtype=torch.float64)
    found = Spectrum.of(x.t() @ x, 4)
    assert len(found) == 3
    assert found.at(10) == found.at(3) == pytest.approx(1)
    assert len(Spectrum.of(torch.zeros(4, 4, dtype=torch.float64), 4)) == 1


@pytest.mark.parametrize("kind", ["calibrated", "lora"])
def test_a_build_gives_every_site_its_own_rank(lab, kind):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 5)
    )
    x = torch.randn(64, 2) @ torch.randn(2, 12)
    lora = LoraConfig(kind=kind, rank="explained_variance", adapter_bytes=2000)
    case = replace(lab.case("mlp"), model=model, x=x)
    built = build(case.model, case.x, CompileConfig(adapter=lora))
    first, second = built.ranks
    assert (first.module, first.rank, second.module) == ("0", 2, "2")
    assert first.explained == pytest.approx(1)
    assert second.rank > 2
    assert first.trained_bytes + second.trained_bytes <= 2000
    sizes = {k: v.shape for k, v in built.adapter.items() if "lora" in k}
    assert sizes["0.lora_B"] == (24, 2)
    assert sum(4 * size.numel() for size in sizes.values()) == sum(
        site.trained_bytes for site in built.ranks
    )
    with torch.no_grad():
        loss, *_ = built.step.train(
            built.frozen, built.adapter, {}, x[:8], torch.arange(8) % 5,
            torch.ones(8), torch.tensor(0.1),
        )  # fmt: skip
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rank": "auto"}, "rank='auto' must be a whole number of at least 1, or 'explained"),
        ({"rank": 8, "adapter_bytes": 100}, "adapter_bytes=100 bounds rank='explained_variance'"),
        ({"rank": "explained_variance", "explained_variance": 1.5}, "at most 1"),
        ({"rank": "explained_variance", "adapter_bytes": 0}, "adapter_bytes=0 must be positive"),
        ({"kind": "lora", "a_dtype": "int8"}, "kind='lora' trains A"),
        ({"a_dtype": "int4"}, "a_dtype='int4' is not one of 'int8', 'float32'"),
    ],
)
def test_options_that_do_not_go_together(options, match):
    with pytest.raises(CompileError, match=match):
        LoraConfig(**options)
