"""Work, replicas, starts."""

from __future__ import annotations

from monitoring.panels import Dashboard, Panel, Row

SCALING = Dashboard(
    uid="likeness-scaling",
    title="Likeness: scaling",
    text="How much work waits, how many replicas there are and should be, and what a start takes.",
    rows=(
        Row(
            title="Work and replicas",
            panels=(
                Panel(
                    title="Flux replicas",
                    text="Wanted by the policy, able to serve, and on their way.",
                    columns=12,
                    queries={
                        "wanted": 'likeness_scaling_wanted_replicas{deployment="FluxReplica"}',
                        "ready": 'likeness_replicas{deployment="FluxReplica", state="ready"}',
                        "starting": 'likeness_replicas{deployment="FluxReplica", state="starting"}',
                    },
                ),
                Panel(
                    title="Replicas of all stages",
                    text="That can serve.",
                    columns=12,
                    queries={"{{deployment}}": 'likeness_replicas{state="ready"}'},
                ),
                Panel(
                    title="Work that is owed",
                    text="Waiting and running, in seconds of one replica: what the policy sees.",
                    unit="s",
                    queries={"{{deployment}}": "likeness_scaling_owed_seconds"},
                ),
                Panel(
                    title="Work that arrives",
                    text="Seconds of one replica a second: 2 keeps two replicas busy.",
                    queries={"{{deployment}}": "likeness_scaling_arriving_ratio"},
                ),
                Panel(
                    title="A new request would wait",
                    text="Work in the engines, shared evenly over the Flux replicas.",
                    unit="s",
                    limit="objective",
                    queries={"wait": "likeness:wait_seconds", "objective": "likeness:objective:wait_seconds"},
                ),
                Panel(
                    title="Decisions by cause",
                    text=(
                        "Times another number was wanted. work: what is owed and arrives. busy, held,"
                        " awake: what keeps replicas. warm, minimum, maximum: the operator's bounds."
                    ),
                    columns=12,
                    queries={
                        "{{deployment}} {{cause}} {{direction}}": (
                            "sum by (deployment, cause, direction) "
                            "(increase(likeness_scaling_decisions_total[5m])) > 0 or sum by "
                            "(direction) (increase(likeness_scaling_decisions_total[5m]))"
                        )
                    },
                ),
                Panel(
                    title="Stages that can serve",
                    text="As /ready says; one that sleeps can.",
                    max_value=1.0,
                    columns=12,
                    queries={"{{stage}}": "likeness_stage_ready"},
                ),
            ),
        ),
        Row(
            title="Cold starts",
            panels=(
                Panel(
                    title="A start takes, p90",
                    text="From a replica's constructor until it can serve; the node's own start comes before.",
                    unit="s",
                    queries={
                        "{{deployment}}": (
                            "histogram_quantile(0.9, sum by (deployment, le) "
                            '(increase(likeness_cold_start_seconds_bucket{stage="total"}[1h])))'
                        )
                    },
                ),
                Panel(
                    title="What a Flux replica's start goes into",
                    text="On average over the last hour: each network's load, and the warm-up.",
                    unit="s",
                    is_stacked=True,
                    queries={
                        "{{stage}}": (
                            "sum by (stage) "
                            '(increase(likeness_cold_start_seconds_sum{deployment="FluxReplica", '
                            'stage!="total"}[1h])) / (sum by (stage) '
                            "(increase(likeness_cold_start_seconds_count[1h])) > 0)"
                        )
                    },
                ),
                Panel(
                    title="Starts",
                    text="Replicas that became able to serve, an hour.",
                    queries={
                        "{{deployment}}": (
                            'sum by (deployment) (increase(likeness_cold_start_seconds_count{stage="total"}[1h]))'
                        )
                    },
                ),
            ),
        ),
        Row(
            title="Cluster",
            panels=(
                Panel(
                    title="Ray's nodes",
                    text="As they report themselves; and addresses that Ray lists and that don't answer.",
                    queries={
                        "nodes": "count(ray_node_mem_total)",
                        "silent addresses": 'count(up{job="ray"} == 0) or vector(0)',
                    },
                ),
            ),
        ),
    ),
)
