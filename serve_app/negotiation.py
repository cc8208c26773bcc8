"""Which form an answer takes, from the ``Accept`` header (RFC 9110, section 12.5.1).

The server's order decides between forms that a caller wants equally, and JPEG comes first: clients that existed before
there was a choice send ``*/*``, or like axios ``application/json, text/plain, */*``, and must go on getting the JPEG.
Whoever wants JSON says so plainly, ``Accept: application/json``, or gives everything else a lower ``q``.

An event stream ends with a picture, too: ``Accept: text/event-stream, image/png;q=0.9`` asks for events and a PNG in
the last of them. A server that knows no events answers the same header with the PNG.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Final, Literal

from serve_app.errors import NotAcceptableError

PictureType = Literal["image/jpeg", "image/png", "image/webp"]
AnswerForm = Literal["image/jpeg", "image/png", "image/webp", "application/json", "text/event-stream"]

PICTURES: Final[tuple[PictureType, ...]] = ("image/jpeg", "image/png", "image/webp")
EVENT_STREAM: Final = "text/event-stream"
OFFERS: Final[tuple[AnswerForm, ...]] = (*PICTURES, "application/json", EVENT_STREAM)
"""In the server's order."""

MAX_RANGES: Final = 100
"""Of one header; browsers send eight. What stands behind them does not count: weighing 8,000, for which a header has
room, would keep this process from everybody else for a tenth of a second."""

_QVALUE = re.compile(r"(0(\.\d{0,3})?|1(\.0{0,3})?)")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Range:
    kind: str
    subtype: str
    q: float

    def specificity(self, offer: AnswerForm) -> int:
        """0: no match; 1: ``*/*``; 2: ``image/*``; 3: the type itself."""
        kind, _, subtype = offer.partition("/")
        if (self.kind, self.subtype) == (kind, subtype):
            return 3
        if (self.kind, self.subtype) == (kind, "*"):
            return 2
        return int((self.kind, self.subtype) == ("*", "*"))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Negotiated:
    """The form of the answer, and of the picture in it."""

    form: AnswerForm
    picture: PictureType


def negotiate(accept: str | None) -> Negotiated:
    """The answer's form and the picture's, from an ``Accept`` header.

    Raises:
        NotAcceptableError: nothing on offer fits.
    """
    form = choose(accept)
    if form == "application/json":
        return Negotiated(form=form, picture="image/jpeg")
    if form != EVENT_STREAM:
        return Negotiated(form=form, picture=form)
    ranges = _ranges(accept)
    return Negotiated(form=form, picture=max(PICTURES, key=lambda picture: _weight(picture, ranges)))


def wants_events(accept: str | None) -> bool:
    """Whether the answer is an event stream."""
    try:
        return choose(accept) == EVENT_STREAM
    except NotAcceptableError:
        return False


def choose(accept: str | None) -> AnswerForm:
    """The best offer for an ``Accept`` header.

    Elements that are malformed don't count. An image type that we don't write (``image/avif``) counts as a wish for
    any image where nothing else fits: a picture serves such a caller better than an error.

    Raises:
        NotAcceptableError: nothing on offer fits.
    """
    ranges = _ranges(accept)
    if not ranges:
        return OFFERS[0]
    weights = {offer: _weight(offer, ranges) for offer in OFFERS}
    best = max(OFFERS, key=lambda offer: weights[offer])  # max() keeps the first of equals: the server's order
    if weights[best] > 0.0:
        return best
    refused = {offer for offer in OFFERS if any(item.specificity(offer) and item.q == 0.0 for item in ranges)}
    if any(item.kind == "image" and item.q > 0.0 for item in ranges) and OFFERS[0] not in refused:
        return OFFERS[0]
    raise NotAcceptableError(f"the Accept header allows none of {', '.join(OFFERS)}")


def _ranges(accept: str | None) -> list[_Range]:
    parts = (accept or "").split(",", MAX_RANGES)[:MAX_RANGES]
    return [parsed for part in parts if (parsed := _parse(part)) is not None]


def _weight(offer: AnswerForm, ranges: list[_Range]) -> float:
    """The most specific range that matches decides, whatever the others say."""
    matches = [(item.specificity(offer), item.q) for item in ranges if item.specificity(offer)]
    return max(matches)[1] if matches else 0.0


def _parse(part: str) -> _Range | None:
    media_range, *parameters = (piece.strip() for piece in part.split(";"))
    kind, slash, subtype = media_range.lower().partition("/")
    if not slash or not _TOKEN.fullmatch(kind) or not _TOKEN.fullmatch(subtype) or (kind == "*" and subtype != "*"):
        return None
    q = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            if not _QVALUE.fullmatch(value.strip()):
                return None
            q = float(value)
    return _Range(kind=kind, subtype=subtype, q=q)
