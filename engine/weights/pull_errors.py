"""Every error that fetching a model's files raises on purpose. Only operators see them, at a command line.

    PullError
    ├── NothingToPullError        the profile's files are not on the hub
    ├── LicenceNotAcceptedError   nobody has agreed to a licence that asks for it
    ├── AccessRefusedError        401 or 403: gated, and no token or one that may not
    ├── NotOnHubError             404: no such repository, revision or file
    ├── OtherFileError            the folder holds another file of that name
    ├── LocalFolderError          the folder can't be used
    │   ├── NotEnoughSpaceError   too little room, found before anything was fetched
    │   └── DiskFullError         no room left while writing
    ├── HubUnreachableError       no connection, or it broke too often
    ├── HubBusyError              429: too many requests
    ├── HubFailedError            the hub answered with an error of its own
    └── WrongContentError         size or checksum is not what it has to be

Messages are one sentence that says what to do. They name files, repositories and folders, never a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from engine.weights.catalog import Terms


class PullError(Exception):
    """Root of the tree.

    Attributes:
        is_passing: whether the same request may well succeed a little later.
        what: what happened, in a few words, for those that pass.
    """

    is_passing: ClassVar[bool] = False
    what: ClassVar[str] = ""


class NothingToPullError(PullError):
    """The catalog knows no files on the hub for this profile."""


class LicenceNotAcceptedError(PullError):
    """Weights under these terms are downloaded only after somebody has agreed.

    Attributes:
        covered: the files under each licence that is still to be accepted.
    """

    def __init__(self, covered: Mapping[Terms, tuple[str, ...]]) -> None:
        super().__init__(f"accept {' and '.join(terms.name for terms in covered)} first")
        self.covered = dict(covered)


class AccessRefusedError(PullError):
    """The hub does not let this account, or nobody in particular, read the repository."""


class NotOnHubError(PullError):
    """The hub has no such repository, revision or file."""


class OtherFileError(PullError):
    """A file of the right name is in the folder and is not the one to fetch; it is never overwritten unasked."""


class LocalFolderError(PullError):
    """The model folder can't be made, read or written."""


class NotEnoughSpaceError(LocalFolderError):
    """The files would not fit."""


class DiskFullError(LocalFolderError):
    """The file system filled up on the way. What was fetched is kept."""


class HubUnreachableError(PullError):
    """No connection, or one that broke."""

    is_passing = True
    what = "no connection"


class HubOfflineError(HubUnreachableError):
    """The user has switched the network off by HF_HUB_OFFLINE."""

    is_passing = False


class HubBusyError(PullError):
    """The hub limits how often it is asked."""

    is_passing = True
    what = "the hub is busy"


class HubFailedError(PullError):
    """An error of the hub's own, or an answer that makes no sense."""

    is_passing = True
    what = "the hub failed"


class WrongContentError(PullError):
    """The bytes are not those of the file that is wanted."""
