"""Model profiles: everything that tells one model from another, as data.

``flux-dev`` and ``embedded`` are two files of the same shape in ``engine/profiles``; no code asks which one it
serves. A profile names the model's files, the sizes of its networks, the sizes it draws at, the limits that hold
for its requests, and its licence.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from importlib import resources
from pathlib import Path
from typing import Literal

from engine.errors import InvalidRequestError, ModelLoadError
from engine.request import ImageRequest
from engine.strict_table import build

SIZE_STEP_PX = 16
"""Pictures are multiples of this: the autoencoder halves three times, the transformer packs 2×2 latents."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DrawnSize:
    """The size the network draws at, in pixels."""

    width_px: int
    height_px: int

    @property
    def num_pixels(self) -> int:
        """Width times height."""
        return self.width_px * self.height_px

    @property
    def num_tokens(self) -> int:
        """Image tokens: one for every 16×16 pixels."""
        return (self.width_px // SIZE_STEP_PX) * (self.height_px // SIZE_STEP_PX)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SizePolicy:
    """What sizes may be asked for, and at which size they are drawn.

    Attributes:
        native_width_px, native_height_px: the size the model was trained at.
        draw: ``requested`` draws at the size asked for; ``native`` draws at most the native number of pixels, in the
            requested aspect ratio, and scales the picture up to the requested size. The response says so.
        min_side_px, max_side_px, max_pixels: limits of the *requested* size.
    """

    native_width_px: int
    native_height_px: int
    draw: Literal["requested", "native"]
    min_side_px: int
    max_side_px: int
    max_pixels: int

    @property
    def native(self) -> DrawnSize:
        """The native size."""
        return DrawnSize(width_px=self.native_width_px, height_px=self.native_height_px)

    def drawn_size(self, width_px: int, height_px: int) -> DrawnSize:
        """The size to draw at for a requested size. Raises InvalidRequestError outside the limits."""
        for name, value in (("width", width_px), ("height", height_px)):
            if not self.min_side_px <= value <= self.max_side_px or value % SIZE_STEP_PX:
                raise InvalidRequestError(
                    f"{name} must be a multiple of {SIZE_STEP_PX} between {self.min_side_px} and "
                    f"{self.max_side_px} pixels, got {value}",
                    fields=(name,),
                )
        if width_px * height_px > self.max_pixels:
            raise InvalidRequestError(
                f"width × height must be at most {self.max_pixels} pixels, got {width_px} × {height_px} = "
                f"{width_px * height_px}",
                fields=("width", "height"),
            )
        native_pixels = self.native.num_pixels
        if self.draw == "requested" or width_px * height_px <= native_pixels:
            return DrawnSize(width_px=width_px, height_px=height_px)
        shrink = math.sqrt(native_pixels / (width_px * height_px))
        return DrawnSize(width_px=_shrunk(width_px, shrink), height_px=_shrunk(height_px, shrink))


def _shrunk(side_px: int, shrink: float) -> int:
    return max(SIZE_STEP_PX, round(side_px * shrink / SIZE_STEP_PX) * SIZE_STEP_PX)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RequestLimits:
    """Ceilings of one request's other values."""

    max_prompt_chars: int
    max_num_steps: int
    max_cfg: float
    max_guidance: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """Under which terms the weights may be used."""

    name: str
    url: str
    is_commercial_use_allowed: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """File names inside the model folder, by role. The layouts are those of ``docs/architecture.md``."""

    transformer: str
    adapter: str
    t5: str
    clip: str
    clip_vision: str
    autoencoder: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FluxParams:
    """Sizes of the transformer, named as in black-forest-labs/flux ``model.py``."""

    in_channels: int
    vec_in_dim: int
    context_in_dim: int
    hidden_size: int
    mlp_ratio: float
    num_heads: int
    depth: int
    depth_single_blocks: int
    axes_dim: tuple[int, ...]
    theta: int
    qkv_bias: bool
    guidance_embed: bool

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ModelLoadError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if sum(self.axes_dim) != self.hidden_size // self.num_heads or any(dim % 2 for dim in self.axes_dim):
            raise ModelLoadError(
                f"axes_dim {self.axes_dim} must be even and add up to the head dimension "
                f"{self.hidden_size // self.num_heads}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class T5Params:
    """Sizes of the T5 encoder; gated GELU, relative positions in the first block (transformers ``T5Config``)."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    max_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClipTextParams:
    """Sizes of the CLIP text encoder whose pooled state conditions the modulation."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClipVisionParams:
    """Sizes of the CLIP vision tower and its projection, which the adapter reads."""

    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    projection_dim: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderParams:
    """Sizes of the autoencoder, named as in black-forest-labs/flux ``autoencoder.py``.

    ``preview_factors`` (z_channels × 3, row by row) and ``preview_bias`` (3) map latents to colours for previews
    (:mod:`engine.sampling.preview`); where there are none they are fitted at warm-up.
    """

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    scale_factor: float
    shift_factor: float
    norm_num_groups: int = 32
    preview_factors: tuple[float, ...] = ()
    preview_bias: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        expected = (3 * self.z_channels, 3) if self.preview_factors else (0, 0)
        if (len(self.preview_factors), len(self.preview_bias)) != expected:
            raise ModelLoadError(
                f"preview_factors and preview_bias must have 3 × z_channels = {3 * self.z_channels} and 3 numbers, "
                f"got {len(self.preview_factors)} and {len(self.preview_bias)}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelProfile:
    """One model as data. See the module's docstring."""

    name: str
    title: str
    licence: Licence
    size: SizePolicy
    limits: RequestLimits
    files: ModelFiles
    transformer: FluxParams
    t5: T5Params
    clip: ClipTextParams
    clip_vision: ClipVisionParams
    autoencoder: AutoencoderParams

    def __post_init__(self) -> None:
        pairs = (
            ("transformer.context_in_dim", self.transformer.context_in_dim, "t5.d_model", self.t5.d_model),
            (
                "transformer.vec_in_dim",
                self.transformer.vec_in_dim,
                "clip.hidden_size",
                self.clip.hidden_size,
            ),
            (
                "transformer.in_channels",
                self.transformer.in_channels,
                "4 × autoencoder.z_channels",
                4 * self.autoencoder.z_channels,
            ),
        )
        for left_name, left, right_name, right in pairs:
            if left != right:
                raise ModelLoadError(f"profile {self.name}: {left_name} is {left} but {right_name} is {right}")

    @property
    def native_tokens(self) -> int:
        """Text and image tokens of one row at native size."""
        return self.t5.max_tokens + self.size.native.num_tokens

    def check_request(self, request: ImageRequest) -> DrawnSize:
        """The size to draw a request at. Raises InvalidRequestError where the profile does not allow its values."""
        limits = self.limits
        for name, prompt in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
            if len(prompt) > limits.max_prompt_chars:
                raise InvalidRequestError(
                    f"{name} must have at most {limits.max_prompt_chars} characters, got {len(prompt)}", fields=(name,)
                )
        for name, value, ceiling in (
            ("steps", request.num_steps, limits.max_num_steps),
            ("cfg", request.cfg, limits.max_cfg),
            ("guidance", request.guidance, limits.max_guidance),
        ):
            if value > ceiling:
                raise InvalidRequestError(f"{name} must be at most {ceiling}, got {value}", fields=(name,))
        return self.size.drawn_size(request.width_px, request.height_px)


def load_profile(name_or_path: str) -> ModelProfile:
    """Read a packaged profile by name, or any profile by the path of its TOML file.

    Raises:
        ModelLoadError: no such profile, a key missing, unknown or of the wrong type.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ModelLoadError(f"no profile file {name_or_path}")
        text = path.read_text(encoding="utf-8")
    else:
        packaged = resources.files("engine") / "profiles" / f"{name_or_path}.toml"
        if name_or_path not in packaged_profiles():
            raise ModelLoadError(f"unknown profile {name_or_path!r}; packaged are: {', '.join(packaged_profiles())}")
        text = packaged.read_text(encoding="utf-8")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ModelLoadError(f"profile {name_or_path}: {error}") from error
    return build(ModelProfile, table, where=f"profile {name_or_path}")


def packaged_profiles() -> tuple[str, ...]:
    """Names of the profiles that ship with the package, sorted."""
    folder = resources.files("engine") / "profiles"
    return tuple(sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")))
