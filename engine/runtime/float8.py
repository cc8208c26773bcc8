"""Linear layers whose weights are stored in 8 bits and widened for each product: half the memory, same arithmetic."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = torch.finfo(FLOAT8).max


class Float8Linear(nn.Module):
    """A linear layer with float8 weights and one scale a row.

    Scales are powers of two, which costs a floating-point format no precision and makes storing exact for weights
    that were float8 before: a float8 checkpoint keeps its bits.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=FLOAT8), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        self.scale: Tensor
        self.register_buffer("scale", torch.empty(out_features, 1), persistent=False)

    def store(self, weight: Tensor) -> None:
        """Take a weight of any precision, (out_features, in_features)."""
        largest = weight.abs().amax(dim=1, keepdim=True).float()
        exponent = torch.where(largest > 0, torch.ceil(torch.log2(largest / FLOAT8_MAX)), torch.zeros_like(largest))
        scale = torch.exp2(exponent)
        self.weight = nn.Parameter((weight.float() / scale).to(FLOAT8), requires_grad=False)
        self.scale = scale.to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features), in the precision of ``x``."""
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def store_blocks_in_float8(flux: nn.Module) -> None:
    """Swap the matrices of a transformer's blocks for float8 ones, before weights are loaded.

    Modulation keeps its precision, as do embedders and the last layer, which are outside the blocks.
    """
    for name, module in list(flux.named_modules()):
        is_in_block = name.startswith(("double_blocks.", "single_blocks."))
        is_modulation = name.endswith(("_mod.lin", "modulation.lin"))
        if isinstance(module, nn.Linear) and is_in_block and not is_modulation:
            owner, _, leaf = name.rpartition(".")
            narrow = Float8Linear(module.in_features, module.out_features, bias=module.bias is not None)
            setattr(flux.get_submodule(owner), leaf, narrow)
