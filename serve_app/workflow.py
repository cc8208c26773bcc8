"""The ComfyUI graph that the contract stands for, in both directions: graph to request, request to graph.

Callers who kept the old system's workflow file send it as it is, or with the small edits it was made for: prompts,
sizes, steps, cfg, seed, scale, provider, and the picture as a data URL. What the graph could say and this service
does not do is refused, naming the node; nothing is ignored silently.

Two things the original graph can't say travel in it all the same, so that no request is lost on the way:
``FluxGuidance`` (ComfyUI's own node) between the prompt and the sampler, and the face policy in ``LoadImage``'s
``_meta``. The sampler's scheduler may be ``flux`` besides ``simple``. How the request is to be treated is no part of a
picture, and stands beside the nodes, in the graph or its envelope: ``max_wait_s``, ``priority``, ``preview_every``,
``score``, ``num_candidates`` and ``min_similarity``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final

from serve_app.contract import GenerationBody, parse_body
from serve_app.data_url import build
from serve_app.errors import FieldProblem, FieldsError

Graph = dict[str, Any]
"""ComfyUI's API format: node id → ``class_type``, ``inputs`` (values, or links ``[node id, output]``), ``_meta``; and
:data:`TREATMENT_FIELDS` where they are not the default."""

TREATMENT_FIELDS: Final = (
    "max_wait_s",
    "priority",
    "preview_every",
    "score",
    "num_candidates",
    "min_similarity",
)
"""Fields of the request that say how it is treated, whatever the picture. ComfyUI's node ids are numbers."""

ENVELOPE_KEYS: Final = frozenset(
    {"prompt", "client_id", "prompt_id", "extra_data", "number", "front", *TREATMENT_FIELDS}
)
"""What ComfyUI's own ``POST /prompt`` wraps a graph in; all but the graph concern its queue, which is not ours."""

FACE_POLICY_META: Final = "face_policy"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NodeClass:
    """One kind of node.

    Attributes:
        fields: inputs that are a field of the request.
        fixed: inputs that must have one value, if they are there.
        links: inputs that must come from a node of these classes.
        free: inputs that mean nothing here.
    """

    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    links: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    free: frozenset[str] = frozenset()

    @property
    def inputs(self) -> frozenset[str]:
        """Every input that is known."""
        return frozenset({*self.fields, *self.fixed, *self.links}) | self.free


CONDITIONING: Final = ("CLIPTextEncode", "FluxGuidance")

NODE_CLASSES: Final[Mapping[str, NodeClass]] = {
    "UNETLoader": NodeClass(fixed={"unet_name": "flux1-dev.safetensors", "weight_dtype": "default"}),
    "DualCLIPLoader": NodeClass(
        fixed={"clip_name1": "t5xxl_fp16.safetensors", "clip_name2": "clip_l.safetensors", "type": "flux"},
        free=frozenset({"device"}),
    ),
    "VAELoader": NodeClass(fixed={"vae_name": "ae.safetensors"}),
    "LoadImage": NodeClass(fields={"image": "reference_image"}, free=frozenset({"upload"})),
    "LoadFluxIPAdapter": NodeClass(
        fields={"provider": "face_provider"},
        # Misspelt in the node itself.
        fixed={"ipadatper": "ip_adapter.safetensors", "clip_vision": "model.safetensors"},
    ),
    "ApplyFluxIPAdapter": NodeClass(
        fields={"ip_scale": "ipadapter_strength"},
        links={"model": ("UNETLoader",), "ip_adapter_flux": ("LoadFluxIPAdapter",), "image": ("LoadImage",)},
    ),
    "CLIPTextEncode": NodeClass(fields={"text": "prompt"}, links={"clip": ("DualCLIPLoader",)}),
    "FluxGuidance": NodeClass(fields={"guidance": "guidance"}, links={"conditioning": ("CLIPTextEncode",)}),
    "EmptySD3LatentImage": NodeClass(fields={"width": "width", "height": "height"}, fixed={"batch_size": 1}),
    "KSampler": NodeClass(
        fields={"seed": "seed", "steps": "steps", "cfg": "cfg", "scheduler": "scheduler"},
        fixed={"sampler_name": "euler", "denoise": 1.0},
        links={
            "model": ("ApplyFluxIPAdapter",),
            "positive": CONDITIONING,
            "negative": CONDITIONING,
            "latent_image": ("EmptySD3LatentImage",),
        },
    ),
    "VAEDecode": NodeClass(links={"samples": ("KSampler",), "vae": ("VAELoader",)}),
    "SaveImage": NodeClass(links={"images": ("VAEDecode",)}, free=frozenset({"filename_prefix"})),
}
"""The nodes of the old system's graph, and one of ComfyUI's own that it could have had."""


