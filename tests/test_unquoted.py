"""What callers wrote stays out of the words of errors that nobody expected."""

from __future__ import annotations

import asyncio
import pickle
import traceback

import pytest

from engine.fake import FakeEngine
from engine.request import ImageRequest
from serve_app.flux_replica import FluxReplica, OpenEngine
from serve_app.stages import DrawJob, PictureEncoding
from serve_app.unquoted import QuotingError, unquoted
from tests.asgi import embedded_profile

PROMPT = 'the "swordfish"\nof señor Ibáñez'


@pytest.mark.parametrize(
    "quoted", [PROMPT, repr(PROMPT), ascii(PROMPT), "C:\\x \\U00110000 " + PROMPT, f"token 3 of {PROMPT!r} is unknown"]
)
def test_an_error_that_quotes_is_told_without_its_words(quoted: str) -> None:
    def fail() -> None:
        try:
            raise KeyError(quoted)
        except KeyError as cause:
            raise ValueError("tokenizing failed") from cause

    try:
        fail()
    except ValueError as error:
        told = unquoted(error, "", PROMPT)
    assert str(told) == "ValueError, whose message quotes the request and is left out"
    text = "".join(traceback.format_exception(told))
    assert "swordfish" not in text
    assert "in fail" in text, "where it happened is kept"
    assert str(pickle.loads(pickle.dumps(told))) == str(told)


def test_any_other_error_is_itself() -> None:
    error = ValueError("the device is gone")
    assert unquoted(error, PROMPT, "", "a gone") is error
    assert unquoted(error, "gone") is error, "short words prove nothing"
    odd = ValueError("\\U00110000 \\x \\")
    assert unquoted(odd, PROMPT) is odd


def test_a_replica_says_nothing_that_its_engine_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(embedded_profile())

    def submit(request: ImageRequest) -> None:
        raise RuntimeError(f"can't encode {request.prompt}")

    monkeypatch.setattr(engine, "submit", submit)
    request = ImageRequest(request_id="a", prompt=PROMPT, width_px=64, height_px=64, num_steps=2)

    async def test() -> None:
        replica = FluxReplica(lambda: OpenEngine(engine=engine, device_name="CPU"))
        with pytest.raises(QuotingError, match="RuntimeError, whose message quotes"):
            await replica.draw(DrawJob(request=request, encoding=PictureEncoding(format="png", quality=100)))
        await replica.close()

    asyncio.run(test())
