"""The first half: draws everything through the engine, with references prepared by the service's own face stage."""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import json
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.embedded_identity.asked import JUDGED_STRENGTH, NUM_PROMPTS, PHOTO_PROMPTS, PHOTOS, Asked, plan
from benchmarks.embedded_identity.tars import write_tars
from embedded.people import Person, sample_person, split_of
from embedded.render import Renderer
from embedded.scene import Scene, sample_scene
from engine.config import EngineConfig
from engine.engine import load_engine
from engine.face.detect import YuNetDetector
from engine.face.prepare import FacePreparer
from engine.profile import load_profile
from engine.protocol import ImageEngine
from engine.request import Failed, Finished, ImageRequest, Reference, RgbImage

SIDE_PX = 256
BODY = Path("embedded/body.npz")
VIEWS = 8
"""Of each person; the fittest of them is the snapshot."""
FRONT_SHARE = 0.25
"""What is left of a view's angles in a portrait: people don't look quite straight."""


def draw(arguments: argparse.Namespace) -> None:
    """Draw everything and leave it in ``--out``."""
    photos = unseen_people(arguments.people, data_seed=arguments.data_seed)
    people = sorted({person for person, _ in photos})
    preparer = FacePreparer(YuNetDetector())
    references = {}
    for sent, picture in photos.items():
        prepared = preparer.prepare(png(picture), media_type="image/png", policy="prefer")
        references[sent] = Reference(crop=prepared.crop, key=prepared.key)
    model = json.loads((arguments.model_dir / "provenance.json").read_text())
    engine = opened(arguments, model)

    items = plan(people)
    requests = [request(item, references[item.person, item.photo]) for item in items]
    files = {f"{photo}-{person}.jpg": picture for (person, photo), picture in photos.items()}
    began_s = time.monotonic()
    files |= drawn(engine, requests)
    seconds = time.monotonic() - began_s
    judged = [i for i, item in enumerate(items) if item.series == "default" and item.strength == JUDGED_STRENGTH]
    eight = [requests[i] for i in judged[: 8 * NUM_PROMPTS : NUM_PROMPTS]]  # each of another person
    facts = {
        "people": len(people),
        "pictures": len(items),
        "drawing_s": round(seconds, 1),
        "device": arguments.device,
        "dtype": arguments.dtype,
        **repeated(engine, eight),
        "model": model,
        "items": [dataclasses.asdict(item) | {"name": item.name} for item in items],
    }
    for path in arguments.photos:
        files |= portraits(engine, preparer, path)
    write_tars(files, facts, arguments.out)


def unseen_people(count: int, *, data_seed: int) -> dict[tuple[int, str], RgbImage]:
    """Both :data:`PHOTOS` of people who are in no training data with this seed. Needs OpenGL."""
    renderer = Renderer(BODY)
    pictures: dict[tuple[int, str], RgbImage] = {}
    for index in itertools.islice((i for i in itertools.count() if split_of(data_seed, i) == "test"), count):
        person = sample_person(data_seed, index, renderer.body.local_names)
        views = [sample_scene(data_seed, person, view) for view in range(VIEWS)]
        scenes = [as_portrait(views[0], person), min(views, key=faults)]
        shown = renderer.draw_views(renderer.figure(person), scenes)
        pictures |= {(index, photo): view.image for photo, view in zip(PHOTOS, shown, strict=True)}
    return pictures


def as_portrait(scene: Scene, person: Person) -> Scene:
    """The same, as the service asks people to be photographed: to the front, calm, in plain light, face free."""
    return dataclasses.replace(
        scene,
        pose="front",
        yaw_deg=FRONT_SHARE * scene.yaw_deg,
        pitch_deg=FRONT_SHARE * scene.pitch_deg,
        expression="neutral",
        light="soft studio light",
        eyewear="none",
        headwear="none",
        hair_style=person.hair_style,
        hair_color=person.hair_color,
        lipstick=False,
    )


def faults(scene: Scene) -> int:
    """How unfit a view is to be a snapshot: best to the front, with nothing on face or head."""
    covered = 4 * (scene.eyewear == "sunglasses") + 2 * (scene.eyewear != "none") + 2 * (scene.headwear != "none")
    return covered + (scene.pose != "front") + (scene.light == "neon light")


def opened(arguments: argparse.Namespace, model: dict[str, Any]) -> ImageEngine:
    """The engine, its autoencoder scaled as the model's ``provenance.json`` says."""
    profile = load_profile(arguments.profile)
    factors = {key: model[key] for key in ("scale_factor", "shift_factor")}
    profile = dataclasses.replace(profile, autoencoder=dataclasses.replace(profile.autoencoder, **factors))
    return load_engine(
        EngineConfig(
            profile=profile,
            model_dir=str(arguments.model_dir),
            device=arguments.device,
            dtype=arguments.dtype,
            max_batch_samples=arguments.batch,
            max_batch_tokens=arguments.batch * 1024,
            policy="static_batches",
            max_waiting=10**6,
            max_queued_device_s=math.inf,
        )
    )


def request(item: Asked, reference: Reference) -> ImageRequest:
    """One picture of the plan."""
    return ImageRequest(
        request_id=item.name,
        prompt=item.prompt,
        reference=reference,
        width_px=SIDE_PX,
        height_px=SIDE_PX,
        cfg=item.cfg,
        guidance=item.guidance,
        seed=item.seed,
        ip_scale=item.strength,
    )


def repeated(engine: ImageEngine, requests: Sequence[ImageRequest]) -> dict[str, float]:
    """How far pictures depend on who is drawn beside them, and whether the same batch gives the same again."""
    together = drawn(engine, requests)
    apart = {key: picture for one in requests for key, picture in drawn(engine, [one]).items()}
    again = drawn(engine, requests)
    return {
        "batch_of_8_against_alone_mean_levels": mean_difference(together, apart),
        "same_batch_twice_max_levels": max(int(np.abs(together[k].astype(int) - again[k]).max()) for k in together),
    }


def portraits(engine: ImageEngine, preparer: FacePreparer, photo: Path) -> dict[str, RgbImage]:
    """The face of a photo, and pictures of who is in it."""
    prepared = preparer.prepare(photo.read_bytes(), media_type=None, policy="prefer")
    files = {f"photo-{photo.stem}.jpg": prepared.crop}
    for index, prompt in enumerate(PHOTO_PROMPTS):
        one = ImageRequest(
            request_id=f"photo-{photo.stem}-{index}.jpg",
            prompt=prompt,
            reference=Reference(crop=prepared.crop, key=prepared.key),
            width_px=SIDE_PX,
            height_px=SIDE_PX,
            seed=index,
        )
        files |= drawn(engine, [one])
    return files


def drawn(engine: ImageEngine, requests: Iterable[ImageRequest]) -> dict[str, RgbImage]:
    """Pictures by request id. Raises what the engine failed with."""
    for request in requests:
        engine.submit(request)
    pictures: dict[str, RgbImage] = {}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                pictures[event.request_id] = event.image
    return pictures


def png(picture: RgbImage) -> bytes:
    """A picture's file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def mean_difference(left: dict[str, RgbImage], right: dict[str, RgbImage]) -> float:
    """Mean absolute difference in grey levels."""
    return round(float(np.mean([np.abs(left[key].astype(int) - right[key]).mean() for key in left])), 4)
