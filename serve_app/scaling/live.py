"""Scaling numbers that change while the service runs: from the ingress's ``user_config`` to Serve's controller.

A change of ``policy_kwargs`` would do, had Serve not made them part of the application's code version: it then replaces
every replica of every stage. So the ingress, which hears of a new ``user_config`` in place, writes the numbers into the
cluster's key-value store, where Serve's controller keeps its own state, and the policy looks there now and then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from ray.experimental import internal_kv

NAMESPACE: Final = "likeness-scaling"


def publish(app_name: str, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Make known what is laid over the ``policy_kwargs`` of each deployment. Called by every ingress replica alike."""
    internal_kv._internal_kv_put(app_name, json.dumps(changes), namespace=NAMESPACE)


def changes_for(app_name: str, deployment: str) -> dict[str, Any]:
    """What is laid over a deployment's ``policy_kwargs``; nothing where nothing was said, or no Ray is here."""
    if not internal_kv._internal_kv_initialized():
        return {}
    known = internal_kv._internal_kv_get(app_name, namespace=NAMESPACE)
    changes: dict[str, Any] = json.loads(known).get(deployment, {}) if known else {}
    return changes
