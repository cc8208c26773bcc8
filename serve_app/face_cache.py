"""Prepared references by their content: kept by the face stage, and by every ingress in front of it."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Final

from engine.cache import ByteBudgetCache
from serve_app.stages import FaceJob, FaceProvider, FaceResult

_ENTRY_BYTES: Final = 1024
"""What an entry takes besides its array: key, box, counters, and a sentence of warning."""


class FaceCache:
    """What became of references, by their bytes and what was asked of them."""

    def __init__(self, cache_bytes: int) -> None:
        self._cache: ByteBudgetCache[str, FaceResult] = ByteBudgetCache(cache_bytes)

    def get(self, job: FaceJob, provider: FaceProvider) -> FaceResult | None:
        """The result of an earlier job like this one, marked as such.

        Args:
            provider: where it is encoded, which may be another place than the job asks for.
        """
        kept = self._cache.get(_key(job, provider))
        return None if kept is None else dataclasses.replace(kept, is_cached=True)

    def put(self, job: FaceJob, provider: FaceProvider, result: FaceResult) -> None:
        """Keep a result as long as there is room for it."""
        arrays = (result.reference.crop, result.reference.embedding)
        size_bytes = _ENTRY_BYTES + sum(array.nbytes for array in arrays if array is not None)
        self._cache.put(_key(job, provider), result, size_bytes=size_bytes)


def _key(job: FaceJob, provider: FaceProvider) -> str:
    return f"{hashlib.sha256(job.data).hexdigest()} {job.media_type} {job.policy} {provider}"
