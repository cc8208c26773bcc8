"""The two stages behind the ingress, without Ray: what they cache, what they charge, how they write."""

from __future__ import annotations

import asyncio
import functools
import io
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from engine.errors import EngineStoppedError, RequestCancelledError
from engine.fake import FakeEngine
from engine.request import ImageRequest
from serve_app import data_url
from serve_app.encode import encode_picture
from serve_app.face_stage import FaceStage, FaceTools, open_tools
from serve_app.flux_replica import FluxReplica, OpenEngine, open_engine
from serve_app.metrics.metric import Values
from serve_app.metrics.recorder import Recorder
from serve_app.sample import SAMPLE_FACE_URL
from serve_app.settings import FaceSettings, FakeEngineSettings, LimitSettings
from serve_app.stages import DrawJob, FaceJob, FacePolicy, FaceProvider, PictureEncoding
from tests.asgi import embedded_profile, picture, until

PNG = PictureEncoding(format="png", quality=100)


def tools(encoder: Any = None) -> FaceTools:
    opened = open_tools(
        profile_name="embedded", model_dir="", settings=FaceSettings(cpu_encoder=False), limits=LimitSettings()
    )
    return FaceTools(preparer=opened.preparer, encoder=encoder)


def job(policy: FacePolicy = "prefer", provider: FaceProvider = "CPU", data: bytes = b"") -> FaceJob:
    sample = data_url.parse(SAMPLE_FACE_URL)
    return FaceJob(data=data or sample.data, media_type="image/webp", policy=policy, provider=provider)


