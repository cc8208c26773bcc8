"""How a person is shown: one `Scene` a view, sampled from (data seed, identity index, view index) alone.

Left and right are the picture's: a face that looks left points to the picture's left edge. Angles are in degrees;
positive yaw turns to the picture's right, positive pitch up.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from embedded import palette
from embedded.chance import pick
from embedded.palette import Rgb, rgb
from embedded.people import STYLES, Person

Pose = Literal["front", "left", "right", "up", "down"]
Garment = Literal["t-shirt", "v-neck sweater", "turtleneck", "blazer", "hoodie", "tank top", "shirt"]
Eyewear = Literal["none", "round glasses", "glasses", "sunglasses"]
Headwear = Literal["none", "beanie", "cap", "hat", "headband"]

POSES: tuple[Pose, ...] = ("front", "left", "right", "up", "down")
GARMENTS: tuple[Garment, ...] = ("t-shirt", "v-neck sweater", "turtleneck", "blazer", "hoodie", "tank top", "shirt")
PLACES = ("forest", "city at night", "beach", "office", "brick wall", "sunset sky")  # in the shader's order

# Weights of the facial actions (ARKit names) at full strength.
EXPRESSIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "smiling": {
        "mouthSmileLeft": 0.85, "mouthSmileRight": 0.85, "cheekSquintLeft": 0.5, "cheekSquintRight": 0.5,
        "mouthDimpleLeft": 0.3, "mouthDimpleRight": 0.3,
    },
    "laughing": {
        "mouthSmileLeft": 0.9, "mouthSmileRight": 0.9, "jawOpen": 0.32, "mouthUpperUpLeft": 0.4,
        "mouthUpperUpRight": 0.4, "cheekSquintLeft": 0.8, "cheekSquintRight": 0.8, "eyeSquintLeft": 0.4,
        "eyeSquintRight": 0.4,
    },
    "surprised": {
        "jawOpen": 0.45, "browInnerUp": 0.9, "browOuterUpLeft": 0.9, "browOuterUpRight": 0.9, "eyeWideLeft": 0.9,
        "eyeWideRight": 0.9,
    },
    "sad": {
        "mouthFrownLeft": 0.9, "mouthFrownRight": 0.9, "browInnerUp": 0.9, "mouthShrugLower": 0.4,
        "eyeSquintLeft": 0.2, "eyeSquintRight": 0.2,
    },
    "angry": {
        "browDownLeft": 0.9, "browDownRight": 0.9, "noseSneerLeft": 0.4, "noseSneerRight": 0.4,
        "mouthPressLeft": 0.5, "mouthPressRight": 0.5, "mouthFrownLeft": 0.4, "mouthFrownRight": 0.4,
        "eyeSquintLeft": 0.3, "eyeSquintRight": 0.3,
    },
}  # fmt: skip
EXPRESSION_ODDS = (0.34, 0.26, 0.14, 0.09, 0.08, 0.09)


@dataclass(frozen=True, kw_only=True)
class Light:
    """Studio lights: directions as (azimuth, elevation) in degrees, azimuth 0 from the camera, positive from the
    picture's right; colours linear in effect, intensities relative to a plain key light of 1."""

    key_from_deg: tuple[float, float]
    key_color: Rgb
    key: float
    sky_color: Rgb
    ground_color: Rgb
    fill: float
    rim_from_deg: tuple[float, float]
    rim_color: Rgb
    rim: float


