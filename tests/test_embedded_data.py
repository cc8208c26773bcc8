"""Laws of the rendered people: what a seed fixes, what captions may say, what pictures show."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedded import palette, shell
from embedded.body import NUM_FACE_POINTS, SKIN, Body
from embedded.captions import CAPTIONED, captions
from embedded.chance import pick
from embedded.dataset import Plan, Views, generate, gl_device, make_shard
from embedded.people import BEARDS, Person, sample_local, sample_person, split_of, traits
from embedded.scene import POSES, Scene, sample_scene

if TYPE_CHECKING:  # needs OpenGL
    from embedded.body import Floats
    from embedded.render import Picture, Renderer

BODY = Path(__file__).parents[1] / "embedded" / "body.npz"
NAMES = (
    "nose-hump-decr",
    "nose-hump-incr",
    "l-ear-scale-decr",
    "l-ear-scale-incr",
    "r-ear-scale-decr",
    "r-ear-scale-incr",
)


def people(count: int) -> list[tuple[Person, Scene]]:
    return [(one := sample_person(3, i, NAMES), sample_scene(3, one, i % 5)) for i in range(count)]


# -- sampling -------------------------------------------------------------------------------------------------------


def test_a_person_and_a_scene_depend_on_seed_and_index_alone() -> None:
    alone = sample_person(3, 17, NAMES)
    assert people(20)[17][0] == alone
    assert sample_scene(3, alone, 2) == sample_scene(3, alone, 2)
    assert sample_person(4, 17, NAMES) != alone
    assert sample_scene(3, alone, 1) != sample_scene(3, alone, 2)


def test_a_pick_is_the_draw_of_numpys_choice() -> None:
    items, odds = ("a", "b", "c", "d"), (0.55, 0.15, 0.2, 0.1)
    ours, theirs = np.random.default_rng(5), np.random.default_rng(5)
    for _ in range(300):
        assert pick(ours, items, odds) == theirs.choice(items, p=odds)
        assert pick(ours, items) == theirs.choice(items)


def test_splits_are_disjoint_stable_and_about_as_large_as_said() -> None:
    splits = [split_of(1, i) for i in range(20_000)]
    assert splits[:500] == [split_of(1, i) for i in range(500)]
    assert splits.count("test") == pytest.approx(800, rel=0.15)
    assert splits.count("validation") == pytest.approx(400, rel=0.2)


def test_traits_tell_what_a_face_shows_and_nothing_that_a_view_may_change() -> None:
    person = sample_person(1, 3, NAMES)
    of_person = traits(person)
    assert of_person.shape == traits(sample_person(1, 4, NAMES)).shape == (25,)
    assert (traits(dataclasses.replace(person, hair_color="red", hair_style="bald", part_side=0.1)) == of_person).all()
    others = [
        dataclasses.replace(person, skin_warmth=person.skin_warmth + 0.5),
        dataclasses.replace(person, widows_peak=person.widows_peak + 0.1),
        dataclasses.replace(person, eye_color="blue"),
        dataclasses.replace(person, brows=dataclasses.replace(person.brows, tilt=person.brows.tilt + 0.5)),
    ]
    assert [int((traits(other) != of_person).sum()) for other in others] == [1, 1, 3, 1]
    assert len({traits(dataclasses.replace(person, beard=beard)).tobytes() for beard in BEARDS}) == len(BEARDS) == 5


def test_shape_weights_stay_in_range_and_use_one_end_of_each_axis() -> None:
    for seed in range(200):
        weights = sample_local(np.random.default_rng(seed), NAMES)
        assert all(0 <= value <= 1.1 for value in weights.values())
        assert not {"nose-hump-decr", "nose-hump-incr"} <= set(weights)


def test_pose_names_agree_with_angles_and_leave_gaps() -> None:
    seen = set()
    for _, scene in people(600):
        seen.add(scene.pose)
        sideways = {"left": -1, "right": 1}.get(scene.pose, 0)
        upward = {"down": -1, "up": 1}.get(scene.pose, 0)
        assert (scene.yaw_deg * sideways >= 15) if sideways else abs(scene.yaw_deg) < 10
        assert (scene.pitch_deg * upward >= 9) if upward else abs(scene.pitch_deg) < 9
    assert seen == set(POSES)


def test_only_adults_and_no_bearded_women() -> None:
    for person, _ in people(500):
        assert 18 <= person.age_years <= 80
        assert person.sex == "man" or person.beard == "none"


# -- captions -------------------------------------------------------------------------------------------------------


def test_captions_repeat_and_differ_among_themselves() -> None:
    person, scene = people(3)[2]
    first = captions(person, scene, 3, 8)
    assert first == captions(person, scene, 3, 8)
    assert len(set(first)) > 3
    assert captions(person, scene, 4, 8) != first


def test_restyled_hair_is_always_named_where_it_shows() -> None:
    count = 0
    for person, scene in people(400):
        if not scene.restyled or scene.headwear != "none" or scene.hair_style == "bald":
            continue
        count += 1
        for text in captions(person, scene, 3, 4):
            assert scene.hair_color in text, text
    assert count > 30


def test_captions_say_nothing_untrue() -> None:
    """Words that belong to one value of an attribute never stand in captions of another."""
    for person, scene in people(400):
        truth = {
            "pose": scene.pose, "expression": scene.expression, "light": scene.light, "place": scene.place,
            "eyewear": scene.eyewear, "headwear": scene.headwear, "beard": person.beard,
        }  # fmt: skip
        text = " ".join(captions(person, scene, 3, 6)).lower()
        for attribute, (value, word) in itertools.chain.from_iterable(
            [(name, pair) for pair in pairs] for name, pairs in CAPTIONED.items()
        ):
            if word in text:
                assert truth[attribute] == value, (attribute, value, word, text)


def test_captions_open_like_the_services_prompts() -> None:
    texts = [text for person, scene in people(300) for text in captions(person, scene, 3, 2)]
    assert any(text.startswith("A professional AI influencer portrait") for text in texts)
    assert any(text in ("woman", "man", "a woman", "a man") for text in texts)
    assert not any("  " in text or ", ," in text or "None" in text or "{" in text for text in texts)
    assert not any(f" a {vowel}" in text for text in texts for vowel in ("orange", "elderly", "old ", "afro b"))


# -- geometry -------------------------------------------------------------------------------------------------------


def ball(radius: float) -> tuple[np.ndarray, np.ndarray]:
    """A triangulated sphere around the shell's centre."""
    polar, around = np.meshgrid(np.linspace(0, np.pi, 40), np.linspace(0, 2 * np.pi, 80), indexing="ij")
    middle = np.array([0, shell.CENTER_Y_DM, float(shell.axis_z(shell.CENTER_Y_DM))])
    points = np.stack([np.sin(polar) * np.sin(around), np.cos(polar), np.sin(polar) * np.cos(around)], -1)
    index = np.arange(40 * 80).reshape(40, 80)
    a, b, c, d = (part.ravel() for part in (index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]))
    triangles = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)]).astype(np.int32)
    return (points.reshape(-1, 3) * radius + middle).astype(np.float32), triangles


