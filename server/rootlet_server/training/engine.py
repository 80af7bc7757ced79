"""Where and how the arithmetic runs: Accelerate's device, processes, autocast, scaler and DDP.

Sharding is torch's own ``fully_shard``: Accelerate 1.15 takes an FSDP plugin on a CPU and silently
runs DDP instead (``docs/decisions/0012-full-training.md``).
"""

from __future__ import annotations

import copy
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard

from rootlet_server.training.blocks import find_blocks, recomputed
from rootlet_server.training.compression import SignCompression
from rootlet_server.training.errors import FullTrainingConfigError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

    from torch import Tensor, nn

    from rootlet_server.training.config import EngineConfig

MIXED = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}


class Engine:
    """The running arithmetic; a context manager, since Accelerate's state is one a process.

    Args:
        config: speed and memory.

    Attributes:
        rank, world: this process and how many there are.
        device: of the tensors.
        model: the model as it is called in training, once prepared.
        compression: what one-bit gradients have not sent; None without them.

    Raises:
        FullTrainingConfigError: the machine or the processes are not those of the configuration.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        cuda = torch.cuda.is_available()
        if config.device == "cuda" and not cuda:
            raise FullTrainingConfigError(
                "engine.device='cuda': torch finds no CUDA device here. Use 'auto' or 'cpu'."
            )
        if config.precision == "fp16" and not cuda:
            raise FullTrainingConfigError(
                "engine.precision='fp16' needs CUDA, and torch finds none here. Use 'bf16'."
            )
        on_cpu = config.device == "cpu" or not cuda
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision=MIXED[config.precision])
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        self.compression: SignCompression | None = None
        self._closing = ExitStack()
        if self.world != config.processes:
            AcceleratorState._reset_state(reset_partial_state=True)
            raise FullTrainingConfigError(
                f"engine.processes={config.processes}, but this run has {self.world}. Start it "
                "with: rootlet train CONFIG.toml, or torchrun --nproc-per-node "
                f"{config.processes}."
            )

    def prepare(self, model: nn.Module) -> nn.Module:
        """Place, shard or replicate, and compile a model; sets and returns ``model``."""
        config, self._plain, self._own = self.config, model, set(vars(model))
        self._skeleton = copy.deepcopy(model) if config.strategy == "fsdp2" else model
        blocks = find_blocks(model, config.blocks)
        if config.checkpointing:
            if not blocks:
                raise FullTrainingConfigError(
                    "engine.checkpointing: the model has no ModuleList or Sequential of blocks. "
                    "Name them in engine.blocks."
                )
            self._closing.enter_context(recomputed(blocks))
        if config.strategy == "fsdp2":
            self._shard(model, blocks)
        on_device = self.accelerator.prepare_model(
            model, device_placement=config.strategy != "fsdp2", evaluation_mode=True
        )
        self.model: nn.Module = on_device
        if config.strategy == "ddp":
            self.model = self._replicate(on_device)
        if config.compile is not None:
            compiled: Any = torch.compile(self.model, backend=config.compile)
            self.model = compiled
        return self.model

    def _shard(self, model: nn.Module, blocks: list[nn.Module]) -> None:
        mesh = init_device_mesh(self.device.type, (self.world,))
        settings: dict[str, Any] = {"mesh": mesh}
        if self.config.precision == "bf16":
            settings["mp_policy"] = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32
            )
        if self.config.cpu_offload:
            settings["offload_policy"] = CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
        for block in blocks:
            fully_shard(block, **settings)
        fully_shard(model, **settings)

    def _replicate(self, model: nn.Module) -> nn.Module:
        index = None if self.device.type == "cpu" else [self.device.index]
        replicated = torch.nn.parallel.DistributedDataParallel(
            model, device_ids=index, gradient_as_bucket_view=True
        )
        if self.config.compression == "sign":
            self.compression = SignCompression(model)
            replicated.register_comm_hook(self.compression, SignCompression.hook)
        elif self.config.compression == "bf16":
            replicated.register_comm_hook(None, default_hooks.bf16_compress_hook)
        return replicated

    @property
    def plain(self) -> nn.Module:
        """The model without the wrapping of DDP and compile."""
        return self._plain

    @property
    def scaler(self) -> Any:
        """Of fp16's loss; None otherwise."""
        return self.accelerator.scaler

    def unsynchronised(self) -> AbstractContextManager[None]:
        """Gradients add up in each process while it lasts: all but the last part of a batch."""
        if self.config.strategy == "ddp":
            replicated: Any = getattr(self.model, "_orig_mod", self.model)
            quiet: AbstractContextManager[None] = replicated.no_sync()
            return quiet
        return nullcontext()

    def synchronise(self, on: bool) -> None:
        """FSDP2's way to say the same."""
        if isinstance(self._plain, FSDPModule):
            self._plain.set_requires_gradient_sync(on)

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, scaled under fp16."""
        self.accelerator.backward(loss)

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def gathered(self, words: str) -> list[str]:
        """What every process says, in the order of their ranks."""
        if self.world == 1:
            return [words]
        found: list[str] = [""] * self.world
        dist.all_gather_object(found, words)
        return found

    def barrier(self) -> None:
        """Wait for all processes."""
        self.accelerator.wait_for_everyone()

    def whole_model(self) -> nn.Module:
        """The trained model with whole tensors on the CPU, as it came in; on every process."""
        if self.config.strategy == "fsdp2":
            options = StateDictOptions(full_state_dict=True)
            state: dict[str, Any] = get_model_state_dict(self._plain, options=options)
            self._skeleton.load_state_dict({name: t.cpu() for name, t in state.items()})
            return self._skeleton
        self._unwrap()
        return self._plain.cpu()

    def _unwrap(self) -> None:
        """Take autocast off; Accelerate leaves a bound method where the class's own was."""
        self.accelerator.unwrap_model(self._plain, keep_fp32_wrapper=False)
        for name in ("forward", "_original_forward"):
            if name not in self._own:
                vars(self._plain).pop(name, None)

    def __enter__(self) -> Self:
        """Nothing more to do: the processes are joined."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Undo what was done to the model's methods, and forget Accelerate's state."""
        self._closing.close()
        if hasattr(self, "_plain") and self.config.strategy != "fsdp2":
            self._unwrap()
        self.accelerator.free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)
