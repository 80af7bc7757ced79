"""The auxiliary heads of the rule ``local_losses``: where they start.

Each is fitted by ridge regression to the base's own outputs over the calibration data, so that its
loss says from the start what the base would.

Shape legend: N examples, P positions, K outputs, C adapted channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rootlet_server.compiler.jacobians import CHUNK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rootlet_server.compiler.learner import Learner
    from rootlet_server.compiler.sites import Site

RIDGE = 1e-2


def local_head_names(site: Site) -> tuple[str, str]:
    """The adapter's names of weight [K, C] and bias [K]."""
    return f"{site.module}.local_head.weight", f"{site.module}.local_head.bias"


def pooled(site: Site, value: Tensor) -> Tensor:
    """The adapted channels at a site's feedback point, averaged over positions: [N, C]."""
    rows = site.adapted_rows(value)
    return rows if rows.dim() == 2 else rows.mean(1)


def initial_local_heads(
    learner: Learner, frozen: Mapping[str, Tensor], adapter: Mapping[str, Tensor], x: Tensor
) -> dict[str, Tensor]:
    """Weight and bias for every site; a layer that is called twice has one head, of its last call.

    Args:
        learner: the learner.
        frozen: its frozen tensors.
        adapter: the initial adapter.
        x: calibration batch [N, ...].
    """
    keep = {site.chain.point for site in learner.sites}
    outputs, features = [], {site.node: list[torch.Tensor]() for site in learner.sites}
    with torch.no_grad():
        for part in torch.split(x, CHUNK):
            forward = learner.forward(frozen, adapter, part, keep=keep)
            outputs.append(forward.output)
            for site in learner.sites:
                features[site.node].append(pooled(site, forward.kept[site.chain.point]))
    heads: dict[str, Tensor] = {}
    for site in learner.sites:
        weight, bias = local_head_names(site)
        heads[weight], heads[bias] = ridge(torch.cat(features[site.node]), torch.cat(outputs))
    return heads


def ridge(features_NC: Tensor, targets_NK: Tensor) -> tuple[Tensor, Tensor]:
    """``min |V (f - mean) + mean_z - z|^2 + lambda |V|^2``: V [K, C] and the bias [K].

    lambda is 1e-2 of the features' mean variance, summed over examples.
    """
    f, z = features_NC.double(), targets_NK.double()
    centred = f - f.mean(0)
    product = centred.t() @ centred
    penalty = (RIDGE * product.trace() / len(product)).clamp_min(1e-12)
    eye = torch.eye(len(product), dtype=product.dtype)
    v = torch.linalg.solve(product + penalty * eye, centred.t() @ (z - z.mean(0))).t()
    return v.float().contiguous(), (z.mean(0) - v @ f.mean(0)).float()
