"""What holds for every test."""

from __future__ import annotations

import os

# Before anything imports Triton: its own library, too, asks for this when it is defined.
os.environ["TRITON_INTERPRET"] = "1"

from hypothesis import HealthCheck, settings

# How long an example takes tells how busy the machine is, and nothing of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
