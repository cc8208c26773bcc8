"""Every error has a status, an example and the contract's body, and nothing of our insides gets out."""

from __future__ import annotations

import pickle

import pytest

from engine.errors import EngineError, FaceNotFoundError, ModelLoadError
from serve_app.error_answers import ANSWERS, describe, is_expected
from serve_app.errors import ServeAppError
from serve_app.openapi import ERROR_EXAMPLES


def leaves(root: type[Exception]) -> list[type[Exception]]:
    """The classes of a tree that have no subclasses."""
    children = root.__subclasses__()
    return [leaf for child in children for leaf in leaves(child)] if children else [root]


ALL_LEAVES = leaves(EngineError) + leaves(ServeAppError)


@pytest.mark.parametrize("leaf", ALL_LEAVES, ids=lambda leaf: leaf.__name__)
def test_every_leaf_has_a_status_and_an_example(leaf: type[Exception]) -> None:
    assert ANSWERS[leaf].status in range(400, 600)
    assert leaf in {type(example) for example in ERROR_EXAMPLES}


@pytest.mark.parametrize("error", ERROR_EXAMPLES, ids=lambda error: type(error).__name__)
def test_the_body_is_the_contracts(error: Exception) -> None:
    reply = describe(error, request_id="abc")
    assert reply.body.keys() == {"error", "type", "details"}
    assert reply.body["error"]
    assert reply.body["details"]["request_id"] == "abc"
    assert ("Retry-After" in reply.headers) == (reply.status in (429, 503))
    assert reply.headers.get("Retry-After", "1").isdigit()


def test_an_unexpected_error_says_nothing_of_our_insides() -> None:
    reply = describe(ValueError("/srv/secret token=abc"), request_id="abc")
    assert reply.status == 500
    assert reply.type_name == "InternalError"
    assert "secret" not in str(reply.body)
    assert not is_expected(ValueError())


def test_a_model_error_keeps_its_paths_to_operators() -> None:
    reply = describe(ModelLoadError("/models/flux1-dev.safetensors is broken"), request_id="abc")
    assert (reply.status, reply.type_name) == (503, "ModelLoadError")
    assert "/models" not in str(reply.body)


def test_an_error_from_another_process_is_answered_as_itself() -> None:
    """Ray makes a class up that is both, and whose text is the remote traceback."""

    class RayTaskError(FaceNotFoundError):
        cause = FaceNotFoundError("no face was found")

        def __str__(self) -> str:
            return "ray::FaceStage.prepare() (pid=1, ip=10.0.0.1)\n  File /srv/app.py, line 3"

    reply = describe(RayTaskError(), request_id="abc")
    assert (reply.status, reply.type_name, reply.body["error"]) == (400, "FaceNotFoundError", "no face was found")


@pytest.mark.parametrize("error", ERROR_EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))
