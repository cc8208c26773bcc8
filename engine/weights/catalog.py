"""Where the files of a profile come from: repository, revision, size, checksum and licence. Data, and no network.

Every value below was read from a public source named beside it, none was guessed. A value that is not known is
``None`` (or ``"main"`` for a revision) with a comment that says what to fill in; ``verify`` then reports "unknown, not
checked", and ``pull`` takes what the hub states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from engine.profile import ModelProfile


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """A licence of weights.

    Attributes:
        name: what it is called, and what has to be typed to accept it.
        url: where its full text is.
        summary: what a person should know before agreeing; the text at ``url`` is what counts.
        must_be_accepted: whether nothing is downloaded before somebody has agreed.
    """

    name: str
    url: str
    summary: str
    must_be_accepted: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """One file on the Hugging Face hub.

    Attributes:
        repo_id, path: repository, and the file's name in it.
        revision: commit that is pinned; ``main`` where none is known.
        size_bytes, sha256: of the whole file; None where not known.
        is_gated: whether the repository asks for an account that has agreed to its licence.
    """

    repo_id: str
    path: str
    revision: str
    size_bytes: int | None
    sha256: str | None
    terms: Terms
    is_gated: bool = False

    @property
    def page(self) -> str:
        """The repository's page, where its licence is shown and agreed to."""
        return f"https://huggingface.co/{self.repo_id}"


FLUX_DEV_TERMS: Final = Terms(
    name="FLUX.1 [dev] Non-Commercial License",
    url="https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    # From github.com/black-forest-labs/flux model_licenses/LICENSE-FLUX1-dev, sections 1c, 2 and 4a.
    summary=(
        "The weights may be used for non-commercial purposes only: personal use, research, and testing or evaluation "
        "outside production. Using them to earn money, in a product, or in a service for end users needs a licence "
        "from Black Forest Labs. Section 4 also forbids, among other things, surveillance, biometric processing, "
        "military use, and whatever breaks privacy law: consider this before encoding anybody's face. Section 2 "
        "says what may be done with the pictures."
    ),
    must_be_accepted=True,
)

APACHE_TERMS: Final = Terms(
    name="Apache-2.0",
    url="https://www.apache.org/licenses/LICENSE-2.0",
    summary="Free for any use.",
    must_be_accepted=False,
)

CLIP_TERMS: Final = Terms(
    name="MIT (OpenAI CLIP)",
    url="https://github.com/openai/CLIP/blob/main/LICENSE",
    summary=(
        "The licence of OpenAI's CLIP repository; the model's page names none. Its model card calls deployed uses "
        "out of scope without testing in their own domain, and facial recognition out of scope altogether."
    ),
    must_be_accepted=False,
)

_FLUX_REPO: Final = "black-forest-labs/FLUX.1-dev"
# The commit that public caches and lock files of this repository name. The hub's own checksum is compared with ours
# before a byte is downloaded, so that a revision with other files could not slip in.
_FLUX_REVISION: Final = "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21"

_TEXT_ENCODERS_REPO: Final = "comfyanonymous/flux_text_encoders"
# Head of main: huggingface.co/comfyanonymous/flux_text_encoders/tree/main, "6af2a98"; in full in public lock files.
_TEXT_ENCODERS_REVISION: Final = "6af2a98e3f615bdfa612fbd85da93d1ed5f69ef5"

