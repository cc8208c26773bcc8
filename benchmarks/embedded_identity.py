"""Does the embedded model draw the person in the photo, and what the prompt asks for? Measured on unseen people.

    python -m benchmarks.embedded_identity draw --data DIR --model-dir DIR --out DIR [--device cuda --dtype bfloat16]
    python -m benchmarks.embedded_identity judge --drawn DIR --models DIR --classifier FILE --out FILE --sheets DIR

``draw`` makes the pictures through the engine, with references prepared by the service's own face stage; ``judge``
looks at them with networks that took no part in training: dlib's detector, points and ResNet (package
``face-recognition-models`` 0.3.0 for ``--models``, CC0, and ``dlib-bin``), the service's detector, and a small
classifier of attributes trained on drawn people (``python -m embedded.train.run --stage attributes``). The two halves
may run on different machines: what lies between them is a few tar files of JPEG pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import json
import sys
import tarfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedded import palette

STRENGTHS = (0.0, 0.4, 0.8, 1.0)
JUDGED_STRENGTH = 0.8
NUM_PROMPTS = 4
POSES = {"front": "facing the camera", "left": "looking to the left", "right": "looking to the right"}
TAR_BYTES = 15 * 10**6

Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """One picture that is drawn.

    Attributes:
        series: ``default`` at the product's defaults, ``cfg`` for true guidance with distilled guidance off.
        person: identity of the reference.
        asked: right answers to the classifier's questions.
    """

    series: str
    person: int
    prompt: str
    asked: dict[str, str]
    strength: float
    cfg: float
    guidance: float
    seed: int

    @property
    def name(self) -> str:
        """File name inside the tar files."""
        return f"{self.series}-{self.person}-{self.seed}-s{self.strength:.1f}-c{self.cfg:.0f}.jpg"


def prompts_for(person: int) -> list[tuple[str, dict[str, str]]]:
    """Four prompts with hair colour, background, pose side and glasses, different for every person."""
    rng = np.random.default_rng([person, 77])
    made = []
    for index in range(NUM_PROMPTS):
        hair = str(rng.choice(list(palette.HAIR)))
        background = str(rng.choice(list(palette.BACKDROPS)))
        pose = str(rng.choice(list(POSES)))
        style = str(rng.choice(["short {} hair", "long {} hair", "curly {} hair", "{} hair"]))
        glasses = "glasses" if index % 2 else "none"
        parts = ["A professional AI influencer portrait", style.format(hair)]
        parts += ["wearing round glasses"] if glasses == "glasses" else []
        parts += [POSES[pose], f"{background} background", "soft studio light"]
        asked = {"hair": hair, "background": background, "pose": pose, "glasses": glasses}
        made.append((", ".join(parts), asked))
    return made


def plan(people: Sequence[int]) -> list[Asked]:
    """Every picture of the judgement."""
    asked = []
    for person in people:
        for index, (prompt, answers) in enumerate(prompts_for(person)):
            seed = 1000 * index + person % 1000
            common: dict[str, Any] = {"person": person, "prompt": prompt, "asked": answers, "seed": seed}
            for strength in STRENGTHS:
                asked.append(Asked(series="default", strength=strength, cfg=1.0, guidance=3.5, **common))
            if index < 2:
                for cfg in (1.0, 3.0):
                    asked.append(Asked(series="cfg", strength=JUDGED_STRENGTH, cfg=cfg, guidance=1.0, **common))
    return asked


# -- drawing -------------------------------------------------------------------------------------------------------


def draw_all(arguments: argparse.Namespace) -> None:
    """Draw everything and leave it in ``--out``."""
    from embedded.dataset import Views
    from engine.config import EngineConfig
    from engine.engine import load_engine
    from engine.face.detect import YuNetDetector
    from engine.face.prepare import FacePreparer
    from engine.profile import load_profile
    from engine.request import ImageRequest, Reference

    views = Views.load(arguments.data, "test")
    chosen = reference_rows(views.records)[: arguments.people]
    if len(chosen) < arguments.people:
        raise SystemExit(f"only {len(chosen)} unseen people in {arguments.data}; draw more identities")
    preparer = FacePreparer(YuNetDetector())
    pictures = {views.records[row]["identity"]: views.picture(row) for row in chosen}
    references = {}
    for person, picture in pictures.items():
        prepared = preparer.prepare(png(picture), media_type="image/png", policy="prefer")
        references[person] = Reference(crop=prepared.crop, key=prepared.key)
    profile = load_profile(arguments.profile)
    model = json.loads((arguments.model_dir / "provenance.json").read_text())
    factors = {key: model[key] for key in ("scale_factor", "shift_factor")}
    profile = dataclasses.replace(profile, autoencoder=dataclasses.replace(profile.autoencoder, **factors))
    engine = load_engine(
        EngineConfig(
            profile=profile,
            model_dir=str(arguments.model_dir),
            device=arguments.device,
            dtype=arguments.dtype,
            max_batch_samples=arguments.batch,
            max_batch_tokens=arguments.batch * 1024,
            max_waiting=10**6,
        )
    )

    def request(item: Asked) -> ImageRequest:
        return ImageRequest(
            request_id=item.name,
            prompt=item.prompt,
            reference=references[item.person],
            width_px=256,
            height_px=256,
            cfg=item.cfg,
            guidance=item.guidance,
            seed=item.seed,
            ip_scale=item.strength,
        )

    items = plan(list(pictures))
    began_s = time.monotonic()
    files = {f"reference-{person}.jpg": picture for person, picture in pictures.items()}
    files |= drawn(engine, [request(item) for item in items])
    seconds = time.monotonic() - began_s
    eight = [request(item) for item in items if item.series == "default" and item.strength == JUDGED_STRENGTH]
    eight = eight[: 8 * NUM_PROMPTS : NUM_PROMPTS]
    together = drawn(engine, eight)
    apart = {key: picture for one in eight for key, picture in drawn(engine, [one]).items()}
    again = drawn(engine, eight)
    facts = {
        "people": len(pictures),
        "pictures": len(items),
        "drawing_s": round(seconds, 1),
        "device": arguments.device,
        "dtype": arguments.dtype,
        "batch_of_8_against_alone_mean_levels": mean_difference(together, apart),
        "same_batch_twice_max_levels": max(int(np.abs(together[k].astype(int) - again[k]).max()) for k in together),
        "model": model,
        "items": [dataclasses.asdict(item) | {"name": item.name} for item in items],
    }
    for path in arguments.photos:
        prepared = preparer.prepare(path.read_bytes(), media_type=None, policy="prefer")
        reference = Reference(crop=prepared.crop, key=prepared.key)
        files[f"photo-{path.stem}.jpg"] = prepared.crop
        for index, prompt in enumerate(PHOTO_PROMPTS):
            name = f"photo-{path.stem}-{index}.jpg"
            one = ImageRequest(
                request_id=name, prompt=prompt, reference=reference, width_px=256, height_px=256, seed=index
            )
            files |= drawn(engine, [one])
    write_tars(files, facts, arguments.out)


PHOTO_PROMPTS = (
    "A professional AI influencer portrait",
    "A portrait photo, smiling, on a beach, bright daylight",
    "A studio portrait, wearing a black turtleneck, gray background",
    "Headshot, wearing round glasses, blue background",
)


def drawn(engine: Any, requests: Iterable[Any]) -> dict[str, Pixels]:
    """Pictures by request id. Raises what the engine failed with."""
    from engine.request import Failed, Finished

    for request in requests:
        engine.submit(request)
    pictures: dict[str, Pixels] = {}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                pictures[event.request_id] = event.image
    return pictures


def reference_rows(records: Sequence[dict[str, Any]]) -> list[int]:
    """One view a person to be the photo: to the front, nothing on the face or head where there is such a view."""
    best: dict[int, tuple[int, int]] = {}
    for row, record in enumerate(records):
        shown = record["attributes"]
        faults = 4 * (shown["eyewear"] == "sunglasses") + 2 * (shown["headwear"] != "none")
        faults += 2 * (shown["eyewear"] != "none") + (shown["pose"] != "front") + (shown["light"] == "neon light")
        person = record["identity"]
        if person not in best or faults < best[person][0]:
            best[person] = (faults, row)
    return [row for _, row in best.values()]


def png(picture: Pixels) -> bytes:
    """A picture's file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def mean_difference(left: dict[str, Pixels], right: dict[str, Pixels]) -> float:
    """Mean absolute difference in grey levels."""
    return round(float(np.mean([np.abs(left[key].astype(int) - right[key]).mean() for key in left])), 4)


