"""Where adapters start: B at zero, A random or along the main directions of a site's inputs.

Calibrated A (frozen): with H [n, in] the site's inputs over the calibration data and ``H = U S
V^T``, row k of A is ``V_k / (S_k + 0.1 S_1)``, and A is rescaled so that A h has the mean square
of h. Whitening keeps the few leading directions, which carry most of the energy, from dominating
the step; freezing makes averages of B exact. Related: FFA-LoRA (Sun et al. 2024), EVA (Paischer et
al. 2024), LoRA-XS (Balazy et al. 2024).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rootlet_server.compiler.interpret import run
from rootlet_server.compiler.learner import frozen_a_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from rootlet_server.compiler.config import LoraConfig
    from rootlet_server.compiler.sites import Head, Site
    from rootlet_server.compiler.trace import Program

MAX_ROWS = 4096
WHITENING_FLOOR = 0.1


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
    adapter[f"{head.module}.weight"] = program.tensors[head.weight].to(torch.float32).clone()
    if head.bias is not None:
        adapter[f"{head.module}.bias"] = program.tensors[head.bias].to(torch.float32).clone()
    return adapter


def calibrated_a(
    program: Program, sites: tuple[Site, ...], rank: int, x: Tensor
) -> dict[str, Tensor]:
    """The frozen A of every site, stored transposed [in, r] under ``frozen_a_key``."""
    inputs: dict[str, list[Tensor]] = {}
    kept_rows = max(1, MAX_ROWS * 32 // max(len(x), 32))

    def remember(site: Site) -> Any:
        def wrapper(args: tuple[Any, ...], compute: Callable[[], Tensor]) -> Tensor:
            h = args[0].flatten(2).transpose(1, 2) if site.layout.channels_first else args[0]
            rows = h.reshape(-1, h.shape[-1]).float()
            stride = -(-len(rows) // kept_rows)
            inputs.setdefault(site.module, []).append(rows[::stride])
            return compute()

        return wrapper

    with torch.no_grad():
        for part in torch.split(x, 32):
            run(program, program.tensors, part, wrap={site.node: remember(site) for site in sites})
    return {
        frozen_a_key(module): _whitened(torch.cat(parts), rank) for module, parts in inputs.items()
    }


def _whitened(h: Tensor, rank: int) -> Tensor:
    """A^T [in, r] from inputs h [n, in]."""
    rank = min(rank, h.shape[1])
    covariance = (h.t() @ h).double()
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    singular = eigenvalues.flip(0).clamp_min(0).sqrt()[:rank]
    directions = vectors.flip(1)[:, :rank]
    a = directions / (singular + WHITENING_FLOOR * singular[0].clamp_min(1e-12))
    projected = h.double() @ a
    energy = projected.square().mean().sqrt()
    return (a * (h.double().square().mean().sqrt() / energy.clamp_min(1e-12))).float().contiguous()
