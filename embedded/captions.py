"""Captions that are true by construction, in the several ways people write prompts.

A caption names a random part of what the picture shows, so that a model learns short and long prompts alike. What
differs from the person's own look (restyled hair) is always named: else the reference would seem to promise it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from embedded.chance import pick
from embedded.people import Person
from embedded.scene import Scene

_POSES = {
    "front": ("facing the camera", "looking at the camera", "front view", "looking straight ahead"),
    "left": ("looking to the left", "facing left", "turned to the left", "head turned left"),
    "right": ("looking to the right", "facing right", "turned to the right", "head turned right"),
    "up": ("looking up", "facing up", "head tilted up", "chin up"),
    "down": ("looking down", "facing down", "head tilted down", "head bowed"),
}
_EXPRESSIONS = {
    "neutral": ("neutral expression", "serious", "calm expression", "with a neutral face"),
    "smiling": ("smiling", "with a smile", "happy", "with a gentle smile"),
    "laughing": ("laughing", "with a big smile", "laughing happily", "with an open smile"),
    "surprised": ("surprised", "with a surprised look", "astonished", "with a surprised expression"),
    "sad": ("sad", "with a sad face", "looking sad", "with a sad expression"),
    "angry": ("angry", "frowning", "with an angry look", "with an angry expression"),
}
_LIGHTS = {
    "soft studio light": ("soft studio light", "studio lighting", "soft light", "even studio lighting"),
    "light from the left": ("light from the left", "lit from the left", "side light from the left"),
    "light from the right": ("light from the right", "lit from the right", "side light from the right"),
    "golden hour light": ("golden hour light", "warm light", "warm golden light", "golden hour"),
    "cool blue light": ("cool blue light", "cool light", "blue light", "cold blue light"),
    "neon light": ("neon light", "neon lighting", "pink and blue neon light", "neon lights"),
    "bright daylight": ("bright daylight", "daylight", "natural light", "sunlight"),
}
_PLACES = {
    "forest": ("in a forest", "in the woods", "forest background", "in a green park"),
    "city at night": ("in a city at night", "city lights at night", "with city lights behind", "night city background"),
    "beach": ("on a beach", "at the beach", "by the sea", "beach background"),
    "office": ("in an office", "office background", "by an office window", "in a modern office"),
    "brick wall": ("in front of a brick wall", "brick wall background", "against a brick wall"),
    "sunset sky": ("at sunset", "sunset sky background", "in front of a sunset", "with a sunset sky"),
}
_STYLES = {
    "bald": ("bald", "with a bald head", "bald head"),
    "buzz cut": ("{c} buzz-cut hair", "very short {c} hair", "{c} buzz cut", "a {c} buzz cut"),
    "short": ("short {c} hair", "{c} short hair", "short-cut {c} hair"),
    "slicked back": ("slicked-back {c} hair", "{c} hair combed back", "{c} slicked back hair"),
    "bob": ("a {c} bob", "{c} bob haircut", "chin-length {c} hair"),
    "bangs": ("long {c} hair with bangs", "{c} hair with bangs", "{c} hair with a fringe"),
    "long straight": ("long straight {c} hair", "long {c} hair", "straight {c} hair"),
    "long wavy": ("long wavy {c} hair", "wavy {c} hair", "long {c} wavy hair"),
    "curly": ("curly {c} hair", "{c} curls", "{c} curly hair"),
    "afro": ("a {c} afro", "{c} afro hair", "afro {c} hair"),
    "bun": ("{c} hair in a bun", "a {c} bun", "a {c} top bun"),
    "ponytail": ("{c} hair in a ponytail", "a {c} ponytail"),
}
_BEARDS = {
    "stubble": ("stubble", "a stubble beard"),
    "mustache": ("a mustache", "a moustache"),
    "short beard": ("a short beard", "a trimmed beard"),
    "full beard": ("a full beard", "a long beard", "a beard"),
}
_EYEWEAR = {
    "round glasses": ("round {c} glasses", "round glasses", "glasses"),
    "glasses": ("{c} glasses", "glasses", "{c}-framed glasses"),
    "sunglasses": ("sunglasses", "dark sunglasses"),
}
_OPENINGS = (
    "A professional AI influencer portrait", "A professional portrait", "A portrait photo", "Portrait",
    "A studio portrait", "Professional headshot", "A photo", "A close-up portrait", "Headshot", "A realistic portrait",
    "An influencer photo",
)  # fmt: skip
_ENDINGS = ("high quality", "detailed", "sharp focus", "4k", "photorealistic", "best quality", "professional photo")

# Words that only one value of an attribute may bring into a caption: (value, word) pairs. For tests of truth.
CAPTIONED: dict[str, tuple[tuple[str, str], ...]] = {
    "pose": (("left", "facing left"), ("right", "facing right"), ("up", "chin up"), ("down", "head bowed")),
    "expression": (("laughing", "laughing"), ("surprised", "surpris"), ("sad", "sad"), ("angry", "angry")),
    "light": (("neon light", "neon"), ("light from the left", "from the left"), ("golden hour light", "golden")),
    "place": (("forest", "forest"), ("beach", "beach"), ("office", "office"), ("brick wall", "brick")),
    "eyewear": (("sunglasses", "sunglasses"), ("round glasses", "round glasses")),
    "headwear": (("beanie", "beanie"), ("headband", "headband"), ("cap", " cap")),
    "beard": (("stubble", "stubble"), ("full beard", "full beard"), ("mustache", "mustache")),
}

# How likely a caption with details names each of them.
NAMED = {
    "hair": 0.65, "background": 0.75, "pose": 0.65, "expression": 0.65, "light": 0.5, "clothes": 0.55, "eyewear": 0.92,
    "headwear": 0.92, "beard": 0.45, "eyes": 0.15, "skin": 0.25, "age": 0.35, "freckles": 0.3, "lipstick": 0.85,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a picture shows, one short phrase an attribute; absent things are empty strings."""

    subject: str
    age: str
    skin: str
    hair: str
    eyes: str
    beard: str
    freckles: str
    expression: str
    pose: str
    light: str
    background: str
    clothes: str
    eyewear: str
    headwear: str
    lipstick: str
    must: frozenset[str]  # attributes that no caption leaves out


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def facts(person: Person, scene: Scene, rng: np.random.Generator) -> Facts:
    """The picture's facts, each in one of its wordings."""
    frames = pick(rng, _EYEWEAR[scene.eyewear]) if scene.eyewear != "none" else ""
    garment = ("striped " if scene.striped and scene.garment in ("t-shirt", "v-neck sweater") else "") + scene.garment
    if scene.garment == "v-neck sweater":
        garment = garment.replace("v-neck sweater", pick(rng, ("v-neck sweater", "sweater")))
    clothes = f"{scene.garment_color} {garment}"
    backdrop = (
        pick(rng, ("{c} background", "plain {c} background", "{c} backdrop", "in front of {a} wall"))
        if scene.backdrop
        else pick(rng, _PLACES[scene.place or ""])
    )
    hidden = {"beanie": {"bald", "buzz cut", "bun", "slicked back", "short"}, "cap": {"bun"}, "hat": {"bun"}}
    hair_hidden = scene.hair_style in hidden.get(scene.headwear, set())
    subject = {"woman": ("woman", "woman", "woman", "lady", "female"), "man": ("man", "man", "man", "guy", "male")}
    return Facts(
        subject=pick(rng, subject[person.sex][: 3 + (rng.random() < 0.2) * 2]),
        age=person.age_name.replace("elderly", pick(rng, ("elderly", "old", "senior"))),
        skin=f"{person.skin_name} skin",
        hair="" if hair_hidden else pick(rng, _STYLES[scene.hair_style]).format(c=scene.hair_color),
        eyes=f"{person.eye_color} eyes" if scene.eyewear != "sunglasses" else "",
        beard=pick(rng, _BEARDS[person.beard]) if person.beard != "none" else "",
        freckles="freckles" if person.freckles else "",
        expression=pick(rng, _EXPRESSIONS[scene.expression]),
        pose=pick(rng, _POSES[scene.pose]),
        light=pick(rng, _LIGHTS[scene.light]),
        background=backdrop.format(c=scene.backdrop, a=_article(str(scene.backdrop))),
        clothes=clothes,
        eyewear=frames.format(c=scene.eyewear_color),
        headwear=f"{scene.headwear_color} {scene.headwear}" if scene.headwear != "none" else "",
        lipstick="red lipstick" if scene.lipstick else "",
        must=frozenset({"hair"} if scene.restyled else ()),
    )


