"""Whether the face is right."""

from __future__ import annotations

from monitoring.dashboards.queries import W, by_quantile, heat, ratio
from monitoring.panels import Dashboard, Panel, Row

IDENTITY = Dashboard(
    uid="likeness-identity",
    title="Likeness: identity",
    text="How alike the pictures' faces are to the references'. Measured where a request or the settings ask for it.",
    rows=(
        Row(
            title="Similarity",
            panels=(
                Panel(
                    title="Similarity over time",
                    text=(
                        "Of the face that was drawn to the reference's. 0.5 is where dlib calls two "
                        "photos one person; photos of one person have 0.74 in the median, of two "
                        "0.37."
                    ),
                    columns=12,
                    max_value=1.0,
                    queries=by_quantile("likeness_identity_score", 0.05, 0.5, 0.95),
                ),
                Panel(
                    title="Distribution",
                    text="Of all that were measured in the time shown.",
                    kind="bars",
                    columns=12,
                    queries={"{{le}}": "sum by (le) (increase(likeness_identity_score_bucket[$__range]))"},
                ),
                Panel(
                    title="Median of the last hour",
                    text="One number to compare releases by.",
                    kind="stat",
                    columns=6,
                    queries={"": "likeness:identity_score:p50_1h"},
                ),
                Panel(
                    title="Called the same person",
                    text="Share above 0.5, over the last hour.",
                    unit="percentunit",
                    kind="stat",
                    columns=6,
                    queries={
                        "": (
                            '1 - sum(rate(likeness_identity_score_bucket{le="0.5"}[1h])) / '
                            "(sum(rate(likeness_identity_score_count[1h])) > 0)"
                        )
                    },
                ),
                Panel(
                    title="Similarity, all of them",
                    text="A band below 0.5: references that the model can't follow.",
                    kind="heatmap",
                    columns=12,
                    queries=heat("likeness_identity_score"),
                ),
            ),
        ),
        Row(
            title="References",
            panels=(
                Panel(
                    title="Faces in references",
                    text="found: cropped to. fallback: none found, the whole picture taken. whole: as asked.",
                    unit="reqps",
                    is_stacked=True,
                    queries={"{{result}}": f"sum by (result) (rate(likeness_faces_total{W}))"},
                ),
                Panel(
                    title="Share of pictures measured",
                    text="With a similarity, among all that were sent.",
                    unit="percentunit",
                    queries={"measured": ratio("likeness_identity_score_count", "likeness_images_total")},
                ),
                Panel(
                    title="Measuring takes",
                    text="p95 of the identity stage, for requests that ask for it.",
                    unit="s",
                    queries={
                        "{{stage}}": (
                            "histogram_quantile(0.95, sum by (le, stage) "
                            f'(rate(likeness_stage_seconds_bucket{{stage=~"identity|face"}}{W})))'
                        )
                    },
                ),
            ),
        ),
    ),
)
