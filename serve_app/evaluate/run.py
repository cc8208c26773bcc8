"""An evaluation from its folder of photos to its report: look at the photos, draw, measure, write."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from engine.errors import ReferenceImageError
from engine.face.decode import ImageLimits, decode_image
from engine.face.identity import IdentityModel, IdentityVector
from serve_app.client_answer import DrawnPicture
from serve_app.data_url import Picture
from serve_app.evaluate import report, sheet
from serve_app.evaluate.draw import Drawn, Tell, draw_all
from serve_app.evaluate.measure import Album, Likeness, between_photos, compare
from serve_app.evaluate.people import PeopleError, Person
from serve_app.evaluate.plan import Endpoint, Job, make_plan
from serve_app.files import read_picture, write_atomically

PAGE_NAME: Final = "report.html"
JSON_NAME: Final = "report.json"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is evaluated.

    Attributes:
        folder: where pictures and report go.
        concurrency: requests at once.
        command: as it was typed, for the report.
    """

    endpoints: Sequence[Endpoint]
    people: Sequence[Person]
    prompts: Sequence[str]
    num_seeds: int
    folder: Path
    concurrency: int
    command: str


def evaluate(
    request: Request, model: IdentityModel, draw: Callable[[Job, Picture], DrawnPicture], tell: Tell
) -> dict[str, Any]:
    """Draw what is missing, measure everything, write the report; its numbers.

    Args:
        draw: one request; raises ClientError.

    Raises:
        PeopleError: no face is found in some of the photos. Nothing was drawn then.
        PlanError, InputFileError, OutputFileError, DrawingStoppedError: see where they are defined.
    """
    plan = list(make_plan(request.endpoints, request.people, request.prompts, num_seeds=request.num_seeds))
    references = {person.name: read_picture(person.reference) for person in request.people}
    album = look_at_photos(request.people, model, tell)

    def draw_job(job: Job) -> DrawnPicture:
        return draw(job, references[job.person.name])

    drawn = draw_all(request.folder, plan, references, draw_job, concurrency=request.concurrency, tell=tell)
    evaluation = report.Evaluation(
        command=request.command,
        endpoints=request.endpoints,
        people=request.people,
        prompts=request.prompts,
        plan=plan,
        drawn=drawn,
        likenesses=measure(request.folder, plan, drawn, album, model, tell),
        photos=between_photos(album),
    )
    tell("writing the report", 1.0)
    numbers = report.as_json(evaluation)
    write_atomically(request.folder / JSON_NAME, (json.dumps(numbers, indent=1) + "\n").encode())
    write_atomically(request.folder / PAGE_NAME, sheet.render(evaluation, numbers, request.folder).encode())
    return numbers


def look_at_photos(people: Sequence[Person], model: IdentityModel, tell: Tell) -> Album:
    """The photos as vectors. An other photo without a face is left out; a reference without one is refused.

    Raises:
        PeopleError: no face in some references; all of them are named.
    """
    references: dict[str, IdentityVector] = {}
    others: dict[str, list[IdentityVector]] = {}
    faceless: list[Path] = []
    for place, person in enumerate(people, start=1):
        tell(f"looking at the photos, {place}/{len(people)}", place / len(people))
        vector = look(person.reference, model)
        if vector is None:
            faceless.append(person.reference)
        else:
            references[person.name] = vector
        seen = (look(photo, model) for photo in person.others)
        others[person.name] = [vector for vector in seen if vector is not None]
    if faceless:
        names = ", ".join(str(path) for path in faceless)
        raise PeopleError(f"no face is found in {names}: use other photos, or leave these people out")
    return Album(references=references, others=others)


def measure(
    folder: Path,
    plan: Sequence[Job],
    drawn: Mapping[Path, Drawn],
    album: Album,
    model: IdentityModel,
    tell: Tell,
) -> dict[Path, Likeness]:
    """Every picture that was drawn against the photos, by :attr:`Job.path`."""
    jobs = [job for job in plan if not drawn[job.path].error]
    likenesses: dict[Path, Likeness] = {}
    for place, job in enumerate(jobs, start=1):
        tell(f"measuring, {place}/{len(jobs)}", place / len(jobs))
        likenesses[job.path] = compare(
            album,
            look(folder / job.path, model),
            endpoint=job.endpoint.name,
            person=job.person.name,
            prompt_index=job.prompt_index,
            seed=job.seed,
        )
    return likenesses


def look(path: Path, model: IdentityModel) -> IdentityVector | None:
    """The face in a picture file.

    Raises:
        PeopleError: the file is no picture.
    """
    picture = read_picture(path)
    try:
        image = decode_image(picture.data, media_type=None, limits=ImageLimits())
    except ReferenceImageError as error:
        raise PeopleError(f"{path}: {error}") from None
    return model.vector(image)
