"""Counting in one process, summing over many, and the page that Prometheus reads."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from engine.fake import FakeEngine
from engine.profile import load_profile
from engine.request import ImageRequest
from serve_app.error_answers import ANSWERS, describe
from serve_app.errors import ServeAppError
from serve_app.metrics import table
from serve_app.metrics.cuda import CudaReader
from serve_app.metrics.engine import MeteredEngine, follow_device
from serve_app.metrics.ingress import IngressMetrics
from serve_app.metrics.ledger import FORGET_S, SILENCE_S, Ledger
from serve_app.metrics.metric import MAX_OPEN_SERIES, OTHER, Values
from serve_app.metrics.page import render
from serve_app.metrics.recorder import Recorder, Report


@dataclasses.dataclass
class Clock:
    """A clock that stands until it is moved."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def page_of(recorder: Recorder) -> dict[tuple[str, ...], float]:
    """Samples by name and label values, those in the order of the labels' names."""
    report = recorder.report()
    page = render(table.TABLE.values(), {**report.totals, **report.gauges}).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


# -- the table ---------------------------------------------------------------------------------------------------------


def test_names_follow_the_conventions_of_prometheus() -> None:
    units = ("seconds", "usd", "bytes", "ratio", "celsius", "watts", "tokens")
    for name, metric in table.TABLE.items():
        assert metric.text.endswith("."), name
        assert not name.endswith(("_total", "_count", "_sum", "_bucket", "_info")), name
        assert "_ms" not in name, "base units only"
        if metric.kind == "histogram" and not name.endswith(("_score", "_ratio", "_requests")):
            assert name.endswith("_seconds"), name
        for unit in units:
            assert unit not in name or name.endswith(unit) or name.startswith(f"device_{unit}"), name


def test_the_page_has_every_series_from_the_start_and_they_are_few() -> None:
    samples = page_of(Recorder())
    assert set(samples.values()) == {0.0}
    for metric in table.TABLE.values():
        if metric.series is not None:
            suffix = "_count" if metric.kind == "histogram" else ""
            assert sum(key[0] == metric.full_name + suffix for key in samples) == len(metric.series), metric.name
    assert len(samples) < 1200, "lines of one scrape, however many replicas there are"


def test_every_error_has_its_series_before_it_happens() -> None:
    ends = {(reason, status) for _, reason, status in table.REQUESTS.series or ()}
    for error, answer in ANSWERS.items():
        assert (answer.type_name or error.__name__, str(answer.status)) in ends
    unexpected = describe(ServeAppError("a bug of ours"), request_id="r")
    assert (unexpected.type_name, str(unexpected.status)) in ends


# -- one process -------------------------------------------------------------------------------------------------------


def test_a_label_that_is_not_listed_counts_as_other() -> None:
    recorder = Recorder()
    for word in ("a prompt of the caller's", "another"):
        recorder.add(table.REQUESTS, "ok", word, "200")
        recorder.add(table.IMAGES, word)
        recorder.observe(table.STAGE_SECONDS, 1.0, word)
    samples = page_of(recorder)
    assert samples["likeness_requests_total", OTHER, OTHER, OTHER] == 2
    assert samples["likeness_images_total", OTHER] == 2
    assert samples["likeness_stage_seconds_count", OTHER] == 2
    assert not any("caller" in part for key in samples for part in key)


def test_even_an_open_label_is_bounded_in_each_process() -> None:
    recorder = Recorder()
    for i in range(100):
        recorder.add(table.DEVICE_SECONDS, f"device {i}", "denoise")
    devices = {key: value for key, value in page_of(recorder).items() if key[0] == "likeness_device_seconds_total"}
    assert len(devices) == MAX_OPEN_SERIES + 1
    assert sum(devices.values()) == 100
    assert devices["likeness_device_seconds_total", OTHER, OTHER] == 100 - MAX_OPEN_SERIES


@given(st.lists(st.floats(0.0, 1e4), max_size=30))
def test_a_histogram_is_what_was_observed(values: list[float]) -> None:
    recorder = Recorder()
    for value in values:
        recorder.observe(table.STAGE_SECONDS, value, "total")
    samples = page_of(recorder)
    for edge in table.STAGE_SECONDS.buckets:
        assert samples["likeness_stage_seconds_bucket", repr(float(edge)), "total"] == sum(v <= edge for v in values)
    assert samples["likeness_stage_seconds_bucket", "+Inf", "total"] == len(values)
    assert samples["likeness_stage_seconds_count", "total"] == len(values)
    assert samples["likeness_stage_seconds_sum", "total"] == pytest.approx(sum(values))