def caption(person: Person, scene: Scene, rng: np.random.Generator) -> str:
    """One caption in one of the grammar's forms, with a random part of the facts."""
    known = facts(person, scene, rng)
    amount = pick(rng, (0.0, 0.45, 1.0, 1.5), (0.08, 0.32, 0.4, 0.2))
    named = {name for name, odds in NAMED.items() if rng.random() < odds * amount or name in known.must}
    forms: tuple[Callable[..., str], ...] = (_service, _sentence, _tags, _short)
    return pick(rng, forms, (0.34, 0.30, 0.22, 0.14))(known, named, rng)


def captions(person: Person, scene: Scene, data_seed: int, count: int) -> list[str]:
    """`count` captions of one view; same arguments, same captions."""
    rng = np.random.default_rng([data_seed, person.index, 1 + scene.view, 99])
    return [caption(person, scene, rng) for _ in range(count)]


def _who(known: Facts, named: set[str]) -> str:
    return f"{known.age} {known.subject}".strip() if "age" in named else known.subject


def _look(known: Facts, named: set[str]) -> list[str]:
    return [
        getattr(known, name)
        for name in ("hair", "eyes", "beard", "skin", "freckles", "lipstick")
        if name in named and getattr(known, name)
    ]


def _worn(known: Facts, named: set[str]) -> list[str]:
    worn = [_article(known.clothes)] if "clothes" in named else []
    worn += [known.eyewear] if "eyewear" in named and known.eyewear else []
    return worn + ([_article(known.headwear)] if "headwear" in named and known.headwear else [])


