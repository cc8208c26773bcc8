"""A reference crop to CLIP's projected image embedding: what the image-prompt adapter reads.

It is an image embedding, not a face-recognition vector, whatever the endpoint is called.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from engine.profile import ClipVisionParams

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel statistics of CLIP's training data (openai/CLIP ``clip.py``)."""


def build_clip_vision(params: ClipVisionParams) -> CLIPVisionModelWithProjection:
    """CLIP's vision tower with projection; its activation is OpenAI's quick GELU."""
    config = CLIPVisionConfig(
        image_size=params.image_size,
        patch_size=params.patch_size,
        hidden_size=params.hidden_size,
        intermediate_size=params.intermediate_size,
        num_hidden_layers=params.num_hidden_layers,
        num_attention_heads=params.num_attention_heads,
        projection_dim=params.projection_dim,
        hidden_act="quick_gelu",
    )
    return CLIPVisionModelWithProjection(config).eval()


class ClipImageEncoder:
    """Crops to embeddings."""

    def __init__(self, network: Any, params: ClipVisionParams) -> None:
        self.network = network
        self.image_size_px = params.image_size
        self._mean = torch.tensor(CLIP_MEAN, device=network.device).view(1, 3, 1, 1)
        self._std = torch.tensor(CLIP_STD, device=network.device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def encode(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(B, image_size, image_size, 3) sRGB to (B, projection_dim), not normalised."""
        size_px = self.image_size_px
        if crops.ndim != 4 or crops.shape[1:] != (size_px, size_px, 3) or crops.dtype != np.uint8:
            raise ValueError(f"crops are (B, {size_px}, {size_px}, 3) uint8, not {crops.shape} {crops.dtype}")
        # A copy, because arrays that came through Ray are read-only and torch wants them writable.
        pixels = torch.from_numpy(crops.copy()).to(self._mean.device).permute(0, 3, 1, 2).float() / 255
        pixels = ((pixels - self._mean) / self._std).to(self.network.dtype)
        embeddings: Tensor = self.network(pixel_values=pixels).image_embeds
        result: npt.NDArray[np.float32] = embeddings.float().cpu().numpy()
        return result

    def encode_black(self) -> npt.NDArray[np.float32]:
        """The embedding, (projection_dim,), of a black picture: the negative pass's image prompt.

        Source: XLabs-AI/x-flux-comfyui ``nodes.py``, ``neg_out``.
        """
        size_px = self.image_size_px
        row: npt.NDArray[np.float32] = self.encode(np.zeros((1, size_px, size_px, 3), dtype=np.uint8))[0]
        return row