def write_tars(files: dict[str, Pixels], facts: dict[str, Any], out: Path) -> None:
    """``drawn-NN.tar`` of JPEG pictures, each under 15 MB, and ``drawn.json``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "drawn.json").write_text(json.dumps(facts) + "\n")
    groups: list[dict[str, bytes]] = [{}]
    size = 0
    for name, picture in files.items():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=88)
        entry_bytes = len(buffer.getvalue()) + 1024  # with tar's own block and padding
        if size + entry_bytes > TAR_BYTES:
            groups.append({})
            size = 0
        groups[-1][name] = buffer.getvalue()
        size += entry_bytes
    for number, group in enumerate(groups):
        with tarfile.open(out / f"drawn-{number:02d}.tar", "w") as tar:
            for name, data in group.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def read_tars(folder: Path) -> dict[str, Pixels]:
    """The inverse of :func:`write_tars`, as far as pictures go."""
    files = {}
    for path in sorted(folder.glob("drawn-*.tar")):
        with tarfile.open(path) as tar:
            for entry in tar:
                file = tar.extractfile(entry)
                assert file is not None
                files[entry.name] = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
    return files


# -- judging -------------------------------------------------------------------------------------------------------


def judge_all(arguments: argparse.Namespace) -> None:
    """Judge what was drawn; write the results and the sheets."""
    from embedded.judge import Judge
    from embedded.train.attributes import names_answered, read_classifier
    from engine.face.detect import YuNetDetector

    facts = json.loads((arguments.drawn / "drawn.json").read_text())
    files = read_tars(arguments.drawn)
    items = [Asked(**{key: value for key, value in item.items() if key != "name"}) for item in facts.pop("items")]
    tool, detector = Judge(arguments.models), YuNetDetector()
    classifier, measured = read_classifier(arguments.classifier)
    people = sorted({item.person for item in items})
    references = {person: tool.vector(files[f"reference-{person}.jpg"]) for person in people}
    seen = {person: vector for person, vector in references.items() if vector is not None}
    vectors = {item.name: tool.vector(files[item.name]) for item in items}
    said = dict(zip([i.name for i in items], names_answered(classifier, [files[i.name] for i in items]), strict=True))
    is_found = {item.name: bool(detector.detect(files[item.name])) for item in items}

    def judged(chosen: list[Asked]) -> dict[str, Any]:
        return {
            "pictures": len(chosen),
            "face_found": share(is_found[item.name] for item in chosen),
            "face_found_by_either_detector": share(vectors[item.name] is not None for item in chosen),
            **likeness(chosen, vectors, seen),
            "obeyed": {
                question: share(said[item.name][question] == item.asked[question] for item in chosen)
                for question in chosen[0].asked
            },
            "background_by_colour": share(
                nearest_backdrop(files[item.name]) == item.asked["background"] for item in chosen
            ),
        }

    default = {s: judged([i for i in items if i.series == "default" and i.strength == s]) for s in STRENGTHS}
    guided = {c: judged([i for i in items if i.series == "cfg" and i.cfg == c]) for c in (1.0, 3.0)}
    own = [default[strength]["own_mean"] for strength in STRENGTHS]
    result = {
        "auc": default[JUDGED_STRENGTH]["auc"],
        "is_monotonic": None not in own and all(later < earlier for earlier, later in itertools.pairwise(own)),
        "references_seen": len(seen),
        "by_strength": {str(strength): values for strength, values in default.items()},
        "by_cfg_at_guidance_1": {str(cfg): values for cfg, values in guided.items()},
        "classifier_on_unseen_renders": measured["accuracy"],
        "drawing": {key: value for key, value in facts.items() if key != "model"},
        "model_files": {name: file["sha256"] for name, file in facts["model"]["files"].items()},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    arguments.sheets.mkdir(parents=True, exist_ok=True)
    write_sheets(items, files, people, arguments.sheets)


def likeness(
    items: list[Asked], vectors: dict[str, npt.NDArray[np.float64] | None], seen: dict[int, npt.NDArray[np.float64]]
) -> dict[str, float | None]:
    """How well distance to the references tells the right one. Distances are dlib's: 0.6 is its own threshold.

    None where no face was seen in any picture.
    """
    from engine.face.identity import area_under_curve

    people = list(seen)
    table = np.stack([seen[person] for person in people])
    own, other, is_first = [], [], []
    for item in items:
        vector = vectors[item.name]
        if vector is None or item.person not in seen:
            continue
        distances = np.linalg.norm(table - vector, axis=1)
        index = people.index(item.person)
        own.append(distances[index])
        other.append(np.delete(distances, index))
        is_first.append(bool((distances[index] <= distances).all()))
    if not own:
        return dict.fromkeys(("auc", "own_mean", "other_mean", "own_is_nearest"))
    same, others = np.asarray(own), np.concatenate(other)
    return {
        "auc": area_under_curve(-same, -others),
        "own_mean": float(same.mean()),
        "other_mean": float(others.mean()),
        "own_is_nearest": float(np.mean(is_first)),
    }


def nearest_backdrop(picture: Pixels) -> str:
    """The named backdrop nearest to the picture's upper corners, by distance in Lab."""
    corners = np.concatenate([picture[4:60, 4:28].reshape(-1, 3), picture[4:60, -28:-4].reshape(-1, 3)])
    red, green, blue = np.median(corners, axis=0) / 255
    seen = lab((float(red), float(green), float(blue)))
    return min(palette.BACKDROPS, key=lambda name: float(np.linalg.norm(lab(palette.BACKDROPS[name]) - seen)))


