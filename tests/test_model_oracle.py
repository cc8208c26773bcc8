"""Our transformer and adapter against diffusers', which we did not write, with the same random weights."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.model.adapter import IPAdapter
from engine.model.flux import Flux
from engine.model.image_prompt import ImagePrompt
from engine.model.packing import Packing
from engine.profile import DrawnSize
from engine.sampling import latents, schedule
from engine.sampling.guidance import euler_step
from engine.weights.load import build_adapter
from tests.oracles.diffusers_flux import diffusers_flux, load_adapter_through_diffusers, write_adapter
from tests.tiny import randomised, tiny_profile

PROFILE = tiny_profile()
SIZE = DrawnSize(width_px=96, height_px=64)
NUM_TXT = 12
NUM_ADAPTER_TOKENS = 4  # diffusers tells 16 from 4 by the full-size weight only


@pytest.fixture
def flux() -> Flux:
    torch.manual_seed(0)
    model = Flux(PROFILE.transformer).eval()
    randomised(model, 1)
    return model.requires_grad_(False)


@pytest.fixture
def adapter() -> IPAdapter:
    model = build_adapter(PROFILE, NUM_ADAPTER_TOKENS).eval()
    randomised(model, 2)
    return model.requires_grad_(False)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One sample's conditions; batches are made by :func:`batched`."""

    img: Tensor
    txt: Tensor
    vec: Tensor
    sigma: Tensor
    guidance: Tensor
    embedding: Tensor
    scale: float
    size: DrawnSize = SIZE

    @staticmethod
    def random(seed: int, size: DrawnSize = SIZE) -> Inputs:
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        def rand() -> Tensor:
            return torch.rand(1, generator=generator)

        params = PROFILE.transformer
        return Inputs(
            img=randn(size.num_tokens, params.in_channels),
            txt=randn(NUM_TXT, params.context_in_dim),
            vec=randn(1, params.vec_in_dim),
            sigma=rand(),
            guidance=1 + 4 * rand(),
            embedding=randn(1, PROFILE.clip_vision.projection_dim),
            scale=0.5 + 0.5 * float(rand()),
            size=size,
        )


def run(flux: Flux, adapter: IPAdapter | None, samples: list[Inputs]) -> list[Tensor]:
    """One forward pass of ours for any number of samples of any sizes."""
    packing = Packing(num_txt=NUM_TXT, num_img=tuple(sample.size.num_tokens for sample in samples))
    prompt = adapter and ImagePrompt.stack([adapter.encode(s.embedding).scaled(s.scale) for s in samples])
    dtype = flux.img_in.weight.dtype
    out = flux(
        packing.pack([s.img for s in samples]).to(dtype),
        packing.pack([latents.position_ids(s.size) for s in samples]),
        torch.stack([s.txt for s in samples]).to(dtype),
        torch.cat([s.sigma for s in samples]),
        torch.cat([s.vec for s in samples]).to(dtype),
        torch.cat([s.guidance for s in samples]),
        packing=packing,
        image_prompt=prompt,
    )
    return list(packing.unpack(out))


def run_diffusers(model: torch.nn.Module, sample: Inputs, *, with_adapter: bool) -> Tensor:
    dtype = next(model.parameters()).dtype
    kwargs = {"joint_attention_kwargs": {"ip_adapter_image_embeds": [sample.embedding[:, None].to(dtype)]}}
    out: Tensor = model(
        hidden_states=sample.img[None].to(dtype),
        encoder_hidden_states=sample.txt[None].to(dtype),
        pooled_projections=sample.vec.to(dtype),
        timestep=sample.sigma,
        guidance=sample.guidance,
        img_ids=latents.position_ids(sample.size),
        txt_ids=torch.zeros(NUM_TXT, 3),
        return_dict=False,
        **(kwargs if with_adapter else {}),
    )[0]
    return out[0]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).double().norm() / theirs.double().norm())


@torch.inference_mode()
def test_transformer_without_adapter_equals_diffusers(flux: Flux) -> None:
    oracle = diffusers_flux(flux)
    for seed in range(3):
        sample = Inputs.random(seed)
        error = relative_error(run(flux, None, [sample])[0], run_diffusers(oracle, sample, with_adapter=False))
        assert error <= 1e-5


@torch.inference_mode()
def test_transformer_with_adapter_equals_diffusers(flux: Flux, adapter: IPAdapter, tmp_path: Path) -> None:
    oracle = diffusers_flux(flux)
    load_adapter_through_diffusers(oracle, write_adapter(adapter, tmp_path))
    adapter.inject(flux)
    for seed in range(3):
        sample = Inputs.random(seed)
        for processor in oracle.attn_processors.values():
            if hasattr(processor, "scale"):
                processor.scale = [sample.scale]
        theirs = run_diffusers(oracle, sample, with_adapter=True)
        assert relative_error(run(flux, adapter, [sample])[0], theirs) <= 1e-5
        assert relative_error(run(flux, None, [sample])[0], theirs) > 1e-2, "the adapter must matter for this test"


