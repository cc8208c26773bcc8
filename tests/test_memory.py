"""What fits is known before loading; stored in 8 bits or kept on the host, the same network answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.config import EngineConfig
from engine.engine import load_engine
from engine.errors import ModelLoadError
from engine.memory import GIB, MEMORY_PROFILES, MemoryProfileName, check_fits
from engine.profile import load_profile
from engine.request import Finished, ImageRequest, RgbImage
from engine.runtime.float8 import FLOAT8, Float8Linear, store_blocks_in_float8
from engine.weights.load import build, load_networks
from engine.weights.plan import memory_plan
from engine.weights.untrained import write_untrained
from tests.tiny import tiny_profile

PROFILE = tiny_profile()
FLUX_DEV = load_profile("flux-dev")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny-model")
    write_untrained(PROFILE, str(folder), dtype="float32")
    return str(folder)


def plans(device_gib: float) -> dict[MemoryProfileName, bool]:
    config = EngineConfig(profile=FLUX_DEV, model_dir="", device="cuda", dtype="bfloat16")
    made = {name: memory_plan(FLUX_DEV, config, name, num_adapter_tokens=16) for name in MEMORY_PROFILES}
    return {name: plan.num_bytes <= device_gib * GIB for name, plan in made.items()}


def test_flux_dev_is_planned_for_the_cards_people_have() -> None:
    assert plans(79.1) == {"resident": True, "offload-text": True, "float8": True}  # H100 80 GB
    assert plans(44.4)["offload-text"]  # L40S, what 48 GB leave
    assert plans(23.6) == {"resident": False, "offload-text": False, "float8": True}  # RTX 4090
    assert not any(plans(15.6).values())  # T4


def test_recorded_steps_are_planned_for_where_there_are_any() -> None:
    def num_bytes(**changes: Any) -> int:
        config = EngineConfig(profile=FLUX_DEV, model_dir="", dtype="bfloat16", **changes)
        return memory_plan(FLUX_DEV, config, "float8", num_adapter_tokens=16).num_bytes

    without = num_bytes(device="cuda", max_recorded_shapes=0)
    assert num_bytes(device="cpu") == without
    assert 0.5 * GIB < num_bytes(device="cuda") - without < 1.0 * GIB
    shipped = num_bytes(device="cuda", max_batch_tokens=18_432)
    assert shipped < 23.6 * GIB  # RTX 4090


def test_parameters_are_counted_as_published() -> None:
    flux = build("transformer", FLUX_DEV, 0)
    assert sum(parameter.numel() for parameter in flux.parameters()) == 11_901_408_320  # model card: 12 B
    t5 = build("t5", FLUX_DEV, 0)
    assert sum(parameter.numel() for parameter in t5.parameters()) == 4_762_310_656


def test_an_impossible_choice_is_refused_with_the_arithmetic() -> None:
    config = EngineConfig(profile=FLUX_DEV, model_dir="", device="cuda", dtype="bfloat16")
    made = {name: memory_plan(FLUX_DEV, config, name, num_adapter_tokens=16) for name in MEMORY_PROFILES}
    resident = made.pop("resident")
    with pytest.raises(ModelLoadError) as caught:
        check_fits(resident, 24 * GIB, others=made)
    message = str(caught.value)
    assert "transformer 22.2 + adapter 1.0 + t5 8.9" in message
    assert "24.0 GiB free; memory: float8 would fit" in message
    with pytest.raises(ModelLoadError, match="no memory profile fits this device"):
        check_fits(resident, GIB, others=made)
    check_fits(resident, 80 * GIB, others=made)


def test_float8_weights_keep_their_bits() -> None:
    weight = torch.randn(32, 48).to(FLOAT8).to(torch.bfloat16)
    layer = Float8Linear(48, 32, bias=False)
    layer.store(weight)
    assert torch.equal(layer.weight.to(torch.bfloat16) * layer.scale, weight)


def test_float8_is_within_the_format_s_rounding_and_survives_odd_rows() -> None:
    weight = torch.randn(4, 48)
    weight[1] = 0
    weight[2] *= 1e-6
    weight[3] *= 1e4
    layer = Float8Linear(48, 4, bias=False)
    layer.store(weight)
    widened = layer.weight.float() * layer.scale
    assert torch.equal(widened[1], torch.zeros(48))
    for row in (0, 2, 3):
        # e4m3 has three mantissa bits: a sixteenth of each value at most, or a step of the smallest numbers.
        bound = weight[row].abs() / 16 + weight[row].abs().max() * 2**-15
        assert ((widened[row] - weight[row]).abs() <= bound).all()


def test_only_the_blocks_matrices_become_float8() -> None:
    with torch.device("meta"):
        flux = build("transformer", PROFILE, 0)
        store_blocks_in_float8(flux)
    narrow = {name for name, module in flux.named_modules() if isinstance(module, Float8Linear)}
    wide = {name for name, module in flux.named_modules() if isinstance(module, nn.Linear)}
    assert {"double_blocks.0.img_attn.qkv", "double_blocks.1.txt_mlp.2", "single_blocks.1.linear2"} <= narrow
    assert {"img_in", "final_layer.linear", "double_blocks.0.img_mod.lin", "single_blocks.0.modulation.lin"} <= wide
    assert len(narrow) == 2 * 8 + 2 * 2


def draw(model_dir: str, memory: MemoryProfileName) -> RgbImage:
    engine = load_engine(EngineConfig(profile=PROFILE, model_dir=model_dir, cpu_threads=1, memory=memory))
    engine.submit(ImageRequest(request_id="r", prompt="a person", width_px=64, height_px=64, num_steps=3, cfg=2.0))
    while engine.has_work:
        events = engine.step()
    assert isinstance(events[-1], Finished)
    return events[-1].image


def test_every_memory_profile_draws(model_dir: str) -> None:
    resident = draw(model_dir, "resident")
    assert np.array_equal(draw(model_dir, "offload-text"), resident), "where weights live changes nothing"
    float8 = draw(model_dir, "float8")
    difference = np.abs(float8.astype(int) - resident.astype(int)).mean()
    assert 0 < difference < 25, "other precision, same picture"


def test_what_is_stored_in_8_bits_is_so_in_the_loaded_network(model_dir: str) -> None:
    networks = load_networks(PROFILE, model_dir, device="cpu", dtype="bfloat16", memory=MEMORY_PROFILES["float8"])
    dtypes = {name: parameter.dtype for name, parameter in networks.flux.named_parameters()}
    assert dtypes["single_blocks.0.linear1.weight"] == FLOAT8
    assert dtypes["single_blocks.0.linear1.bias"] == torch.bfloat16
    assert dtypes["single_blocks.0.modulation.lin.weight"] == torch.bfloat16


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
    model_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 1000))
    config = dataclasses.replace(EngineConfig(profile=PROFILE, model_dir=model_dir), device="cuda")
    with pytest.raises(ModelLoadError, match="no memory profile fits this device"):
        load_engine(config)
    assert Path(model_dir).is_dir()