def lab(srgb: palette.Rgb) -> npt.NDArray[np.float64]:
    """sRGB in [0, 1] to CIE L*a*b* (D65)."""
    linear = palette.linear(srgb).astype(np.float64)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = matrix @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    result: npt.NDArray[np.float64] = np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
    return result


def share(values: Iterable[bool]) -> float:
    """Part of the values that are true."""
    return round(float(np.mean(list(values))), 4)


def write_sheets(items: list[Asked], files: dict[str, Pixels], people: list[int], folder: Path) -> None:
    """People by prompts, people by strengths, photos: JPEG pictures to look at, never cut to the best."""
    first = people[:8]
    default = [item for item in items if item.series == "default"]

    def row(person: int, chosen: list[Asked]) -> Pixels:
        shown = [files[f"reference-{person}.jpg"], *(files[item.name] for item in chosen if item.person == person)]
        return np.concatenate(shown, axis=1)

    prompts = [item for item in default if item.strength == JUDGED_STRENGTH]
    save(np.concatenate([row(person, prompts) for person in first]), folder / "prompts.jpg")
    seeds = {person: min(item.seed for item in default if item.person == person) for person in people}
    strengths = [item for item in default if item.seed == seeds[item.person]]
    save(np.concatenate([row(person, strengths) for person in first]), folder / "strengths.jpg")
    photos = sorted({name.rsplit("-", 1)[0] for name in files if name.startswith("photo-") and name[-6] == "-"})
    if photos:
        rows = []
        for photo in photos:
            crop = np.asarray(Image.fromarray(files[f"{photo}.jpg"]).resize((256, 256)))
            rows.append(np.concatenate([crop, *(files[f"{photo}-{i}.jpg"] for i in range(len(PHOTO_PROMPTS)))], axis=1))
        save(np.concatenate(rows), folder / "photos.jpg")


def save(picture: Pixels, path: Path) -> None:
    """As JPEG at half size: sheets are committed."""
    image = Image.fromarray(picture)
    image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS).save(path, quality=85)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw")
    drawing.add_argument("--data", type=Path, required=True, help="folder of shards that holds unseen people")
    drawing.add_argument("--model-dir", type=Path, required=True)
    drawing.add_argument("--profile", default="embedded")
    drawing.add_argument("--out", type=Path, required=True)
    drawing.add_argument("--people", type=int, default=64)
    drawing.add_argument("--photos", type=Path, nargs="*", default=[])
    drawing.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    drawing.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    drawing.add_argument("--batch", type=int, default=8)
    judging = commands.add_parser("judge")
    judging.add_argument("--drawn", type=Path, required=True)
    judging.add_argument("--models", type=Path, required=True, help="folder of dlib's models")
    judging.add_argument("--classifier", type=Path, required=True)
    judging.add_argument("--out", type=Path, required=True)
    judging.add_argument("--sheets", type=Path, required=True)
    arguments = parser.parse_args()
    {"draw": draw_all, "judge": judge_all}[arguments.command](arguments)


if __name__ == "__main__":
    main()