_WHITE, _SOFT = rgb("#ffffff"), rgb("#c9c4c0")
LIGHTS: dict[str, Light] = {
    "soft studio light": Light(
        key_from_deg=(25, 35), key_color=rgb("#fff8f0"), key=0.85, sky_color=rgb("#ffffff"), ground_color=_SOFT,
        fill=0.62, rim_from_deg=(150, 30), rim_color=_WHITE, rim=0.35,
    ),
    "light from the left": Light(
        key_from_deg=(-68, 25), key_color=_WHITE, key=1.3, sky_color=rgb("#dfe6f0"), ground_color=rgb("#8a8580"),
        fill=0.34, rim_from_deg=(-150, 20), rim_color=_WHITE, rim=0.2,
    ),
    "light from the right": Light(
        key_from_deg=(68, 25), key_color=_WHITE, key=1.3, sky_color=rgb("#dfe6f0"), ground_color=rgb("#8a8580"),
        fill=0.34, rim_from_deg=(150, 20), rim_color=_WHITE, rim=0.2,
    ),
    "golden hour light": Light(
        key_from_deg=(48, 18), key_color=rgb("#ffc27a"), key=1.4, sky_color=rgb("#ffe6cb"),
        ground_color=rgb("#a5866a"), fill=0.42, rim_from_deg=(-140, 20), rim_color=rgb("#ffa040"), rim=0.8,
    ),
    "cool blue light": Light(
        key_from_deg=(-30, 40), key_color=rgb("#c0d6ff"), key=0.95, sky_color=rgb("#a9c6ff"),
        ground_color=rgb("#6676a0"), fill=0.5, rim_from_deg=(140, 25), rim_color=rgb("#80a8ff"), rim=0.6,
    ),
    "neon light": Light(
        key_from_deg=(-62, 10), key_color=rgb("#ff74c2"), key=1.2, sky_color=rgb("#a893ff"),
        ground_color=rgb("#5c5ca0"), fill=0.50, rim_from_deg=(95, 10), rim_color=rgb("#2f8cff"), rim=1.6,
    ),
    "bright daylight": Light(
        key_from_deg=(20, 50), key_color=rgb("#fff4e0"), key=1.05, sky_color=rgb("#d8e8ff"),
        ground_color=rgb("#b0a490"), fill=0.52, rim_from_deg=(-150, 40), rim_color=_WHITE, rim=0.4,
    ),
}  # fmt: skip
LIGHT_ODDS = (0.32, 0.13, 0.13, 0.12, 0.09, 0.08, 0.13)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One view of one person. `restyled`: hair differs from the person's own, so a caption must name it."""

    view: int
    seed: int
    pose: Pose
    yaw_deg: float
    pitch_deg: float
    roll_deg: float
    gaze_deg: tuple[float, float]  # eyes in the head: (yaw, pitch)
    expression: str
    expression_strength: float
    light: str
    light_turn_deg: float
    exposure: float
    backdrop: str | None  # a key of palette.BACKDROPS, or None for a place
    place: str | None  # one of PLACES, or None for a backdrop
    garment: Garment
    garment_color: str
    striped: bool
    eyewear: Eyewear
    eyewear_color: str
    headwear: Headwear
    headwear_color: str
    hair_style: str
    hair_color: str
    restyled: bool
    lipstick: bool
    frame_height_dm: float  # what the picture's height spans at the face
    camera_fov_deg: float
    camera_rise_deg: float
    center_dm: tuple[float, float]  # where the face sits off the picture's middle

    @property
    def place_name(self) -> str:
        return self.place or f"{self.backdrop} background"


_POSE_ANGLES: dict[Pose, tuple[tuple[float, float], tuple[float, float]]] = {  # (yaw range, pitch range)
    "front": ((-7, 7), (-5, 5)),
    "left": ((-27, -16), (-5, 5)),
    "right": ((16, 27), (-5, 5)),
    "up": ((-7, 7), (10, 16)),
    "down": ((-7, 7), (-16, -10)),
}


def sample_scene(data_seed: int, person: Person, view: int) -> Scene:
    """The scene of this view. Same arguments, same scene."""
    rng = np.random.default_rng([data_seed, person.index, 1 + view])
    pose = pick(rng, POSES, (0.36, 0.2, 0.2, 0.12, 0.12))
    yaws, pitches = _POSE_ANGLES[pose]
    place = PLACES[rng.integers(len(PLACES))] if rng.random() < 0.35 else None
    style, color = person.hair_style, person.hair_color
    change = rng.random()
    if change < 0.15:
        style = STYLES[rng.integers(len(STYLES))]
    if 0.08 < change < 0.28:
        color = pick(rng, tuple(palette.HAIR), (0.2, 0.2, 0.2, 0.15, 0.06, 0.05, 0.07, 0.07))
    eyewear: tuple[Eyewear, ...] = ("none", "round glasses", "glasses", "sunglasses")
    headwear: tuple[Headwear, ...] = ("none", "beanie", "cap", "hat", "headband")
    frame = float(rng.uniform(2.7, 3.3))
    return Scene(
        view=view,
        seed=int(rng.integers(2**31)),
        pose=pose,
        yaw_deg=float(rng.uniform(*yaws)),
        pitch_deg=float(rng.uniform(*pitches)),
        roll_deg=float(rng.normal(0, 2.5)),
        gaze_deg=(float(rng.normal(0, 3)), float(rng.normal(0, 2))),
        expression=pick(rng, tuple(EXPRESSIONS), EXPRESSION_ODDS),
        expression_strength=float(rng.uniform(0.65, 0.95)),
        light=pick(rng, tuple(LIGHTS), LIGHT_ODDS),
        light_turn_deg=float(rng.normal(0, 6)),
        exposure=float(rng.uniform(0.9, 1.12)),
        backdrop=None if place else pick(rng, tuple(palette.BACKDROPS)),
        place=place,
        garment=GARMENTS[rng.integers(len(GARMENTS))],
        garment_color=pick(rng, tuple(palette.CLOTHES)),
        striped=bool(rng.random() < 0.12),
        eyewear=pick(rng, eyewear, (0.74, 0.08, 0.12, 0.06)),
        eyewear_color=pick(rng, tuple(palette.GLASSES), (0.55, 0.15, 0.2, 0.1)),
        headwear=pick(rng, headwear, (0.8, 0.06, 0.05, 0.05, 0.04)),
        headwear_color=pick(rng, tuple(palette.CLOTHES)),
        hair_style=style,
        hair_color=color,
        restyled=style != person.hair_style or color != person.hair_color,
        lipstick=bool(person.sex == "woman" and rng.random() < 0.15),
        frame_height_dm=frame,
        camera_fov_deg=float(rng.uniform(18, 28)),
        camera_rise_deg=float(rng.normal(0, 2.5)),
        center_dm=(float(rng.normal(0, 0.07)), float(rng.normal(0, 0.08))),
    )