def test_nothing_is_lost_between_threads() -> None:
    recorder = Recorder()

    def count() -> None:
        for _ in range(2000):
            recorder.add(table.ENGINE_STEPS)
            recorder.observe(table.IDENTITY_SCORE, 0.5)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    samples = page_of(recorder)
    assert samples["likeness_engine_steps_total",] == 8000
    assert samples["likeness_identity_score_count",] == 8000


def test_in_flight_is_what_came_in_and_did_not_end() -> None:
    async def test() -> None:
        metrics = IngressMetrics()
        for _ in range(3):
            metrics.entered()
        metrics.left(outcome="ok", status=200)
        metrics.left(outcome="cancelled", status=499)
        page = (await metrics.page(())).decode()
        assert "likeness_requests_received_total 3.0" in page
        assert "likeness_in_flight 1.0" in page

    asyncio.run(test())


# -- many processes ----------------------------------------------------------------------------------------------------


def steps(report: Values) -> float:
    return report.get((table.ENGINE_STEPS.name, ()), (0.0,))[0]


def a_report(source: str, number: int, num_steps: float, waiting: float = 0.0) -> Report:
    return Report(
        source=source,
        number=number,
        totals={(table.ENGINE_STEPS.name, ()): (num_steps,)},
        gauges={(table.ENGINE_WAITING.name, ()): (waiting,)},
    )


def test_totals_outlive_their_process_and_gauges_do_not() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    waiting = (table.ENGINE_WAITING.name, ())
    ledger.take(a_report("a", 1, 10, waiting=3))
    clock.now_s = SILENCE_S - 1
    ledger.take(a_report("b", 1, 5, waiting=2))
    assert (steps(ledger.sums()), ledger.sums()[waiting]) == (15, (5,))
    clock.now_s = SILENCE_S
    assert (steps(ledger.sums()), ledger.sums()[waiting]) == (15, (2,))
    clock.now_s = 3 * FORGET_S
    assert (steps(ledger.sums()), ledger.sums().get(waiting)) == (15, None)
    ledger.take(a_report("a", 2, 11, waiting=9))
    assert (steps(ledger.sums()), ledger.sums().get(waiting)) == (15, None), "what was added up may not come back"


def test_a_report_twice_or_late_changes_nothing() -> None:
    ledger = Ledger(clock=Clock())
    for number in (1, 3, 2, 3, 1):
        ledger.take(a_report("a", number, 10.0 * number))
    assert steps(ledger.sums()) == 30


Event = tuple[str, int]
EVENTS = ("count", "report", "report late", "leave", "die", "scrape", "an hour passes", "ledger dies")
events = st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 3)), max_size=60)


@settings(max_examples=300)
@given(events)
def test_sums_never_sink_and_end_exact_whoever_dies(script: list[Event]) -> None:
    """Four processes that count, report, leave, die and are replaced, and a ledger that dies: the law of it all."""
    clock = Clock()
    ledger = Ledger(clock=clock)
    living = {slot: Recorder() for slot in range(4)}
    reported: dict[str, float] = {}  # what of each process must not be lost any more
    late: list[Report] = []
    shown, saved, is_exact = 0.0, "", True

    def report(slot: int) -> None:
        ledger.take(sent := living[slot].report())
        reported[sent.source] = steps(sent.totals)

    def scrape() -> None:
        nonlocal shown, saved
        total = steps(ledger.sums())
        saved = ledger.save()
        assert total >= shown
        shown = total

    for what, slot in script:
        clock.now_s += 1.0
        match what:
            case "count":
                living[slot].add(table.ENGINE_STEPS, by=0.1 * (slot + 1))  # adding these up depends on the order
            case "report":
                report(slot)
            case "report late":
                if late:
                    ledger.take(late.pop())
                late.append(living[slot].report())
            case "leave":
                report(slot)
                living[slot] = Recorder()
            case "die":
                living[slot] = Recorder()
            case "scrape":
                scrape()
            case "an hour passes":
                clock.now_s += FORGET_S
                for alive in living:
                    report(alive)
                scrape()
            case "ledger dies":
                is_exact &= not set(reported) - {recorder.source for recorder in living.values()}
                ledger = Ledger(clock=clock, saved=saved)
                assert steps(ledger.sums()) >= shown, "what was shown was written down before"
    for alive in living:
        report(alive)
    # Reports that came in late may hold more than the one that was noted; a ledger and a process, both dead, lose.
    if is_exact and not late:
        assert steps(ledger.sums()) == pytest.approx(sum(reported.values()))


