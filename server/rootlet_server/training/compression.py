"""Gradients between DDP's processes in one bit an entry, with error feedback.

Each process adds what it has not sent so far (e) to its gradient, sends signs and a scale for each
parameter, and keeps the difference (Karimireddy et al. 2019, EF-signSGD):

    p = g + e,   sent = mean|p| sign(p),   e <- p - sent,   g <- mean over processes of sent
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

BITS = 8


def packed_signs(values: Tensor) -> Tensor:
    """One bit an entry, set where it is not negative; uint8 [ceil(n / 8)]."""
    bits = (values.flatten() >= 0).to(torch.uint8)
    padded = torch.nn.functional.pad(bits, (0, -len(bits) % BITS)).view(-1, BITS)
    weights = 2 ** torch.arange(BITS, dtype=torch.uint8, device=values.device)
    return (padded * weights).sum(1, dtype=torch.uint8)


def unpacked_signs(packed: Tensor, entries: int) -> Tensor:
    """-1 and 1, float32 [entries]."""
    places = torch.arange(BITS, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(1) >> places) & 1
    return bits.flatten()[:entries].float() * 2 - 1


class SignCompression:
    """State and hook for ``DistributedDataParallel.register_comm_hook``.

    Attributes:
        errors: what was not sent, by the name of the parameter; part of a checkpoint.
        bytes_sent: by this process, so far.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        self.errors = {
            name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad
        }
        self.bytes_sent = 0

    @staticmethod
    def hook(
        state: "SignCompression",
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[torch.Tensor]:
        """Average one bucket of gradients over all processes.

        torch reads this signature: the annotations must be the classes themselves.
        """
        errors = [state.errors[state._names[id(p)]] for p in bucket.parameters()]
        corrected = [g + e for g, e in zip(bucket.gradients(), errors, strict=True)]
        scales = torch.stack([p.abs().mean() for p in corrected])
        for error, p, scale in zip(errors, corrected, scales, strict=True):
            error.copy_(p - scale * torch.where(p >= 0, 1.0, -1.0))
        flat = torch.cat([p.flatten() for p in corrected])
        signs = packed_signs(flat)
        state.bytes_sent += signs.numel() + scales.numel() * scales.element_size()
        world = dist.get_world_size()
        all_signs = [torch.empty_like(signs) for _ in range(world)]
        all_scales = [torch.empty_like(scales) for _ in range(world)]
        dist.all_gather(all_signs, signs)
        dist.all_gather(all_scales, scales)
        sizes = torch.tensor([p.numel() for p in corrected], device=flat.device)
        total = torch.zeros_like(flat)
        for other, scale in zip(all_signs, all_scales, strict=True):
            total += unpacked_signs(other, len(flat)) * scale.repeat_interleave(sizes)
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result((total / world).view_as(bucket.buffer()))
        return future
