"""The client and event streams: what it reads of them, what it shows, and servers that have none."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serve_app import data_url, progress
from serve_app.cli import main
from serve_app.client_answer import ClientError
from serve_app.client_events import BrokenEventsError, Progress, ServerEvent, events_in, progress_of
from serve_app.data_url import Picture
from serve_app.error_answers import describe
from serve_app.errors import StageUnavailableError, TooManyRequestsError
from serve_app.events import HEARTBEAT, drawing_event, last_event
from serve_app.exit_codes import ExitCode
from serve_app.stages import DrawQueued, DrawRestarted, DrawStep, StageStarting
from tests.answering_server import Canned, answering, drawn, picture_bytes, refused
from tests.asgi import Service, with_service
from tests.test_client_wire import BODY, FakeTime, client

BEGINNING = (
    drawing_event(StageStarting(stage="FluxReplica", elapsed_s=3.0, expected_s=None)),
    drawing_event(DrawQueued(position=2, predicted_wait_s=1.6, predicted_device_s=2.0)),
    HEARTBEAT,
    drawing_event(DrawStep(step=1, num_steps=4, remaining_s=6.2, preview=b"...")),
    drawing_event(DrawRestarted()),
    drawing_event(DrawStep(step=4, num_steps=4, remaining_s=0.0)),
)
WORDS = [
    Progress(text="starting a replica of FluxReplica: 3 s", fraction=None),
    Progress(text="place 2, begins in about 2 s", fraction=0.0),
    Progress(text="step 1 of 4, about 6 s left", fraction=0.25),
    Progress(text="the replica that drew this ended; another begins again", fraction=None),
    Progress(text="step 4 of 4, about 0 s left", fraction=1.0),
]


def done(kind: str = "JPEG", **changes: Any) -> bytes:
    """The last event of a stream that went well, with what the client reads of it."""
    picture = Picture(data=picture_bytes(kind), media_type=f"image/{kind.lower()}")
    answer = {
        "request_id": "r1",
        "image": data_url.build(picture),
        "drawn_width": 16,
        "drawn_height": 8,
        "seed": 7,
        "model": {"id": "embedded", "title": "t"},
        "cost_usd": 0.001234,
        "execution_time_s": 2.5,
        "gpu_type": "CPU",
        "warnings": [{"code": "face_fallback", "message": "no face – found"}],
    }
    return last_event(200, json.dumps(answer | changes).encode())


def failed(error: Exception) -> bytes:
    """The last event of a stream that did not."""
    reply = describe(error, request_id="r1")
    return last_event(reply.status, json.dumps(reply.body).encode())


def stream(*events: bytes) -> Canned:
    """An answer in events."""
    return Canned(headers={"Content-Type": "text/event-stream"}, body=b"".join(events))


def test_events_are_told_and_the_picture_is_that_of_the_other_forms() -> None:
    told: list[ServerEvent] = []
    headers = {"X-Seed": "7", "X-Drawn-Size": "16x8", "X-Model": "embedded", "X-Request-ID": "r1"}
    headers["X-Warning"] = "face_fallback: no face ? found"
    with answering([stream(*BEGINNING, done("PNG")), drawn("PNG", **headers)]) as server:
        with_events = client(server.url, on_event=told.append).draw(BODY, "png")
        without = client(server.url).draw(BODY, "png")
    assert with_events == without
    assert [progress_of(event) for event in told] == WORDS
    assert [sent["Accept"] for sent in server.headers] == ["text/event-stream, image/png;q=0.9", "image/png"]


def test_the_similarity_is_read_from_both_forms() -> None:
    for in_json, in_header, expected in ((0.61, "0.6100", 0.61), (None, "none", None)):
        answers = [stream(done(face_similarity=in_json)), drawn(**{"X-Face-Similarity": in_header})]
        with answering(answers) as server:
            assert client(server.url, on_event=lambda _: None).draw(BODY).face_similarity == expected
            assert client(server.url).draw(BODY).face_similarity == expected


def test_a_server_without_events_answers_the_same_request() -> None:
    told: list[ServerEvent] = []
    with answering([drawn()]) as server:
        assert client(server.url, on_event=told.append).draw(BODY).data == drawn().body
    assert told == []


def test_a_busy_server_is_asked_again_wherever_it_said_so() -> None:
    time = FakeTime()
    late = stream(BEGINNING[1], failed(TooManyRequestsError("64 requests are being worked on")))
    with answering([refused(429, **{"Retry-After": "3"}), late, stream(done())]) as server:
        assert client(server.url, time, on_event=lambda _: None).draw(BODY).num_attempts == 3
    assert time.slept == [3.0, 2.0], "the details of the event say it where the header would"


def error_of(answer: Canned) -> ClientError:
    with answering([answer]) as server, pytest.raises(ClientError) as caught:
        client(server.url, max_retries=0, on_event=lambda _: None).draw(BODY)
    return caught.value


def test_an_error_event_ends_as_its_status_would() -> None:
    error = error_of(stream(*BEGINNING, failed(StageUnavailableError("a stage can't be reached"))))
    assert error.exit_code is ExitCode.BUSY
    assert str(error) == "a stage can't be reached (HTTP 503)"


@pytest.mark.parametrize(
    ("answer", "exit_code", "says"),
    [
        (stream(*BEGINNING), ExitCode.UNREACHABLE, "ended before the picture came"),
        (stream(), ExitCode.UNREACHABLE, "ended before the picture came"),
        (stream(done()[:-1]), ExitCode.UNREACHABLE, "ended before the picture came"),
        (stream(b"event: done\ndata: {}\n\n"), ExitCode.SERVER_ERROR, "the event done is not complete"),
        (stream(b"event: error\ndata: {}\n\n"), ExitCode.SERVER_ERROR, "the event error is not complete"),
        (stream(b"event: step\ndata: [1]\n\n"), ExitCode.SERVER_ERROR, "no JSON object"),
        (stream(b"event: step\ndata: {\n\n"), ExitCode.SERVER_ERROR, "not JSON"),
        (stream(b"event: step\ndata: \xff\n\n"), ExitCode.SERVER_ERROR, "not UTF-8"),
        (stream(done(image="data:image/jpeg;base64,AAAA")), ExitCode.SERVER_ERROR, "holds no picture"),
        (stream(done("PNG")), ExitCode.SERVER_ERROR, "asked for image/jpeg, got image/png"),
        (stream(done(image="/etc/passwd")), ExitCode.SERVER_ERROR, "the event done is not complete"),
    ],
)
def test_what_is_not_the_picture(answer: Canned, exit_code: ExitCode, says: str) -> None:
    error = error_of(answer)
    assert says in str(error)
    assert error.exit_code is exit_code


@given(st.lists(st.integers(1, 40), max_size=60), st.sampled_from([b"\n", b"\r\n"]))
def test_events_are_the_same_however_they_are_cut(cuts: list[int], line_end: bytes) -> None:
    text = b"".join((*BEGINNING, b"id: 5\nretry: 10\nevent: x\ndata: {\ndata:}\n\n", done())).replace(b"\n", line_end)
    chunks, rest = [], text
    for cut in cuts:
        chunks.append(rest[:cut])
        rest = rest[cut:]
    assert list(events_in([*chunks, rest])) == list(events_in([text]))
    assert [event.name for event in events_in([text])][-2:] == ["x", "done"]


@given(st.binary(max_size=200))
def test_any_bytes_are_events_or_refused(text: bytes) -> None:
    try:
        for event in events_in([text, b"\n\n"]):
            progress_of(event)
    except BrokenEventsError as error:
        assert str(error)


@pytest.mark.parametrize("data", [{}, {"step": "1", "num_steps": 4, "remaining_s": 1.0}, {"message": 5}])
@pytest.mark.parametrize("name", ["step", "queued", "starting", "restarted", "newer than this client"])
def test_events_that_say_nothing_to_people_are_passed_over(name: str, data: dict[str, Any]) -> None:
    assert progress_of(ServerEvent(name=name, data=data)) is None


def run(answer: Canned, folder: Path, *more: str) -> tuple[int, str, dict[str, Any]]:
    reference = folder / "ref.png"
    reference.write_bytes(picture_bytes("PNG"))
    flags = ["--prompt", "p", "--reference-image", str(reference), "--output", str(folder / "out.jpg")]
    with answering([answer]) as server:
        status = main(["flux-ipadapter-faceid", *flags, "--url", server.url, *more])
    return status, server.headers[0]["Accept"], server.bodies[0]


def test_progress_is_shown_where_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, accept, _ = run(stream(*BEGINNING, done()), tmp_path, "--progress")
    shown = capsys.readouterr().err
    assert status == 0
    assert accept.startswith("text/event-stream")
    assert [line.split("s  ", 1)[1] for line in shown.splitlines()[2:7]] == [words.text for words in WORDS]


def test_no_events_are_asked_for_where_nobody_watches(tmp_path: Path) -> None:
    assert run(drawn(), tmp_path)[:2] == (0, "image/jpeg")


def test_a_terminal_gets_a_bar_that_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert run(stream(*BEGINNING, done()), tmp_path, "--json")[0] == 0
    assert re.search(r"\[===         \] +\d+ s  step 1 of 4", terminal.getvalue())
    assert re.search(r"\[============\] +\d+ s  step 4 of 4", terminal.getvalue())


def test_the_filled_bar_keeps_its_width() -> None:
    bars = [progress.filled_bar(step / 20) for step in range(21)]
    assert {len(text) for text in bars} == {progress.BAR_WIDTH + 2}
    assert [bars[0].count("="), bars[-1].count("=")] == [0, progress.BAR_WIDTH]


def test_wait_and_priority_are_sent_where_asked_for(tmp_path: Path) -> None:
    body = run(drawn(), tmp_path, "--max-wait", "20", "--priority", "high")[2]
    assert (body["max_wait_s"], body["priority"]) == (20.0, "high")
    body = run(drawn(), tmp_path)[2]
    assert body.keys().isdisjoint({"max_wait_s", "priority"})


def test_the_service_s_own_stream_is_read() -> None:
    async def test(service: Service) -> None:
        accept = {"Accept": "text/event-stream, image/webp;q=0.9"}
        response = await service.draw(accept, steps=3, seed=4, face_policy="prefer")
        canned = Canned(headers={"Content-Type": "text/event-stream"}, body=response.content)
        told: list[ServerEvent] = []
        with answering([canned]) as server:
            picture = client(server.url, on_event=told.append).draw(BODY, "webp")
        assert Image.open(io.BytesIO(picture.data)).size == (128, 96)
        assert (picture.seed, picture.model, picture.gpu_type) == (4, "embedded", "NVIDIA L40S")
        assert [event.name for event in told] == ["queued", "step", "step", "step"]
        assert all(progress_of(event) is not None for event in told)

    with_service(test)
