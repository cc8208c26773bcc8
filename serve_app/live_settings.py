"""What may change while requests are served: the ``user_config`` of the ingress, laid over ``args:``.

Serve hands it to running replicas in place; a change of ``args:`` restarts every replica of every stage.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from serve_app.settings import AppSettings, LimitSettings, PictureSettings, PriceSettings
from serve_app.strict import StrictSettings


class LiveLimits(StrictSettings):
    """Those of :class:`serve_app.settings.LimitSettings` that only the ingress keeps; None leaves what ``args`` say."""

    max_body_bytes: int | None = Field(default=None, ge=1)
    max_in_flight: int | None = Field(default=None, ge=1)
    body_timeout_s: float | None = Field(default=None, gt=0.0)
    request_timeout_s: float | None = Field(default=None, gt=0.0)


class LiveSettings(StrictSettings):
    """Whole sections replace those of ``args``; of the limits, each one that is set.

    Attributes:
        scaling: by deployment, what is laid over the ``policy_kwargs`` of its scaling policy. Checked together with
            them, by the policy itself and by ``likeness check-config``.
    """

    scaling: dict[str, dict[str, Any]] = Field(default_factory=dict)
    limits: LiveLimits = Field(default_factory=LiveLimits)
    pictures: PictureSettings | None = None
    prices: PriceSettings | None = None

    def over(self, settings: AppSettings) -> AppSettings:
        """The settings with these laid over.

        Raises:
            pydantic.ValidationError: a value that is fine alone contradicts the others.
        """
        limits = settings.limits.model_dump() | self.limits.model_dump(exclude_none=True)
        changes: dict[str, Any] = {"limits": LimitSettings.model_validate(limits)}
        for name in ("pictures", "prices"):
            if (section := getattr(self, name)) is not None:
                changes[name] = section
        return settings.model_copy(update=changes)