def test_the_shell_of_a_ball_is_its_radius_and_pushes_points_out_to_it() -> None:
    vertices, triangles = ball(0.9)
    one = shell.Shell.of(vertices, triangles, *shell.trace(vertices, triangles))
    above = one.radius[shell.HEIGHTS >= 0.2]
    np.testing.assert_allclose(above, 0.9, atol=0.01)
    middle = np.array([0, shell.CENTER_Y_DM, float(shell.axis_z(shell.CENTER_Y_DM))])
    inside = middle + np.array([[0.1, 0.4, 0.1], [0.3, 0.3, -0.2]])
    outside = middle + np.array([[0.0, 1.5, 0.1]])
    moved = one.push_out(np.concatenate([inside, outside]).T.astype(np.float32), 0.05).T
    np.testing.assert_allclose(np.linalg.norm(moved[:2] - middle, axis=1), 0.95, atol=0.02)
    np.testing.assert_allclose(moved[2], outside[0], atol=1e-5)


def test_face_points_are_the_faces_and_lie_apart() -> None:
    body = Body(BODY)
    points = body.template.vertices[body.face_points]
    assert len(set(body.face_points.tolist())) == len(points) == NUM_FACE_POINTS
    assert (body.part[body.face_points] == SKIN).all()
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(len(points))
    assert apart.min() > 0.15  # decimetres
    assert points[:, 0].min() < -0.6 < 0.6 < points[:, 0].max()


