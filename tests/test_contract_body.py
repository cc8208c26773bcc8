"""The request's types and defaults, and JSON read more strictly than Python does."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.body import parse_json_object
from serve_app.contract import GenerationBody, parse_body
from serve_app.errors import FieldsError, MalformedBodyError
from tests.asgi import body, picture_url

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_defaults_are_the_contracts() -> None:
    parsed = parse_body({"prompt": "a", "reference_image": picture_url()})
    contract = {
        "negative_prompt": "",
        "width": 1024,
        "height": 1024,
        "steps": 20,
        "cfg": 1.0,
        "seed": 42,
        "ipadapter_strength": 0.8,
        "face_provider": "CPU",
        "guidance": 3.5,
        "face_policy": None,
        "scheduler": "simple",
        "max_wait_s": None,
        "priority": "normal",
        "preview_every": 0,
        "score": False,
        "num_candidates": 1,
        "min_similarity": None,
    }
    assert parsed.model_dump(exclude={"prompt", "reference_image"}) == contract


def test_a_whole_number_is_a_number() -> None:
    parsed = parse_body(body(cfg=2, ipadapter_strength=1, guidance=0))
    assert (parsed.cfg, parsed.ipadapter_strength, parsed.guidance) == (2.0, 1.0, 0.0)
    assert isinstance(parsed.cfg, float)


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(FieldsError) as caught:
        parse_body(body(prompt="", reference_image="/etc/passwd", width=1000, steps="20", colour=1))
    problems = {problem.field: problem.problem for problem in caught.value.problems}
    assert problems.keys() == {"prompt", "reference_image", "width", "steps", "colour"}
    assert all(field in sentence for field, sentence in problems.items())
    assert str(caught.value) == "prompt must not be blank (4 more in details.fields)"


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "reference_image"])
def test_private_values_are_never_repeated(field: str) -> None:
    with pytest.raises(FieldsError) as caught:
        parse_body(body(**{field: ["swordfish"]}))
    assert "swordfish" not in str(caught.value)


def test_fields_errors_survive_pickling() -> None:
    import pickle

    with pytest.raises(FieldsError) as caught:
        parse_body({})
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


@given(ANY_JSON)
def test_json_objects_come_through_unchanged_and_nothing_else_does(value: Any) -> None:
    raw = json.dumps(value).encode()
    if isinstance(value, dict):
        assert parse_json_object(raw) == value
    else:
        with pytest.raises(MalformedBodyError):
            parse_json_object(raw)


@given(st.sampled_from(sorted(GenerationBody.model_fields)), ANY_JSON)
def test_any_value_is_taken_or_refused_with_its_field(field: str, value: Any) -> None:
    try:
        parsed = parse_body(body(**{field: value}))
    except FieldsError as error:
        assert {problem.field for problem in error.problems} == {field}
        assert all(problem.problem.startswith(field) and len(problem.problem) < 400 for problem in error.problems)
    else:
        taken = getattr(parsed, field)
        assert taken == value
        assert not isinstance(value, float) or math.isfinite(taken)
        assert isinstance(taken, bool) == isinstance(value, bool)


@given(st.text(max_size=30), ANY_JSON)
def test_unknown_fields_are_refused_by_name(name: str, value: Any) -> None:
    if name in GenerationBody.model_fields:
        return
    with pytest.raises(FieldsError, match="is not a known field"):
        parse_body({**body(), name: value})


@given(st.binary(max_size=60))
def test_any_bytes_are_taken_or_refused_as_malformed(raw: bytes) -> None:
    try:
        assert isinstance(parse_json_object(raw), dict)
    except MalformedBodyError as error:
        assert str(error).startswith("the body")
