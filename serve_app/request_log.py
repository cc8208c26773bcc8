"""One line of the log for every picture request: what was asked in numbers, what came of it, where the time went.

Never the prompt, the picture, or anything else a caller wrote in words.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Final

from serve_app import tracing
from serve_app.structured_log import event_line

REQUEST_LOGGER: Final = "serve_app.request"

logger = logging.getLogger(REQUEST_LOGGER)


@dataclasses.dataclass(kw_only=True, slots=True)
class RequestRecord:
    """What is known of a request so far. The only mutable object of a request's road through the ingress.

    Attributes:
        request_id: as in ``X-Request-Id``.
        started_s: on the clock of whoever made the record.
        client: name of the client whose API key the request carried; empty without keys.
        outcome: ``ok``, ``cancelled`` or the error's class.
        status: HTTP status; 499 where the caller went away.
        num_body_bytes: size of the request's body.
        asked: the request's numbers (sizes, steps, seed …), never its words.
        stages_s: wall-clock seconds by stage.
    """

    request_id: str
    started_s: float
    client: str = ""
    outcome: str = ""
    status: int = 0
    num_body_bytes: int = 0
    asked: dict[str, Any] = dataclasses.field(default_factory=dict)
    stages_s: dict[str, float] = dataclasses.field(default_factory=dict)
    cost_usd: float = 0.0
    device_s: float = 0.0

    def log(self) -> None:
        """Write the line."""
        fields = dataclasses.asdict(self)
        del fields["started_s"]
        fields["stages_s"] = {name: round(seconds, 4) for name, seconds in self.stages_s.items()}
        if trace_id := tracing.current_trace_id():
            fields["trace_id"] = trace_id
        logger.info(event_line("request", **fields))