class CountingEncoder:
    """Means of the three colours, and how often it was asked."""

    def __init__(self) -> None:
        self.num_crops = 0

    def encode(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        self.num_crops += len(crops)
        means: npt.NDArray[np.float32] = crops.mean(axis=(1, 2)).astype(np.float32)
        return means


def test_the_face_is_cropped_for_the_gpu_and_encoded_for_the_cpu() -> None:
    async def test() -> None:
        encoder = CountingEncoder()
        stage = FaceStage(lambda: tools(encoder), cache_bytes=2**20)
        crop = (await stage.prepare(job(provider="GPU"))).reference
        embedding = (await stage.prepare(job(provider="CPU"))).reference
        assert crop.crop is not None
        assert crop.crop.shape == (224, 224, 3)
        assert embedding.embedding is not None
        assert embedding.crop is None
        assert np.array_equal(embedding.embedding, encoder.encode(crop.crop[None])[0])
        assert crop.key != embedding.key, "their embeddings differ in the last bits, and are cached by key"

    asyncio.run(test())


def test_without_an_encoder_the_crop_is_passed_on_and_said_so() -> None:
    async def test() -> None:
        result = await FaceStage(tools, cache_bytes=0).prepare(job(provider="CPU"))
        assert result.provider == "GPU"
        assert result.reference.crop is not None

    asyncio.run(test())


def test_a_reference_is_prepared_once_for_each_way_of_asking() -> None:
    async def test() -> None:
        encoder = CountingEncoder()
        stage = FaceStage(lambda: tools(encoder), cache_bytes=2**20)
        first, again = await stage.prepare(job()), await stage.prepare(job())
        assert (first.is_cached, again.is_cached, encoder.num_crops) == (False, True, 1)
        assert (again.reference.key, again.box, again.width_px) == (first.reference.key, first.box, 64)
        others = [job("ignore"), job("require"), job(provider="GPU"), job(data=picture(format_="WEBP"))]
        assert [(await stage.prepare(other)).is_cached for other in others] == [False] * 4

    asyncio.run(test())


def test_the_cache_keeps_its_budget() -> None:
    async def test() -> None:
        stage = FaceStage(tools, cache_bytes=400_000)  # two crops of 150 kB
        jobs = [job(data=picture((10 * i, 0, 0))) for i in range(3)]
        for one in jobs:
            await stage.prepare(one)
        assert [(await stage.prepare(one)).is_cached for one in reversed(jobs)] == [True, True, False]

    asyncio.run(test())


def with_replica(
    test: Callable[[FluxReplica, FakeEngine], Coroutine[Any, Any, None]],
    *,
    step_s: float = 0.002,
    recorder: Recorder | None = None,
) -> None:
    async def run() -> None:
        engine = FakeEngine(embedded_profile(), step_s=step_s)
        replica = FluxReplica(lambda: OpenEngine(engine=engine, device_name="TPU v9"), lambda: recorder or Recorder())
        try:
            await test(replica, engine)
        finally:
            await replica.close()

    asyncio.run(run())


def draw_job(name: str, *, num_steps: int = 4) -> DrawJob:
    request = ImageRequest(request_id=name, prompt=name, width_px=64, height_px=64, num_steps=num_steps)
    return DrawJob(request=request, encoding=PNG)


def test_a_report_holds_what_the_engine_did_for_whomever() -> None:
    recorder = Recorder()

    async def test(replica: FluxReplica, engine: FakeEngine) -> None:
        results = await asyncio.gather(*(replica.draw(draw_job(f"{i}", num_steps=3 + i)) for i in range(4)))
        num_steps = engine.stats().num_steps
        gone = asyncio.create_task(replica.draw(draw_job("gone", num_steps=100)))
        await until(lambda: engine.stats().num_steps > num_steps + 5)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        results.append(await replica.draw(draw_job("last")))
        stats, totals = engine.stats(), recorder.report().totals
        expected: Values = {
            ("engine_steps", ()): (stats.num_steps,),
            ("engine_sample_steps", ()): (stats.num_sample_steps,),
            ("engine_requests", ("finished",)): (5,),
            ("engine_requests", ("cancelled",)): (1,),
            ("device_seconds", ("TPU v9", "denoise")): (stats.device_s,),
        }
        assert {series: totals[series] for series in expected} == expected
        charged_s = sum(result.device_s for result in results)
        assert charged_s < stats.device_s, "the one that went away is on the house"
        assert {result.device_name for result in results} == {"TPU v9"}

    with_replica(test, recorder=recorder)


def test_a_closed_engine_is_unhealthy_and_says_so_to_callers() -> None:
    async def test(replica: FluxReplica, engine: FakeEngine) -> None:
        await replica.check_health()
        engine.close()
        with pytest.raises(EngineStoppedError):
            await replica.check_health()
        with pytest.raises(EngineStoppedError):
            await replica.draw(draw_job("a"))

    with_replica(test)


def test_requests_dropped_by_the_engine_end() -> None:
    async def test(replica: FluxReplica, engine: FakeEngine) -> None:
        drawing = asyncio.create_task(replica.draw(draw_job("a", num_steps=100)))
        await until(lambda: engine.cancel("a"))
        with pytest.raises(RequestCancelledError):
            await drawing

    with_replica(test)


def test_fake_settings_reach_the_engine() -> None:
    settings = FakeEngineSettings(kind="fake", max_running=1, max_waiting=2, device_name="NVIDIA H100")
    opened = functools.partial(open_engine, profile_name="embedded", model_dir="", settings=settings)()
    assert opened.device_name == "NVIDIA H100"
    assert opened.engine.profile.name == "embedded"
    for name in ("a", "b"):
        opened.engine.submit(draw_job(name).request)
    with pytest.raises(Exception, match="wait here already"):
        opened.engine.submit(draw_job("c").request)


@pytest.mark.parametrize("format_", ["jpeg", "png", "webp"])
def test_files_hold_the_picture_and_nothing_else(format_: Any) -> None:
    y, x = np.mgrid[0:48, 0:64]
    image = np.stack([4 * x, 5 * y, 2 * x + 2 * y], axis=-1).astype(np.uint8)
    opened = Image.open(io.BytesIO(encode_picture(image, PictureEncoding(format=format_, quality=95))))
    assert (opened.format, opened.size, opened.mode) == (format_.upper(), (64, 48), "RGB")
    difference = np.abs(np.asarray(opened).astype(int) - image)
    assert difference.mean() <= (0 if format_ == "png" else 4)
    assert not opened.getexif()
    assert "icc_profile" not in opened.info
