"""Where adapters start: B at zero, A random or along the main directions of a site's inputs.

Calibrated A (frozen): with H [n, in] the site's inputs over the calibration data and ``H = U S
V^T``, row k of A is ``V_k / (S_k + 0.1 S_1)``, and A is rescaled so that A h has the mean square
of h. Whitening keeps the few leading directions, which carry most of the energy, from dominating
the step; freezing makes averages of B exact. Related: FFA-LoRA (Sun et al. 2024), EVA (Paischer et
al. 2024), LoRA-XS (Balazy et al. 2024).

A frozen A is stored with the base, transposed [in, r]: in float32, or in int8 with a scale for each
of its r columns.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rootlet_server.compiler.config import EXPLAINED_VARIANCE
from rootlet_server.compiler.errors import CalibrationError
from rootlet_server.compiler.int8 import quantize_weight
from rootlet_server.compiler.interpret import run
from rootlet_server.compiler.learner import frozen_a_key
from rootlet_server.compiler.ranks import FLOAT_BYTES, SiteRank, Spectrum, allocate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rootlet_server.compiler.config import LoraConfig
    from rootlet_server.compiler.sites import Head, Site
    from rootlet_server.compiler.trace import Program

WHITENING_FLOOR = 0.1
CHUNK = 32
SMALLEST = 1e-12


def needs_products(config: LoraConfig) -> bool:
    """Whether anything about the adapters is read off the calibration data."""
    return config.kind == "calibrated" or config.rank == EXPLAINED_VARIANCE


def input_products(program: Program, sites: tuple[Site, ...], x: Tensor) -> dict[str, Tensor]:
    """``H^T H`` [in, in] in float64 of every adapted layer, over all rows of its inputs.

    Raises:
        CalibrationError: the inputs are not finite.
    """
    products: dict[str, Tensor] = {}

    def add(site: Site, args: tuple[Any, ...], compute: Callable[[], Tensor]) -> Tensor:
        h = site.rows(site.inputs(args[0])).reshape(-1, site.in_features)
        products[site.module] = products.get(site.module, 0) + (h.t() @ h).double()
        return compute()

    with torch.no_grad():
        for part in torch.split(x, CHUNK):
            run(program, program.tensors, part, wrap={s.node: partial(add, s) for s in sites})
    for module, total in products.items():
        if not total.isfinite().all():
            raise CalibrationError(
                f"The inputs of {module} are not finite over calibration_x. Pass examples of the "
                "data that the base was trained on."
            )
    return products


def choose_ranks(
    sites: tuple[Site, ...], config: LoraConfig, products: Mapping[str, Tensor]
) -> dict[str, int]:
    """The rank of every adapted layer.

    Raises:
        CompileError: the budget is less than rank 1 takes.
    """
    if isinstance(config.rank, int):
        return {site.module: min(config.rank, site.in_features) for site in sites}
    spectra = {
        site.module: Spectrum.of(products[site.module], rank_bytes(site, trains_a=config.trains_a))
        for site in sites
    }
    return allocate(spectra, config.explained_variance, config.adapter_bytes)


def rank_bytes(site: Site, *, trains_a: bool) -> int:
    """What one rank of a site adds to what learns and travels."""
    return FLOAT_BYTES * (site.width + (site.in_features if trains_a else 0))


def rank_table(
    sites: tuple[Site, ...],
    ranks: Mapping[str, int],
    products: Mapping[str, Tensor],
    *,
    trains_a: bool,
) -> tuple[SiteRank, ...]:
    """What every adapted layer got, in graph order."""
    table = {}
    for site in sites:
        rank, size = ranks[site.module], rank_bytes(site, trains_a=trains_a)
        explained = None
        if site.module in products:
            explained = Spectrum.of(products[site.module], size).at(rank)
        table[site.module] = SiteRank(
            module=site.module,
            rank=rank,
            in_features=site.in_features,
            explained=explained,
            trained_bytes=rank * size,
        )
    return tuple(table.values())


def initial_adapter(
    program: Program,
    sites: tuple[Site, ...],
    head: Head,
    ranks: Mapping[str, int],
    *,
    trains_a: bool,
    seed: int,
) -> dict[str, Tensor]:
    """What learns, by name: B (and A unless it is frozen) of every site, then the head.

    B starts at zero, so the adapted model starts as the base; a trained A starts as ``N(0, 1/in)``.
    """
    drawn = random_a(sites, ranks, seed) if trains_a else {}
    adapter: dict[str, Tensor] = {}
    for site in sites:
        if trains_a:
            adapter[f"{site.module}.lora_A"] = drawn[site.module].t().contiguous()
        adapter[f"{site.module}.lora_B"] = torch.zeros(site.width, ranks[site.module])
    adapter[f"{head.module}.weight"] = program.tensors[head.weight].clone()
    if head.bias is not None:
        adapter[f"{head.module}.bias"] = program.tensors[head.bias].clone()
    return adapter


def random_a(sites: tuple[Site, ...], ranks: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """``N(0, 1/in)`` for every adapted layer, [in, r]."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    for site in sites:
        if site.module not in drawn:
            size = (ranks[site.module], site.in_features)
            drawn[site.module] = torch.randn(size, generator=generator).t() / size[1] ** 0.5
    return drawn


def frozen_a(
    sites: tuple[Site, ...],
    config: LoraConfig,
    ranks: Mapping[str, int],
    products: Mapping[str, Tensor],
    *,
    seed: int,
) -> dict[str, Tensor]:
    """The frozen A of every adapted layer in float32, by ``frozen_a_key``; none where A learns."""
    if config.trains_a:
        return {}
    if config.kind == "calibrated":
        chosen = {name: whitened(total, ranks[name]) for name, total in products.items()}
    else:
        chosen = random_a(sites, ranks, seed)
    return {frozen_a_key(name): a.contiguous() for name, a in chosen.items()}


def in_int8(frozen_a: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same A as ``<key>.q`` int8 and ``<key>.scale`` [r]."""
    stored: dict[str, Tensor] = {}
    for key, a in frozen_a.items():
        q, scale = quantize_weight(a, channel_dim=1)
        stored |= {f"{key}.q": q, f"{key}.scale": scale.flatten()}
    return stored


def whitened(product: Tensor, rank: int) -> Tensor:
    """A^T [in, r] from ``H^T H`` [in, in] in float64."""
    rank = min(rank, len(product))
    eigenvalues, vectors = torch.linalg.eigh(product)
    energy_r = eigenvalues.flip(0)[:rank].clamp_min(0)
    singular_r = energy_r.sqrt()
    gain_r = 1 / (singular_r + WHITENING_FLOOR * singular_r[0].clamp_min(SMALLEST))
    # Mean squares over all rows: of A h, sum_k gain_k^2 S_k^2 / r; of h, trace(H^T H) / in.
    of_projected = (gain_r.square() * energy_r).mean()
    of_inputs = product.trace() / len(product)
    rescale = (of_inputs / of_projected.clamp_min(SMALLEST)).sqrt()
    a: Tensor = vectors.flip(1)[:, :rank] * (gain_r * rescale)
    return a.float().contiguous()
