"""What the device computes for the engine: conditions, one velocity for a batch, pixels. Decides nothing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.cache import ByteBudgetCache
from engine.config import EngineConfig
from engine.errors import InvalidRequestError
from engine.memory import MEMORY_PROFILES, check_fits
from engine.model.image_prompt import ImagePrompt
from engine.model.packing import Packing
from engine.model.text import TextEmbedding
from engine.profile import DrawnSize
from engine.request import Reference, RgbImage
from engine.runtime.recorded import CudaGraphs, RecordedPasses
from engine.sampling import latents as latent_tokens
from engine.weights.load import DTYPES, Networks, load_networks
from engine.weights.plan import memory_plans

NUM_PACKINGS = 64
"""Kept of those used last, for their maps of tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a forward pass: a sample's state and everything it is conditioned on.

    Attributes:
        tokens: (L, in_channels) float32, the noisy latents.
        position_ids: (L, 3).
        text: this row's prompt.
        image_prompt: one row, its scale included.
        sigma: noise level in (0, 1].
        guidance: FLUX.1-dev's distilled guidance.
    """

    tokens: Tensor
    position_ids: Tensor
    text: TextEmbedding
    image_prompt: ImagePrompt
    sigma: float
    guidance: float


class FluxRunner:
    """The networks of one profile on one device, with the caches of what they computed.

    The caches are this object's own and live in its process, so what one profile's networks computed can't reach
    another's: within one profile, content alone is the key.
    """

    def __init__(self, networks: Networks, config: EngineConfig) -> None:
        self._networks = networks
        self._device = torch.device(config.device)
        self._dtype = DTYPES[config.dtype]
        self._num_channels = config.profile.autoencoder.z_channels
        self._packing = functools.lru_cache(maxsize=NUM_PACKINGS)(self._new_packing)
        self._pass = RecordedPasses(
            networks.flux,
            max_recordings=config.max_recorded_shapes if config.device == "cuda" else 0,
            max_tokens=config.profile.native_tokens,  # for more than that a device takes longer than the handing over
            recorder=CudaGraphs(),
        )
        self.text_cache: ByteBudgetCache[str, TextEmbedding] = ByteBudgetCache(config.text_cache_bytes)
        self.image_cache: ByteBudgetCache[tuple[str, str], ImagePrompt] = ByteBudgetCache(config.image_cache_bytes)
        self.black_prompt = self._encode_embedding(networks.vision.encode_black())
        self.num_prompts_encoded = 0

    @property
    def num_txt(self) -> int:
        """Text tokens of every row."""
        return self._networks.text.t5_length

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read afterwards has seen the work done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def encode_prompt(self, prompt: str) -> TextEmbedding:
        """T5's and CLIP's states of one prompt, cached by its text."""
        embedding = self.text_cache.get(prompt)
        if embedding is None:
            embedding = self.encode_prompt_anew(prompt)
            self.text_cache.put(prompt, embedding, size_bytes=embedding.size_bytes)
        return embedding

    def encode_prompt_anew(self, prompt: str) -> TextEmbedding:
        """:meth:`encode_prompt` past the cache."""
        self.num_prompts_encoded += 1
        return self._networks.text.encode([prompt])[0]

    def num_references_to_encode(self, reference: Reference | None) -> int:
        """1 where CLIP's vision tower has to run for it, else 0."""
        if reference is None or reference.crop is None:
            return 0
        return int(_image_key(reference) not in self.image_cache)

    def encode_reference(self, reference: Reference) -> ImagePrompt:
        """The adapter's keys and values for one reference, of scale 1, cached by its content."""
        key = _image_key(reference)
        prompt = self.image_cache.get(key)
        if prompt is None:
            prompt = self.encode_reference_anew(reference)
            self.image_cache.put(key, prompt, size_bytes=prompt.size_bytes)
        return prompt

    def encode_reference_anew(self, reference: Reference) -> ImagePrompt:
        """:meth:`encode_reference` past the cache."""
        embedding = reference.embedding
        if embedding is None:
            assert reference.crop is not None
            embedding = self._networks.vision.encode(reference.crop[None])[0]
        return self._encode_embedding(embedding)

    def initial_tokens(self, seed: int, size: DrawnSize) -> Tensor:
        """Pure noise as tokens, (L, in_channels) float32 on the device."""
        noise = latent_tokens.noise(seed, size, self._num_channels)
        return latent_tokens.pack(noise).to(self._device)

    def position_ids(self, size: DrawnSize) -> Tensor:
        """(L, 3) on the device."""
        return latent_tokens.position_ids(size).to(self._device)

    @torch.inference_mode()
    def velocity(self, rows: Sequence[Row]) -> tuple[Tensor, ...]:
        """One forward pass: a velocity (L_i, in_channels) float32 for every row, whatever the sizes."""
        inputs, packing, image_prompt = self._packed(rows)
        out = self._pass(*inputs, packing=packing, image_prompt=image_prompt)
        return packing.unpack(out.float())

    @torch.inference_mode()
    def record(self, rows: Sequence[Row]) -> None:
        """Make :meth:`velocity` of rows of these sizes fast now, where it would otherwise become so after a few."""
        inputs, packing, image_prompt = self._packed(rows)
        self._pass.record(*inputs, packing=packing, image_prompt=image_prompt)

    def _packed(self, rows: Sequence[Row]) -> tuple[tuple[Tensor, ...], Packing, ImagePrompt]:
        packing = self._packing(tuple(len(row.tokens) for row in rows))
        inputs = (
            packing.pack([row.tokens for row in rows]).to(self._dtype),
            packing.pack([row.position_ids for row in rows]),
            torch.cat([row.text.txt for row in rows]),
            torch.tensor([row.sigma for row in rows], device=self._device),
            torch.cat([row.text.vec for row in rows]),
            torch.tensor([row.guidance for row in rows], device=self._device),
        )
        return inputs, packing, ImagePrompt.stack([row.image_prompt for row in rows])

    def _new_packing(self, num_img: tuple[int, ...]) -> Packing:
        return Packing(num_txt=self.num_txt, num_img=num_img)

    @torch.inference_mode()
    def decode(self, tokens: Tensor, size: DrawnSize) -> RgbImage:
        """(L, in_channels) noise-free tokens to a picture at its drawn size."""
        return self.decode_latents(latent_tokens.unpack(tokens, size))

    @torch.inference_mode()
    def decode_latents(self, latents: Tensor) -> RgbImage:
        """(z_channels, H/8, W/8) float32, noise-free, as sampled, to (H, W, 3)."""
        image: RgbImage = self._networks.decoder.decode(latents.to(self._device)[None])[0]
        return image

    @torch.inference_mode()
    def _encode_embedding(self, embedding: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> ImagePrompt:
        expected = self._networks.adapter.embedding_dim
        if embedding.shape != (expected,):
            raise InvalidRequestError(f"the reference embedding has shape {embedding.shape}, expected ({expected},)")
        row = torch.from_numpy(embedding.copy()).to(self._device, self._dtype)[None]
        return self._networks.adapter.encode(row)


def load_runner(config: EngineConfig, on_stage: Callable[[str, float], None] | None = None) -> FluxRunner:
    """Read a profile's files onto the device.

    Args:
        on_stage: called after each network with its role and the seconds it took.

    Raises:
        ModelLoadError: the model folder is incomplete, corrupt or of another model, or does not fit the device.
    """
    if config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    if config.device == "cuda":
        plans = memory_plans(config)
        check_fits(plans.pop(config.memory), torch.cuda.mem_get_info()[0], others=plans)
    networks = load_networks(
        config.profile,
        config.model_dir,
        device=config.device,
        dtype=config.dtype,
        memory=MEMORY_PROFILES[config.memory],
        on_stage=on_stage,
    )
    return FluxRunner(networks, config)


def _image_key(reference: Reference) -> tuple[str, str]:
    # Where the crop was encoded is part of the key: two precisions differ in the last digits, and the same request
    # must give the same picture whatever came before it.
    return ("embedding" if reference.crop is None else "crop", reference.key)


def resized(image: RgbImage, *, width_px: int, height_px: int) -> RgbImage:
    """A picture at the size that was asked for; itself where it has that size."""
    if image.shape[:2] == (height_px, width_px):
        return image
    scaled: RgbImage = np.asarray(Image.fromarray(image).resize((width_px, height_px), Image.Resampling.LANCZOS))
    return scaled
