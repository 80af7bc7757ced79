"""What each precision of the frozen base costs and saves: time, bytes and direction of a step.

    python tests/benchmarks/bench_quantised_base.py

The same model with the same adapters under DFA, its base in each precision in turn; one thread,
through the engine's ``step``. The forms take turns in slots of a fraction of a second, and each
ratio to float32 is between two slots of the same round, of processor time. ``bytes`` is the size of
the weights in the bundle, adapters' A and feedback included. The cosine is between the first update
and that of the float32 base: random weights and data, so it says what rounding does, not accuracy.

``int8, float convolutions`` stores convolutions in int8 and computes them in float. int4 has no row
for a convolutional model: it holds linear layers alone, and these have none but the head, so that
it would be int8 again.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import torch
from bench_step_time import graph_step, measure
from compiled import compile_case
from models import CASES, Case, cnn
from report import print_heading, print_table, quartiles, verdict, with_spread

from rootlet_server.compiler.choice_config import MixedConfig

if TYPE_CHECKING:
    from rootlet_server.compiler import CompiledBundle

FLOAT, STORED = "float32", "int8, float convolutions"
CONVOLUTION_GOAL = 0.84  # of a float32 step: what the prototypes had
FORMS = {
    FLOAT: {"base_dtype": "float32"},
    STORED: {"base_dtype": "int8"},
    "int8": {"base_dtype": "int8"},
    "int4": {"base_dtype": "int4"},
    "mixed": {"base_dtype": "mixed", "mixed": MixedConfig()},
}


MODELS = {
    "tiny-cnn": Case(partial(cnn, 16), (3, 8, 8)),
    "cnn-32": CASES["cnn-32"],
    "cnn-64": Case(partial(cnn, 64), (3, 32, 32)),
    "mlp-1024": CASES["mlp-1024"],
    "block-d384-t64": CASES["block-d384-t64"],
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    models = [name for name in MODELS if name != "tiny-cnn"]
    parser.add_argument("--models", nargs="+", choices=MODELS, default=models)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slot-s", type=float, default=0.1, help="time of one slot")
    parser.add_argument("--quick", action="store_true", help="a tiny model, once: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.models, args.batches, args.rounds, args.slot_s = ["tiny-cnn"], [2], 1, 0.0
    return args


def compiled_as(form: str, case: Case, folder: Path) -> CompiledBundle:
    """The bundle in one form."""
    if form != STORED:
        return compile_case(case, folder / form, **FORMS[form])
    with mock.patch("rootlet_server.compiler.build.conv_ranges", return_value={}):
        return compile_case(case, folder / "stored", **FORMS[form])


def update(bundle: CompiledBundle, case: Case) -> np.ndarray:
    """The first update of all adapters at a rate of one, flat."""
    x, y = case.batch(8)
    built = bundle.built
    with torch.no_grad():
        _, _, after, _ = built.step.train(
            built.frozen, built.adapter, {}, x, y, torch.ones(len(x)), torch.tensor(1.0)
        )
    return torch.cat([(after[k] - v).flatten() for k, v in built.adapter.items()]).numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two vectors."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def main() -> None:
    """Run, print the table, then integer convolutions against the goal."""
    args = arguments()
    torch.set_num_threads(1)
    print_heading("Precision of the frozen base, one thread", ("torch", "onnxruntime", "numpy"))
    rows, convolutional = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            case = MODELS[name]
            forms = [f for f in FORMS if "cnn" in name or f != STORED]
            forms = [f for f in forms if "cnn" not in name or f != "int4"]
            bundles = {form: compiled_as(form, case, Path(folder) / name) for form in forms}
            updates = {form: update(bundle, case) for form, bundle in bundles.items()}
            for size in args.batches:
                x, y = case.batch(size)
                steps = {form: graph_step(b.path, x, y) for form, b in bundles.items()}
                times = measure(steps, args.rounds, args.slot_s)
                for form, own in times.items():
                    ratio = [a[0] / b[0] for a, b in zip(own, times[FLOAT], strict=True)]
                    rows.append((
                        name, str(size), form, str(bundles[form].manifest.cost["weight_bytes"]),
                        with_spread([1e3 * cpu for cpu, _ in own]), with_spread(ratio),
                        f"{cosine(updates[form], updates[FLOAT]):.4f}",
                    ))  # fmt: skip
                    if form == "int8" and "cnn" in name:
                        convolutional.append(quartiles(ratio)[1])
    header = ("model", "batch", "base", "bytes", "processor ms", "ratio to float32", "cosine")
    print_table(header, rows)
    if convolutional:
        worst = verdict(max(convolutional), CONVOLUTION_GOAL)
        print(f"int8 / float32, convolutional models, worst: ratio {worst}")


if __name__ == "__main__":
    main()
