"""Actors that all replicas of an application share: one of each name, on the head node, owned by nobody."""

from __future__ import annotations

from typing import Any, Final

import ray
from ray.exceptions import RayError

NAMESPACE: Final = "likeness"

_HEAD_NODE: Final = "node:__internal_head__"
"""A resource that Ray gives the head node. An actor there ends with no replica, and with no node that is let go."""


class HeadActorLostError(RayError):  # type: ignore[misc]  # Ray has no types
    """The actor is not there now, nor can it be started."""


def head_actor(actor_class: type, name: str, *arguments: object) -> Any:
    """The handle of the actor of a name, which is started where there is none. Blocks for some milliseconds.

    It outlives every process that asks for it, and is started anew where it dies.

    Args:
        arguments: its constructor's.

    Raises:
        HeadActorLostError: it went away while it was looked for, or the cluster is out of reach.
    """
    actor = ray.remote(actor_class).options(
        name=name,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        resources={_HEAD_NODE: 0.001},
        max_restarts=-1,
        # Nothing is repeated by Ray: with max_task_retries, calls of one caller waited for ever behind the repeated one
        # after a restart (2.60, seen often). Who calls knows better what a lost call means.
        max_task_retries=0,
    )
    try:
        return actor.remote(*arguments)
    except (ValueError, ConnectionError) as error:  # ValueError: Ray's word for a name that nobody has any more
        raise HeadActorLostError(f"the actor {name} can't be found: {type(error).__name__}") from error
