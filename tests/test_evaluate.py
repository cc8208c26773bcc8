"""``likeness evaluate`` with pictures of plain colours and a judge that sees colours: every number can be foretold."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.face.identity import IdentityVector
from engine.request import RgbImage
from serve_app import data_url, evaluate_command
from serve_app.cli import build_parser
from serve_app.client_answer import ClientError, DrawnPicture
from serve_app.evaluate.histogram import Row, histograms
from serve_app.evaluate.measure import Likeness, paired_difference
from serve_app.evaluate.people import PeopleError, read_people
from serve_app.evaluate.plan import PROMPTS, PlanError, parse_endpoint, read_prompts
from serve_app.exit_codes import ExitCode
from tests.asgi import picture
from tests.face_pictures import ASTRONAUT_PATH

PEOPLE = {"ann": (200, 40, 40), "ben": (40, 200, 40), "cleo": (40, 40, 200)}
NO_FACE = (0, 0, 0)


class ColourJudge:
    """The mean colour is the face; black is none."""

    def vector(self, image: RgbImage) -> IdentityVector | None:
        colour = image.reshape(-1, 3).mean(axis=0)
        return None if colour.max() < 20 else (colour / 255).astype(np.float32)


class Service:
    """Stands in for the HTTP client: answers with the reference itself, or as a test says."""

    def __init__(self, answer: Callable[[Mapping[str, Any]], bytes] | None = None) -> None:
        self.bodies: list[Mapping[str, Any]] = []
        self._answer = answer or (lambda body: data_url.parse(body["reference_image"]).data)

    def __call__(self, *, url: str, timeout_s: float, max_retries: int, api_key: str) -> Any:
        self.api_key = api_key
        return self

    def draw(self, body: Mapping[str, Any]) -> DrawnPicture:
        self.bodies.append(body)
        return DrawnPicture(
            data=self._answer(body),
            media_type="image/jpeg",
            width_px=32,
            height_px=32,
            cost_usd=0.002,
            execution_time_s=1.5,
            gpu_type="CPU",
            seed=body["seed"],
            face_similarity=None,
            drawn_size=None,
            model="embedded",
            request_id="r",
            warnings=(),
            num_attempts=1,
        )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name, colour in PEOPLE.items():
        red, green, blue = colour
        (folder / name).mkdir(parents=True)
        (folder / name / "b.jpg").write_bytes(picture((red + 10, green + 10, blue + 10), format_="JPEG"))
        (folder / name / "reference.jpg").write_bytes(picture(colour, format_="JPEG"))
    return folder


def evaluated(photos: Path, service: Service, *flags: str) -> tuple[int, dict[str, Any], Path]:
    output = photos.parent / "output"
    arguments = build_parser().parse_args(["evaluate", "--references", str(photos), "--output", str(output), *flags])
    status = evaluate_command.run(arguments, make_client=service, open_model=ColourJudge)
    report = output / "report.json"
    return status, json.loads(report.read_text()) if report.is_file() else {}, output


def test_a_service_that_gives_the_reference_back_keeps_everyone(photos: Path) -> None:
    status, numbers, output = evaluated(photos, service := Service())
    side = numbers["endpoints"]["service"]
    assert status == ExitCode.OK
    assert len(service.bodies) == side["num_pictures"] == len(PEOPLE) * len(PROMPTS)
    assert (side["own"]["p50"], side["auc"], side["share_with_face"], side["share_own_nearest"]) == (1.0, 1.0, 1.0, 1.0)
    assert side["other"]["p95"] < 0.5 < side["photos"]["p5"] < 1.0
    assert side["cost_usd"] == pytest.approx(0.002 * 24)
    assert side["execution_time_s_median"] == 1.5
    assert numbers["photos"]["same"]["count"] == numbers["photos"]["other"]["count"] == 3
    assert {tuple(body) for body in service.bodies} == {("prompt", "seed", "reference_image")}
    assert sorted(path.name for path in output.iterdir()) == ["pictures", "report.html", "report.json"]


def test_a_service_that_draws_somebody_else_shows(photos: Path) -> None:
    ben = picture(PEOPLE["ben"], format_="JPEG")
    _, numbers, _ = evaluated(photos, Service(lambda body: ben))
    side = numbers["endpoints"]["service"]
    assert side["share_own_nearest"] == pytest.approx(1 / 3, abs=1e-4)
    assert side["auc"] == pytest.approx(0.5, abs=0.1)


def test_pictures_without_a_face_are_counted_and_not_measured(photos: Path) -> None:
    black = picture(NO_FACE, format_="JPEG")

    def answer(body: Mapping[str, Any]) -> bytes:
        return black if body["prompt"] == PROMPTS[0] else data_url.parse(body["reference_image"]).data

    _, numbers, output = evaluated(photos, Service(answer))
    side = numbers["endpoints"]["service"]
    assert side["share_with_face"] == pytest.approx(7 / 8)
    assert side["own"]["count"] == 21
    assert "prompt 1: no face" in (output / "report.html").read_text()


def test_two_endpoints_are_compared_picture_by_picture(photos: Path) -> None:
    def answer(body: Mapping[str, Any]) -> bytes:
        reference = data_url.parse(body["reference_image"]).data
        return reference if body.get("ipadapter_strength") != 0.0 else picture((120, 120, 120), format_="JPEG")

    flags = ["--endpoint", "on=http://a:1", "--endpoint", "off=http://b:2 ipadapter_strength=0.0", "--set", "steps=4"]
    _, numbers, output = evaluated(photos, service := Service(answer), *flags)
    difference = numbers["differences"]["off - on"]
    assert (difference["num_pairs"], difference["num_people"]) == (24, 3)
    assert difference["high"] < 0.0
    assert all(body["steps"] == 4 for body in service.bodies)
    page = (output / "report.html").read_text()
    assert "a difference" in page and "ipadapter_strength=0.0" in page


def test_a_second_run_draws_only_what_is_missing_or_other(photos: Path) -> None:
    evaluated(photos, Service())
    _, numbers, output = evaluated(photos, again := Service())
    assert not again.bodies and numbers["endpoints"]["service"]["num_pictures"] == 24
    (output / "pictures" / "service" / "ann" / "p00-s42.jpg").unlink()
    evaluated(photos, again)
    assert [body["prompt"] for body in again.bodies] == [PROMPTS[0]]
    evaluated(photos, other := Service(), "--set", "steps=9")
    assert len(other.bodies) == 24
    (photos / "ann" / "reference.jpg").write_bytes(picture((210, 30, 30), format_="JPEG"))
    evaluated(photos, changed := Service(), "--set", "steps=9")
    assert len(changed.bodies) == 8


def test_a_failed_picture_is_told_and_drawn_by_the_next_run(photos: Path) -> None:
    def answer(body: Mapping[str, Any]) -> bytes:
        if body["prompt"] == PROMPTS[2]:
            raise ClientError("the engine <broke>", exit_code=ExitCode.SERVER_ERROR, error_type="EngineStoppedError")
        return data_url.parse(body["reference_image"]).data

    status, numbers, output = evaluated(photos, Service(answer))
    side = numbers["endpoints"]["service"]
    assert status == ExitCode.SERVER_ERROR
    assert (side["num_failed"], side["errors"]) == (3, {"the engine <broke>": 3})
    assert "the engine &lt;broke&gt;" in (output / "report.html").read_text()
    status, _, _ = evaluated(photos, again := Service())
    assert (status, len(again.bodies)) == (ExitCode.OK, 3)


def test_a_service_that_is_not_there_ends_the_run_at_once(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(body: Mapping[str, Any]) -> bytes:
        raise ClientError("nothing answers", exit_code=ExitCode.UNREACHABLE, error_type="Unreachable")

    status, numbers, _ = evaluated(photos, service := Service(answer), "--concurrency", "1")
    assert (status, numbers) == (ExitCode.UNREACHABLE, {})
    assert len(service.bodies) == 3
    assert "likeness: nothing answers" in capsys.readouterr().err


def test_references_without_a_face_are_all_named_before_anything_is_drawn(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ann", "cleo"):
        (photos / name / "reference.jpg").write_bytes(picture(NO_FACE, format_="JPEG"))
    status, _, _ = evaluated(photos, service := Service())
    said = capsys.readouterr().err
    assert (status, service.bodies) == (ExitCode.BAD_INPUT, [])
    assert "ann/reference.jpg" in said and "cleo/reference.jpg" in said


def test_too_many_pictures_are_refused_with_the_number(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, output = evaluated(photos, Service(), "--max-pictures", "23")
    assert (status, output.exists()) == (ExitCode.BAD_INPUT, False)
    assert "--max-pictures 24" in capsys.readouterr().err


def test_the_key_of_the_environment_is_used_and_written_nowhere(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKENESS_API_KEY", "swordfish")
    _, _, output = evaluated(photos, service := Service())
    assert service.api_key == "swordfish"
    assert all(b"swordfish" not in path.read_bytes() for path in output.rglob("*") if path.is_file())


def test_the_page_needs_nothing_from_elsewhere(photos: Path) -> None:
    _, _, output = evaluated(photos, Service())
    page = (output / "report.html").read_text()
    assert not re.search(r"(src|href|@import|url\()\s*=?\s*[\"']?(https?:)?//", page)
    assert page.count("<figure>") == len(PEOPLE) * (2 + len(PROMPTS))


def test_the_real_judge_knows_a_photo_again(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    shutil.copy(ASTRONAUT_PATH, tmp_path / "photos")
    (tmp_path / "prompts").write_text("A portrait\n")
    arguments = ["evaluate", "--references", str(tmp_path / "photos"), "--prompts", str(tmp_path / "prompts")]
    parsed = build_parser().parse_args([*arguments, "--output", str(tmp_path / "output")])
    assert evaluate_command.run(parsed, make_client=Service()) == ExitCode.OK
    side = json.loads((tmp_path / "output" / "report.json").read_text())["endpoints"]["service"]
    assert (side["own"]["mean"], side["share_same_person"]) == (1.0, 1.0)
    assert side["other"] is side["photos"] is side["auc"] is side["share_own_nearest"] is None, "there is nobody else"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "holds no photos"),
        (("a.jpg", "b/c.jpg"), "one photo or one folder a person"),
        (("a b.jpg", "a-b.jpg"), "more than one person is called a-b"),
    ],
)
def test_a_folder_of_photos_must_be_plain(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(PeopleError, match=words):
        read_people(tmp_path)


def test_photos_of_one_folder_are_people_by_themselves(tmp_path: Path) -> None:
    for name in ("zoe.png", "al.jpeg", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [(person.name, person.others) for person in read_people(tmp_path)] == [("al", ()), ("zoe", ())]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://a:1", "NAME=URL"),
        ("a/b=http://a:1", "NAME=URL"),
        ("a=ftp://x", "not a URL"),
        ("a=http://a:1 step=4", "'step=4' is not one of steps, "),
        ("a=http://a:1 steps=few", "steps must be a number"),
    ],
)
def test_an_endpoint_must_be_plain(text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        parse_endpoint(text, {})


def test_prompts_come_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text("# two of them\n\nA portrait\n  A picture \n")
    assert read_prompts(path) == ("A portrait", "A picture")
    path.write_text("# none\n")
    with pytest.raises(PlanError, match="holds no prompts"):
        read_prompts(path)


def test_the_interval_of_a_difference_is_one_of_people_not_of_pictures() -> None:
    """Many pictures of two people who differ say no more than two people can."""

    def pictures(own: Mapping[str, float], count: int) -> list[Likeness]:
        return [
            Likeness(endpoint="e", person=name, prompt_index=0, seed=seed, is_face_found=True, own=value)
            for name, value in own.items()
            for seed in range(count)
        ]

    nothing, something = {"ann": 0.5, "ben": 0.5}, {"ann": 0.4, "ben": 0.8}
    few, many = (paired_difference(pictures(nothing, n), pictures(something, n)) for n in (1, 100))
    assert few is not None and many is not None
    assert (many["mean"], many["low"], many["high"]) == (few["mean"], few["low"], few["high"]) == (0.1, -0.1, 0.3)
    assert paired_difference([], pictures(something, 1)) is None


def test_histograms_show_every_value_once() -> None:
    drawing = histograms([Row(label="<a>", values=[0.1, 0.5, 0.5], colour="red"), Row(label="b", values=[], colour="")])
    assert drawing.count("<rect") == 2 and "&lt;a&gt;" in drawing and ">b<" not in drawing
    assert histograms([Row(label="a", values=[], colour="")]) == ""


def test_thumbnails_are_upright_and_small(tmp_path: Path) -> None:
    from serve_app.evaluate.sheet import THUMBNAIL_PX, thumbnail

    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90° where it is shown
    Image.new("RGB", (400, 200)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "small.jpg").write_bytes(thumbnail(tmp_path / "turned.jpg"))
    with Image.open(tmp_path / "small.jpg") as small:
        assert small.size == (THUMBNAIL_PX // 2, THUMBNAIL_PX)
        assert not small.getexif()
