"""The relay passes bytes on both ways and tells each side when the other is gone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from serve_app.local.outside import port_trouble
from serve_app.local.relay import Address, relay, reserve

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def through_relay(handler: Handler, client: Client) -> None:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    async def run() -> None:
        service = await asyncio.start_server(closing, "127.0.0.1", 0)
        inner = Address(host="127.0.0.1", port=service.sockets[0].getsockname()[1])
        listening = reserve(Address(host="127.0.0.1", port=0))
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
        listening = reserve(Address(host="127.0.0.1", port=0))
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
    with reserve(Address(host="127.0.0.1", port=0)) as reserved, pytest.raises(ConnectionRefusedError):
        socket.create_connection(reserved.getsockname())


def test_a_taken_port_is_named_with_a_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = Address(host="127.0.0.1", port=other.getsockname()[1])
        with pytest.raises(OSError) as caught:
            reserve(address)
    message = port_trouble(address, caught.value)
    assert f"Port {address.port} on 127.0.0.1 is taken" in message
    assert f"make serve PORT={address.port + 1}" in message
    assert "None" not in port_trouble(Address(host="192.0.2.1", port=80), OSError(99, "Cannot assign address"))


def test_addresses_are_urls() -> None:
    assert str(Address(host="127.0.0.1", port=80)) == "http://127.0.0.1:80"
    assert str(Address(host="::1", port=80)) == "http://[::1]:80"