@torch.inference_mode()
def test_four_step_trajectory_equals_diffusers(flux: Flux, adapter: IPAdapter, tmp_path: Path) -> None:
    oracle = diffusers_flux(flux)
    load_adapter_through_diffusers(oracle, write_adapter(adapter, tmp_path))
    adapter.inject(flux)
    start = dataclasses.replace(Inputs.random(5), scale=1.0)
    sigmas = schedule.sigmas("simple", num_steps=4, num_tokens=SIZE.num_tokens)
    ours = theirs = start.img
    for sigma, sigma_next in itertools.pairwise(sigmas):
        at = torch.tensor([sigma])
        velocity = run(flux, adapter, [dataclasses.replace(start, img=ours, sigma=at)])[0]
        ours = euler_step(ours, velocity, sigma=sigma, sigma_next=sigma_next)
        velocity = run_diffusers(oracle, dataclasses.replace(start, img=theirs, sigma=at), with_adapter=True)
        theirs = theirs + (sigma_next - sigma) * velocity
    assert relative_error(ours, theirs) <= 1e-4


@torch.inference_mode()
def test_bfloat16_is_as_far_from_float32_as_diffusers_is(flux: Flux) -> None:
    # Numbers that bfloat16 holds exactly: diffusers rounds timestep and guidance before their sinusoids, we do not.
    sample = dataclasses.replace(Inputs.random(0), sigma=torch.tensor([0.5]), guidance=torch.tensor([2.0]))
    exact = run(flux, None, [sample])[0]
    low = flux.to(torch.bfloat16)
    ours = relative_error(run(low, None, [sample])[0].float(), exact)
    theirs = relative_error(run_diffusers(diffusers_flux(low), sample, with_adapter=False).float(), exact)
    assert ours <= 1.25 * theirs
    assert theirs < 0.05


@torch.inference_mode()
def test_a_batch_of_different_faces_equals_each_alone(flux: Flux, adapter: IPAdapter) -> None:
    adapter.inject(flux)
    samples = [Inputs.random(seed) for seed in range(4)]
    for sample, together in zip(samples, run(flux, adapter, samples), strict=True):
        assert relative_error(together, run(flux, adapter, [sample])[0]) <= 1e-5


@torch.inference_mode()
def test_a_batch_of_different_sizes_equals_each_alone(flux: Flux, adapter: IPAdapter) -> None:
    adapter.inject(flux)
    sizes = [SIZE, DrawnSize(width_px=32, height_px=32), DrawnSize(width_px=48, height_px=128), SIZE]
    samples = [Inputs.random(seed, size) for seed, size in enumerate(sizes)]
    for sample, together in zip(samples, run(flux, adapter, samples), strict=True):
        assert relative_error(together, run(flux, adapter, [sample])[0]) <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("are_sizes_mixed", [False, True])
def test_a_face_reaches_its_own_sample_only(flux: Flux, adapter: IPAdapter, are_sizes_mixed: bool) -> None:
    adapter.inject(flux)
    other = DrawnSize(width_px=64, height_px=64) if are_sizes_mixed else SIZE
    samples = [Inputs.random(seed, other if seed % 2 else SIZE) for seed in range(8)]
    before = run(flux, adapter, samples)
    for changed in range(8):
        swapped = list(samples)
        swapped[changed] = dataclasses.replace(samples[changed], embedding=Inputs.random(99).embedding, scale=0.9)
        after = run(flux, adapter, swapped)
        for index in range(8):
            is_same = torch.equal(before[index], after[index])
            assert is_same == (index != changed), f"face of sample {changed} and the image of sample {index}"


@torch.inference_mode()
def test_permuting_a_batch_permutes_its_images(flux: Flux, adapter: IPAdapter) -> None:
    adapter.inject(flux)
    samples = [Inputs.random(seed) for seed in range(8)]
    order = [3, 7, 0, 5, 1, 6, 2, 4]
    straight = run(flux, adapter, samples)
    permuted = run(flux, adapter, [samples[index] for index in order])
    for index, image in zip(order, permuted, strict=True):
        assert relative_error(image, straight[index]) <= 1e-6


@torch.inference_mode()
def test_scale_zero_is_no_adapter_and_eject_undoes_inject(flux: Flux, adapter: IPAdapter) -> None:
    sample = Inputs.random(0)
    bare = run(flux, None, [sample])[0]
    keys = set(flux.state_dict())
    adapter.inject(flux)
    assert set(flux.state_dict()) == keys, "the transformer's checkpoint keys stay its own"
    assert torch.equal(run(flux, adapter, [dataclasses.replace(sample, scale=0.0)])[0], bare)
    assert not torch.equal(run(flux, adapter, [sample])[0], bare)
    with pytest.raises(ValueError, match="eject it first"):
        adapter.inject(flux)
    adapter.eject(flux)
    assert torch.equal(run(flux, adapter, [sample])[0], bare)
