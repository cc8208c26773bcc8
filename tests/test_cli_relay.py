"""The relay passes bytes on both ways and tells each side when the other is gone."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine

import pytest

from serve_app.local.relay import Address, PortError, relay, reserve, start_relay

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HERE = Address(host="127.0.0.1", port=0)


def through_relay(handler: Handler, client: Client) -> None:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    async def run() -> None:
        service = await asyncio.start_server(closing, "127.0.0.1", 0)
        inner = Address(host="127.0.0.1", port=service.sockets[0].getsockname()[1])
        listening = reserve(HERE)
        port = listening.getsockname()[1]
        task = asyncio.create_task(relay(listening, inner))
        await asyncio.sleep(0)  # begins to listen
        async with service, asyncio.timeout(30.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await client(reader, writer)
            finally:
                writer.close()
                await writer.wait_closed()
                task.cancel()
                await asyncio.wait([task])

    asyncio.run(run())


def test_a_megabyte_comes_back_unchanged() -> None:
    sent = bytes(range(256)) * 4096

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent

    through_relay(echo, client)


def test_the_last_bytes_arrive_when_the_service_closes() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        writer.write(b"x" * 500_000)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hi")
        assert await reader.read() == b"x" * 500_000

    through_relay(answer, client)


def test_the_service_learns_that_the_caller_went_away() -> None:
    async def run() -> None:
        gone = asyncio.Event()

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.read(10) == b"hello"
            assert await reader.read(10) == b""
            gone.set()
            writer.close()

        service = await asyncio.start_server(handler, "127.0.0.1", 0)
        inner = Address(host="127.0.0.1", port=service.sockets[0].getsockname()[1])
        listening = reserve(HERE)
        task = asyncio.create_task(relay(listening, inner))
        await asyncio.sleep(0)
        async with service, asyncio.timeout(30.0):
            _, writer = await asyncio.open_connection("127.0.0.1", listening.getsockname()[1])
            writer.write(b"hello")
            await writer.drain()
            writer.close()
            await gone.wait()
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(run())


def test_a_reserved_port_refuses_until_the_relay_listens() -> None:
    with reserve(HERE) as reserved, pytest.raises(ConnectionRefusedError):
        socket.create_connection(reserved.getsockname())


def test_callers_get_through_from_the_moment_the_relay_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    run, may_run = asyncio.run, threading.Event()

    def run_late(main: Coroutine[None, None, None]) -> None:
        may_run.wait(30.0)
        run(main)

    monkeypatch.setattr(asyncio, "run", run_late)
    with socket.create_server((HERE.host, 0)) as service, reserve(HERE) as reserved:
        start_relay(reserved, HERE, Address(host=HERE.host, port=service.getsockname()[1]))
        with socket.create_connection(reserved.getsockname(), timeout=30.0) as caller:
            may_run.set()
            service.settimeout(30.0)
            answering, _ = service.accept()
            with answering:
                answering.sendall(b"hello")
            assert caller.recv(5, socket.MSG_WAITALL) == b"hello"


def test_a_taken_port_is_named_with_a_way_out() -> None:
    with socket.create_server((HERE.host, 0)) as other:
        address = Address(host=HERE.host, port=other.getsockname()[1])
        with pytest.raises(PortError, match=rf"Port {address.port} on 127\.0\.0\.1 is taken") as caught:
            reserve(address)
    assert f"make serve PORT={address.port + 1}" in str(caught.value)


def test_a_port_that_is_lost_between_reserving_and_listening_is_named_too() -> None:
    with reserve(HERE) as reserved:
        address = Address(host=HERE.host, port=reserved.getsockname()[1])
        with reserve(address) as other:
            other.listen()
            with pytest.raises(PortError, match=f"Port {address.port} on .* is taken"):
                start_relay(reserved, address, HERE)


def test_a_host_that_is_not_this_machines_is_named() -> None:
    with pytest.raises(PortError, match=r"Can't listen on 192\.0\.2\.1 port 8000: Cannot assign"):
        reserve(Address(host="192.0.2.1", port=8000))


def test_addresses_are_urls() -> None:
    assert str(Address(host="127.0.0.1", port=80)) == "http://127.0.0.1:80"
    assert str(Address(host="::1", port=80)) == "http://[::1]:80"