def test_a_ledger_remembers_who_may_not_come_back() -> None:
    clock = Clock()
    first = Ledger(clock=clock)
    first.take(a_report("a", 1, 10))
    clock.now_s = FORGET_S
    first.sums()
    second = Ledger(clock=clock, saved=first.save())
    second.take(a_report("a", 2, 12))
    assert steps(second.sums()) == 10


def test_who_leaves_in_peace_leaves_its_totals_and_no_gauges() -> None:
    recorder, ledger = Recorder(), Ledger(clock=Clock())
    recorder.close_with(lambda timeout_s: ledger.take(recorder.report()))
    recorder.set(table.ENGINE_WAITING, 3)
    ledger.take(recorder.report())
    recorder.add(table.ENGINE_STEPS, by=7)
    recorder.close()
    assert ledger.sums() == {(table.ENGINE_STEPS.name, ()): (7.0,)}


# -- engines and devices -----------------------------------------------------------------------------------------------


def test_a_metered_engine_counts_every_step_and_every_end() -> None:
    recorder = Recorder("replica-1")
    engine = MeteredEngine(FakeEngine(load_profile("embedded"), step_s=0.1, sleep=lambda _: None), recorder, "CPU")
    for i in range(3):
        engine.submit(ImageRequest(request_id=f"{i}", prompt="p", width_px=64, height_px=64, num_steps=2 + i))
    engine.step()
    engine.cancel("2")
    while engine.has_work:
        engine.step()
    stats, samples = engine.stats(), page_of(recorder)
    assert samples["likeness_engine_batch_requests_count",] == stats.num_steps
    assert samples["likeness_engine_batch_requests_sum",] == stats.num_sample_steps
    assert samples["likeness_engine_batch_requests_bucket", "3.0"] == stats.num_steps
    assert samples["likeness_engine_wasted_steps_total",] == stats.num_wasted_steps == 1
    assert samples["likeness_engine_step_tokens_total",] == stats.num_step_tokens > 0
    assert samples["likeness_engine_step_token_room_total",] == stats.num_steps * stats.max_step_tokens
    assert samples["likeness_engine_requests_total", "finished"] == 2
    assert samples["likeness_engine_requests_total", "cancelled"] == 1
    assert stats.cost_model_error is not None
    assert samples["likeness_cost_model_error_ratio", "replica-1"] == stats.cost_model_error
    assert samples["likeness_device_seconds_total", "CPU", "denoise"] == pytest.approx(stats.device_s)


class Cuda:
    """``torch.cuda`` on a machine whose driver may not tell the power, and counts being asked for it."""

    def __init__(self, power_mw: int | None = None) -> None:
        self.power_mw = power_mw
        self.num_asked = 0

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(total_memory=80 * 2**30)

    def memory_reserved(self) -> int:
        return 30 * 2**30

    def max_memory_reserved(self) -> int:
        return 40 * 2**30

    def temperature(self) -> int:
        return 61

    def utilization(self) -> int:
        return 97

    def power_draw(self) -> int:
        self.num_asked += 1
        if self.power_mw is None:
            raise RuntimeError("NVML_ERROR_NOT_SUPPORTED")
        return self.power_mw


def test_a_device_is_shown_as_far_as_it_tells() -> None:
    recorder, cuda = Recorder("replica-1"), Cuda()
    follow_device(recorder, "NVIDIA H200", CudaReader(cuda))
    labels = ("NVIDIA H200", "replica-1")
    samples = page_of(recorder)
    samples = page_of(recorder)
    assert samples["likeness_device_memory_peak_bytes", *labels] == 40 * 2**30
    assert samples["likeness_device_memory_total_bytes", *labels] == 80 * 2**30
    assert samples["likeness_device_temperature_celsius", *labels] == 61
    assert samples["likeness_device_utilisation_ratio", *labels] == 0.97
    assert ("likeness_device_power_watts", *labels) not in samples
    assert cuda.num_asked == 1, "what is not to be had is not asked for every second"
