"""Lets the host reach one port of a private network: a listening socket that belongs to the host, accepted inside.

A socket stays in the network namespace in which it was made, whoever holds it. So the host's side makes the
listening socket, and this side, which inherited it, accepts on it and connects to the service inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import socket
import threading

CHUNK_BYTES = 64 * 1024
BACKLOG = 128
"""Connections the kernel holds until they are accepted."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a TCP service listens."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


class PortError(Exception):
    """A port can't be had; the message says what to do."""

    def __init__(self, address: Address, error: OSError) -> None:
        if error.errno == errno.EADDRINUSE:
            what = (
                f"Port {address.port} on {address.host} is taken. Stop what listens there, or choose another port: "
                f"make serve PORT={address.port + 1}, or likeness serve --port {address.port + 1}"
            )
        else:
            what = f"Can't listen on {address.host} port {address.port}: {error.strerror}"
        super().__init__(what)


def reserve(address: Address) -> socket.socket:
    """A socket bound to ``address`` that does not listen yet: until the service is ready, callers are refused.

    Another process may still bind and listen there; then it is the relay that finds the port taken.

    Raises:
        PortError: the port is taken, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    reserved = socket.socket(family, socket.SOCK_STREAM)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((address.host, address.port))
    except OSError as error:
        reserved.close()
        raise PortError(address, error) from None
    return reserved


def start_relay(reserved: socket.socket, address: Address, service: Address) -> None:
    """Relay from the socket that reserved ``address``, in a thread, for as long as the process lives.

    Callers get through from the moment this returns: it listens here, since the thread takes its time to start.

    Raises:
        PortError: another process began to listen on the port since it was reserved.
    """
    try:
        reserved.listen(BACKLOG)
    except OSError as error:
        raise PortError(address, error) from None
    threading.Thread(target=lambda: asyncio.run(relay(reserved, service)), name="relay", daemon=True).start()


async def relay(listening: socket.socket, service: Address) -> None:
    """Pass every connection on to ``service``, both ways, until cancelled."""

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection(service.host, service.port)
        except OSError:
            writer.transport.abort()
            return
        there = asyncio.create_task(_copy(reader, inner_writer))
        back = asyncio.create_task(_copy(inner_reader, writer))
        try:
            # When the caller goes away the service must learn at once, and the other way round.
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task, end in ((there, writer), (back, inner_writer)):
                task.cancel()
                end.close()

    server = await asyncio.start_server(serve_one, sock=listening, backlog=BACKLOG)
    async with server:
        await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
