"""Who asks for what, and when: seeded arrivals for load tests, kept in a file so that two runs meet the same crowd.

    python -m benchmarks.traces --arrivals bursts --rate 2 --seconds 60 --seed 0 --out crowd.jsonl

A trace is plain data. :mod:`benchmarks.load` sends it over HTTP; a benchmark of the scheduler alone can submit the same
trace to an engine.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")

ArrivalProcess = Literal["poisson", "bursts"]

BURST_SIZE = 8
"""Mean number of requests in a burst: a page of pictures, asked for at once."""
BURST_SPREAD_S = 0.2
"""A burst's requests arrive within this time."""
MAX_SEED = 2**31


class TraceError(Exception):
    """A trace file that can't be used. The message names the line."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """One request of a trace.

    Attributes:
        at_s: seconds from the start of the trace.
        width_px, height_px: size of the picture; multiples of 16.
        num_steps: sampler steps.
        cfg: true guidance; above 1.0 every step costs two passes.
        person: whose face: a number from 0, the most asked-for first.
        seed: of the picture.
    """

    at_s: float
    width_px: int
    height_px: int
    num_steps: int
    cfg: float
    person: int
    seed: int

    def __post_init__(self) -> None:
        if self.at_s < 0.0 or self.num_steps < 1 or self.cfg < 1.0 or self.person < 0 or self.seed < 0:
            raise ValueError(f"not an arrival: {self}")
        if self.width_px <= 0 or self.height_px <= 0 or self.width_px % 16 or self.height_px % 16:
            raise ValueError(f"width_px and height_px must be positive multiples of 16: {self}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """What is asked for: values and how often, relative to one another.

    The defaults are a guess at a portrait service: previews and final pictures, guidance seldom.

    Attributes:
        sides_px: square pictures by their side.
        num_steps: sampler steps.
        cfg: true guidance.
        num_people: different reference faces.
        popularity: exponent of Zipf's law over people; 0.0 asks for all equally often.
    """

    sides_px: Mapping[int, float] = dataclasses.field(default_factory=lambda: {512: 0.4, 768: 0.2, 1024: 0.4})
    num_steps: Mapping[int, float] = dataclasses.field(
        default_factory=lambda: {4: 0.25, 8: 0.15, 20: 0.3, 28: 0.2, 50: 0.1}
    )
    cfg: Mapping[float, float] = dataclasses.field(default_factory=lambda: {1.0: 0.8, 3.5: 0.2})
    num_people: int = 32
    popularity: float = 1.0


def generate(
    *, arrivals: ArrivalProcess, rate_per_s: float, duration_s: float, seed: int, mix: Mix | None = None
) -> tuple[Arrival, ...]:
    """A trace: the same arguments, the same trace.

    Args:
        arrivals: ``poisson``: independent requests. ``bursts``: Poisson bursts of a geometric number of requests, mean
            :data:`BURST_SIZE`, within :data:`BURST_SPREAD_S`; the mean rate is the same.
        rate_per_s: mean number of requests a second.
        duration_s: length of the trace; a burst may reach beyond it.
        seed: of the generator.
        mix: what is asked for.
    """
    if rate_per_s <= 0.0 or duration_s <= 0.0:
        raise ValueError(f"rate and duration must be above 0, got {rate_per_s} and {duration_s}")
    mix = mix or Mix()
    # Two streams, so that another mix does not move the arrivals.
    when, what = random.Random(f"when {seed}"), random.Random(f"what {seed}")
    times = _poisson(when, rate_per_s, duration_s) if arrivals == "poisson" else _bursts(when, rate_per_s, duration_s)
    return tuple(_draw(what, mix, at_s) for at_s in sorted(times))


def _poisson(rng: random.Random, rate_per_s: float, duration_s: float) -> Iterator[float]:
    times = itertools.accumulate(rng.expovariate(rate_per_s) for _ in itertools.count())
    return itertools.takewhile(lambda at_s: at_s < duration_s, times)


def _bursts(rng: random.Random, rate_per_s: float, duration_s: float) -> Iterator[float]:
    for start_s in _poisson(rng, rate_per_s / BURST_SIZE, duration_s):
        yield start_s
        while rng.random() < 1.0 - 1.0 / BURST_SIZE:
            yield start_s + BURST_SPREAD_S * rng.random()


def _draw(rng: random.Random, mix: Mix, at_s: float) -> Arrival:
    side_px = _choose(rng, mix.sides_px)
    people = range(mix.num_people)
    return Arrival(
        at_s=round(at_s, 4),
        width_px=side_px,
        height_px=side_px,
        num_steps=_choose(rng, mix.num_steps),
        cfg=_choose(rng, mix.cfg),
        person=rng.choices(people, [(rank + 1.0) ** -mix.popularity for rank in people])[0],
        seed=rng.randrange(MAX_SEED),
    )


def _choose(rng: random.Random, weights: Mapping[T, float]) -> T:
    return rng.choices(list(weights), list(weights.values()))[0]


def write(path: Path, trace: Iterable[Arrival]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(dataclasses.asdict(arrival)) + "\n" for arrival in trace), encoding="utf-8")


def read(path: Path) -> tuple[Arrival, ...]:
    """A trace from its file, in the order of time.

    Raises:
        TraceError: a line is not an arrival, or there is none.
        OSError: the file can't be read.
    """
    trace: list[Arrival] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                trace.append(Arrival(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise TraceError(f"{path}, line {number}: {error}") from None
    if not trace:
        raise TraceError(f"{path} holds no requests")
    return tuple(sorted(trace, key=lambda arrival: arrival.at_s))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that describe a trace."""
    parser.add_argument("--arrivals", choices=("poisson", "bursts"), default="poisson", help="default %(default)s")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second, on average (default %(default)g)")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the trace (default %(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of the trace (default %(default)s)")
    parser.add_argument("--people", type=int, default=Mix().num_people, help="reference faces (default %(default)s)")
    defaults = Mix()
    for name in ("sides_px", "num_steps", "cfg"):
        values = getattr(defaults, name)
        shown = ",".join(f"{value}:{weight:g}" for value, weight in values.items())
        kind = float if name == "cfg" else int
        flag = "--" + name.removeprefix("num_").removesuffix("_px")
        parser.add_argument(flag, type=weights(kind), default=values, metavar="V:W,…", help=f"default {shown}")


def from_flags(arguments: argparse.Namespace) -> tuple[Arrival, ...]:
    """The trace that the flags of :func:`add_flags` describe."""
    mix = Mix(sides_px=arguments.sides, num_steps=arguments.steps, cfg=arguments.cfg, num_people=arguments.people)
    return generate(
        arrivals=arguments.arrivals,
        rate_per_s=arguments.rate,
        duration_s=arguments.seconds,
        seed=arguments.seed,
        mix=mix,
    )


def weights(kind: type[int] | type[float]) -> Any:
    """``512:0.4,1024:0.6`` or ``512`` as values and weights."""

    def weights(text: str) -> dict[Any, float]:
        pairs = (part.partition(":") for part in text.split(","))
        return {kind(value): float(weight or 1.0) for value, _, weight in pairs}

    return weights


def main(argv: Sequence[str] | None = None) -> int:
    """Write a trace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    trace = from_flags(arguments)
    write(arguments.out, trace)
    print(f"{len(trace)} requests in {trace[-1].at_s if trace else 0.0:.1f} s → {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
