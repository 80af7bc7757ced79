"""Where adapters start: B at zero, A random or along the main directions of a site's inputs.

Calibrated A (frozen): with H [n, in] the site's inputs over the calibration data and ``H = U S
V^T``, row k of A is ``V_k / (S_k + 0.1 S_1)``, and A is rescaled so that A h has the mean square
of h. Whitening keeps the few leading directions, which carry most of the energy, from dominating
the step; freezing makes averages of B exact. Related: FFA-LoRA (Sun et al. 2024), EVA (Paischer et
al. 2024), LoRA-XS (Balazy et al. 2024).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rootlet_server.compiler.errors import CalibrationError
from rootlet_server.compiler.interpret import run
from rootlet_server.compiler.learner import frozen_a_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from rootlet_server.compiler.config import LoraConfig
    from rootlet_server.compiler.sites import Head, Site
    from rootlet_server.compiler.trace import Program

WHITENING_FLOOR = 0.1
CHUNK = 32
SMALLEST = 1e-12


def initial_adapter(
    program: Program, sites: tuple[Site, ...], head: Head, config: LoraConfig, *, seed: int
) -> dict[str, Tensor]:
    """What learns, by name: B (and A unless it is frozen) of every site, then the head.

    B starts at zero, so the adapted model starts as the base; a trained A starts as ``N(0, 1/in)``.
    """
    generator = torch.Generator().manual_seed(seed)
    adapter: dict[str, Tensor] = {}
    for site in sites:
        rank = min(config.rank, site.in_features)
        if f"{site.module}.lora_B" in adapter:
            continue
        if config.frozen_a is None:
            a = torch.randn(rank, site.in_features, generator=generator) / site.in_features**0.5
            adapter[f"{site.module}.lora_A"] = a
        adapter[f"{site.module}.lora_B"] = torch.zeros(site.width, rank)
    adapter[f"{head.module}.weight"] = program.tensors[head.weight].clone()
    if head.bias is not None:
        adapter[f"{head.module}.bias"] = program.tensors[head.bias].clone()
    return adapter


def calibrated_a(
    program: Program, sites: tuple[Site, ...], rank: int, x: Tensor
) -> dict[str, Tensor]:
    """The frozen A of every site, stored transposed [in, r] under ``frozen_a_key``.

    All rows of the site's inputs count; only their products ``H^T H`` [in, in] are kept.
    """
    products: dict[str, Tensor] = {}

    def add(site: Site, args: tuple[Any, ...], compute: Callable[[], Tensor]) -> Tensor:
        h = site.rows(args[0]).reshape(-1, site.in_features)
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
    return {frozen_a_key(module): whitened(total, rank) for module, total in products.items()}


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
