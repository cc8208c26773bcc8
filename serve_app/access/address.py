"""A client's address. Behind a proxy everybody has the proxy's, unless the proxy is believed when it says for whom."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Scope

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

UNKNOWN: Final = "unknown"
LOOPBACK: Final = "127.0.0.1"

_IPV6_HOME_BITS: Final = 64
"""One household or server has at least so many addresses of its own (RFC 6177); so many are one client here."""


class AddressBook:
    """Finds addresses.

    ``X-Forwarded-For`` grows from left to right, and what a client wrote itself stands left. So it is read from the
    right, and the first address that is none of ours is the client's.

    Args:
        trusted_proxies: addresses and networks whose word counts.
    """

    def __init__(self, trusted_proxies: Sequence[str] = ()) -> None:
        self._networks = [ipaddress.ip_network(proxy) for proxy in trusted_proxies]

    def client_of(self, scope: Scope) -> str:
        """A name for the client: its IPv4 address, or its IPv6 network of 64 bits."""
        host, port = scope.get("client") or (UNKNOWN, 0)
        peer = _parse(host)
        if port == 0 and peer is not None:
            # uvicorn has put a forwarded address in place of its peer's, and no port: by default it believes whoever
            # connects from this machine. Whom to believe is decided here alone, so the peer is a local proxy again.
            peer = ipaddress.ip_address(LOOPBACK)
            is_trusted = bool(self._networks)
        else:
            is_trusted = peer is not None and self._is_trusted(peer)
        if is_trusted:
            peer = self._forwarded(Headers(scope=scope), peer)
        return UNKNOWN if peer is None else _name(peer)

    def _forwarded(self, headers: Headers, peer: Address | None) -> Address | None:
        for entry in reversed(",".join(headers.getlist("x-forwarded-for")).split(",")):
            address = _parse(entry.strip())
            if address is None:
                break  # a proxy of ours writes addresses; what stands further left is nobody's word
            peer = address
            if not self._is_trusted(address):
                break
        return peer

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _parse(text: str) -> Address | None:
    """An address, also as ``1.2.3.4:567`` and ``[::1]:567``, as some proxies write them."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


def _name(address: Address) -> str:
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address), _IPV6_HOME_BITS), strict=False))
