"""Energy: counted work, and what it is estimated to cost where no meter could be read.

Per operation at 45 nm and 0.9 V, M. Horowitz, "Computing's energy problem (and what we can do about
it)", ISSCC 2014, figure 1.1.9:

| operation | pJ |
|---|---|
| int8 multiply / add | 0.2 / 0.03 |
| float32 multiply / add | 3.7 / 0.9 |
| 64 bits from DRAM | 1300 to 2600; the lower bound is used |
| an instruction: fetch, decode, registers, control | 70 |

A multiply-accumulate is one of each; the int8 one accumulates in 32 bits (add 0.1 pJ). The weights
are taken to come from DRAM once for each batch; activations are taken to stay in the caches.

For an estimate in joules, instructions are estimated from the operations too, so that what a
training needs is known before it starts. ``INSTRUCTIONS_PER_MAC`` is that of the arithmetic alone,
a lower bound: an AVX2 instruction does 8 multiply-accumulates in float32, three do 32 in int8.
``tests/benchmarks/bench_instructions.py`` counts them by valgrind; what the processor itself
counts, where Linux lets us (``rootlet_runtime.instructions``), is told beside the estimate.

Today's chips need less for arithmetic, and a whole board needs more; use the figure to compare two
runs, not to size a battery. ``rootlet_runtime.meter`` reads a real meter where there is one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

PJ_PER_MAC_INT8 = 0.2 + 0.1
PJ_PER_MAC_FLOAT32 = 3.7 + 0.9
PJ_PER_DRAM_BYTE = 1300 / 8
PJ_PER_INSTRUCTION = 70.0
INSTRUCTIONS_PER_MAC = 0.1

Method = Literal["measured", "estimated"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """Counted operations.

    Attributes:
        macs_int8: multiply-accumulates of 8-bit integers.
        macs_float32: multiply-accumulates in float32.
        bytes_moved: bytes of weights read from memory.
        instructions_measured: instructions that the processor counted, whatever they did; None
            where it counts none. It takes no part in comparisons.
    """

    macs_int8: int = 0
    macs_float32: int = 0
    bytes_moved: int = 0
    instructions_measured: int | None = field(default=None, compare=False)

    def __add__(self, other: Self) -> "Work":
        return Work(
            macs_int8=self.macs_int8 + other.macs_int8,
            macs_float32=self.macs_float32 + other.macs_float32,
            bytes_moved=self.bytes_moved + other.bytes_moved,
            instructions_measured=_sum(self.instructions_measured, other.instructions_measured),
        )

    @property
    def instructions_estimated(self) -> int:
        """From the multiply-accumulates, of either type."""
        return round((self.macs_int8 + self.macs_float32) * INSTRUCTIONS_PER_MAC)

    @property
    def estimated_j(self) -> float:
        """Joules by the table of this module."""
        picojoules = self.macs_int8 * PJ_PER_MAC_INT8 + self.macs_float32 * PJ_PER_MAC_FLOAT32
        picojoules += self.instructions_estimated * PJ_PER_INSTRUCTION
        return (picojoules + self.bytes_moved * PJ_PER_DRAM_BYTE) * 1e-12


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Joules, and how they were found.

    Attributes:
        joules: the energy.
        method: ``measured`` by a meter, or ``estimated`` from the work.
        source: ``rapl`` (the processor packages and their memory, whatever ran there), ``battery``
            (the whole device), or ``operations`` (the work alone).
        work: what was counted; the basis of an estimate, and beside a measurement for comparison.
    """

    joules: float
    method: Method
    source: str
    work: Work


def count_work(
    cost: Mapping[str, int],
    *,
    train_examples: int = 0,
    train_batches: int | None = None,
    predict_examples: int = 0,
    predict_batches: int | None = None,
) -> Work:
    """The work of training on some examples and predicting or evaluating others.

    Args:
        cost: the manifest's: ``train_macs_int8``, ``train_macs_float32``, ``predict_macs_int8``,
            ``predict_macs_float32`` for each example and ``weight_bytes`` for each batch; what is
            absent counts as 0.
        train_examples: examples trained on, padding left out.
        train_batches: batches of them; None for one example each.
        predict_examples: examples predicted or evaluated.
        predict_batches: batches of them; None for one example each.

    Raises:
        ValueError: a negative number.
    """
    batches = (
        train_examples if train_batches is None else train_batches,
        predict_examples if predict_batches is None else predict_batches,
    )
    counts = (train_examples, predict_examples, *batches)
    if min(counts) < 0:
        raise ValueError(f"examples and batches {counts}: must not be negative")
    macs = {
        dtype: train_examples * cost.get(f"train_macs_{dtype}", 0)
        + predict_examples * cost.get(f"predict_macs_{dtype}", 0)
        for dtype in ("int8", "float32")
    }
    return Work(
        macs_int8=macs["int8"],
        macs_float32=macs["float32"],
        bytes_moved=sum(batches) * cost.get("weight_bytes", 0),
    )


def estimated_energy(work: Work) -> Energy:
    """What the work is estimated to cost."""
    return Energy(joules=work.estimated_j, method="estimated", source="operations", work=work)
