"""One person made into geometry: body, shell, hair and props, ready for the renderer."""

from dataclasses import dataclass, field

import numpy as np

from embedded import hair, props
from embedded.body import Body, Floats
from embedded.hair import Roots, Strands
from embedded.people import Person
from embedded.scene import EXPRESSIONS, Scene
from embedded.shell import Shell

ARMS_DOWN_DEG = 24.0  # MakeHuman rests with the arms held away from the body


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A person's neutral geometry in decimetres, before the head turns."""

    person: Person
    vertices: Floats  # (V, 3)
    normals: Floats  # (V, 3)
    joints: dict[str, Floats]
    shell: Shell
    beard: Strands | None
    hairline: Floats  # (NUM_KNOTS,), see `hair.hairline`
    moles: Floats  # (3, 3): x, y, radius on the mean face, 0 for none
    _hair: dict[tuple[str, str], Strands | None] = field(default_factory=dict)

    def dressed_hair(self, scene: Scene, roots: Roots) -> Strands | None:
        """The hair of a scene: its style, pressed flat under headwear. Kept, since most views share one."""
        return self._dressed(scene.hair_style, scene.headwear if scene.headwear in props.RIMS else "none", roots)

    def _dressed(self, style: str, headwear: str, roots: Roots) -> Strands | None:
        key = (style, headwear)
        if key not in self._hair:
            if headwear == "none":
                self._hair[key] = hair.strands(self.person, style, roots, self.vertices, self.normals, self.shell)
            else:
                free = self._dressed(style, "none", roots)
                self._hair[key] = free and hair.pressed(free, self.shell, props.rim_height(headwear))
        return self._hair[key]

    def headwear(self, scene: Scene) -> props.Mesh | None:
        if scene.headwear == "none":
            return None
        style = hair.STYLES.get(scene.hair_style)
        volume = 0.0 if scene.hair_style == "bald" else min(style.volume if style else 0.10, 0.3)
        return props.headwear(scene.headwear, self.shell, volume if scene.headwear == "headband" else 0.0)

    def glasses(self, scene: Scene, vertices: Floats, body: Body) -> props.Glasses | None:
        """Glasses that clear this (expressive) face's brows, lids and nose bridge."""
        if scene.eyewear == "none":
            return None
        rest = body.template.vertices
        band = (np.abs(rest[:, 1] - 7.32) < 0.16) & (np.abs(rest[:, 0]) < 0.45) & (rest[:, 2] > 1.0)
        front = float(vertices[band, 2].max())
        left, right = self.joints["l-eye"], self.joints["r-eye"]
        return props.glasses(scene.eyewear, left, right, front + 0.01, self.shell)


def make_figure(body: Body, roots: Roots, person: Person) -> Figure:
    """The neutral geometry of a person."""
    shape = body.shape(person.macro, person.local)
    vertices = _arms_down(body, shape.vertices, shape.joints)
    normals = body.normals(vertices)
    return Figure(
        person=person,
        vertices=vertices,
        normals=normals,
        joints=shape.joints,
        shell=body.shell(vertices),
        beard=hair.beard_strands(person, roots, vertices, normals),
        hairline=hair.hairline(person),
        moles=_moles(person),
    )


def _moles(person: Person) -> Floats:
    marks = np.random.default_rng([person.seed, 5])
    moles = np.zeros((3, 3), np.float32)
    for i in range(person.num_moles):
        places = ((0.25, 0.55, 6.7, 7.0), (0.05, 0.5, 7.75, 8.0), (0.12, 0.4, 6.36, 6.5), (0.5, 0.62, 7.0, 7.4))
        x0, x1, y0, y1 = places[marks.integers(len(places))]  # cheek, forehead, chin, temple
        moles[i] = marks.choice([-1, 1]) * marks.uniform(x0, x1), marks.uniform(y0, y1), marks.uniform(0.014, 0.026)
    return moles


def expressive(body: Body, figure: Figure, scene: Scene) -> Floats:
    """Vertices with the scene's expression, (V, 3): the figure's own where the face is neutral."""
    actions = {name: scene.expression_strength * value for name, value in EXPRESSIONS[scene.expression].items()}
    return body.express(figure.vertices, actions) if actions else figure.vertices


def _arms_down(body: Body, vertices: Floats, joints: dict[str, Floats]) -> Floats:
    """Both arms turned down about the shoulders, blended by the skinning weights."""
    moved = vertices.copy()
    for name, sign in (("l-shoulder", 1.0), ("r-shoulder", -1.0)):
        side = np.flatnonzero((body.arm_weight > 0) & (vertices[:, 0] * sign > 0))
        angle = -sign * np.radians(ARMS_DOWN_DEG) * body.arm_weight[side]
        away = vertices[side] - joints[name]
        cos, sin = np.cos(angle), np.sin(angle)
        moved[side, 0] = joints[name][0] + cos * away[:, 0] - sin * away[:, 1]
        moved[side, 1] = joints[name][1] + sin * away[:, 0] + cos * away[:, 1]
    return moved
