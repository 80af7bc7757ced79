"""What can be done about a badly aligned layer, by what it is and how its credit comes to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rootlet_server.compiler.attention_columns import query_key_columns
from rootlet_server.compiler.feedback import positions_key
from rootlet_server.compiler.option_checks import MEASURED_FEEDBACK

if TYPE_CHECKING:
    from rootlet_server.compiler.build import Built
    from rootlet_server.compiler.sites import Site

BROADCASTS = ("dfa", "dfa_blocks")
ALWAYS = "leave it out of target_modules, or use rule='backprop'"


def remedies(built: Built, rule: str) -> dict[str, str]:
    """For every adapted layer, the options that would change its credit, in words.

    Args:
        built: the step that was measured.
        rule: the rule that was measured, a name in ``RULES``.
    """
    sites = built.step.learner.sites
    if rule not in BROADCASTS:
        return {site.module: f"Use rule='dfa'; {ALWAYS}." for site in sites}
    return {site.module: "; ".join([*_of_site(built, site), ALWAYS]) + "." for site in sites}


def _of_site(built: Built, site: Site) -> list[str]:
    learner, found = built.step.learner, []
    tops = (
        [] if learner.points is None else [p.node for p in learner.points if site.node in p.sites]
    )
    place = tops[0] if tops else site.node
    if learner.feedback not in MEASURED_FEEDBACK:
        found.append("Calibrate its feedback: feedback='calibrated'")
    elif positions_key(place) in built.frozen:
        found.append("Give each position its own feedback: feedback_positions='each'")
    else:
        found.append("Calibrate again on data like the device's")
    if _is_query_or_key(built, site):
        found.append(
            "pass its credit through the softmax: attention='local'"
            if learner.points is None
            else "leave queries and keys out: attention='skip'"
        )
    if learner.points is None:
        found.append("pass its credit down in blocks of layers: block_size='auto'")
    elif built.blocks is None:
        found.append("make its block larger: block_size, or block_size='auto'")
    else:
        found.append("let more layers join: a larger block_budget")
    return found


def _is_query_or_key(built: Built, site: Site) -> bool:
    columns = query_key_columns(built.step.learner.program, built.example).get(site.node)
    return columns is not None and bool(columns[site.columns[0] : site.columns[1]].any())
