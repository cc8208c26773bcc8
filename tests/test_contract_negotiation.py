"""Which form an answer takes. The cases of RFC 9110, section 12.5.1, and of clients seen in the field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import NotAcceptableError
from serve_app.negotiation import MAX_RANGES, OFFERS, choose, negotiate

JPEG, PNG, WEBP, JSON, EVENTS = OFFERS


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, JPEG),
        ("", JPEG),
        ("*/*", JPEG),
        ("image/*", JPEG),
        ("image/jpeg", JPEG),
        ("application/json", JSON),
        ("APPLICATION/JSON; charset=utf-8", JSON),
        ("application/*", JSON),
        ("image/png", PNG),
        ("image/webp", WEBP),
        ("image/webp;q=0.9, image/png", PNG),
        ("image/png;q=0.5, application/json;q=0.6", JSON),
        ("application/json, */*;q=0.1", JSON),
        ("application/json, text/plain, */*", JPEG),  # axios
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", WEBP),  # a browser
        ("image/jpeg;q=0, */*", PNG),
        ("image/jpeg;q=0.1, image/*;q=0.5", PNG),
        ("*/*;q=0.1, image/jpeg;q=0.05", PNG),
        ("image/avif", JPEG),
        ("image/svg+xml, text/html", JPEG),
        ("image/png;q=nonsense", JPEG),
        ("image/png;q=2, image/webp", WEBP),
        (",;,/,image/, ,", JPEG),
        ("application/json;q=0.001", JSON),
    ],
)
def test_choice(accept: str | None, form: str) -> None:
    assert choose(accept) == form


@pytest.mark.parametrize(
    "accept", ["text/html", "audio/*", "application/xml", "*/*;q=0", "image/jpeg;q=0", "image/avif, image/jpeg;q=0"]
)
def test_nothing_fits(accept: str) -> None:
    with pytest.raises(NotAcceptableError, match="image/jpeg, image/png, image/webp, application/json"):
        choose(accept)


@given(st.text())
def test_any_header_gives_an_answer_or_a_refusal(accept: str) -> None:
    try:
        assert choose(accept) in OFFERS
    except NotAcceptableError as error:
        assert "Accept header" in str(error)


@given(st.lists(st.tuples(st.sampled_from(OFFERS), st.integers(1, 1000)), min_size=1, unique_by=lambda pair: pair[0]))
def test_the_highest_weight_wins(wishes: list[tuple[str, int]]) -> None:
    accept = ", ".join(f"{form};q={weight / 1000:.3f}" for form, weight in wishes)
    best = max(weight for _, weight in wishes)
    assert (choose(accept), best) in wishes


def test_a_header_without_end_is_read_to_a_bound() -> None:
    assert negotiate(",".join([*["audio/ogg"] * (MAX_RANGES - 1), "image/png"])).form == "image/png"
    with pytest.raises(NotAcceptableError):
        negotiate(",".join([*["audio/ogg"] * MAX_RANGES, "image/png"]))
