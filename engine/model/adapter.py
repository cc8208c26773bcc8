"""The image-prompt adapter (IP-Adapter, arXiv 2308.06721, in XLabs' form for Flux), hung into the transformer.

A CLIP image embedding becomes N image tokens; in every double block the image stream's queries attend to them, and
the result, times a scale, is added after the block's MLP: no gate, no output projection (XLabs-AI/x-flux-comfyui
``layers.py``; diffusers ``transformer_flux.py``).

The adapter keeps no request's state. Keys and values depend on the picture only, so they are computed once a
reference (:meth:`IPAdapter.encode`) and given to the forward pass, one row a sample: a face can't reach another
sample's image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from engine.model.image_prompt import BlockPrompt, ImagePrompt
from engine.model.packing import Packing
from engine.runtime.choice import passes_for

if TYPE_CHECKING:
    from engine.model.flux import Flux


class ImageProjection(nn.Module):
    """(B, embedding_dim) → (B, N, token_dim): linear, then layer norm."""

    def __init__(self, embedding_dim: int, token_dim: int, num_tokens: int) -> None:
        super().__init__()
        self.token_dim = token_dim
        self.proj = nn.Linear(embedding_dim, num_tokens * token_dim)
        self.norm = nn.LayerNorm(token_dim)

    def forward(self, embeddings: Tensor) -> Tensor:
        """See the class."""
        tokens: Tensor = self.norm(self.proj(embeddings).unflatten(-1, (-1, self.token_dim)))
        return tokens


class ImageAttention(nn.Module):
    """One block's residual: cross-attention from image queries to image tokens."""

    def __init__(self, token_dim: int, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.ip_adapter_double_stream_k_proj = nn.Linear(token_dim, hidden_size)
        self.ip_adapter_double_stream_v_proj = nn.Linear(token_dim, hidden_size)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, token_dim) → keys and values, each (B, N, H, head_dim)."""
        keys = self.ip_adapter_double_stream_k_proj(tokens).unflatten(-1, (self.num_heads, -1))
        values = self.ip_adapter_double_stream_v_proj(tokens).unflatten(-1, (self.num_heads, -1))
        return keys, values

    def forward(self, img: Tensor, img_q: Tensor, prompt: BlockPrompt, packing: Packing) -> Tensor:
        """The image stream with this added; see :class:`engine.model.layers.ImageResidual`."""
        out = packing.cross_attention(img_q, prompt.keys, prompt.values).flatten(-2)
        scale = prompt.scale.to(out.dtype)[:, None].expand(-1, out.shape[-1])
        return passes_for(img).add_gated(img, scale, out, packing.img)


class _AdapterBlock(nn.Module):
    """Holds ``processor``, as XLabs' checkpoint keys name it."""

    def __init__(self, processor: ImageAttention) -> None:
        super().__init__()
        self.processor = processor


class IPAdapter(nn.Module):
    """Projection and one :class:`ImageAttention` a double block."""

    def __init__(
        self, *, embedding_dim: int, token_dim: int, num_tokens: int, hidden_size: int, num_heads: int, depth: int
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.ip_adapter_proj_model = ImageProjection(embedding_dim, token_dim, num_tokens)
        self.double_blocks = nn.ModuleList(
            _AdapterBlock(ImageAttention(token_dim, hidden_size, num_heads)) for _ in range(depth)
        )

    def inject(self, flux: Flux) -> None:
        """Hang every residual into its double block. A transformer takes one adapter at a time."""
        blocks = list(flux.double_blocks)
        if len(blocks) != len(self.double_blocks):
            raise ValueError(f"the adapter has {len(self.double_blocks)} blocks, the transformer {len(blocks)}")
        if any(block.img_residual is not None for block in blocks):
            raise ValueError("the transformer has an adapter already; eject it first")
        for block, processor in zip(blocks, self._processors(), strict=True):
            # Not through nn.Module's attribute: the weights stay the adapter's, and the transformer's state_dict
            # stays the checkpoint's.
            object.__setattr__(block, "img_residual", processor)

    def eject(self, flux: Flux) -> None:
        """Undo :meth:`inject`."""
        for block in flux.double_blocks:
            object.__setattr__(block, "img_residual", None)

    def encode(self, embeddings: Tensor) -> ImagePrompt:
        """CLIP image embeddings, (B, embedding_dim), to image prompts of scale 1."""
        tokens = self.ip_adapter_proj_model(embeddings)
        pairs = [processor.keys_values(tokens) for processor in self._processors()]
        return ImagePrompt(
            keys=torch.stack([keys for keys, _ in pairs], dim=1),
            values=torch.stack([values for _, values in pairs], dim=1),
            scale=torch.ones(len(embeddings), device=embeddings.device),
        )

    def _processors(self) -> list[ImageAttention]:
        return [cast(_AdapterBlock, block).processor for block in self.double_blocks]
