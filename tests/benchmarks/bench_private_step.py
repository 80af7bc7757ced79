"""Time of one private step: what clipping adds to the DFA graph, and the same step by Opacus.

    python tests/benchmarks/bench_private_step.py

Every contestant makes the clipped sum of the gradients of the same adapters (those of the default
configuration) on the same batch, with one thread, and adds no noise. The plain sum is the same
graph without norms and clipping. Opacus 1.6 makes per-example gradients by hooks, and its ghost
clipping takes a second backward pass; both on eager torch with frozen base weights. All take turns
in slots of a fraction of a second; a slot counts by the median of its steps, and each ratio is
between two slots of the same round. The ratios are of processor time.

Opacus is checked to make the same clipped sums as the float32 backprop graph.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnxruntime
import torch
from bench_step_time import measure, open_graph, peer_step
from compiled import compile_case, peer_settings
from models import CASES, Case, EagerPeer, LowRank
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from report import print_heading, print_table, quartiles, verdict, with_spread
from torch import nn

from rootlet_runtime import batches
from rootlet_runtime.engines.onnx import AS_WRITTEN
from rootlet_server.compiler import PrivacyConfig
from rootlet_server.compiler.capture import capture
from rootlet_server.compiler.export_onnx import share_weights, to_onnx
from rootlet_server.compiler.rules import RULES, Batch
from rootlet_server.compiler.steps import Step

if TYPE_CHECKING:
    from bench_step_time import Step as Timed
    from torch import Tensor

    from rootlet_server.compiler import Built, CompiledBundle

CLIPPING_GOAL = 1.08
OPACUS_GOAL = 0.2
BOUND = 1.0
PLAIN, CLIPPED = "int8 dfa graph, plain sum", "int8 dfa graph, clipped"
PRIVATE, HOOKS, GHOST = "int8 dfa, clipped, as a device runs it", "Opacus hooks", "Opacus ghost"
SAME_SUM = 1e-3  # rounding through four blocks
GRAPHS = {
    "int8 dfa": {"base_dtype": "int8", "rule": "dfa"},
    "float32 backprop": {"base_dtype": "float32", "rule": "backprop"},
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=CASES, default=["4-blocks-d384-t64"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slot-s", type=float, default=0.15, help="time of one slot")
    parser.add_argument("--quick", action="store_true", help="a tiny model, once: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.models, args.batches, args.rounds, args.slot_s = ["tiny"], [2], 1, 0.0
    return args


class PlainSum(Step):
    """The same step without norms and clipping; the bound scales the loss, so that it is read."""

    def gradients(self, frozen, adapter, x, y, w, max_grad_norm):  # type: ignore[no-untyped-def]
        found = RULES[self.rule].gradients(self.learner, frozen, adapter, Batch(x=x, y=y), w)
        loss = (found.loss * w).sum() * max_grad_norm
        return loss, (found.metric * w).sum(), w.sum(), found.by_name


def session_step(built: Built, step: Step, x: Tensor, y: Tensor) -> Timed:
    """One run of a grads graph in a bare session, for comparing graphs with graphs."""
    captured = capture(step, "grads", built.frozen, built.adapter, built.example)
    graphs, block = share_weights({"grads": to_onnx(captured)})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_mem_pattern = 1, False
    for key, value in AS_WRITTEN.items():
        options.add_session_config_entry(key, value)
    options.add_external_initializers_from_files_in_memory(["base.bin"], [block], [len(block)])
    session = onnxruntime.InferenceSession(
        graphs["grads"], options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": x.numpy(), "y": y.numpy(), "w": np.ones(len(x), np.float32)}
    feed["max_grad_norm"] = np.array(BOUND, np.float32)
    feed |= {f"adapter/{name}": value.numpy() for name, value in built.adapter.items()}
    return lambda: float(session.run(captured.outputs, feed)[0])


def clipped_step(path: Path, x: Tensor, y: Tensor) -> Timed:
    """One run of a bundle's grads graph, as a private fit runs it."""
    engine = open_graph(path)
    batch = batches.Batch(x.numpy(), y.numpy(), np.ones(len(x), np.float32), len(x))
    return lambda: float(engine.gradients(batch, BOUND)["loss_sum"])


class LowRankLayer(nn.Module):
    """``LowRank`` with B as a layer of its own, where Opacus looks for it."""

    def __init__(self, adapted: LowRank) -> None:
        super().__init__()
        self.base = adapted.base
        self.register_buffer("a", adapted.a)
        self.b = nn.Linear(adapted.b.shape[1], adapted.b.shape[0], bias=False)
        self.b.weight = nn.Parameter(adapted.b.detach().clone())

    def forward(self, h: Tensor) -> Tensor:
        return self.base(h) + self.b(nn.functional.linear(h, self.a))


def opacus_model(case: Case, compiled: CompiledBundle) -> nn.Module:
    """The peer's model with its adapters in layers."""
    model = EagerPeer(case.model(), *peer_settings(compiled), learning_rate=0.0).model
    for path, module in list(model.named_modules()):
        if isinstance(module, LowRank):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, LowRankLayer(module))
    return model.train()


