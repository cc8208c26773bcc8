"""What is drawn: every person with every prompt and seed, at every endpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from serve_app import data_url
from serve_app.client import check_url
from serve_app.client_answer import ClientError
from serve_app.data_url import Picture
from serve_app.evaluate.people import Person

PROMPTS: Final = (
    "A professional portrait, studio light, grey background",
    "A portrait in a sunlit garden, smiling",
    "A person in a red jacket on a city street at night",
    "A person wearing sunglasses at the beach",
    "A black and white photo, close-up, serious",
    "An astronaut in a space suit, stars behind",
    "A watercolour painting of a person",
    "A person reading in a library, looking to the left",
)
"""The packaged set: plain portraits first, then what makes keeping a face hard."""

FIRST_SEED: Final = 42
SETTABLE: Final[Mapping[str, type]] = {
    "steps": int,
    "cfg": float,
    "guidance": float,
    "ipadapter_strength": float,
    "width": int,
    "height": int,
    "scheduler": str,
    "face_policy": str,
    "face_provider": str,
    "negative_prompt": str,
}
"""Fields of the contract that an endpoint may be asked with."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


class PlanError(Exception):
    """What is asked for makes no plan. The message says what to change."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """One side of the comparison.

    Attributes:
        name: a plain word, unique.
        url: of a running service.
        fields: fields of the contract, beyond prompt, reference and seed.
    """

    name: str
    url: str
    fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One picture to be drawn.

    Attributes:
        prompt_index: place in the set of prompts.
    """

    endpoint: Endpoint
    person: Person
    prompt: str
    prompt_index: int
    seed: int

    @property
    def path(self) -> Path:
        """Of the picture, within the output folder."""
        return Path("pictures", self.endpoint.name, self.person.name, f"p{self.prompt_index:02d}-s{self.seed}.jpg")

    @property
    def pair(self) -> tuple[str, int, int]:
        """The same at every endpoint: what is compared side by side."""
        return self.person.name, self.prompt_index, self.seed

    def body(self, reference: Picture) -> dict[str, Any]:
        """The contract's JSON object."""
        fields = {"prompt": self.prompt, "seed": self.seed, **self.endpoint.fields}
        return {**fields, "reference_image": data_url.build(reference)}

    def fingerprint(self, reference: Picture) -> str:
        """Of everything that decides the picture on this side: another one is drawn anew."""
        words = json.dumps([self.endpoint.url, self.body(reference)], sort_keys=True)
        return hashlib.sha256(words.encode()).hexdigest()


def parse_endpoint(text: str, common: Mapping[str, Any]) -> Endpoint:
    """``NAME=URL`` or ``NAME=URL field=value …``; the endpoint's own fields go before the common ones.

    Raises:
        PlanError: anything else.
    """
    head, *settings = text.split()
    name, equals, url = head.partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise PlanError(f"an endpoint is NAME=URL with a name of letters, digits, - and _, not {text!r}")
    try:
        check_url(url)
    except ClientError as error:
        raise PlanError(str(error)) from None
    return Endpoint(name=name, url=url, fields={**common, **parse_fields(settings)})


def parse_fields(settings: Sequence[str]) -> dict[str, Any]:
    """``field=value`` parts as fields of the contract.

    Raises:
        PlanError: an unknown field, or not its kind of value.
    """
    return dict(_field(part) for part in settings)


def _field(part: str) -> tuple[str, Any]:
    field, equals, value = part.partition("=")
    if not equals or field not in SETTABLE:
        raise PlanError(f"{part!r} is not one of {', '.join(SETTABLE)} with =VALUE")
    try:
        return field, SETTABLE[field](value)
    except ValueError:
        raise PlanError(f"{field} must be a number, got {value!r}") from None


def make_plan(
    endpoints: Sequence[Endpoint], people: Sequence[Person], prompts: Sequence[str], *, num_seeds: int
) -> Iterator[Job]:
    """All pictures; endpoints take turns, so that what changes over time meets all of them.

    Raises:
        PlanError: two endpoints of one name.
    """
    names = [endpoint.name for endpoint in endpoints]
    if len(set(names)) < len(names):
        raise PlanError(f"endpoints need different names, got {', '.join(names)}")
    for person in people:
        for prompt_index, prompt in enumerate(prompts):
            for seed in range(FIRST_SEED, FIRST_SEED + num_seeds):
                for endpoint in endpoints:
                    yield Job(endpoint=endpoint, person=person, prompt=prompt, prompt_index=prompt_index, seed=seed)


def read_prompts(path: Path) -> tuple[str, ...]:
    """One prompt a line; empty lines and lines that begin with ``#`` don't count.

    Raises:
        PlanError: no such file, or no prompts in it.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"can't read prompts from {path}: {error}") from None
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    if not prompts:
        raise PlanError(f"{path} holds no prompts: write one a line")
    return prompts
