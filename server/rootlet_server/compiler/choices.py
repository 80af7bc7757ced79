"""What the compiler chose, in a line for each kind of choice: for whoever publishes the bundle.

Read off the build itself, so that nothing is said that is not in the bundle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rootlet_server.compiler.block_choice import blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rootlet_server.compiler.alignment import AlignmentReport
    from rootlet_server.compiler.build import Built

# How a weight is stored, by what follows its name; the first that fits.
PRECISION = {
    ":linear.int4": "int4",
    ":linear.q": "int8",
    ":linear.both": "int8, its way back too",
    ":conv.x_scale": "int8 (integers)",
    ":conv.q": "int8 (stored; computed in float)",
    ":embedding.q": "int8",
}
WORDS = {
    "attention": "attention",
    "convolution": "convolutions",
    "dense": "neither convolutions nor attention",
}
INT4_FALLBACK = "int8 (its inputs are no multiple of 32)"


def choices(built: Built) -> tuple[str, ...]:
    """Rule, ranks, layers left out, precision and blocks; what was not chosen has no line."""
    return tuple(_lines(built))


def alignment_line(report: AlignmentReport) -> str:
    """The lowest cosine and every layer's."""
    layers = ", ".join(
        f"{layer.module} {layer.cosine:.2f}" for layer in report.layers if layer.cosine is not None
    )
    return (
        f"alignment of {report.rule} with backprop over {report.examples} examples, labels "
        f"{report.labels}: {layers}"
    )


def _lines(built: Built) -> Iterator[str]:
    if built.chosen_for:
        words = WORDS[built.chosen_for]
        yield f"rule: {built.config.rule}, which the scoreboard has for models with {words}"
    if built.ranks:
        yield f"ranks: {_ranks(built)}"
    if built.left_out:
        reasons = "; ".join(f"{module} ({reason})" for module, reason in built.left_out.items())
        yield f"without an adapter: {reasons}"
    if stored := precision_of(built):
        grouped: dict[str, list[str]] = {}
        for name, words in stored.items():
            grouped.setdefault(words, []).append(name)
        yield "precision: " + "; ".join(
            f"{words}: {', '.join(names)}" for words, names in grouped.items()
        )
    if built.step.learner.points is not None:
        yield f"blocks: {_blocks(built)}"


def _ranks(built: Built) -> str:
    def one(module: str, rank: int, explained: float | None) -> str:
        share = "" if explained is None else f" ({100 * explained:.1f} % of its inputs' variance)"
        return f"{module} {rank}{share}"

    return ", ".join(one(site.module, site.rank, site.explained) for site in built.ranks)


def precision_of(built: Built) -> dict[str, str]:
    """Weight name -> how it is stored and multiplied; none on a float32 base."""
    found = {layer.tensor: layer.chosen for layer in built.precision if layer.chosen == "float32"}
    stored = dict[str, str](found) | dict(_stored(built.frozen))
    if "int4" in stored.values() and not built.precision:
        stored = {k: INT4_FALLBACK if v == "int8" and _linear(built.frozen, k) else v
                  for k, v in stored.items()}  # fmt: skip
    return stored


def _linear(frozen: Iterable[str], name: str) -> bool:
    return f"{name}:linear.q" in frozen


def _stored(frozen: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for suffix, words in PRECISION.items():
        for key in frozen:
            name = key.removesuffix(suffix)
            if name != key and name not in seen and not name.endswith(".lora_A"):
                seen.add(name)
                yield name, words


def _blocks(built: Built) -> str:
    names = " | ".join("+".join(block) for block in blocks_of(built.step.learner))
    chosen = built.blocks
    if chosen is None:
        return names
    return (
        f"{names}; {chosen.time:.2f} of backprop's multiply-accumulates and {chosen.memory:.2f} "
        "of the bytes it stores"
    )
