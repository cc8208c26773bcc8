"""From a figure and a scene to a picture. One `Renderer` a process: it owns the OpenGL context."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moderngl
import numpy as np
from numpy.typing import NDArray

from embedded import body as parts
from embedded import gl, palette, props
from embedded.body import Body, Floats
from embedded.figure import Figure, expressive, make_figure
from embedded.hair import NUM_POINTS, Roots, Strands
from embedded.people import Person
from embedded.scene import GARMENTS, LIGHTS, PLACES, Scene

SIZE_PX = 256
_NEVER = (99.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """`image` (SIZE_PX, SIZE_PX, 3) uint8, row 0 at the top, and five `points_px` (x, y) in it:
    the eye at the picture's left, the other eye, nose tip, mouth corner at the left, the other one."""

    image: NDArray[np.uint8]
    points_px: Floats


@dataclass(frozen=True, kw_only=True)
class _View:
    """Camera, the neck's turn and the lights of one scene."""

    view_projection: Floats
    camera: Floats
    pivot: Floats
    axis: Floats
    angle: float
    rotation: Floats  # (3, 3) of the head
    block: bytes  # common.glsl's Scene
    shadow: bytes  # the same, seen from the key light


class Renderer:
    """Draws scenes at SIZE_PX. Not thread-safe; results repeat exactly on one machine and driver."""

    def __init__(self, body_path: Path, samples: int = 4, device: int = 0) -> None:
        """`samples` a pixel of the supersampled picture: 4, or 1 for quick drafts (rougher strands). `device`: EGL's
        number of the one that draws."""
        self.body = Body(body_path)
        self.roots = Roots(self.body)
        self._context = gl.open_context(device)
        self._targets = gl.Targets(self._context, SIZE_PX, samples)
        self._programs = {
            name: gl.program(self._context, vertex, f"{name.split()[0]}.frag")
            for name, vertex in {
                "skin": "mesh.vert", "eye": "mesh.vert", "cloth": "mesh.vert", "plain": "mesh.vert",
                "lash": "mesh.vert", "depth": "mesh.vert", "hair": "hair.vert", "depth hair": "hair.vert",
                "backdrop": "screen.vert", "resolve": "screen.vert",
            }.items()
        }  # fmt: skip
        self._block = self._context.buffer(reserve=gl.SCENE_BLOCK_BYTES)
        self._block.bind_to_uniform_block(0)
        self._upload_body()
        self._points: dict[int, Any] = {}
        self._uploaded: dict[int, Strands] = {}
        self._screen = {name: self._context.vertex_array(self._programs[name], []) for name in ("backdrop", "resolve")}
        self._ribbons = {name: self._context.vertex_array(self._programs[name], []) for name in ("hair", "depth hair")}
        self._landmarks = self._landmark_vertices()

    def figure(self, person: Person) -> Figure:
        return make_figure(self.body, self.roots, person)

    def draw(self, figure: Figure, scene: Scene) -> Picture:
        """One view of a figure."""
        return self.draw_views(figure, [scene])[0]

    def draw_views(self, figure: Figure, scenes: list[Scene]) -> list[Picture]:
        """Views of a figure, read back together: the processor prepares the next one while the GPU still draws."""
        pictures = []
        for first in range(0, len(scenes), gl.MAX_VIEWS):
            some = scenes[first : first + gl.MAX_VIEWS]
            points = [self._draw(figure, scene, row) for row, scene in enumerate(some)]
            pictures += [
                Picture(image=image, points_px=at) for image, at in zip(self._read(len(some)), points, strict=True)
            ]
        return pictures

    def _draw(self, figure: Figure, scene: Scene, row: int) -> Floats:
        """Draws a view into one of the small pictures. Returns the points in it, (5, 2)."""
        vertices = expressive(self.body, figure, scene)
        normals = figure.normals if vertices is figure.vertices else self.body.normals(vertices)
        self._moving.orphan()  # else a driver may wait for the last view that reads it
        self._moving.write(np.hstack([vertices, normals]).take(self.body.render_vertex, axis=0))
        view = _view(figure, scene)
        hair = figure.dressed_hair(scene, self.roots)
        strands = [one for one in (hair, figure.beard) if one is not None]
        for slot, one in enumerate(strands):
            self._upload_strands(slot, one)
        hat, glasses = figure.headwear(scene), figure.glasses(scene, vertices, self.body)

        self._draw_shadow(view, strands, hat)
        self._block.write(view.block)
        self._targets.samples.use()
        self._context.clear(depth=1.0)
        self._context.enable_only(moderngl.DEPTH_TEST)
        self._context.depth_func = "<="
        self._targets.shadow.use(1)
        for name in ("skin", "eye", "cloth", "plain", "hair"):
            if "shadow_map" in self._programs[name]:
                self._programs[name]["shadow_map"].value = 1
        self._draw_backdrop(scene)
        self._draw_skin(figure, scene, hair)
        self._draw_eyes(figure, scene, view)
        self._draw_details(figure, scene)
        self._draw_clothes(scene)
        self._draw_hair(figure, scene, strands, hair)
        if hat is not None:
            self._draw_prop(hat, palette.linear(palette.CLOTHES[scene.headwear_color]), _HAT_SURFACE[scene.headwear])
        if glasses is not None:
            self._draw_glasses(glasses, scene)
        self._shrink(row)
        return self._project(vertices, figure, view)

    # -- geometry on the device ---------------------------------------------------------------------------------

    def _upload_body(self) -> None:
        body, context = self.body, self._context
        rest = body.template.vertices
        weight = np.stack([body.head_weight, np.ones(body.num_vertices, np.float32)], 1)
        still = np.hstack([rest[body.render_vertex], body.render_uv, weight[body.render_vertex]]).astype(np.float32)
        self._still = context.buffer(still.tobytes())
        self._moving = context.buffer(reserve=len(still) * 24)
        owner = body.part[body.welded[:, 0]]
        torso = rest[body.welded][..., 1].min(1) < 6.45
        groups = {
            "skin": owner == parts.SKIN,
            "eye": (owner == parts.EYE_LEFT) | (owner == parts.EYE_RIGHT),
            "cloth": (owner == parts.SKIN) & torso & (np.abs(rest[body.welded][..., 1].mean(1)) < 6.4),
            "teeth": (owner == parts.TEETH_UPPER) | (owner == parts.TEETH_LOWER),
            "tongue": owner == parts.TONGUE,
            "lashes": owner == parts.LASHES,
        }
        self._arrays: dict[tuple[str, str], Any] = {}
        for group, chosen in groups.items():
            index = context.buffer(np.ascontiguousarray(body.triangles[chosen]).tobytes())
            drawn_by = {"teeth": "plain", "tongue": "plain", "lashes": "lash"}.get(group, group)
            for name in (drawn_by, "depth"):
                self._arrays[group, name] = context.vertex_array(
                    self._programs[name],
                    [
                        (self._moving, "3f 3f", "in_position", "in_normal"),
                        (self._still, "3f 2f 2f", "in_rest", "in_uv", "in_weight"),
                    ],
                    index,
                    skip_errors=True,
                )
        self._atlas = context.texture(body.atlas.shape[:2], 4, np.ascontiguousarray(body.atlas).tobytes())
        self._atlas.build_mipmaps()
        self._atlas.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)

    def _upload_strands(self, slot: int, strands: Strands) -> None:
        if self._uploaded.get(slot) is strands:
            return
        self._uploaded[slot] = strands
        if slot in self._points:
            self._points[slot].release()
        points = np.ascontiguousarray(strands.points.T)  # (n, NUM_POINTS, 4)
        self._points[slot] = self._context.texture((NUM_POINTS, len(points)), 4, points, dtype="f4")
        self._points[slot].filter = (moderngl.NEAREST, moderngl.NEAREST)

    # -- passes ---------------------------------------------------------------------------------------------------

    def _draw_shadow(self, view: _View, strands: list[Strands], hat: props.Mesh | None) -> None:
        self._block.write(view.shadow)
        self._targets.shadow_buffer.use()
        self._context.clear(depth=1.0)
        self._context.enable_only(moderngl.DEPTH_TEST)
        gl.put(self._programs["depth"], offset=0.0)
        self._arrays["skin", "depth"].render()
        gl.put(self._programs["depth"], offset=0.08)
        self._arrays["cloth", "depth"].render()
        for slot, one in enumerate(strands):
            self._render_ribbons("depth hair", slot, one)
        if hat is not None:
            self._render_mesh("depth", hat)

    def _draw_backdrop(self, scene: Scene) -> None:
        kind = 0 if scene.place is None else 1 + PLACES.index(scene.place)
        base = palette.linear(palette.BACKDROPS[scene.backdrop]) if scene.backdrop else np.zeros(3, np.float32)
        gl.put(self._programs["backdrop"], base=base, kind=(kind, (scene.seed % 997) / 997))
        self._screen["backdrop"].render(moderngl.TRIANGLES, vertices=3)

    def _draw_skin(self, figure: Figure, scene: Scene, hair: Strands | None) -> None:
        person = figure.person
        tone = palette.linear(palette.skin_color(person.skin_tone))
        warmth = np.array([1 - 0.02 * person.skin_warmth, 1 + 0.03 * person.skin_warmth, 1 - 0.10 * person.skin_warmth])
        hair_color = palette.linear(palette.HAIR[person.hair_color])
        scalp = palette.linear(palette.HAIR[scene.hair_color])
        stubble = {"stubble": 0.62, "short beard": 0.75, "full beard": 0.8}.get(person.beard, 0.0)
        buzz = scene.hair_style == "buzz cut"
        self._atlas.use(0)
        gl.put(
            self._programs["skin"],
            offset=0.0,
            atlas_uv=self.body.atlas_uv,
            albedo=tone * warmth,
            blood=np.array([1.06, 0.66, 0.62]) if person.skin_tone < 0.6 else np.array([1.05, 0.78, 0.74]),
            marks=(person.freckles, person.blotches, person.redness, person.oiliness),
            face=(np.clip((person.age_years - 30) / 45, 0, 1), person.lip_tint, float(scene.lipstick), stubble),
            hair_albedo=hair_color * 0.5 if hair is None else scalp * 0.55,
            brow_albedo=np.minimum(hair_color * 0.42, 0.30),
            brows_a=(person.brows.thickness, person.brows.arch, person.brows.density, person.brows.tilt),
            brows_b=(
                person.brows.lift,
                0.0 if hair is None else (0.9 if buzz else 0.97),
                0.6 * (person.beard == "mustache"),
                (person.seed % 613) / 613,
            ),
            moles=figure.moles,
            hairline=figure.hairline,
        )
        self._arrays["skin", "skin"].render()

    def _draw_eyes(self, figure: Figure, scene: Scene, view: _View) -> None:
        yaw, pitch = np.radians(scene.gaze_deg)
        # Eyes turn some way back to the camera, as people look at who looks at them.
        yaw -= 0.45 * np.radians(scene.yaw_deg)
        pitch -= 0.5 * np.radians(scene.pitch_deg)
        local = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
        up = view.rotation @ np.array([0, np.cos(pitch), -np.sin(pitch)])
        centers = np.stack([view.pivot + view.rotation @ (figure.joints[k] - view.pivot) for k in ("l-eye", "r-eye")])
        gl.put(
            self._programs["eye"],
            offset=0.0,
            centers=centers,
            gaze=view.rotation @ local,
            gaze_up=up,
            iris=palette.linear(palette.EYES[figure.person.eye_color]),
            redness=figure.person.redness,
        )
        self._arrays["eye", "eye"].render()

    def _draw_details(self, figure: Figure, scene: Scene) -> None:
        plain = self._programs["plain"]
        for group, color, surface in (
            ("teeth", (0.72, 0.66, 0.55), (0.12, 30, 0, 1)),
            ("tongue", (0.42, 0.12, 0.12), (0.10, 20, 0, 1)),
        ):
            gl.put(plain, offset=0.0, albedo=color, surface=surface)
            self._arrays[group, "plain"].render()
        long = (0.9, 0.8) if figure.person.sex == "woman" else (0.3, 0.45)
        gl.put(self._programs["lash"], offset=0.0, lash=long, albedo=(0.012, 0.010, 0.009))
        self._arrays["lashes", "lash"].render()

    def _draw_clothes(self, scene: Scene) -> None:
        number = GARMENTS.index(scene.garment)
        seed = (scene.seed % 389) / 389
        color = palette.linear(palette.CLOTHES[scene.garment_color])
        shirt = (0.75, 0.75, 0.75) if scene.garment_color not in ("white", "beige") else (0.03, 0.03, 0.035)
        layers = [(1.0, 0.03)] if scene.garment == "blazer" else []
        for layer, offset in [*layers, (0.0, 0.10 if scene.garment in ("blazer", "hoodie") else 0.055)]:
            gl.put(
                self._programs["cloth"],
                offset=offset,
                albedo=color,
                under=shirt,
                cut=(number, float(scene.striped and scene.garment in ("t-shirt", "v-neck sweater")), layer, seed),
            )
            self._arrays["cloth", "cloth"].render()

    def _draw_hair(self, figure: Figure, scene: Scene, strands: list[Strands], hair: Strands | None) -> None:
        for slot, one in enumerate(strands):
            of_head = one is hair
            name = scene.hair_color if of_head else figure.person.hair_color
            gloss = 0.5 if scene.hair_style in ("afro", "curly", "buzz cut") else 1.0
            albedo = palette.linear(palette.HAIR[name])
            gl.put(self._programs["hair"], albedo=albedo, hair=(gloss if of_head else 0.4, 0.6))
            self._render_ribbons("hair", slot, one)

    def _draw_glasses(self, glasses: props.Glasses, scene: Scene) -> None:
        frame = palette.linear(palette.GLASSES[scene.eyewear_color])
        self._draw_prop(glasses.frame, frame, (0.35, 60, 0, 1))
        self._context.enable(moderngl.BLEND)
        dark = scene.eyewear == "sunglasses"
        self._draw_prop(glasses.lenses, np.full(3, 0.012), (0.5, 120, 0, 0.93) if dark else (0.9, 200, 0, 0.07))
        self._context.disable(moderngl.BLEND)

    def _draw_prop(self, mesh: props.Mesh, albedo: Floats, surface: tuple[float, float, float, float]) -> None:
        gl.put(self._programs["plain"], offset=0.0, albedo=albedo, surface=surface)
        self._render_mesh("plain", mesh)

    def _render_mesh(self, name: str, mesh: props.Mesh) -> None:
        follows = np.tile(np.array([[1.0, 1.0]], np.float32), (len(mesh.vertices), 1))
        data = np.hstack([mesh.vertices, mesh.normals, mesh.vertices, mesh.uv, follows]).astype(np.float32)
        buffer, index = self._context.buffer(data.tobytes()), self._context.buffer(mesh.triangles.tobytes())
        layout = (buffer, "3f 3f 3f 2f 2f", "in_position", "in_normal", "in_rest", "in_uv", "in_weight")
        array = self._context.vertex_array(self._programs[name], [layout], index, skip_errors=True)
        array.render()
        for resource in (array, buffer, index):
            resource.release()

    def _render_ribbons(self, name: str, slot: int, strands: Strands) -> None:
        self._points[slot].use(2)
        program = self._programs[name]
        program["points"].value = 2
        gl.put(program, ribbon=(NUM_POINTS, strands.width_dm, strands.taper), follow=(5.5, 6.5))
        self._ribbons[name].render(moderngl.TRIANGLE_STRIP, vertices=2 * NUM_POINTS, instances=strands.points.shape[2])

    def _shrink(self, row: int) -> None:
        """The picture, averaged, to its place among the small ones."""
        self._context.copy_framebuffer(self._targets.resolved, self._targets.samples)
        self._targets.small.viewport = (0, row * SIZE_PX, SIZE_PX, SIZE_PX)
        self._targets.small.use()
        self._context.enable_only(moderngl.NOTHING)
        self._targets.big.use(0)
        gl.put(self._programs["resolve"], texel=1 / (2 * SIZE_PX))
        self._screen["resolve"].render(moderngl.TRIANGLES, vertices=3)

    def _read(self, count: int) -> NDArray[np.uint8]:
        """The first small pictures, (count, SIZE_PX, SIZE_PX, 3)."""
        raw = self._targets.small.read((0, 0, SIZE_PX, count * SIZE_PX), components=3, alignment=1)
        return np.frombuffer(raw, np.uint8).reshape(count, SIZE_PX, SIZE_PX, 3)[:, ::-1].copy()

    # -- points ---------------------------------------------------------------------------------------------------

    def _landmark_vertices(self) -> dict[str, int]:
        """Vertices at the nose's tip and the mouth's corners, found on the mean face."""
        rest = self.body.template.vertices
        skin = self.body.part == parts.SKIN
        nose = skin & (np.abs(rest[:, 0]) < 0.05) & (rest[:, 1] > 6.8) & (rest[:, 1] < 7.2)
        mouth = skin & (np.abs(rest[:, 1] - 6.64) < 0.03) & (rest[:, 2] > 1.2) & (np.abs(rest[:, 0]) < 0.235)
        return {
            "nose": int(np.flatnonzero(nose)[rest[nose, 2].argmax()]),
            "left": int(np.flatnonzero(mouth)[rest[mouth, 0].argmax()]),
            "right": int(np.flatnonzero(mouth)[rest[mouth, 0].argmin()]),
        }

    def _project(self, vertices: Floats, figure: Figure, view: _View) -> Floats:
        marks = self._landmarks
        points = np.stack(
            [
                figure.joints["r-eye"] + (0, 0, 0.13), figure.joints["l-eye"] + (0, 0, 0.13), vertices[marks["nose"]],
                vertices[marks["right"]], vertices[marks["left"]],
            ]
        )  # fmt: skip
        posed = view.pivot + (points - view.pivot) @ view.rotation.T
        clip = np.hstack([posed, np.ones((len(posed), 1))]) @ view.view_projection.T
        screen = clip[:, :2] / clip[:, 3:]
        return (np.stack([screen[:, 0] + 1, 1 - screen[:, 1]], 1) * SIZE_PX / 2).astype(np.float32)