# -- shards ---------------------------------------------------------------------------------------------------------


class FlatRenderer:
    """Draws pictures that hold their person's index and nothing else, of bodies that do so too."""

    body = SimpleNamespace(local_names=NAMES, face_points=np.array([0, 2]))

    def figure(self, person: Person) -> SimpleNamespace:
        return SimpleNamespace(index=person.index, vertices=np.full((3, 3), person.index, np.float32))

    def draw_views(self, figure: SimpleNamespace, scenes: list[Scene]) -> list[SimpleNamespace]:
        image = np.full((256, 256, 3), figure.index, np.uint8)
        return [SimpleNamespace(image=image, points_px=np.zeros((5, 2), np.float32)) for _ in scenes]


def test_shards_hold_their_plans_pictures_and_records_in_one_order(tmp_path: Path) -> None:
    plan = Plan(
        out=tmp_path, body=Path("unused"), seed=1, first_identity=5, num_identities=5, num_views=3,
        identities_per_shard=2,
    )  # fmt: skip
    counts = [make_shard(plan, shard, FlatRenderer()) for shard in range(plan.num_shards)]
    assert counts == [6, 6, 3]
    views = Views.load(tmp_path)
    assert len(views) == 15
    for index, record in enumerate(views.records):
        assert (views.picture(index) == record["identity"]).all()
    assert [len(group) for group in views.by_identity().values()] == [3] * 5
    shapes = np.concatenate([np.load(plan.shapes_path(shard)) for shard in range(plan.num_shards)])
    assert shapes.shape == (5, 2, 3)
    assert list(shapes[:, 0, 0]) == list(views.by_identity())
    others = np.concatenate([np.load(plan.traits_path(shard)) for shard in range(plan.num_shards)])
    assert (others == [traits(sample_person(1, identity, NAMES)) for identity in views.by_identity()]).all()
    by_split = [len(Views.load(tmp_path, split)) for split in ("train", "validation", "test")]
    assert sum(by_split) == 15
    assert json.dumps(views.records[0])  # plain JSON values all the way down
    assert not list(tmp_path.glob("*.partial"))


def test_a_plan_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Plan(
            out=tmp_path, body=tmp_path, seed=1, first_identity=0, num_identities=0, num_views=1,
            identities_per_shard=1,
        )  # fmt: skip


def test_a_process_that_cannot_start_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    body = tmp_path / "body.npz"
    body.write_bytes(b"not a body")
    plan = Plan(
        out=tmp_path, body=body, seed=1, first_identity=0, num_identities=3, num_views=1, identities_per_shard=1
    )
    with pytest.raises(RuntimeError, match="could not start on device 0"):
        list(generate(plan, num_workers=1))
    assert not list(tmp_path.glob("views-*"))


def test_a_device_is_a_number_or_all() -> None:
    assert (gl_device("all"), gl_device("3")) == (None, 3)
    for text in ("-1", "any", ""):
        with pytest.raises(ValueError, match="neither"):
            gl_device(text)


# -- pictures (where the body file and OpenGL are) ------------------------------------------------------------------


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    pytest.importorskip("moderngl", reason="pip install 'likeness[train]'")
    if not BODY.exists():
        pytest.skip("make the body file first: python -m embedded.body_build")
    from embedded.render import Renderer

    try:
        return Renderer(BODY, samples=1)
    except RuntimeError as error:
        pytest.skip(str(error))