FLUX_DEV: Final[Mapping[str, RemoteFile]] = {
    "transformer": RemoteFile(
        repo_id=_FLUX_REPO,
        path="flux1-dev.safetensors",
        revision=_FLUX_REVISION,
        size_bytes=23_802_932_552,  # the hub's model API, siblings[].size
        # github.com/black-forest-labs/flux docs/text-to-image.md, column "sha256sum"
        sha256="4610115bb0c89560703c892c59ac2742fa821e60ef5871b33493ba544683abd7",
        terms=FLUX_DEV_TERMS,
        is_gated=True,
    ),
    "adapter": RemoteFile(
        repo_id="XLabs-AI/flux-ip-adapter-v2",
        path="ip_adapter.safetensors",
        # huggingface.co/XLabs-AI/flux-ip-adapter-v2/blob/<revision>/ip_adapter.safetensors shows the checksum;
        # the size is in the pointer that commit e1e07cc89062a09c7e012e763be5d32ed45a35e2 added.
        revision="f4a9a8b1214635a7a43bb1b076f487a220ab701d",
        size_bytes=1_057_356_424,
        sha256="8f2bfddaffc4fe2a6667bef24c8ce6075e81d01d0f6b0f9adbe46ad686057ee2",
        # The model's page is labelled apache-2.0; github.com/XLabs-AI/x-flux says that its models fall under
        # FLUX.1 [dev]'s licence, from which they are derived. The stricter of the two is what we ask for.
        terms=FLUX_DEV_TERMS,
    ),
    "t5": RemoteFile(
        repo_id=_TEXT_ENCODERS_REPO,
        path="t5xxl_fp16.safetensors",
        revision=_TEXT_ENCODERS_REVISION,
        size_bytes=9_787_841_024,
        # github.com/LykosAI/StabilityMatrix StabilityMatrix.Core/Helper/RemoteModels.cs, and the file's page
        sha256="6e480b09fae049a72d2a8c5fbccb8d3e92febeb233bbe9dfe7256958a9167635",
        terms=APACHE_TERMS,
    ),
    "clip": RemoteFile(
        repo_id=_TEXT_ENCODERS_REPO,
        path="clip_l.safetensors",
        revision=_TEXT_ENCODERS_REVISION,
        size_bytes=246_144_152,
        # github.com/LykosAI/StabilityMatrix StabilityMatrix.Core/Helper/RemoteModels.cs
        sha256="660c6f5b1abae9dc498ac2d21e1347d2abdb0cf6c0c0c8576cd796491d9a6cdd",
        terms=CLIP_TERMS,  # the repository says Apache-2.0, the weights are OpenAI's
    ),
    "clip_vision": RemoteFile(
        repo_id="openai/clip-vit-large-patch14",
        path="model.safetensors",
        revision="32bd64288804d66eefd0ccbe215aa642df71cc41",
        # huggingface.co/SG161222/Verus_Vision_1.0b/commit/ff4883bccc850cf0002b024698bf57f642134769 (the same file's
        # pointer: checksum and size); huggingface.co/InvokeAI/clip-vit-large-patch14 (a copy that names its origin)
        size_bytes=1_710_540_580,
        sha256="a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        terms=CLIP_TERMS,
    ),
    "autoencoder": RemoteFile(
        repo_id=_FLUX_REPO,
        path="ae.safetensors",
        revision=_FLUX_REVISION,
        size_bytes=335_304_388,
        # github.com/nixified-ai/flake flake-modules/models/models.nix pins this URL's checksum (there in base 32)
        sha256="afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38",
        # BFL's README releases the autoencoder under Apache-2.0 as well; it lies in the gated repository all the same.
        terms=FLUX_DEV_TERMS,
        is_gated=True,
    ),
}

CATALOG: Final[dict[str, Mapping[str, RemoteFile]]] = {"flux-dev": FLUX_DEV}
"""Files by profile name, then by the role that ``ModelFiles`` gives them."""


def remote_files(profile: ModelProfile) -> dict[str, RemoteFile]:
    """A profile's files on the hub by the *name* they get in the model folder; empty where it has none there."""
    names: dict[str, str] = dataclasses.asdict(profile.files)
    return {names[role]: file for role, file in CATALOG.get(profile.name, {}).items()}


def terms_of(files: Mapping[str, RemoteFile]) -> dict[Terms, tuple[str, ...]]:
    """The licences of these files, each with the names it covers, those that have to be accepted first."""
    ordered = sorted(
        {file.terms for file in files.values()}, key=lambda terms: (not terms.must_be_accepted, terms.name)
    )
    return {terms: tuple(name for name, file in files.items() if file.terms == terms) for terms in ordered}
