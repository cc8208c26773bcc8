"""Profiles are data: read strictly, and they say at which size a picture is drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidRequestError, ModelLoadError
from engine.profile import SIZE_STEP_PX, SizePolicy, load_profile, packaged_profiles

PACKAGED = Path(__file__).parent.parent / "engine" / "profiles"


@pytest.mark.parametrize("name", packaged_profiles())
def test_packaged_profiles_load_and_say_what_they_are(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.licence.url.startswith("https://")
    native = profile.size.drawn_size(profile.size.native_width_px, profile.size.native_height_px)
    assert (native.width_px, native.height_px) == (profile.size.native_width_px, profile.size.native_height_px)
    profile.size.drawn_size(1024, 1024)  # the contract's default


def test_flux_dev_is_the_published_network() -> None:
    profile = load_profile("flux-dev")
    assert dataclasses.asdict(profile.files) == {
        "transformer": "flux1-dev.safetensors",
        "adapter": "ip_adapter.safetensors",
        "t5": "t5xxl_fp16.safetensors",
        "clip": "clip_l.safetensors",
        "clip_vision": "model.safetensors",
        "autoencoder": "ae.safetensors",
    }
    assert not profile.licence.is_commercial_use_allowed
    assert profile.size.drawn_size(1024, 1024).num_tokens == 4096


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (("depth = 3", "dept = 3"), "transformer: unknown key 'dept'"),
        (("depth = 3", ""), "transformer: missing key 'depth'"),
        (("depth = 3", 'depth = "3"'), "transformer: depth: expected int, got '3'"),
        (("depth = 3", "depth = true"), "transformer: depth: expected int, got True"),
        (('draw = "native"', 'draw = "tiny"'), "size: draw: expected 'requested' or 'native', got 'tiny'"),
        (("axes_dim = [8, 28, 28]", "axes_dim = [8, 28, 29]"), "axes_dim (8, 28, 29) must be even"),
        (("context_in_dim = 48", "context_in_dim = 64"), "transformer.context_in_dim is 64 but t5.d_model is 48"),
        (("[limits]", "[limits"), "profile"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_key(tmp_path: Path, edit: tuple[str, str], words: str) -> None:
    text = (PACKAGED / "embedded.toml").read_text()
    assert edit[0] in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(*edit))
    with pytest.raises(ModelLoadError) as caught:
        load_profile(str(path))
    assert words in str(caught.value)


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelLoadError, match=r"unknown profile 'flux-pro'; packaged are: embedded, flux-dev"):
        load_profile("flux-pro")
    with pytest.raises(ModelLoadError, match="no profile file"):
        load_profile("missing.toml")


NATIVE = SizePolicy(
    native_width_px=256, native_height_px=256, draw="native", min_side_px=64, max_side_px=2048, max_pixels=2048**2
)
sides = st.integers(64 // 16, 2048 // 16).map(lambda steps: 16 * steps)


@given(sides, sides)
def test_native_drawing_keeps_aspect_and_stays_near_native_area(width_px: int, height_px: int) -> None:
    drawn = NATIVE.drawn_size(width_px, height_px)
    assert drawn.width_px % SIZE_STEP_PX == drawn.height_px % SIZE_STEP_PX == 0
    assert drawn.width_px <= width_px
    assert drawn.height_px <= height_px
    assert drawn.width_px * drawn.height_px <= 1.5 * 256 * 256
    if width_px * height_px <= 256 * 256:
        assert (drawn.width_px, drawn.height_px) == (width_px, height_px)
    # Rounding to 16 moves each side by half a step at most.
    assert abs(drawn.width_px * height_px - drawn.height_px * width_px) <= 8.01 * (width_px + height_px)


@pytest.mark.parametrize("width_px", [0, -16, 63, 65, 1000, 2064])
def test_sizes_outside_the_limits_are_refused(width_px: int) -> None:
    with pytest.raises(InvalidRequestError, match="width must be a multiple of 16 between 64 and 2048"):
        NATIVE.drawn_size(width_px, 64)


def test_too_many_pixels_are_refused() -> None:
    small = dataclasses.replace(NATIVE, max_pixels=1024 * 1024)
    with pytest.raises(InvalidRequestError, match="at most 1048576 pixels, got 2048 × 1024"):
        small.drawn_size(2048, 1024)
