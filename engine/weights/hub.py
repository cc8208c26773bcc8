"""Files of the Hugging Face hub over plain HTTP: what the hub says of a file, and its bytes from any point on.

huggingface_hub brings the session (proxies, certificates, ``HF_HUB_OFFLINE``, timeouts), the addresses, and the
meaning of the hub's error codes. Its own ``hf_hub_download`` is not used, for three reasons seen in release 2.4:
it writes to a file of a random name and deletes it when the connection breaks, so that 23 of 24 GB would be fetched
again; with hf-xet installed it speaks Xet, which can't go on from a partial file either and leaves for other servers;
and its metadata call asks the hub, unasked, which agent runs it. The hub serves any range of files up to 50 GB.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urljoin, urlsplit

import httpx2
from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)

from engine.weights.catalog import RemoteFile
from engine.weights.pull_errors import (
    AccessRefusedError,
    HubBusyError,
    HubFailedError,
    HubOfflineError,
    HubUnreachableError,
    NotOnHubError,
    PullError,
)

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
_MAX_REDIRECTS: Final = 5
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_FIRST_BYTE: Final = re.compile(r"bytes (\d+)-")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HubFile:
    """What the hub says of a file.

    Attributes:
        url: where its bytes are at the moment; addresses of storage servers expire.
        sha256: None for small files that are stored in git itself.
        commit: the commit that the asked revision stands for.
    """

    url: str
    size_bytes: int
    sha256: str | None
    commit: str | None


class Hub:
    """One hub and one account."""

    def __init__(self, *, endpoint: str | None = None, token: str | None = None) -> None:
        """``endpoint``: default https://huggingface.co. ``token``: sent to the hub itself, never to its storage."""
        self._endpoint = (endpoint or DEFAULT_ENDPOINT).rstrip("/")
        self._token = token

    def __repr__(self) -> str:
        return f"Hub({self._endpoint!r})"  # never the token

    def describe(self, file: RemoteFile) -> HubFile:
        """Ask for a file's size, checksum and place.

        Raises:
            AccessRefusedError, NotOnHubError, HubUnreachableError, HubBusyError, HubFailedError.
        """
        url = hf_hub_url(file.repo_id, file.path, revision=file.revision, endpoint=self._endpoint)
        with self._translated(file):
            for _ in range(_MAX_REDIRECTS):
                response = get_session().head(
                    url, headers=self._headers(url), follow_redirects=False, timeout=constants.HF_HUB_ETAG_TIMEOUT
                )
                hf_raise_for_status(response)
                location = response.headers.get("Location")
                # A redirect that says nothing of the file is a renamed repository or a mirror: ask there.
                if location is None or constants.HUGGINGFACE_HEADER_X_LINKED_SIZE in response.headers:
                    return _described(file, response, urljoin(url, location or ""))
                url = urljoin(url, location)
        raise HubFailedError(f"{file.repo_id}: the hub redirects in a circle")

    @contextlib.contextmanager
    def stream(self, file: RemoteFile, found: HubFile, *, first_byte: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The file's bytes from ``first_byte`` on: the position they really start at (0 where a server can't do
        ranges) and the pieces as they arrive. Raises as :meth:`describe`, also while pieces arrive.
        """
        headers = self._headers(found.url) | {"Range": f"bytes={first_byte}-"}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with (
            self._translated(file),
            get_session().stream("GET", found.url, headers=headers, timeout=timeout) as response,
        ):
            hf_raise_for_status(response)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise HubFailedError(f"{file.path}: a proxy on the way changes the encoding of the file")
            yield _first_byte(file, response), response.iter_raw()

    def _headers(self, url: str) -> dict[str, str]:
        headers = {"User-Agent": "likeness", "Accept-Encoding": "identity"}  # sizes and ranges of the file itself
        # The same origin as the endpoint, or the hub behind a mirror; storage gets signed addresses and no token.
        if self._token is not None and _origin(url) in (_origin(self._endpoint), _origin(DEFAULT_ENDPOINT)):
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    @contextlib.contextmanager
    def _translated(self, file: RemoteFile) -> Iterator[None]:
        try:
            yield
        except OfflineModeIsEnabled as error:
            raise HubOfflineError("HF_HUB_OFFLINE is set: unset it to download") from error
        except HfHubHTTPError as error:
            raise self._explained(file, error) from error
        except (httpx2.TransportError, httpx2.InvalidURL, httpx2.TooManyRedirects) as error:
            raise HubUnreachableError(
                f"{file.path}: the connection to {urlsplit(self._endpoint).netloc} failed "
                f"({type(error).__name__}): check the network and run the command again"
            ) from error

    def _explained(self, file: RemoteFile, error: HfHubHTTPError) -> PullError:
        status = error.response.status_code
        if status in (401, 403):
            return self._refused(file, error)
        if isinstance(error, RevisionNotFoundError):
            return NotOnHubError(f"{file.repo_id} has no revision {file.revision}: the catalog's pin is out of date")
        if isinstance(error, RemoteEntryNotFoundError):
            return NotOnHubError(f"{file.repo_id} has no file {file.path} at revision {file.revision}")
        if status in (404, 410):
            return NotOnHubError(f"{file.repo_id} does not exist on {self._endpoint}, or is private")
        if status == 429:
            return HubBusyError(f"{file.path}: the hub answered 429, too many requests: try again later")
        return HubFailedError(f"{file.path}: the hub answered {status}: try again later")

    def _refused(self, file: RemoteFile, error: HfHubHTTPError) -> AccessRefusedError:
        is_gated = file.is_gated or isinstance(error, GatedRepoError)
        if self._token is None and is_gated:
            return AccessRefusedError(
                f"{file.repo_id} is gated: agree to its licence on {file.page}, then set HF_TOKEN or --token-file to "
                f"a token of that account"
            )
        if self._token is None:
            return AccessRefusedError(f"{file.repo_id} does not exist, or is private and needs a token (HF_TOKEN)")
        if error.response.status_code == 401 and not isinstance(error, GatedRepoError):
            return AccessRefusedError("the hub does not know this token: it is mistyped, expired or revoked")
        return AccessRefusedError(
            f"the account of this token may not read {file.repo_id}: agree to its licence on {file.page} with that "
            f"account (a fine-grained token also needs the permission to read gated repositories)"
        )


def _described(file: RemoteFile, response: httpx2.Response, url: str) -> HubFile:
    headers = response.headers
    size = headers.get(constants.HUGGINGFACE_HEADER_X_LINKED_SIZE) or headers.get("Content-Length")
    if size is None or not size.isdecimal():
        raise HubFailedError(f"{file.path}: the hub does not say how large it is; is HF_ENDPOINT a hub?")
    etag = headers.get(constants.HUGGINGFACE_HEADER_X_LINKED_ETAG) or headers.get("ETag") or ""
    etag = etag.removeprefix("W/").strip('"')
    return HubFile(
        url=url,
        size_bytes=int(size),
        sha256=etag if _SHA256.fullmatch(etag) else None,
        commit=headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT),
    )


def _first_byte(file: RemoteFile, response: httpx2.Response) -> int:
    if response.status_code != 206:
        return 0
    match = _FIRST_BYTE.match(response.headers.get("Content-Range", ""))
    if match is None:
        raise HubFailedError(f"{file.path}: the server sent a part of the file without saying which")
    return int(match[1])


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()
