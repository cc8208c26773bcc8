"""What the devices do with their time."""

from __future__ import annotations

from monitoring.dashboards.queries import W, heat, ratio
from monitoring.panels import Dashboard, Panel, Row

ENGINE = Dashboard(
    uid="likeness-engine",
    title="Likeness: GPU engine",
    text="What the devices do with their time: steps, batches, tokens, memory.",
    rows=(
        Row(
            title="Steps",
            panels=(
                Panel(
                    title="Devices busy",
                    text="Seconds of work a second, by what is done: 2 is two devices busy all the time.",
                    is_stacked=True,
                    queries={"{{stage}}": f"sum by (stage) (rate(likeness_device_seconds_total{W}))"},
                ),
                Panel(
                    title="Steps a second",
                    text="Forward passes, and steps of requests in them.",
                    queries={
                        "passes": f"rate(likeness_engine_steps_total{W})",
                        "requests' steps": f"rate(likeness_engine_sample_steps_total{W})",
                    },
                ),
                Panel(
                    title="A step takes",
                    text="Device seconds of one forward pass, on average.",
                    unit="s",
                    queries={
                        "mean": ratio('likeness_device_seconds_total{stage="denoise"}', "likeness_engine_steps_total")
                    },
                ),
                Panel(
                    title="Requests in a step",
                    text="At 1024x1024 one fills a large GPU; small pictures share steps.",
                    kind="heatmap",
                    queries=heat("likeness_engine_batch_requests"),
                ),
                Panel(
                    title="Requests in a step, on average",
                    text="Low with a long queue: the requests that wait are large, or don't fit together.",
                    queries={"mean": "likeness:batch_size:mean5m"},
                ),
                Panel(
                    title="Room used in a step",
                    text="Tokens in a step among those that would fit: engine.max_batch_tokens.",
                    unit="percentunit",
                    max_value=1.0,
                    queries={"used": "likeness:token_room_used:ratio5m"},
                ),
                Panel(
                    title="Tokens a second",
                    text="The devices' throughput, whatever the pictures' sizes.",
                    queries={"tokens": f"rate(likeness_engine_step_tokens_total{W})"},
                ),
                Panel(
                    title="Wasted steps",
                    text="Share of requests' steps that led to no picture: cancelled, past their deadline, failed.",
                    unit="percentunit",
                    queries={
                        "wasted": ratio("likeness_engine_wasted_steps_total", "likeness_engine_sample_steps_total")
                    },
                ),
                Panel(
                    title="How requests end",
                    text="In the engines: refused ones were not taken in, for want of room or time.",
                    unit="reqps",
                    queries={"{{outcome}}": f"sum by (outcome) (rate(likeness_engine_requests_total{W}))"},
                ),
            ),
        ),
        Row(
            title="Queue and cost model",
            panels=(
                Panel(
                    title="Requests in engines",
                    text="Before and after their first step.",
                    is_stacked=True,
                    queries={
                        "waiting": "likeness_engine_waiting_requests",
                        "running": "likeness_engine_running_requests",
                    },
                ),
                Panel(
                    title="Work in engines",
                    text="Predicted device seconds of everything that waits and runs.",
                    unit="s",
                    queries={"queued": "likeness_engine_queued_device_seconds"},
                ),
                Panel(
                    title="Steps are predicted wrong by",
                    text=(
                        "Median over each replica's last steps. Admission, scheduling and scaling "
                        "rest on the predictions."
                    ),
                    unit="percentunit",
                    limit="objective",
                    queries={
                        "{{replica}}": "likeness_cost_model_error_ratio",
                        "objective": "likeness:objective:cost_model_error",
                    },
                ),
            ),
        ),
        Row(
            title="Caches",
            panels=(
                Panel(
                    title="Cache hits",
                    text="Prompts and references that need no encoding; references of the face stage: cropped before.",
                    unit="percentunit",
                    max_value=1.0,
                    queries={
                        "{{cache}}": ratio(
                            'likeness_engine_cache_lookups_total{result="hit"}',
                            "likeness_engine_cache_lookups_total",
                            " by (cache)",
                        ),
                        "face stage": ratio('likeness_faces_total{cached="true"}', "likeness_faces_total"),
                    },
                ),
                Panel(
                    title="Cache memory",
                    text="Of all engines together.",
                    unit="bytes",
                    is_stacked=True,
                    queries={"{{cache}}": "likeness_engine_cache_bytes"},
                ),
            ),
        ),
        Row(
            title="Devices",
            panels=(
                Panel(
                    title="Memory",
                    text="Held by each replica, and the most it ever held.",
                    unit="bytes",
                    limit="total",
                    queries={
                        "{{replica}}": "likeness_device_memory_used_bytes",
                        "{{replica}} peak": "likeness_device_memory_peak_bytes",
                        "total": "max(likeness_device_memory_total_bytes)",
                    },
                ),
                Panel(
                    title="Kernels running",
                    text="Share of time, as the driver counts; says nothing about how well.",
                    unit="percentunit",
                    max_value=1.0,
                    queries={"{{replica}}": "likeness_device_utilisation_ratio"},
                ),
                Panel(
                    title="Temperature",
                    text="GPUs slow down at about 87 degrees.",
                    unit="celsius",
                    columns=4,
                    queries={"{{replica}}": "likeness_device_temperature_celsius"},
                ),
                Panel(
                    title="Power",
                    text="Of each device.",
                    unit="watt",
                    columns=4,
                    queries={"{{replica}}": "likeness_device_power_watts"},
                ),
            ),
        ),
    ),
)
