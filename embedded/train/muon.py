"""Muon (Keller Jordan, kellerjordan.github.io/posts/muon; scaling of arXiv 2502.16982), in a few batched products.

Every matrix is cut into square blocks as wide as its shorter side; all blocks of one width are orthogonalised in one
batch. Fused projections (query, key, value, MLP) are so treated as the separate matrices they are, and a step costs a
few dozen kernels instead of a few thousand. Everything that is no matrix of a block goes to AdamW.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
"""Jordan's quintic and its number of rounds."""

RMS = 0.2
"""Root mean square of an update at learning rate 1, as AdamW's (arXiv 2502.16982, section 2.2)."""


@dataclasses.dataclass
class _Group:
    """Matrices with the same shorter side."""

    parameters: list[Tensor]
    momentum: Tensor  # (blocks, side, side)


class Muon:
    """Momentum, orthogonalised. ``learning_rate``, a tensor on the device, is comparable with AdamW's and may be filled
    between steps, also of a recorded step."""

    def __init__(self, matrices: Sequence[Tensor], *, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        sides: dict[int, list[Tensor]] = {}
        for matrix in matrices:
            if not is_blocky(matrix):
                raise ValueError(f"not a matrix of square blocks: {tuple(matrix.shape)}")
            sides.setdefault(min(matrix.shape), []).append(matrix)
        self.learning_rate = torch.zeros((), device=matrices[0].device if matrices else None)
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._groups = {
            side: _Group(
                parameters=group,
                momentum=torch.zeros(sum(m.numel() for m in group) // side**2, side, side, device=group[0].device),
            )
            for side, group in sides.items()
        }

    @torch.no_grad()
    def step(self) -> None:
        """One update from the parameters' gradients."""
        for side, group in self._groups.items():
            grads = torch.cat([_blocks(torch.zeros_like(p) if p.grad is None else p.grad) for p in group.parameters])
            group.momentum.lerp_(grads, 1 - self._momentum)
            update = orthogonalised(grads.lerp(group.momentum, self._momentum))
            if self._weight_decay:
                torch._foreach_mul_(group.parameters, 1 - self.learning_rate * self._weight_decay)
            counts = [p.numel() // side**2 for p in group.parameters]
            update *= -self.learning_rate * RMS * side**0.5
            pieces = [_unblocks(part, p) for part, p in zip(update.split(counts), group.parameters, strict=True)]
            torch._foreach_add_(group.parameters, pieces)

    def state_dict(self) -> dict[str, Any]:
        """Momenta by side."""
        return {str(side): group.momentum for side, group in self._groups.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        for side, group in self._groups.items():
            group.momentum.copy_(state[str(side)])


def is_blocky(tensor: Tensor) -> bool:
    """Whether a tensor is a matrix whose longer side is a multiple of its shorter one."""
    return tensor.ndim == 2 and max(tensor.shape) % min(tensor.shape) == 0


def orthogonalised(batch: Tensor) -> Tensor:
    """(N, d, d) → the same with all singular values near 1, float32; a gradient of zeros stays zeros."""
    a, b, c = NEWTON_SCHULZ
    x = batch / (batch.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if batch.is_cuda else x
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    result: Tensor = x.float()
    return result


def _blocks(matrix: Tensor) -> Tensor:
    rows, columns = matrix.shape
    if rows >= columns:
        return matrix.reshape(-1, columns, columns)
    return matrix.reshape(rows, -1, rows).transpose(0, 1)


def _unblocks(blocks: Tensor, like: Tensor) -> Tensor:
    rows, columns = like.shape
    return (blocks if rows >= columns else blocks.transpose(0, 1)).reshape(rows, columns)


ADAM_SHARE = 0.5
"""AdamW's learning rate beside Muon's: it moves what residuals hang on, and starts without knowing their scale."""

_MODULATION = re.compile(r"_mod\.|modulation\.")


class Optimizer:
    """Muon for the blocks' matrices and AdamW for all else, as one."""

    def __init__(self, module: nn.Module, *, muon_prefixes: tuple[str, ...] = (), weight_decay: float = 0.0) -> None:
        """Moves the parameters that want gradients now; without ``muon_prefixes`` all by AdamW."""
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        matrices = [
            p for name, p in named if name.startswith(muon_prefixes) and is_blocky(p) and not _MODULATION.search(name)
        ]
        taken = {id(p) for p in matrices}
        others = [p for _, p in named if id(p) not in taken]
        self._muon = Muon(matrices, weight_decay=weight_decay)
        is_cuda = others[0].is_cuda
        self._adam = torch.optim.AdamW(
            others,
            lr=torch.zeros((), device=others[0].device),  # a tensor, so that a recorded step reads it anew
            betas=(0.9, 0.98),
            eps=1e-9,
            weight_decay=0.0,
            fused=is_cuda,
            capturable=is_cuda,
        )

    def set_learning_rate(self, learning_rate: float) -> None:
        """For the steps that follow."""
        self._muon.learning_rate.fill_(learning_rate)
        for group in self._adam.param_groups:
            group["lr"].fill_(ADAM_SHARE * learning_rate)

    def step(self) -> None:
        """One update from the parameters' gradients, which stay."""
        self._muon.step()
        self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        """Both optimisers' states."""
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
