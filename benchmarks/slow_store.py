"""A slow way to a store: so many bytes a second for all connections together, and a pause before each answer.

    python -m benchmarks.slow_store UPSTREAM_HOST UPSTREAM_PORT BYTES_A_SECOND PAUSE_S

It says its port on its standard output, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_CHUNK_BYTES = 2**16


class Wire:
    """Passes bytes on at a rate."""

    def __init__(self, host: str, port: int, bytes_a_second: float, pause_s: float) -> None:
        self._upstream = host, port
        self._bytes_a_second, self._pause_s = bytes_a_second, pause_s
        self._free_at_s = 0.0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        await asyncio.gather(self._there(reader, up_writer), self._back(up_reader, writer))

    async def _there(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK_BYTES):
                self._free_at_s = max(loop.time(), self._free_at_s) + len(data) / self._bytes_a_second
                await asyncio.sleep(self._free_at_s - loop.time())
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK_BYTES):
                await asyncio.sleep(self._pause_s)
                writer.write(data)
                await writer.drain()
        writer.close()


async def serve(host: str, port: int, bytes_a_second: float, pause_s: float) -> None:
    server = await asyncio.start_server(Wire(host, port, bytes_a_second, pause_s).connected, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    async with server:
        await asyncio.to_thread(sys.stdin.read)


@contextmanager
def slowed(endpoint: str, *, bytes_a_second: float, pause_s: float) -> Iterator[str]:
    """The URL of a slow way to `endpoint`; clients sign for the address that they call, which is passed on."""
    upstream = urlsplit(endpoint)
    assert upstream.hostname is not None
    arguments = [upstream.hostname, f"{upstream.port}", f"{bytes_a_second}", f"{pause_s}"]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.slow_store", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


if __name__ == "__main__":
    _host, _port, _rate, _pause = sys.argv[1:]
    asyncio.run(serve(_host, int(_port), float(_rate), float(_pause)))
