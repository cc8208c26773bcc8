"""One pass with the real engine: whoever dies in the middle of a drawing, everybody gets their own face's picture."""

from __future__ import annotations

import io
import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from engine.profile import load_profile
from serve_app.stages import INGRESS
from tests.asgi import URL, data_url, picture_url
from tests.cluster.conftest import MARKS, Deploy
from tests.cluster.faulty import FAULT_AT_STEP, KILL_ONCE
from tests.cluster.load import Load, picture_body
from tests.face_pictures import astronaut, saved
from tests.serve.conftest import RunningService, until

pytestmark = MARKS

PROFILE = "embedded"
STEPS = FAULT_AT_STEP + 2
SIDE_PX = 64
"""So small that drawings share their steps; two of the model's native size already fill two cores."""
PIXEL_TOLERANCE = 2
"""Of 255, at any pixel. A picture may ride in any company, and matrix products of another batch size add up in another
order; ``tests/test_mixed_steps.py`` says the same of one engine."""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's files. Which weights they hold is of no account here, as long as faces change pictures."""
    from engine.weights.untrained import write_untrained  # torch, only where it is needed

    folder = tmp_path_factory.mktemp("model")
    write_untrained(load_profile(PROFILE), str(folder))
    return folder


def references() -> list[str]:
    """Pictures that look nothing like each other, as data URLs. In two of them there is a face to be found."""
    photo = astronaut().resize((256, 256))
    dark = Image.eval(ImageOps.mirror(photo), lambda level: level // 3)
    return [
        data_url(saved(photo, "PNG")),
        data_url(saved(dark, "PNG")),
        picture_url((200, 30, 20)),
        picture_url((20, 30, 200)),
    ]


def pixels(picture: bytes) -> npt.NDArray[np.int_]:
    """(H, W, 3), 0 to 255."""
    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image.convert("RGB")).astype(np.int_)


def distance(one: bytes, other: bytes) -> int:
    """Of the two pixels that differ most."""
    return int(np.abs(pixels(one) - pixels(other)).max())


def drawn_alone(service: RunningService, body: dict[str, Any]) -> bytes:
    """The picture of a request that nothing happens to, with nobody beside it."""
    response = service.client.post(URL, json=body, headers={"Accept": "image/png"})
    assert response.status_code == 200, response.text
    return response.content


def test_everybody_gets_their_own_faces_picture_whoever_dies_in_its_middle(
    deploy: Deploy, model_dir: Path, tmp_path: Path
) -> None:
    def real(config: dict[str, Any]) -> None:
        arguments = config["applications"][0]["args"]
        arguments |= {"profile": PROFILE, "model_dir": str(model_dir), "limits": {"request_timeout_s": 300.0}}
        arguments["engine"] = {"kind": "flux", "device": "cpu", "dtype": "float32", "cpu_threads": 1}

    service = deploy(real, within_s=300.0)
    died = tmp_path / "died"
    small: dict[str, Any] = {"width": SIDE_PX, "height": SIDE_PX, "steps": STEPS}
    bodies = [picture_body(**small, reference_image=url, seed=1) for url in references()]
    bodies.append(picture_body(**small | {"steps": STEPS + 2}, prompt="somebody else", seed=2))
    bodies.append(picture_body(**small, prompt=f"{KILL_ONCE} {died}", seed=3))

    load = Load(f"http://127.0.0.1:{service.port}", bodies)
    with load.running(len(bodies)):
        until(died.exists, timeout_s=60)  # with the replica that drew it and those beside it
        pid, *_ = until(lambda: service.busy_pids(INGRESS))
        os.kill(pid, signal.SIGKILL)
        killed_s = time.monotonic()
        until(lambda: load.answered_since(killed_s) == set(range(len(bodies))), timeout_s=120)
        until(lambda: len(service.replica_pids(INGRESS) - {pid}) == 2, timeout_s=60)
    assert [(outcome.status, outcome.error) for outcome in load.lost] == []

    alone = [drawn_alone(service, body) for body in bodies]
    for one, other in itertools.combinations(alone, 2):
        assert distance(one, other) > 10 * PIXEL_TOLERANCE, "nobody could tell a mixed-up picture"
    for outcome in load.outcomes:
        distances = [distance(outcome.picture, picture) for picture in alone]
        others = distances[: outcome.asked] + distances[outcome.asked + 1 :]
        assert distances[outcome.asked] <= PIXEL_TOLERANCE < min(others), f"picture {outcome.asked}: {distances}"