_HAT_SURFACE: dict[str, tuple[float, float, float, float]] = {
    "beanie": (0.01, 6, 1, 1), "cap": (0.03, 10, 2, 1), "hat": (0.02, 8, 2, 1), "headband": (0.04, 12, 2, 1),
}  # fmt: skip


def _direction(azimuth_deg: float, elevation_deg: float) -> Floats:
    azimuth, elevation = np.radians([azimuth_deg, elevation_deg])
    flat = np.cos(elevation)
    return np.array([np.sin(azimuth) * flat, np.sin(elevation), np.cos(azimuth) * flat], np.float32)


def _turn(axis: int, angle_deg: float) -> Floats:
    """Rotation matrix about x, y or z."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    a, b = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = c
    matrix[a, b], matrix[b, a] = -s, s
    return matrix


def _axis_angle(rotation: Floats) -> tuple[Floats, float]:
    angle = float(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    norm = np.linalg.norm(axis)
    return (axis / norm if norm > 1e-9 else np.array([0.0, 1.0, 0.0])), angle


def _view(figure: Figure, scene: Scene) -> _View:
    # The body turns a third of the way with the head: seen from a camera that goes round the other way.
    around_deg = -scene.yaw_deg * 0.3
    rotation = _turn(1, scene.yaw_deg * 0.7) @ _turn(0, -scene.pitch_deg) @ _turn(2, -scene.roll_deg)
    axis, angle = _axis_angle(rotation)
    joints = figure.joints
    pivot = 0.5 * (joints["neck"] + joints["head"])
    middle = 0.5 * (joints["head-2"] + joints["jaw"])
    face = np.array([0.0, middle[1], 0.45]) - (scene.center_dm[0], 0.32 + scene.center_dm[1], 0)
    face = np.array([face[0], face[1], face[2]], np.float32)
    distance = scene.frame_height_dm / 2 / np.tan(np.radians(scene.camera_fov_deg) / 2)
    camera = face + distance * _direction(around_deg, scene.camera_rise_deg)
    projection = gl.perspective(scene.camera_fov_deg, distance - 4.5, distance + 6) @ gl.look_at(camera, face)
    light = LIGHTS[scene.light]

    def towards(azimuth_deg: float, elevation_deg: float) -> Floats:
        return _direction(azimuth_deg + around_deg + scene.light_turn_deg, elevation_deg)

    key = towards(*light.key_from_deg)
    shadow = gl.shadow_matrix(key, np.array([0, 6.7, 0.3], np.float32), 2.7)
    unit_to_clip = np.diag([2.0, 2.0, 2.0, 1.0])
    unit_to_clip[:3, 3] = -1

    rows: list[Any] = [
        (*camera, 0), (*pivot, angle), (*axis, 0), (*key, 0),
        (*(palette.linear(light.key_color) * light.key), 0),
        (*(palette.linear(light.sky_color) * light.fill), 0),
        (*(palette.linear(light.ground_color) * light.fill), 0),
        (*towards(*light.rim_from_deg), 0), (*(palette.linear(light.rim_color) * light.rim), 0),
        (scene.exposure, (scene.seed % 977) / 977, 0, 0),
    ]  # fmt: skip
    rest = np.array(rows, np.float32).tobytes()

    def block(matrix: Floats) -> bytes:
        return b"".join([matrix.T.astype(np.float32).tobytes(), shadow.T.tobytes(), rest])

    return _View(
        view_projection=projection, camera=camera, pivot=pivot, axis=axis, angle=angle, rotation=rotation,
        block=block(projection), shadow=block(unit_to_clip @ shadow),
    )  # fmt: skip
