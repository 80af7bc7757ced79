"""How far a rule's gradient points the way of the true one, layer by layer.

For batches b of calibration examples, with g_b the rule's gradient of one layer's adapter and t_b
backpropagation's through the same step (straight through the rounding of an int8 base),

    cosine = sum_b <g_b, t_b> / sqrt(sum_b |g_b|^2 sum_b |t_b|^2)
    norm ratio = sqrt(sum_b |g_b|^2 / sum_b |t_b|^2)

A step of the best length along g lowers a smooth loss by cosine^2 of what the same step along t
does. Labels that are not given are drawn from the base's own predictions (for regression: its
output plus unit Gaussian noise), which needs no data beyond the calibration inputs. Their errors
have mean zero, so the sums run over small batches: the gradient of all examples would be noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rootlet_server.compiler.errors import CalibrationError
from rootlet_server.compiler.remedies import remedies
from rootlet_server.compiler.rules import RULES, Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rootlet_server.compiler.build import Built
    from rootlet_server.compiler.learner import Learner

# At a cosine of .5 a step is worth a quarter of a true one and three quarters of its squared
# length go elsewhere; docs/decisions/0011-adapters-and-alignment.md has the cases on both sides.
FLOOR = 0.5
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class LayerAlignment:
    """One layer's adapter.

    Attributes:
        module: path of the layer.
        cosine: between the rule's gradient and the true one; None where the true gradient is zero
            and 0 where only the rule's is.
        norm_ratio: the rule's norm by the true one's; None where the true gradient is zero.
        remedy: the options that would change its credit, in words; none for the head.
    """

    module: str
    cosine: float | None
    norm_ratio: float | None
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class AlignmentReport:
    """Cosines of a rule's gradients with the true ones, in graph order, the head last.

    Attributes:
        rule: the rule measured.
        labels: ``given``, or ``drawn from the base's predictions``.
        examples: how many.
        floor: cosines under it are worth a warning.
        layers: one entry for each adapted layer, and the head.
    """

    rule: str
    labels: str
    examples: int
    floor: float
    layers: tuple[LayerAlignment, ...]

    @property
    def below(self) -> tuple[LayerAlignment, ...]:
        """The layers whose cosine is under the floor."""
        return tuple(
            layer for layer in self.layers if layer.cosine is not None and layer.cosine < self.floor
        )

    @property
    def lowest(self) -> float | None:
        """The smallest cosine; None where nothing could be measured."""
        return min((x.cosine for x in self.layers if x.cosine is not None), default=None)

    def warnings(self) -> tuple[str, ...]:
        """A sentence for each layer below the floor, with what can be done about it."""
        return tuple(
            f"{layer.module}: the {self.rule} gradient has cosine {layer.cosine:.2f} with the "
            f"true one; under {self.floor:g} it learns slowly or not at all. {layer.remedy}"
            for layer in self.below
        )


def alignment(
    built: Built,
    x: Tensor,
    y: Tensor | None = None,
    *,
    adapter: Mapping[str, Tensor] | None = None,
    rule: str | None = None,
    floor: float = FLOOR,
    seed: int = 0,
) -> AlignmentReport:
    """Measure a built step's rule against backpropagation.

    Args:
        built: the step, on a float or an int8 base.
        x: examples [N, ...].
        y: their labels [N], or targets [N, K]; None draws them from the base's predictions.
        adapter: where to measure, such as after some steps (feedback grows stale as the adapter
            moves); None is the initial adapter.
        rule: a name in ``RULES``; None is the step's own.
        floor: for the report's warnings.
        seed: of the labels drawn and of random feedback points, if the rule draws any.

    Raises:
        CalibrationError: as many labels as examples are needed, and one example at least.
    """
    learner, rule = built.step.learner, rule or built.step.rule
    if not len(x) or (y is not None and len(y) != len(x)):
        labels = "no" if y is None else str(len(y))
        raise CalibrationError(
            f"alignment was given {len(x)} examples and {labels} labels; pass one example at "
            "least, and one label for each or none."
        )
    measured = built.adapter if adapter is None else adapter
    modules = tuple(dict.fromkeys(name.rpartition(".")[0] for name in measured))
    sums = {module: torch.zeros(3, dtype=torch.float64) for module in modules}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for batch in _batches(built, x, y, generator):
            weights_N = torch.full((len(batch.x),), 1 / len(batch.x))
            found, true = (
                RULES[name].gradients(learner, built.frozen, measured, batch, weights_N).by_name
                for name in (rule, "backprop")
            )
            for name, gradient in true.items():
                g, t = found[name].double(), gradient.double()
                products = torch.stack([(g * t).sum(), (g * g).sum(), (t * t).sum()])
                sums[name.rpartition(".")[0]] += products
    advice = remedies(built, rule)
    return AlignmentReport(
        rule=rule,
        labels="drawn from the base's predictions" if y is None else "given",
        examples=len(x),
        floor=floor,
        layers=tuple(
            _layer(module, total, advice.get(module, "")) for module, total in sums.items()
        ),
    )


def _layer(module: str, sums: Tensor, remedy: str) -> LayerAlignment:
    product, rule, true = (float(value) for value in sums)
    if true == 0:
        return LayerAlignment(module=module, cosine=None, norm_ratio=None, remedy=remedy)
    return LayerAlignment(
        module=module,
        cosine=product / (rule * true) ** 0.5 if rule else 0.0,
        norm_ratio=(rule / true) ** 0.5,
        remedy=remedy,
    )


def _batches(
    built: Built, x: Tensor, y: Tensor | None, generator: torch.Generator
) -> Iterator[Batch]:
    for number, rows in enumerate(torch.arange(len(x)).split(BATCH), start=1):
        inputs = x[rows]
        labels = _drawn(built, inputs, generator) if y is None else y[rows]
        yield Batch(x=inputs, y=labels, step=torch.tensor(float(number)))


def _drawn(built: Built, x: Tensor, generator: torch.Generator) -> Tensor:
    learner: Learner = built.step.learner
    output = learner.forward(built.frozen, built.adapter, x).output
    if learner.task == "regression":
        return output + torch.randn(output.shape, generator=generator)
    drawn: Tensor = torch.multinomial(output.softmax(1), 1, generator=generator).squeeze(1)
    return drawn