def opacus_hooks(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Timed, DPOptimizer]:
    """Per-example gradients by hooks, then clipping."""
    wrapped = GradSampleModule(model, loss_reduction="mean")
    optimizer = DPOptimizer(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=BOUND,
        expected_batch_size=len(x),
    )

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(wrapped(x), y)
        loss.backward()
        optimizer.clip_and_accumulate()
        return loss.item()

    return step, optimizer


def opacus_ghost(model: nn.Module, x: Tensor, y: Tensor) -> Timed:
    """Norms without gradients, then a second pass with weighted losses."""
    wrapped = GradSampleModuleFastGradientClipping(
        model, max_grad_norm=BOUND, use_ghost_clipping=True, loss_reduction="mean"
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=BOUND,
        expected_batch_size=len(x),
    )
    criterion = DPLossFastGradientClipping(
        wrapped, optimizer, nn.CrossEntropyLoss(), loss_reduction="mean"
    )

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = criterion(wrapped(x), y)
        loss.backward()
        return float(loss.item())

    return step


def check_same_sum(optimizer: DPOptimizer, path: Path, x: Tensor, y: Tensor) -> None:
    """Opacus's clipped sum and the float32 backprop graph's are the same.

    Raises:
        SystemExit: they are not, and the comparison would mean nothing.
    """
    batch = batches.Batch(x.numpy(), y.numpy(), np.ones(len(x), np.float32), len(x))
    found = open_graph(path).gradients(batch, BOUND)
    ours = sum(
        float((value**2).sum()) for name, value in found.items() if name.startswith("grads/")
    )
    theirs = sum(float(p.summed_grad.square().sum()) for p in optimizer.params)
    if abs(ours - theirs) > SAME_SUM * theirs:
        raise SystemExit(f"squared norm of the clipped sum: Opacus {theirs}, the graph {ours}")


class Result(NamedTuple):
    """One contestant on one model and batch; a value for each round, ratios by peer."""

    model: str
    batch: int
    who: str
    cpu_ms: list[float]
    ratios: dict[str, list[float]]

    def row(self) -> tuple[str, ...]:
        """Its line of the table."""
        spreads = (with_spread(v) for v in (self.cpu_ms, *self.ratios.values()))
        return self.model, str(self.batch), self.who, *spreads


def bench(name: str, args: argparse.Namespace, folder: Path) -> list[Result]:
    """All contestants on one model."""
    case, found = CASES[name], []
    compiled = {
        graph: compile_case(case, folder / name, **settings, privacy=PrivacyConfig())
        for graph, settings in GRAPHS.items()
    }
    for size in args.batches:
        x, y = case.batch(size)
        hooks, optimizer = opacus_hooks(opacus_model(case, compiled["float32 backprop"]), x, y)
        hooks()
        check_same_sum(optimizer, compiled["float32 backprop"].path, x, y)
        built = compiled["int8 dfa"].built
        plain = PlainSum(**{f.name: getattr(built.step, f.name) for f in fields(built.step)})
        steps: dict[str, Timed] = {
            PLAIN: session_step(built, plain, x, y),
            CLIPPED: session_step(built, built.step, x, y),
            PRIVATE: clipped_step(compiled["int8 dfa"].path, x, y),
            "float32 backprop, clipped": clipped_step(compiled["float32 backprop"].path, x, y),
            "torch eager, plain": peer_step(case, compiled["float32 backprop"], x, y),
            HOOKS: hooks,
            GHOST: opacus_ghost(opacus_model(case, compiled["float32 backprop"]), x, y),
        }
        times = measure(steps, args.rounds, args.slot_s)
        cpu = {who: [each[0] for each in own] for who, own in times.items()}
        for who, own in cpu.items():
            ratios = {
                peer: [a / b for a, b in zip(own, cpu[peer], strict=True)]
                for peer in (PLAIN, HOOKS, GHOST)
            }
            found.append(Result(name, size, who, [1e3 * value for value in own], ratios))
    return found


def main() -> None:
    """Run, print the table, then both ratios against their goals."""
    args = arguments()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Opacus and torch on hooks
    packages = ("torch", "opacus", "onnxruntime", "numpy")
    print_heading("Time of one clipped sum of gradients, one thread", packages)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            found += bench(name, args, Path(folder))
    header = ("model", "batch", "contestant", "processor ms", f"ratio to {PLAIN}")
    print_table((*header, f"ratio to {HOOKS}", f"ratio to {GHOST}"), (r.row() for r in found))
    for model in args.models:
        worst = {
            (who, peer): max(
                quartiles(r.ratios[peer])[1] for r in found if (r.model, r.who) == (model, who)
            )
            for who, peer in ((CLIPPED, PLAIN), (PRIVATE, HOOKS), (PRIVATE, GHOST))
        }
        clipping = verdict(worst[CLIPPED, PLAIN], CLIPPING_GOAL)
        print(f"clipped / plain sum, {model}, worst batch: ratio {clipping}")
        for peer in (GHOST, HOOKS):
            ratio = verdict(worst[PRIVATE, peer], OPACUS_GOAL)
            print(f"{PRIVATE} / {peer}, {model}, worst batch: ratio {ratio}")


if __name__ == "__main__":
    main()
