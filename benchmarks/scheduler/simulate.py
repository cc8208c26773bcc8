"""The same crowds on simulated time: the same ledger and policies, devices made up from a cost model."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from typing import Any

from benchmarks.progress import tell
from benchmarks.scheduler.compare import ranking_agreement, summary, under_every_policy
from benchmarks.scheduler.crowds import Crowd, crowds, mix_as_json, mix_from_json, slowed
from benchmarks.simulation.fleet import Fleet, FleetSettings, Run, alone_seconds
from benchmarks.traces import Mix
from engine.cost_model import CostModel, LinearCost, step_features
from engine.profile import load_profile
from engine.scheduler import PolicyName, StepBudget

NUM_APPROACHES = 4
"""How often a device's slowness is corrected by how long it was busy."""


def simulate(arguments: argparse.Namespace) -> None:
    """The measured crowds again; then every fleet size, crowd and policy. The file is written anew after each size."""
    measured = json.loads((arguments.measured or arguments.full_size).read_text())
    if arguments.full_size:
        measured = as_measured(measured)
    profile, cost = load_profile(measured["profile"]), CostModel.from_dict(measured["cost_model"])
    mix = mix_from_json(measured["mix"])
    budget = StepBudget(max_samples=measured["max_batch_samples"], max_tokens=measured["max_batch_tokens"])
    settings = FleetSettings(profile=profile, cost=cost, policy="shortest_remaining", budget=budget, tick_s=1e6)
    twins = [twin_of(settings, mix, crowd, seed=arguments.seed) for crowd in measured["crowds"]]
    result: dict[str, Any] = {
        "command": arguments.command,
        "basis": str(arguments.measured or arguments.full_size),
        "profile": profile.name,
        "rankings": ranking_agreement(measured["crowds"], twins),
        "twins": twins,
        "fleets": [],
    }
    tell(f"rankings: {result['rankings']}")
    for num_replicas in arguments.replicas:
        made = crowds(
            profile,
            cost,
            mix,
            loads=arguments.loads,
            requests=arguments.requests * num_replicas if arguments.per_replica else arguments.requests,
            num_devices=num_replicas,
            seed=arguments.seed,
        )
        tell(f"{num_replicas} replicas")
        on_fleet = functools.partial(replay, dataclasses.replace(settings, num_replicas=num_replicas), cost)
        found = [under_every_policy(crowd, on_fleet) for crowd in made]
        result["fleets"].append({"num_replicas": num_replicas, "crowds": found})
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def twin_of(settings: FleetSettings, mix: Mix, measured: dict[str, Any], *, seed: int) -> dict[str, Any]:
    """The very crowd that was measured, each policy on a device as slow as it was while that policy was measured."""
    num_requests = measured["policies"]["first_come"]["num_requests"]
    made = crowds(
        settings.profile,
        settings.cost,
        mix,
        loads=(measured["load"],),
        requests=num_requests,
        num_devices=1,
        seed=seed,
    )
    (crowd,) = (crowd for crowd in made if crowd.arrivals == measured["arrivals"])
    slowness: dict[PolicyName, float] = {}

    def replayed(crowd: Crowd, policy: PolicyName) -> tuple[dict[str, Any], list[float]]:
        real, slow, factor = measured["policies"][policy], settings, 1.0
        for _ in range(NUM_APPROACHES):  # on a slower device more requests meet, and share steps
            factor *= real["utilisation"] * real["ended_s"] / _run(slow, crowd, policy).busy_s
            slow = dataclasses.replace(settings, cost=slowed(settings.cost, factor))
        slowness[policy] = round(factor, 3)
        return replay(slow, settings.cost, crowd, policy)

    tell(f"the measured crowd {crowd.name}, on devices as slow as then")
    return under_every_policy(crowd, replayed) | {"slowness": slowness}


def replay(
    settings: FleetSettings, cost: CostModel, crowd: Crowd, policy: PolicyName
) -> tuple[dict[str, Any], list[float]]:
    """See :data:`benchmarks.scheduler.compare.Replay`. ``cost`` says what a request takes alone."""
    run = _run(settings, crowd, policy)
    latencies_s = [outcome.latency_s for outcome in run.outcomes if outcome.latency_s is not None]
    found = summary(
        crowd.trace,
        latencies_s,
        [alone_seconds(arrival, settings.profile, cost) for arrival in crowd.trace],
        ended_s=run.ended_s,
        busy_s=run.busy_s,
        num_devices=settings.num_replicas,
    )
    return found, latencies_s


def _run(settings: FleetSettings, crowd: Crowd, policy: PolicyName) -> Run:
    return Fleet(dataclasses.replace(settings, policy=policy)).run(crowd.trace)


def as_measured(full_size: dict[str, Any]) -> dict[str, Any]:
    """What ``measure`` would write but for its crowds, from the step times of :mod:`benchmarks.full_size`."""
    profile = load_profile("flux-dev")
    samples = []
    for name, found in full_size["speed"].items():
        if " batch " in name:
            side_px, batch = int(name.split("x")[0]), int(name.rsplit(" ", 1)[1])
            tokens = profile.t5.max_tokens + profile.size.drawn_size(side_px, side_px).num_tokens
            samples.append((step_features([tokens] * batch), found["ours"]["median_ms"] / 1e3))
    first, again = full_size["request"]["first"], full_size["request"]["again"]
    free = LinearCost.of(0.0)
    cost = CostModel(
        step=LinearCost.fitted(samples),
        text=LinearCost.of(first["encode_s"] - again["encode_s"]),  # with the reference's, which came along
        vision=free,
        decode=LinearCost.of(0.0, again["decode_s"] / profile.size.native.num_pixels, 0.0),
    )
    return {
        "profile": profile.name,
        "device": full_size["device"],
        "mix": mix_as_json(Mix()),
        "max_batch_tokens": 8192,
        "max_batch_samples": 8,
        "cost_model": cost.to_dict(),
        "crowds": [],
    }
