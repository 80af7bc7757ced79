"""From the error at the outputs of sites and head to the factors of the adapters' gradients.

With delta_{n,p} the error at ``a = W h + b + s B A h``,

    dB_n = s sum_p delta_{n,p} (A h_{n,p})^T        dA_n = s sum_p (B^T delta_{n,p}) h_{n,p}^T

and the head learns by its exact gradient, ``dW_n = e_n f_n^T`` and ``db_n = e_n``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rootlet_server.compiler.rules.credit import Outer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rootlet_server.compiler.learner import Learner
    from rootlet_server.compiler.sites import Head, Site

Outers = dict[str, tuple[Outer, ...]]


def head_outers(
    head: Head, adapter: Mapping[str, Tensor], error_NK: Tensor, features: Tensor
) -> Outers:
    """The head's weight and, where it has one, its bias."""
    outers: Outers = {f"{head.module}.weight": (Outer(error_NK, features),)}
    if f"{head.module}.bias" in adapter:
        outers[f"{head.module}.bias"] = (Outer(error_NK, None),)
    return outers


def add_site(  # noqa: PLR0917 (all that one site needs)
    outers: Outers,
    learner: Learner,
    site: Site,
    adapter: Mapping[str, Tensor],
    delta: Tensor,
    z: Tensor,
    h: Tensor | None,
) -> None:
    """Add one site's part; a layer that is called twice has two.

    Args:
        outers: what is added to.
        learner: whose site it is.
        site: the site.
        adapter: what learns.
        delta: the error at the adapted columns, [N, C] or [N, P, C].
        z: s A h, [N, r] or [N, P, r].
        h: the site's inputs, where A learns.
    """
    name = f"{site.module}.lora_B"
    outers[name] = (*outers.get(name, ()), Outer(delta, z))
    if h is not None:
        back = learner.scale * (delta @ adapter[name])
        name = f"{site.module}.lora_A"
        outers[name] = (*outers.get(name, ()), Outer(back, h))
