"""The old system's graph and our request say the same thing, in both directions."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.contract import GenerationBody, parse_body
from serve_app.data_url import Picture, build
from serve_app.errors import FieldsError
from serve_app.workflow import graph_from_request, request_from_graph

FILE = Path(__file__).parent.parent / "workflows" / "flux-ipadapter-faceid.json"
FACE = build(Picture(data=b"\xff\xd8\xff", media_type="image/jpeg"))


def graph() -> dict[str, Any]:
    """The file as a caller fills it in."""
    loaded: dict[str, Any] = json.loads(FILE.read_text())
    loaded["4"]["inputs"]["image"] = FACE
    return loaded


def problem_of(body: dict[str, Any]) -> str:
    with pytest.raises(FieldsError) as caught:
        request_from_graph(body)
    return str(caught.value)


def test_the_file_has_the_original_s_nodes_and_means_the_contract_s_defaults() -> None:
    encode = ["CLIPTextEncode", "CLIPTextEncode"]
    load = ["UNETLoader", "DualCLIPLoader", "VAELoader", "LoadImage", "LoadFluxIPAdapter", "ApplyFluxIPAdapter"]
    draw = ["EmptySD3LatentImage", "KSampler", "VAEDecode", "SaveImage"]
    assert sorted(node["class_type"] for node in graph().values()) == sorted(load + encode + draw)
    assert graph()["5"]["inputs"]["ipadatper"] == "ip_adapter.safetensors"
    plain = parse_body({"prompt": "A professional AI influencer portrait", "reference_image": FACE})
    assert request_from_graph(graph()) == plain


bodies = st.builds(
    lambda **values: parse_body({**values, "reference_image": FACE}),
    prompt=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
    negative_prompt=st.text(st.characters(exclude_categories=["Cs"])),
    width=st.integers(1, 128).map(lambda n: 16 * n),
    height=st.integers(1, 128).map(lambda n: 16 * n),
    steps=st.integers(1, 100),
    cfg=st.floats(1.0, 30.0),
    seed=st.integers(-1, 2**63 - 1),
    ipadapter_strength=st.floats(0.0, 1.0),
    face_provider=st.sampled_from(["CPU", "GPU"]),
    guidance=st.floats(0.0, 30.0),
    face_policy=st.sampled_from([None, "prefer", "require", "ignore"]),
    scheduler=st.sampled_from(["simple", "flux"]),
    max_wait_s=st.none() | st.floats(0.001, 1000.0),
    priority=st.sampled_from(["low", "normal", "high"]),
    preview_every=st.integers(0, 10),
    score=st.booleans(),
    num_candidates=st.integers(1, 8),
    min_similarity=st.none() | st.floats(0.0, 1.0),
)


@given(bodies)
def test_a_request_survives_the_way_through_a_graph(body: GenerationBody) -> None:
    through_json = json.loads(json.dumps(graph_from_request(body)))
    assert request_from_graph(through_json) == body


def test_node_ids_are_the_caller_s_own_and_comfyui_s_envelope_is_taken() -> None:
    renamed = json.loads(json.dumps(graph()).replace('"7"', '"positive"').replace('"10"', '"the sampler"'))
    assert request_from_graph(renamed) == request_from_graph(graph())
    wrapped = {"prompt": graph(), "client_id": "abc", "extra_data": {"extra_pnginfo": {}}}
    assert request_from_graph(wrapped) == request_from_graph(graph())
    assert "lora is not part of ComfyUI's prompt envelope" in problem_of({"prompt": graph(), "lora": 1})


def test_how_a_request_is_treated_stands_beside_the_nodes() -> None:
    treatment = {"max_wait_s": 20, "priority": "high", "preview_every": 4, "num_candidates": 3}
    bare, wrapped = graph() | treatment, {"prompt": graph(), "client_id": "abc", **treatment}
    for sent in (bare, wrapped):
        assert request_from_graph(sent) == request_from_graph(graph()).model_copy(update=treatment)
    assert problem_of(graph() | {"priority": "urgent"}).startswith("priority must be 'low', 'normal' or 'high'")


@pytest.mark.parametrize(
    ("node", "name", "value", "field", "expected"),
    [
        ("7", "text", "someone on a beach", "prompt", "someone on a beach"),
        ("8", "text", "hat", "negative_prompt", "hat"),
        ("9", "width", 512, "width", 512),
        ("9", "height", 768, "height", 768),
        ("10", "steps", 8, "steps", 8),
        ("10", "cfg", 3, "cfg", 3.0),
        ("10", "seed", 7, "seed", 7),
        ("6", "ip_scale", 1, "ipadapter_strength", 1.0),
        ("5", "provider", "GPU", "face_provider", "GPU"),
    ],
)
def test_small_edits_reach_their_field(node: str, name: str, value: object, field: str, expected: object) -> None:
    edited = graph()
    edited[node]["inputs"][name] = value
    plain, changed = request_from_graph(graph()), request_from_graph(edited)
    assert getattr(changed, field) == expected
    assert changed == plain.model_copy(update={field: expected})


def edit(*path: str, to: object = None) -> dict[str, Any]:
    edited = graph()
    target: Any = edited
    for key in path[:-1]:
        target = target[key]
    if to is None:
        del target[path[-1]]
    else:
        target[path[-1]] = to
    return edited


UNKNOWN_NODE = {"class_type": "LoraLoader", "inputs": {}}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (edit("99", to=UNKNOWN_NODE), '99.class_type "LoraLoader" is not known; known are UNETLoader'),
        (edit("10", "inputs", "denoise", to=0.5), "10.inputs.denoise must be 1.0"),
        (edit("10", "inputs", "sampler_name", to="dpmpp_2m"), '10.inputs.sampler_name must be "euler"'),
        (edit("10", "inputs", "scheduler", to="karras"), "10.inputs.scheduler must be 'simple' or 'flux'"),
        (edit("9", "inputs", "batch_size", to=4), "9.inputs.batch_size must be 1"),
        (
            edit("1", "inputs", "unet_name", to="other.safetensors"),
            '1.inputs.unet_name must be "flux1-dev.safetensors"',
        ),
        (edit("10", "inputs", "shift", to=1), "10.inputs.shift is not an input of KSampler"),
        (edit("10", "inputs", "model", to=["1", 0]), "10.inputs.model must come from output 0 of ApplyFluxIPAdapter"),
        (edit("10", "inputs", "model", to=["6", 1]), "10.inputs.model must come from output 0"),
        (edit("10", "inputs", "model", to=["77", 0]), "10.inputs.model must be a link to another node"),
        (edit("10", "inputs", "latent_image"), "10.inputs.latent_image must be a link to another node"),
        (edit("9", "inputs", "width", to=1000), "9.inputs.width must be a multiple of 16, got 1000"),
        (edit("9", "inputs", "width", to="1024"), '9.inputs.width must be a whole number, got "1024"'),
        (edit("4", "inputs", "image", to="/etc/passwd"), "4.inputs.image must be a data URL"),
        (edit("4", "inputs", "image", to="face.png"), "4.inputs.image must be a data URL"),
        (edit("7", "inputs", "text", to="  "), "7.inputs.text must not be blank"),
        (edit("7", "inputs", "text"), "prompt is required"),
        (edit("12"), "graph must have one SaveImage node, found 0"),
        (edit("12", to=[]), "12 must be a node of ComfyUI's API format"),
        ({}, "graph must have one SaveImage node, found 0"),
        ({"prompt": "a plain request", "reference_image": FACE}, "prompt must be a node of ComfyUI's API format"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_not_served_is_refused_by_node(body: dict[str, Any], words: str) -> None:
    assert words in problem_of(body)


def test_guidance_on_the_negative_prompt_is_refused() -> None:
    edited = graph()
    edited["20"] = {"class_type": "FluxGuidance", "inputs": {"guidance": 2.0, "conditioning": ["8", 0]}}
    edited["10"]["inputs"]["negative"] = ["20", 0]
    assert "20.inputs.guidance is served for the positive prompt only" in problem_of(edited)


def test_one_encoder_may_feed_both_prompts() -> None:
    edited = graph()
    edited["10"]["inputs"]["negative"] = ["7", 0]
    body = request_from_graph(edited)
    assert body.prompt == body.negative_prompt


def test_reading_a_graph_does_not_change_it() -> None:
    before = graph()
    after = copy.deepcopy(before)
    request_from_graph(after)
    assert before == after
