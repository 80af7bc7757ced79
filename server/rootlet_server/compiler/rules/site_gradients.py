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

    from rootlet_server.compiler.learner import Learner, Tap
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


def site_factors(
    site: Site,
    frozen: Mapping[str, Tensor],
    tap: Tap,
    arriving_NC: Tensor,
    weights_P: Tensor | float | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``delta_{n,p} = v_p arriving_n * f'(a_{n,p})`` with s A h and, where A learns, h.

    Args:
        site: the site.
        frozen: what its chain reads.
        tap: what it left behind.
        arriving_NC: what arrives at its feedback point, the same for all positions; or [N, P, C].
        weights_P: v, or one number for all; not read where there is one position.

    Returns:
        delta, s A h and h, by example; the weights v are on the last two.
    """
    derivative = site.chain.derivative(frozen, tap.output)
    h = None if tap.inputs is None else site.rows(tap.inputs)
    z = tap.projected
    if derivative is not None:
        derivative = site.adapted(site.rows(derivative))
    if z.dim() == 2 or arriving_NC.dim() == 3:
        return arriving_NC if derivative is None else arriving_NC * derivative, z, h
    # The weights of the positions go on the narrow side: r numbers a position, not C.
    v: Tensor | float = 1.0 if weights_P is None else weights_P
    if not isinstance(v, float):
        v = v.to(z.dtype).unsqueeze(-1)
    z, h = z * v, None if h is None else h * v
    if derivative is None:  # delta is the same at every position: pool instead of spreading it
        return arriving_NC, z.sum(1), None if h is None else h.sum(1)
    return arriving_NC.unsqueeze(1) * derivative, z, h


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