def request_from_graph(body: Mapping[str, Any]) -> GenerationBody:
    """The request that a graph, bare or in ComfyUI's envelope, stands for.

    Raises:
        FieldsError: the graph holds an unknown node or input, a link that leads elsewhere than the original's, a
            setting that is not served, or a value that the request refuses; each named as ``node.inputs.name``.
    """
    graph = _graph_of(body)
    treatment = {name: value for part in (body, graph) for name, value in part.items() if name in TREATMENT_FIELDS}
    reader = _Reader({node_id: node for node_id, node in graph.items() if node_id not in TREATMENT_FIELDS})
    save = reader.only("SaveImage")
    reader.visit(save)
    reader.raise_problems()
    try:
        return parse_body(reader.values | treatment)
    except FieldsError as error:
        raise FieldsError(tuple(reader.located(problem) for problem in error.problems)) from None


def graph_from_request(body: GenerationBody) -> Graph:
    """The graph of a request, with the node ids of ``workflows/flux-ipadapter-faceid.json``."""
    load_image = _node("LoadImage", image=build(body.reference_image), upload="image")
    if body.face_policy is not None:
        load_image["_meta"] = {**load_image["_meta"], FACE_POLICY_META: body.face_policy}
    treatment = body.model_dump(include=set(TREATMENT_FIELDS), exclude_defaults=True)
    return treatment | {
        "1": _node("UNETLoader", unet_name="flux1-dev.safetensors", weight_dtype="default"),
        "2": _node("DualCLIPLoader", clip_name1="t5xxl_fp16.safetensors", clip_name2="clip_l.safetensors", type="flux"),
        "3": _node("VAELoader", vae_name="ae.safetensors"),
        "4": load_image,
        "5": _node(
            "LoadFluxIPAdapter",
            ipadatper="ip_adapter.safetensors",
            clip_vision="model.safetensors",
            provider=body.face_provider,
        ),
        "6": _node(
            "ApplyFluxIPAdapter",
            model=["1", 0],
            ip_adapter_flux=["5", 0],
            image=["4", 0],
            ip_scale=body.ipadapter_strength,
        ),
        "7": _node("CLIPTextEncode", text=body.prompt, clip=["2", 0]),
        "8": _node("CLIPTextEncode", text=body.negative_prompt, clip=["2", 0]),
        "9": _node("EmptySD3LatentImage", width=body.width, height=body.height, batch_size=1),
        "10": _node(
            "KSampler",
            model=["6", 0],
            positive=["13", 0],
            negative=["8", 0],
            latent_image=["9", 0],
            seed=body.seed,
            steps=body.steps,
            cfg=body.cfg,
            sampler_name="euler",
            scheduler=body.scheduler,
            denoise=1.0,
        ),
        "11": _node("VAEDecode", samples=["10", 0], vae=["3", 0]),
        "12": _node("SaveImage", images=["11", 0], filename_prefix="flux-ipadapter-faceid"),
        "13": _node("FluxGuidance", conditioning=["7", 0], guidance=body.guidance),
    }


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}


def _graph_of(body: Mapping[str, Any]) -> Mapping[str, Any]:
    prompt = body.get("prompt")
    if not isinstance(prompt, Mapping):
        return body
    if unknown := sorted(body.keys() - ENVELOPE_KEYS):
        raise FieldsError((_problem(unknown[0], "is not part of ComfyUI's prompt envelope"),))
    return prompt