def shown(renderer: Renderer, index: int, **changes: Any) -> Picture:
    """A person drawn plainly, with changes to the scene."""
    person = sample_person(3, index, renderer.body.local_names)
    plain: dict[str, Any] = {
        "pose": "front", "yaw_deg": 0.0, "pitch_deg": 0.0, "roll_deg": 0.0, "expression": "neutral",
        "light": "soft studio light", "backdrop": "gray", "place": None, "eyewear": "none", "headwear": "none",
        "garment": "t-shirt", "hair_style": "short", "hair_color": "brown", "striped": False,
        "frame_height_dm": 3.6, "center_dm": (0.0, 0.0), "camera_rise_deg": 0.0,
    }  # fmt: skip
    scene = dataclasses.replace(sample_scene(3, person, 0), **(plain | changes))
    return renderer.draw(renderer.figure(person), scene)


def test_a_scene_draws_the_same_picture_whatever_was_drawn_between(renderer: Renderer) -> None:
    first = shown(renderer, 1, hair_style="long wavy", eyewear="glasses", headwear="cap")
    shown(renderer, 2, hair_style="afro", place="beach", backdrop=None)
    again = shown(renderer, 1, hair_style="long wavy", eyewear="glasses", headwear="cap")
    assert (first.image == again.image).all()


def test_views_drawn_together_are_the_views_drawn_alone(renderer: Renderer) -> None:
    person = sample_person(3, 6, renderer.body.local_names)
    scenes = [sample_scene(3, person, view) for view in range(10)]  # more than are read back at once
    together = renderer.draw_views(renderer.figure(person), scenes)
    alone = [renderer.draw(renderer.figure(person), scene) for scene in scenes]
    for one, other in zip(together, alone, strict=True):
        assert (one.image == other.image).all()
        assert (one.points_px == other.points_px).all()


@pytest.mark.parametrize("color", ["red", "green", "blue", "yellow"])
def test_backdrop_and_clothes_have_their_colors(renderer: Renderer, color: str) -> None:
    image = shown(renderer, 1, backdrop=color, garment_color=color).image.astype(float)
    for patch, table in ((image[4:40, 4:24], palette.BACKDROPS), (image[248:, 100:156], palette.CLOTHES)):
        mean = patch.mean((0, 1)) / 255
        unit = mean / np.linalg.norm(mean)
        names = ["red", "green", "blue", "yellow"]
        likeness = [unit @ (np.array(table[name]) / np.linalg.norm(table[name])) for name in names]
        assert names[int(np.argmax(likeness))] == color


def test_the_nose_points_where_the_caption_says(renderer: Renderer) -> None:
    def nose(**angles: float) -> Floats:
        points = shown(renderer, 1, **angles).points_px
        nose_px: Floats = points[2] - points[:2].mean(0)
        return nose_px

    front = nose()
    assert nose(yaw_deg=-24.0)[0] < front[0] - 4
    assert nose(yaw_deg=24.0)[0] > front[0] + 4
    assert nose(pitch_deg=14.0)[1] < front[1] - 2
    assert nose(pitch_deg=-14.0)[1] > front[1] + 2


def test_all_points_lie_in_the_picture_and_the_face_differs_from_the_backdrop(renderer: Renderer) -> None:
    picture = shown(renderer, 4, backdrop="blue")
    assert ((picture.points_px > 0) & (picture.points_px < 256)).all()
    x, y = picture.points_px[2].round().astype(int)
    red, _, blue = picture.image[y, x].astype(int)
    assert red > blue  # skin, not the blue wall


def test_hair_color_shows_above_the_forehead(renderer: Renderer) -> None:
    def top(name: str) -> float:
        picture = shown(renderer, 4, hair_color=name, hair_style="short")
        left, right, nose = picture.points_px[:3]
        rise = nose[1] - (left[1] + right[1]) / 2
        row, column = int((left[1] + right[1]) / 2 - 3.0 * rise), int((left[0] + right[0]) / 2)
        return float(picture.image[row - 4 : row + 4, column - 12 : column + 12].mean())

    assert top("black") < top("brown") < top("white")
