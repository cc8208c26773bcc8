"""Traces: the same seed gives the same crowd, rates are what they say, files survive the way there and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import traces
from benchmarks.traces import ArrivalProcess, Mix, generate


def crowd(arrivals: ArrivalProcess = "poisson", **changes: Any) -> tuple[traces.Arrival, ...]:
    return generate(arrivals=arrivals, **({"rate_per_s": 5.0, "duration_s": 2000.0, "seed": 3} | changes))


@pytest.mark.parametrize("arrivals", ["poisson", "bursts"])
def test_the_seed_decides_everything(arrivals: ArrivalProcess) -> None:
    assert crowd(arrivals) == crowd(arrivals)
    assert crowd(arrivals) != crowd(arrivals, seed=4)


@pytest.mark.parametrize("arrivals", ["poisson", "bursts"])
def test_the_mean_rate_is_the_one_asked_for(arrivals: ArrivalProcess) -> None:
    times = [arrival.at_s for arrival in crowd(arrivals)]
    assert times == sorted(times)
    assert 0.93 < len(times) / 10_000 < 1.07


def test_bursts_come_closer_together_than_independent_requests() -> None:
    def variance_ratio(arrivals: ArrivalProcess) -> float:
        """Variance over mean of the number in each second: 1 for Poisson."""
        counts = [0] * 2001
        for arrival in crowd(arrivals):
            counts[int(arrival.at_s)] += 1
        mean = sum(counts) / len(counts)
        return sum((count - mean) ** 2 for count in counts) / len(counts) / mean

    assert 0.8 < variance_ratio("poisson") < 1.2
    assert variance_ratio("bursts") > 5.0


def test_another_mix_moves_no_arrival() -> None:
    other = crowd(mix=Mix(sides_px={256: 1.0}, num_people=1))
    assert [arrival.at_s for arrival in other] == [arrival.at_s for arrival in crowd()]
    assert {(arrival.width_px, arrival.person) for arrival in other} == {(256, 0)}


def test_values_come_as_often_as_their_weights_say_and_the_first_person_most() -> None:
    trace = crowd(mix=Mix(sides_px={512: 3.0, 1024: 1.0}))
    assert 0.70 < sum(arrival.width_px == 512 for arrival in trace) / len(trace) < 0.80
    asked = [sum(arrival.person == person for arrival in trace) for person in (0, 1, 31)]
    assert asked[0] > asked[1] > asked[2] > 0


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "crowd.jsonl"
    assert (
        traces.main(["--rate", "2", "--seconds", "20", "--sides", "256:1,512:2", "--steps", "4", "--out", str(path)])
        == 0
    )
    trace = traces.read(path)
    assert trace and {arrival.num_steps for arrival in trace} == {4}
    traces.write(path, trace)
    assert traces.read(path) == trace


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: "),
        ('{"at_s": 1.0}', "line 2: .*missing"),
        (
            '{"at_s": 1.0, "width_px": 500, "height_px": 512, "num_steps": 4, "cfg": 1.0, "person": 0, "seed": 0}',
            "line 2: width_px and height_px must be positive multiples of 16",
        ),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "crowd.jsonl"
    traces.write(path, crowd()[:1])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(traces.TraceError, match=words):
        traces.read(path)


def test_an_empty_file_is_no_trace(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(traces.TraceError, match="holds no requests"):
        traces.read(tmp_path / "empty")