class _Reader:
    """Walks a graph from its end, collecting the request's values, where each stood, and what is wrong."""

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self.values: dict[str, Any] = {}
        self._places: dict[str, str] = {}
        self._problems: list[FieldProblem] = []
        self._graph = graph
        self._visited: set[tuple[str, str]] = set()
        for node_id, node in graph.items():
            self._check_node(node_id, node)
        self.raise_problems()

    def only(self, class_type: str) -> str:
        """The id of the one node of a class."""
        ids = [node_id for node_id, node in self._graph.items() if node["class_type"] == class_type]
        if len(ids) != 1:
            raise FieldsError((_problem("graph", f"must have one {class_type} node, found {len(ids)}"),))
        return ids[0]

    def visit(self, node_id: str, role: str = "") -> None:
        """Take a node's values, then those of the nodes that feed it. ``role``: the sampler input it ends in."""
        if (node_id, role) in self._visited:
            return
        self._visited.add((node_id, role))
        node = self._graph[node_id]
        inputs, known = node["inputs"], NODE_CLASSES[node["class_type"]]
        for name, field in known.fields.items():
            self._take(node_id, name, inputs, field, role)
        for name, value in known.fixed.items():
            if name in inputs and inputs[name] != value:
                self._problems.append(_problem(f"{node_id}.inputs.{name}", f"must be {json.dumps(value)}"))
        if FACE_POLICY_META in node.get("_meta", {}):
            self._set("face_policy", node["_meta"][FACE_POLICY_META], f"{node_id}._meta.{FACE_POLICY_META}")
        for name, classes in known.links.items():
            source = self._source(node_id, name, inputs.get(name), classes)
            if source is not None:
                self.visit(source, name if name in ("positive", "negative") else role)

    def located(self, problem: FieldProblem) -> FieldProblem:
        """A problem with a request's field as one with the node's input that held it."""
        place = self._places.get(problem.field)
        if place is None:
            return problem
        return _problem(place, problem.problem.removeprefix(problem.field).lstrip())

    def raise_problems(self) -> None:
        """Raise FieldsError where anything is wrong."""
        if self._problems:
            raise FieldsError(tuple(self._problems))

    def _check_node(self, node_id: str, node: Any) -> None:
        is_node = isinstance(node, Mapping) and isinstance(node.get("class_type"), str)
        if not is_node or not isinstance(node.get("inputs"), Mapping) or not isinstance(node.get("_meta", {}), Mapping):
            problem = "must be a node of ComfyUI's API format: an object with class_type and inputs"
            self._problems.append(_problem(node_id[:40], problem))
            return
        known = NODE_CLASSES.get(node["class_type"])
        if known is None:
            name = json.dumps(node["class_type"][:60])
            self._problems.append(
                _problem(f"{node_id}.class_type", f"{name} is not known; known are {', '.join(NODE_CLASSES)}")
            )
        elif unknown := sorted(set(node["inputs"]) - known.inputs):
            self._problems.append(
                _problem(f"{node_id}.inputs.{unknown[0][:40]}", f"is not an input of {node['class_type']}")
            )

    def _take(self, node_id: str, name: str, inputs: Mapping[str, Any], field: str, role: str) -> None:
        if name not in inputs:
            return
        place, value = f"{node_id}.inputs.{name}", inputs[name]
        if role != "negative":
            self._set(field, value, place)
        elif field == "prompt":
            self._set("negative_prompt", value, place)
        else:
            self._problems.append(_problem(place, "is served for the positive prompt only"))

    def _set(self, field: str, value: Any, place: str) -> None:
        # ComfyUI writes whole numbers without a point where a float is meant, and JSON does not tell them apart.
        self.values[field] = float(value) if field in _FLOAT_FIELDS and type(value) is int else value
        self._places[field] = place

    def _source(self, node_id: str, name: str, link: Any, classes: tuple[str, ...]) -> str | None:
        place = f"{node_id}.inputs.{name}"
        is_link = isinstance(link, list) and len(link) == 2 and isinstance(link[0], str) and type(link[1]) is int
        if not is_link or link[0] not in self._graph:
            self._problems.append(_problem(place, 'must be a link to another node, ["node id", output]'))
            return None
        source = str(link[0])
        if self._graph[source]["class_type"] not in classes or link[1] != 0:
            self._problems.append(_problem(place, f"must come from output 0 of {' or '.join(classes)}"))
            return None
        return source


_FLOAT_FIELDS: Final = frozenset({"cfg", "guidance", "ipadapter_strength"})


def _problem(field: str, problem: str) -> FieldProblem:
    return FieldProblem(field=field, problem=f"{field} {problem}")
