"""Draws a plan's pictures, a few at a time, and remembers which are there: an interrupted run goes on where it was."""

from __future__ import annotations

import dataclasses
import itertools
import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from serve_app.client_answer import ClientError, DrawnPicture
from serve_app.data_url import Picture
from serve_app.evaluate.plan import Job
from serve_app.exit_codes import ExitCode
from serve_app.files import write_atomically

HOPELESS = frozenset({ExitCode.UNREACHABLE, ExitCode.BAD_INPUT})
"""Ends of a request after which the next one will end the same way: nobody there, or a request that is wrong."""
MAX_HOPELESS = 3
"""So many of them, and none that went well, end the run."""

DrawCall = Callable[[Job], DrawnPicture]
Tell = Callable[[str, float], None]
"""Hears in a few words what is going on, and how much of it is done, 0 to 1."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """What is known of one picture, beside its bytes. Kept in a file of its own next to it.

    Attributes:
        fingerprint: see :meth:`serve_app.evaluate.plan.Job.fingerprint`.
        error: a sentence where there is no picture; empty otherwise.
    """

    fingerprint: str
    cost_usd: float | None = None
    execution_time_s: float | None = None
    model: str | None = None
    gpu_type: str | None = None
    warnings: tuple[str, ...] = ()
    error: str = ""


class DrawingStoppedError(Exception):
    """Going on makes no sense. The message is the last error's.

    Attributes:
        exit_code: how the command ends.
    """

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def already_drawn(folder: Path, job: Job, fingerprint: str) -> Drawn | None:
    """What an earlier run drew, if it is still what would be drawn now."""
    path = folder / job.path
    try:
        values = json.loads(_beside(path).read_text(encoding="utf-8"))
        drawn = Drawn(**{**values, "warnings": tuple(values["warnings"])})
    except (OSError, ValueError, TypeError, KeyError):  # not there, cut off, or of another version: draw it
        return None
    return drawn if drawn.fingerprint == fingerprint and path.is_file() else None


def draw_all(
    folder: Path,
    plan: Sequence[Job],
    references: Mapping[str, Picture],
    draw: DrawCall,
    *,
    concurrency: int,
    tell: Tell,
) -> dict[Path, Drawn]:
    """Every job's picture in ``folder``, by :attr:`Job.path`; those of an earlier run among them.

    Args:
        references: by person.
        draw: one request; raises ClientError.
        concurrency: requests at once.

    Raises:
        DrawingStoppedError: nothing answers, or it refuses every request.
        OutputFileError: a picture can't be written.
    """
    done: dict[Path, Drawn] = {}
    fingerprints = {job.path: job.fingerprint(references[job.person.name]) for job in plan}
    for job in plan:
        if (earlier := already_drawn(folder, job, fingerprints[job.path])) is not None:
            done[job.path] = earlier
    num_earlier, num_hopeless = len(done), 0
    left = [job for job in plan if job.path not in done]
    for job, outcome in _in_threads(left, draw, concurrency):
        if isinstance(outcome, ClientError):
            done[job.path] = Drawn(fingerprint=fingerprints[job.path], error=str(outcome))
            num_hopeless += outcome.exit_code in HOPELESS
            if num_hopeless >= MAX_HOPELESS and not any(not drawn.error for drawn in done.values()):
                raise DrawingStoppedError(str(outcome), outcome.exit_code)
        else:
            done[job.path] = _keep(folder, job, outcome, fingerprints[job.path])
        num_failed = sum(bool(drawn.error) for drawn in done.values())
        words = f"{len(done)}/{len(plan)} pictures" + f", {num_earlier} from an earlier run" * bool(num_earlier)
        tell(words + f", {num_failed} failed" * bool(num_failed), len(done) / len(plan))
    return done


def _keep(folder: Path, job: Job, picture: DrawnPicture, fingerprint: str) -> Drawn:
    drawn = Drawn(
        fingerprint=fingerprint,
        cost_usd=picture.cost_usd,
        execution_time_s=picture.execution_time_s,
        model=picture.model,
        gpu_type=picture.gpu_type,
        warnings=picture.warnings,
    )
    path = folder / job.path
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, picture.data)
    write_atomically(_beside(path), (json.dumps(dataclasses.asdict(drawn)) + "\n").encode())
    return drawn


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _in_threads(
    jobs: Sequence[Job], draw: DrawCall, num_threads: int
) -> Iterator[tuple[Job, DrawnPicture | ClientError]]:
    """Outcomes as they come; a thread gets its next job when the caller comes back for more.

    Daemon threads: an interrupted command must not wait for a picture.
    """
    waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[tuple[Job, DrawnPicture | BaseException]] = queue.SimpleQueue()

    def work() -> None:
        while (job := waiting.get()) is not None:
            try:
                outcomes.put((job, draw(job)))
            except BaseException as error:
                outcomes.put((job, error))

    left = iter(jobs)
    first = list(itertools.islice(left, num_threads))
    for number, job in enumerate(first):
        waiting.put(job)
        threading.Thread(target=work, name=f"draw-{number}", daemon=True).start()
    try:
        for _ in jobs:
            job, outcome = outcomes.get()
            if isinstance(outcome, BaseException) and not isinstance(outcome, ClientError):
                raise outcome
            yield job, outcome
            if (following := next(left, None)) is not None:
                waiting.put(following)
    finally:
        for _ in first:
            waiting.put(None)
