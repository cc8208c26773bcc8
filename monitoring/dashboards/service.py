"""What callers see."""

from __future__ import annotations

from monitoring.dashboards.queries import W, by_quantile, heat, ratio
from monitoring.panels import Dashboard, Panel, Row

SERVICE = Dashboard(
    uid="likeness-service",
    title="Likeness: service",
    text="What callers see: traffic, latency, failures, cost.",
    rows=(
        Row(
            title="Now",
            panels=(
                Panel(
                    title="Requests a second",
                    text="That ended, however.",
                    unit="reqps",
                    kind="stat",
                    columns=4,
                    rows=4,
                    queries={"": "sum(likeness:requests:rate5m)"},
                ),
                Panel(
                    title="In flight",
                    text="Requests being worked on, in all ingress replicas.",
                    kind="stat",
                    columns=4,
                    rows=4,
                    queries={"": "likeness_in_flight"},
                ),
                Panel(
                    title="Failures",
                    text="Share of the requests that ended in the last five minutes; ours, not the callers'.",
                    unit="percentunit",
                    kind="stat",
                    columns=4,
                    rows=4,
                    queries={"": "likeness:error_ratio:rate5m"},
                ),
                Panel(
                    title="p95 of a picture",
                    text="Waiting included, over the last five minutes.",
                    unit="s",
                    kind="stat",
                    columns=4,
                    rows=4,
                    queries={"": 'likeness:stage_seconds:p95_5m{stage="total"}'},
                ),
                Panel(
                    title="Cost of a picture",
                    text="Device seconds charged at the device's price, over the last hour.",
                    unit="currencyUSD",
                    kind="stat",
                    columns=4,
                    rows=4,
                    queries={"": "likeness:usd_per_image:rate1h"},
                ),
                Panel(
                    title="Cost an hour",
                    text="Charged to pictures over the last hour. Devices that wait for work are not in it.",
                    unit="currencyUSD",
                    kind="stat",
                    columns=4,
                    rows=4,
                    queries={"": "likeness:usd_per_hour:rate1h"},
                ),
            ),
        ),
        Row(
            title="Traffic and failures",
            panels=(
                Panel(
                    title="Requests by outcome",
                    text=(
                        "ok: a picture was sent. refused: the caller's doing, or a full house. "
                        "failed: ours. cancelled: the caller went away."
                    ),
                    unit="reqps",
                    is_stacked=True,
                    queries={"{{outcome}}": f"sum by (outcome) (rate(likeness_requests_total{W}))"},
                ),
                Panel(
                    title="Refusals and failures by reason",
                    text="The class of the error, as in the answer's type.",
                    unit="reqps",
                    is_stacked=True,
                    queries={
                        "{{reason}}{{outcome}} {{status}}": (
                            "sum by (reason, status) "
                            f'(rate(likeness_requests_total{{outcome=~"refused|failed"}}{W})) > 0 or '
                            f'sum by (outcome) (rate(likeness_requests_total{{outcome="failed"}}{W}))'
                        )
                    },
                ),
                Panel(
                    title="Failures among all requests",
                    text="The alert LikenessErrorRatioHigh looks at this. No requests, no curve.",
                    unit="percentunit",
                    limit="objective",
                    queries={"failed": "likeness:error_ratio:rate5m", "objective": "likeness:objective:error_ratio"},
                ),
                Panel(
                    title="Run again, or cut off",
                    text=(
                        "Requests whose stage died under them and that were run again; and those in "
                        "an ingress replica that died, which Serve's proxy sends again."
                    ),
                    unit="short",
                    queries={
                        "again: {{stage}}": "sum by (stage) (increase(likeness_replays_total[5m]))",
                        "cut off": "clamp_min(delta(likeness:requests_cut_off:total[5m]), 0)",
                    },
                ),
                Panel(
                    title="Turned away at the door",
                    text="Before the request was read: no key, too many headers, or a client's limits.",
                    unit="reqps",
                    is_stacked=True,
                    queries={"{{reason}}": f"sum by (reason) (rate(likeness_turned_away_total{W}))"},
                ),
                Panel(
                    title="Clients with keys",
                    text="The ten that use most of the devices' time.",
                    unit="s",
                    queries={
                        "{{client}}": "topk(10, sum by (client) (increase(likeness_client_device_seconds_total[5m])))"
                    },
                ),
            ),
        ),
        Row(
            title="Latency",
            panels=(
                Panel(
                    title="Time of a picture",
                    text="From the request's first byte to the answer.",
                    unit="s",
                    limit="objective p95",
                    queries={
                        **by_quantile("likeness_stage_seconds", 0.5, 0.95, 0.99, where='{stage="total"}'),
                        "objective p95": "likeness:objective:latency_p95_seconds",
                    },
                ),
                Panel(
                    title="Where the time goes, on average",
                    text=(
                        "Seconds a picture spends in each stage; encode is text and vision, route is "
                        "the way to the replica and back."
                    ),
                    unit="s",
                    is_stacked=True,
                    queries={"{{stage}}": 'likeness:stage_seconds:mean5m{stage!~"total|text|vision"}'},
                ),
                Panel(
                    title="p95 of each stage",
                    text="One picture in twenty spends longer there.",
                    unit="s",
                    queries={"{{stage}}": 'likeness:stage_seconds:p95_5m{stage!="total"}'},
                ),
                Panel(
                    title="Time of a picture, all of them",
                    text="Two bands are two kinds of requests, or two kinds of devices.",
                    unit="s",
                    kind="heatmap",
                    columns=16,
                    queries=heat("likeness_stage_seconds", '{stage="total"}'),
                ),
                Panel(
                    title="Waiting for a device",
                    text="Before the first step.",
                    unit="s",
                    queries=by_quantile("likeness_stage_seconds", 0.5, 0.95, where='{stage="queue"}'),
                ),
            ),
        ),
        Row(
            title="Pictures",
            panels=(
                Panel(
                    title="Pictures by form",
                    text="As the callers' Accept header asks.",
                    unit="reqps",
                    is_stacked=True,
                    queries={"{{form}}": f"sum by (form) (rate(likeness_images_total{W}))"},
                ),
                Panel(
                    title="Size and steps of a picture",
                    text="On average, as asked for: what the load is made of.",
                    queries={
                        "megapixels": f"{ratio('likeness_image_pixels_total', 'likeness_images_total')} / 1e6",
                        "steps": ratio("likeness_image_steps_total", "likeness_images_total"),
                    },
                ),
                Panel(
                    title="Cost",
                    text="US dollars an hour, charged to pictures.",
                    unit="currencyUSD",
                    limit="objective",
                    queries={"an hour": "likeness:usd_per_hour:rate1h", "objective": "likeness:objective:usd_per_hour"},
                ),
            ),
        ),
    ),
)