def _join(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _service(known: Facts, named: set[str], rng: np.random.Generator) -> str:
    """The contract's own style: an opening, then details after commas."""
    opening = pick(rng, _OPENINGS)
    if rng.random() < 0.55:
        opening += f" of {_article(_who(known, named))}"
    rest = _look(known, named)
    rest += [f"wearing {_join(_worn(known, named))}"] if _worn(known, named) else []
    rest += [getattr(known, name) for name in ("expression", "pose", "background", "light") if name in named]
    if rng.random() < 0.3:
        rng.shuffle(rest)
    if rng.random() < 0.15:
        rest.append(pick(rng, _ENDINGS))
    return ", ".join([opening, *rest])


def _sentence(known: Facts, named: set[str], rng: np.random.Generator) -> str:
    """A plain sentence."""
    start = pick(rng, ("{who}", "Photo of {who}", "A portrait of {who}", "Portrait of {who}", "A photo of {who}"))
    text = start.format(who=_article(_who(known, named)))
    look = _look(known, named)
    if look:
        bare = [phrase.removeprefix("with ") for phrase in look]
        text += " who is bald" if look == ["bald"] else f" with {_join(bare)}"
    worn = _worn(known, named)
    if worn:
        text += f" wearing {_join(worn)}"
    text += "".join(f", {getattr(known, name)}" for name in ("expression", "pose") if name in named)
    text += "".join(f", {getattr(known, name)}" for name in ("background", "light") if name in named)
    return text[0].upper() + text[1:] + ("." if rng.random() < 0.4 else "")


def _tags(known: Facts, named: set[str], rng: np.random.Generator) -> str:
    """Comma-separated tags in any order."""
    tags = [_who(known, named), *_look(known, named)]
    tags += [known.clothes] * ("clothes" in named)
    tags += [getattr(known, name) for name in ("eyewear", "headwear") if name in named and getattr(known, name)]
    tags += [getattr(known, name) for name in ("expression", "pose", "background", "light") if name in named]
    head, tail = tags[:1], tags[1:]
    rng.shuffle(tail)
    return ", ".join(head + tail)


def _short(known: Facts, named: set[str], rng: np.random.Generator) -> str:
    """A few words: the subject and at most two details besides those that must be named."""
    details = [(name, getattr(known, name)) for name in sorted(NAMED) if name not in ("age", *known.must)]
    details = [(name, phrase) for name, phrase in details if name in named and phrase]
    order = rng.permutation(len(details))[: int(rng.integers(0, 3))]
    chosen = [getattr(known, name) for name in sorted(known.must) if getattr(known, name)]
    chosen += [
        f"wearing {_article(details[i][1])}" if details[i][0] in ("clothes", "headwear") else details[i][1]
        for i in order
    ]
    return ", ".join([pick(rng, (_who(known, named), _article(_who(known, named)), "portrait")), *chosen])
