"""The Flux transformer: noisy image tokens and conditions in, velocity out.

Source: black-forest-labs/flux ``model.py``. Everything a request may choose is an argument of the forward pass and
has its own value for every sample: timestep, guidance, text, size, and the image prompt with its scale.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from engine.model.image_prompt import ImagePrompt
from engine.model.layers import TIME_EMBEDDING_DIM, DoubleStreamBlock, LastLayer, MLPEmbedder, SingleStreamBlock
from engine.model.math import rope
from engine.model.packing import Packing
from engine.profile import FluxParams


class Flux(nn.Module):
    """Rectified-flow transformer with ``depth`` double and ``depth_single_blocks`` single blocks."""

    def __init__(self, params: FluxParams) -> None:
        super().__init__()
        self.params = params
        hidden = params.hidden_size
        self.img_in = nn.Linear(params.in_channels, hidden)
        self.txt_in = nn.Linear(params.context_in_dim, hidden)
        self.time_in = MLPEmbedder(TIME_EMBEDDING_DIM, hidden)
        self.vector_in = MLPEmbedder(params.vec_in_dim, hidden)
        self.guidance_in = MLPEmbedder(TIME_EMBEDDING_DIM, hidden) if params.guidance_embed else None
        self.double_blocks = nn.ModuleList(
            DoubleStreamBlock(hidden, params.num_heads, params.mlp_ratio, params.qkv_bias) for _ in range(params.depth)
        )
        self.single_blocks = nn.ModuleList(
            SingleStreamBlock(hidden, params.num_heads, params.mlp_ratio) for _ in range(params.depth_single_blocks)
        )
        self.final_layer = LastLayer(hidden, params.in_channels)

    def forward(
        self,
        img: Tensor,
        img_ids: Tensor,
        txt: Tensor,
        timesteps: Tensor,
        y: Tensor,
        guidance: Tensor,
        *,
        packing: Packing,
        image_prompt: ImagePrompt | None = None,
    ) -> Tensor:
        """The velocity d(latents)/dσ at every image token.

        Args:
            img: packed latents, (B, L, in_channels) or (1, ΣL, in_channels); see :class:`Packing`.
            img_ids: their (0, row, column), laid out as ``img``. Text tokens sit at (0, 0, 0).
            txt: (B, T, context_in_dim), T5's states.
            timesteps: (B,) float32, σ in [0, 1].
            y: (B, vec_in_dim), CLIP's pooled state.
            guidance: (B,) float32; 3.5 is FLUX.1-dev's usual value. Ignored by models without the embedding.
            image_prompt: rows of the same B samples; takes effect through an injected adapter.

        Returns:
            Laid out as ``img``.
        """
        vec = self.time_in.embed_scalar(timesteps) + self.vector_in(y)
        if self.guidance_in is not None:
            vec = vec + self.guidance_in.embed_scalar(guidance)
        vec = F.silu(vec)  # every block begins with it
        img = self.img_in(img)
        txt = self.txt_in(txt)
        txt_ids = img_ids.new_zeros((*txt.shape[:2], img_ids.shape[-1]))
        pe = rope(packing.join(txt_ids, img_ids), self.params.axes_dim, self.params.theta)

        for i, block in enumerate(self.double_blocks):
            img, txt = block(img, txt, vec, pe, packing, image_prompt.block(i) if image_prompt else None)
        joint = packing.join(txt, img)
        for block in self.single_blocks:
            joint = block(joint, vec, pe, packing)
        _, img = packing.split(joint)
        out: Tensor = self.final_layer(img, vec, packing)
        return out
