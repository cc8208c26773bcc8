"""All that learns together: transformer, adapter, both text encoders, vision tower; the engine's own classes."""

from __future__ import annotations

import copy
import dataclasses
import re
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedded.train.captions import Tokens, token_ids
from embedded.train.world import World
from engine.model.clip_vision import CLIP_MEAN, CLIP_STD, build_clip_vision
from engine.model.flux import Flux
from engine.model.image_prompt import ImagePrompt
from engine.model.packing import Packing
from engine.model.text import build_clip_text, build_t5
from engine.profile import ModelProfile
from engine.sampling.latents import PATCH
from engine.weights.load import build_adapter

NUM_IMAGE_TOKENS = 16
"""As XLabs' adapter v2."""

MUON_PREFIXES = ("flux.double_blocks.", "flux.single_blocks.", "vision.vision_model.encoder.")

UNDISTILLED = 1.0
"""Guidance that changes nothing. All training before the distillation is at it."""


M = TypeVar("M", bound=nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EqualPacking(Packing):
    """Packing of samples that all have as many tokens: same layout, plain attention, nothing that a compiler stumbles
    over (the engine chooses its attention kernels through context variables)."""

    @property
    def is_stacked(self) -> bool:
        """Always."""
        return True

    def self_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`Packing`."""
        return _attention(q, k, v)

    def cross_attention(self, img_q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`Packing`."""
        return _attention(img_q, k, v)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a batch is conditioned on: ``txt`` (B, T, D), ``vec`` (B, D'), ``embeddings`` (B, projection_dim) of the
    reference, ``scale`` (B,) of the adapter, ``guidance`` (B,)."""

    txt: Tensor
    vec: Tensor
    embeddings: Tensor
    scale: Tensor
    guidance: Tensor


class Learner(nn.Module):
    """The networks of one profile with fresh weights, the adapter injected."""

    _black: Tensor

    def __init__(self, profile: ModelProfile) -> None:
        super().__init__()
        self.profile = profile
        self.flux = Flux(profile.transformer)
        self.adapter = build_adapter(profile, NUM_IMAGE_TOKENS)
        self.t5: Any = build_t5(profile.t5)
        self.clip: Any = build_clip_text(profile.clip)
        self.vision: Any = build_clip_vision(profile.clip_vision)
        channels = [-mean / std for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True)]
        self.register_buffer("_black", torch.tensor(channels).view(1, 3, 1, 1), persistent=False)
        _initialise(self)
        self.adapter.inject(self.flux)

    def copied(self) -> Learner:
        """A frozen copy."""
        self.adapter.eject(self.flux)
        twin = copy.deepcopy(self)
        self.adapter.inject(self.flux)
        twin.adapter.inject(twin.flux)
        return twin.requires_grad_(False)

    def read(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Prompts to ``txt`` and ``vec``, as :class:`engine.model.text.TextEncoder`: padding is attended to."""
        txt: Tensor = self.t5(input_ids=tokens.t5.long()).last_hidden_state
        vec: Tensor = self.clip(input_ids=tokens.clip.long()).pooler_output
        return txt, vec

    def look(self, crops: Tensor) -> Tensor:
        """Normalised crops (B, 3, 224, 224) to projected embeddings (B, projection_dim)."""
        embeddings: Tensor = self.vision(pixel_values=crops).image_embeds
        return embeddings

    def look_at_black(self) -> Tensor:
        """The black picture's embedding, (1, projection_dim): the engine's picture of nobody."""
        size = self.profile.clip_vision.image_size
        return self.look(self._black.expand(1, 3, size, size))

    def velocity(self, img: Tensor, sigma: Tensor, given: Conditions) -> Tensor:
        """``img`` (B, L, in_channels) noisy tokens of square pictures, ``sigma`` (B,). Returns as ``img``."""
        count, num_img, _ = img.shape
        side = int(num_img**0.5)
        rows = torch.arange(num_img, device=img.device, dtype=torch.float32)
        ids = torch.stack((torch.zeros_like(rows), rows // side, rows % side), dim=-1)
        prompt = self.adapter.encode(given.embeddings)
        out: Tensor = self.flux(
            img,
            ids.expand(count, -1, -1),
            given.txt,
            sigma,
            given.vec,
            given.guidance,
            packing=EqualPacking(num_txt=given.txt.shape[1], num_img=(num_img,)),
            image_prompt=ImagePrompt(keys=prompt.keys, values=prompt.values, scale=given.scale),
        )
        return out

    def compile_blocks(self, world: World) -> None:
        """Let the compiler fuse the large networks' blocks, one graph for all blocks of a kind."""
        if not world.is_cuda:
            return
        import torch._dynamo as dynamo

        # What can't be compiled runs as written. A graph is made anew for other batches, and without gradients.
        dynamo.config.suppress_errors = True
        dynamo.config.cache_size_limit = max(dynamo.config.cache_size_limit, 64)
        for block in (*self.flux.double_blocks, *self.flux.single_blocks, self.flux.final_layer):
            block.compile(dynamic=False)
        for layer in self.vision.vision_model.encoder.layers:
            layer.compile(dynamic=False)


class Average(Generic[M]):
    """Exponential moving average of a module's parameters (arXiv 2312.02696): what is exported and what teaches."""

    def __init__(self, of: M, copy: M, *, decay: float) -> None:
        """``copy``, a frozen one of ``of``, becomes the average."""
        self.module = copy
        self._of = of
        self._decay = decay
        device = next(of.parameters()).device
        self._num_steps = torch.zeros((), device=device)  # on the device, so that a recorded update counts on

    @torch.no_grad()
    def update(self) -> None:
        """Take in the newest parameters; the horizon grows with the first steps."""
        self._num_steps += 1
        share = 1 - ((1 + self._num_steps) / (10 + self._num_steps)).clamp(max=self._decay)
        own: list[Tensor] = list(self.module.parameters())
        newest: list[Tensor] = list(self._of.parameters())
        ahead = torch._foreach_sub(newest, own)
        torch._foreach_mul_(ahead, share)
        torch._foreach_add_(own, ahead)

    def state_dict(self) -> dict[str, Any]:
        """Parameters and the number of updates."""
        return {"module": self.module.state_dict(), "num_steps": self._num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.module.load_state_dict(state["module"])
        self._num_steps.copy_(state["num_steps"])


def empty_prompt(profile: ModelProfile, device: torch.device) -> Tokens:
    """The prompt "", (1, T) and (1, 77): what a dropped caption and the default negative prompt are."""
    return token_ids([""], profile).to(device)


def to_tokens(latents: Tensor) -> Tensor:
    """(B, C, h, w) → (B, h/2 · w/2, 4C), as :func:`engine.sampling.latents.pack` for one."""
    patches = latents.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # (B, C, h/2, 2, w/2, 2)
    tokens: Tensor = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return tokens


def to_latents(tokens: Tensor) -> Tensor:
    """The inverse of :func:`to_tokens`, for square pictures."""
    side = int(tokens.shape[1] ** 0.5)
    patches = tokens.unflatten(2, (-1, PATCH, PATCH)).unflatten(1, (side, side))  # (B, h/2, w/2, C, 2, 2)
    latents: Tensor = patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    return latents


_STARTS_AT_NOTHING = re.compile(
    r"flux\.(double_blocks\.\d+\.(img|txt)_mod\.lin|single_blocks\.\d+\.modulation\.lin)\.weight"
    r"|flux\.final_layer\.(linear|adaLN_modulation\.1)\.weight"
    r"|flux\.guidance_in\.out_layer\.weight"
    r"|adapter\..*ip_adapter_double_stream_v_proj\.weight"
)

_WORDS = re.compile(r"(t5|clip)\..*(shared|token_embedding)\.weight")


@torch.no_grad()
def _initialise(learner: Learner) -> None:
    """Matrices keep variance; residuals start at nothing, as in DiT (arXiv 2212.09748); words never read stay faint."""
    for name, parameter in learner.named_parameters():
        if name.endswith("bias") or _STARTS_AT_NOTHING.fullmatch(name):
            nn.init.zeros_(parameter)
        elif _WORDS.fullmatch(name):
            nn.init.normal_(parameter, std=0.1)
        elif name.startswith(("flux.", "adapter.")) and parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
