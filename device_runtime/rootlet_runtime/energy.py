"""Energy, estimated from counted operations: no meter is read, and every figure says so.

Per operation at 45 nm and 0.9 V, M. Horowitz, "Computing's energy problem (and what we can do about
it)", ISSCC 2014, figure 1.1.9:

| operation | pJ |
|---|---|
| int8 multiply / add | 0.2 / 0.03 |
| float32 multiply / add | 3.7 / 0.9 |
| 64 bits from DRAM | 1300 to 2600; the lower bound is used |

A multiply-accumulate is one of each; the int8 one accumulates in 32 bits (add 0.1 pJ). The weights
are taken to come from DRAM once for each example, which is right for batch 1 and too much for
larger ones. Today's chips need less for arithmetic, and a whole board needs more; use the figure to
compare two runs, not to size a battery.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PJ_PER_MAC_INT8 = 0.2 + 0.1
PJ_PER_MAC_FLOAT32 = 3.7 + 0.9
PJ_PER_DRAM_BYTE = 1300 / 8


@dataclass(frozen=True, kw_only=True)
class EnergyEstimate:
    """Joules, and how they were found."""

    joules: float
    method: Literal["estimated"] = "estimated"


def estimate_energy_j(
    cost: Mapping[str, int], *, train_examples: int = 0, predict_examples: int = 0
) -> EnergyEstimate:
    """Energy of training on some examples and predicting others.

    ``cost`` is the manifest's: ``train_macs_int8``, ``train_macs_float32``, ``predict_macs_int8``,
    ``predict_macs_float32`` for each example and ``weight_bytes``; what is absent counts as 0.

    Raises:
        ValueError: a negative number of examples.
    """
    if train_examples < 0 or predict_examples < 0:
        raise ValueError(f"examples {train_examples}, {predict_examples}: must not be negative")
    weights_pj = cost.get("weight_bytes", 0) * PJ_PER_DRAM_BYTE
    picojoules = train_examples * (_arithmetic_pj(cost, "train") + weights_pj)
    picojoules += predict_examples * (_arithmetic_pj(cost, "predict") + weights_pj)
    return EnergyEstimate(joules=picojoules * 1e-12)


def _arithmetic_pj(cost: Mapping[str, int], phase: str) -> float:
    int8, float32 = (cost.get(f"{phase}_macs_{dtype}", 0) for dtype in ("int8", "float32"))
    return int8 * PJ_PER_MAC_INT8 + float32 * PJ_PER_MAC_FLOAT32
