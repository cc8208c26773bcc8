"""One forward pass of the transformer, ours and diffusers' with the same weights, on random inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from engine.model.image_prompt import ImagePrompt
from engine.model.packing import Packing
from engine.profile import DrawnSize, ModelProfile
from engine.runtime.recorded import CudaGraphs, Forward, RecordedPasses
from engine.sampling import latents
from engine.weights.load import Networks


@dataclasses.dataclass
class Batch:
    """Random inputs of a forward pass."""

    img: torch.Tensor
    ids: torch.Tensor
    txt: torch.Tensor
    sigma: torch.Tensor
    vec: torch.Tensor
    guidance: torch.Tensor
    prompt: ImagePrompt
    embedding: torch.Tensor
    packing: Packing


@torch.inference_mode()
def random_batch(profile: ModelProfile, networks: Networks, size: DrawnSize, num: int) -> Batch:
    """``num`` samples of one size, in the networks' own precision. Always the same numbers on one kind of device."""
    weight = networks.flux.img_in.weight
    device, dtype = weight.device, weight.dtype
    generator = torch.Generator(device).manual_seed(1)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    embedding = randn(num, profile.clip_vision.projection_dim)
    prompt = networks.adapter.encode(embedding.to(dtype)).scaled(1.0)
    return Batch(
        img=randn(num, size.num_tokens, profile.transformer.in_channels).to(dtype),
        ids=latents.position_ids(size).to(device).expand(num, -1, -1),
        txt=randn(num, profile.t5.max_tokens, profile.transformer.context_in_dim).to(dtype),
        sigma=torch.full((num,), 0.5, device=device),
        vec=randn(num, profile.transformer.vec_in_dim).to(dtype),
        guidance=torch.full((num,), 2.0, device=device),  # exact in bfloat16, which diffusers rounds it to
        prompt=prompt,
        embedding=embedding.to(dtype),
        packing=Packing(num_txt=profile.t5.max_tokens, num_img=(size.num_tokens,) * num),
    )


def packed(batches: Sequence[Batch], packing: Packing) -> Batch:
    """Batches of one sample each, of several sizes, in one."""
    rows = {
        name: torch.cat([getattr(batch, name) for batch in batches])
        for name in ("txt", "sigma", "vec", "guidance", "embedding")
    }
    return Batch(
        img=packing.pack([batch.img[0] for batch in batches]),
        ids=packing.pack([batch.ids[0] for batch in batches]),
        prompt=ImagePrompt.stack([batch.prompt for batch in batches]),
        packing=packing,
        **rows,
    )


@torch.inference_mode()
def forward(passes: Forward, batch: Batch) -> torch.Tensor:
    """Our velocity: the transformer's, or a recording's."""
    return passes(*_inputs(batch), packing=batch.packing, image_prompt=batch.prompt)


@torch.inference_mode()
def recorded(profile: ModelProfile, passes: Forward, batch: Batch) -> RecordedPasses:
    """Passes as the engine runs them: short ones recorded on a GPU, this batch's among them."""
    made = RecordedPasses(
        passes, max_recordings=int(batch.img.is_cuda), max_tokens=profile.native_tokens, recorder=CudaGraphs()
    )
    made.record(*_inputs(batch), packing=batch.packing, image_prompt=batch.prompt)
    return made


def _inputs(batch: Batch) -> tuple[torch.Tensor, ...]:
    return batch.img, batch.ids, batch.txt, batch.sigma, batch.vec, batch.guidance


def diffusers_model(profile: ModelProfile, model_dir: str, networks: Networks) -> Any:
    """diffusers' transformer over the very same tensors, with its adapter processors."""
    from tests.oracles.diffusers_flux import empty_diffusers_flux, load_adapter_through_diffusers, to_diffusers

    params = profile.transformer
    with torch.device("meta"):
        model = empty_diffusers_flux(params)
    model.load_state_dict(to_diffusers(networks.flux.state_dict(), params), strict=True, assign=True)
    pipeline = load_adapter_through_diffusers(model, model_dir, profile.files.adapter)
    pipeline.set_ip_adapter_scale(1.0)
    return model.to(networks.flux.img_in.weight.device, networks.flux.img_in.weight.dtype).eval()


@torch.inference_mode()
def diffusers_forward(model: Any, batch: Batch) -> torch.Tensor:
    """diffusers' velocity, of samples of one size."""
    out: torch.Tensor = model(
        hidden_states=batch.img,
        encoder_hidden_states=batch.txt,
        pooled_projections=batch.vec,
        timestep=batch.sigma,
        guidance=batch.guidance,
        img_ids=batch.ids[0],
        txt_ids=batch.ids.new_zeros(batch.txt.shape[1], 3),
        joint_attention_kwargs={"ip_adapter_image_embeds": [batch.embedding[:, None]]},
        return_dict=False,
    )[0]
    return out
