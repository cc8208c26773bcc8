"""An operator's choices for scaling: the ``policy_kwargs`` of a deployment's ``autoscaling_config``.

They stand under ``deployments:``, so Serve applies a change in place and restarts nothing.
"""

from __future__ import annotations

import datetime
import re
import zoneinfo
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from serve_app.scaling.rules import USUAL_MAX_UTILISATION, WEEKDAYS, ScalingRules, WarmHours
from serve_app.strict import StrictSettings

POLICY = "serve_app.scaling.policy:WorkPolicy"
"""``policy_function`` of the deployments that scale by work."""

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def _time_of_day(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
        # Unquoted, YAML reads 20:00 as the number 1200.
        raise ValueError(f'must be a time of day in quotes, like "08:00", got {value!r}')
    return datetime.time.fromisoformat(value)


def _time_zone(value: str) -> str:
    time_zone(value)
    return value


TimeOfDay = Annotated[datetime.time, BeforeValidator(_time_of_day)]


class WarmHoursSettings(StrictSettings):
    """A floor by time of day. An end that is not after the start is on the next day."""

    num_replicas: int = Field(ge=1)
    days: list[Weekday] = Field(default=list(WEEKDAYS), min_length=1)
    start: TimeOfDay = datetime.time(0, 0)
    end: TimeOfDay = datetime.time(0, 0)


class ScalingSettings(StrictSettings):
    """See :class:`serve_app.scaling.rules.ScalingRules`. ``request_s``: what a request is taken to need, in seconds
    of a replica, until replicas have told better."""

    may_owe_s: float = Field(gt=0.0)
    cold_start_s: float = Field(ge=0.0)
    hold_s: float = Field(ge=0.0)
    idle_to_zero_s: float = Field(ge=0.0)
    request_s: float = Field(gt=0.0)
    max_utilisation: float = Field(default=USUAL_MAX_UTILISATION, gt=0.0, le=1.0)
    warm_hours: list[WarmHoursSettings] = Field(default_factory=list)
    time_zone: Annotated[str, AfterValidator(_time_zone)] = "UTC"

    @model_validator(mode="after")
    def _rules_make_sense(self) -> ScalingSettings:
        self.rules()
        return self

    def rules(self) -> ScalingRules:
        """These settings as the decision takes them."""
        warm_hours = [
            WarmHours(num_replicas=hours.num_replicas, days=tuple(hours.days), start=hours.start, end=hours.end)
            for hours in self.warm_hours
        ]
        return ScalingRules(
            may_owe_s=self.may_owe_s,
            cold_start_s=self.cold_start_s,
            hold_s=self.hold_s,
            idle_to_zero_s=self.idle_to_zero_s,
            max_utilisation=self.max_utilisation,
            warm_hours=tuple(warm_hours),
            time_zone=time_zone(self.time_zone),
        )


def time_zone(name: str) -> datetime.tzinfo:
    """A time zone by its IANA name. Raises ValueError where this machine knows none of that name."""
    if name == "UTC":  # also on machines without a time zone database
        return datetime.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"unknown time zone {name!r}; write an IANA name such as Europe/Berlin, or UTC") from None
