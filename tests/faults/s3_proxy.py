"""A server in front of a real S3 server that does to requests what a test says. Every fault counts when it fires.

Clients sign the address that they call, so this one passes requests on under the same signature by keeping the
``Host`` header: the real server checks it against that.
"""

from __future__ import annotations

import http.client
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, NoReturn, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from seaweedfs import free_ports

from tests.servers import S3Server
from tests.waiting import until

_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "keep-alive", "content-length", "expect"})


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks.

    Attributes:
        operation: S3's own name for it, such as ``"UploadPart"``.
        key: name of the object inside its bucket; empty for requests about the bucket.
        headers: by names in lower case.
    """

    operation: str
    method: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def access_key(self) -> str:
        """Who signed it."""
        return self.headers.get("authorization", "").partition("Credential=")[2].partition("/")[0]


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


Signer = Callable[[Request, str, bytes], Mapping[str, str]]
"""Headers for a request, its target and its body, in place of those that it came with."""


class ConnectionEndedError(Exception):
    """The client gets no more of its answer."""


class Exchange:
    """One request on its way, in the hands of an `Action`."""

    def __init__(
        self, request: Request, handler: BaseHTTPRequestHandler, upstream: tuple[str, int], sign: Signer | None
    ) -> None:
        self.request = request
        self.length = int(request.headers.get("content-length", "0"))
        self._handler = handler
        self._upstream = upstream
        self._sign = sign
        self._body: bytes | None = None

    def body(self) -> bytes:
        """All that the client sends."""
        if self._body is None:
            self._body = self._handler.rfile.read(self.length)
            if len(self._body) < self.length:
                raise ConnectionEndedError
        return self._body

    @property
    def target(self) -> str:
        """Path and query, as the client wrote them."""
        return self._handler.path

    def forward(self, body: bytes | None = None) -> Reply:
        """What the real server says to it, or to `body` in its place."""
        sent = self.body() if body is None else body
        upstream = http.client.HTTPConnection(*self._upstream, timeout=60)
        try:
            given = self.request.headers if self._sign is None else self._sign(self.request, self.target, sent)
            kept = {name: value for name, value in given.items() if name.lower() not in _HOP_BY_HOP}
            kept["content-length"] = str(len(sent))
            upstream.request(self._handler.command, self._handler.path, sent, kept)
            answer = upstream.getresponse()
            data = answer.read()
        except http.client.HTTPException as error:
            raise ConnectionEndedError from error
        finally:
            upstream.close()
        return Reply(answer.status, tuple(answer.getheaders()), data)

    def reset(self, after_bytes: int = 0) -> NoReturn:
        """Take so much of the body, and end the connection with a TCP reset."""
        if self._body is None:
            self._handler.rfile.read(min(after_bytes, self.length))
        _reset(self._handler)
        raise ConnectionEndedError


Action = Callable[[Exchange], Reply | None]
"""What becomes of a request; None: the next fault has it, or the server."""


def answer(status: int, code: str = "", more: str = "") -> Action:
    """Say this in the server's place; it never sees the request."""
    text = f"<Error><Code>{code}</Code><Message>as told</Message>{more}</Error>"
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()

    def act(exchange: Exchange) -> Reply:
        exchange.body()
        # the answer to a HEAD has no body, and so no code
        return Reply(status, (), b"" if exchange.request.method == "HEAD" else body)

    return act


def no_answer(exchange: Exchange) -> Reply:
    """Take the request, and end the connection; the server never sees it."""
    exchange.body()
    exchange.reset()


def cut_body(exchange: Exchange) -> Reply:
    """End the connection in the middle of the body."""
    exchange.reset(after_bytes=exchange.length // 2)


def lost(instead: Action = no_answer) -> Action:
    """Let the server do it, and give its client nothing, or what `instead` says."""

    def act(exchange: Exchange) -> Reply | None:
        exchange.forward()
        return instead(exchange)

    return act


def truncated(exchange: Exchange) -> Reply:
    """Pass the first half of the body on as if it were all."""
    return exchange.forward(exchange.body()[: exchange.length // 2])


def flipped(exchange: Exchange) -> Reply:
    """Pass the body on with one bit the other way."""
    body = bytearray(exchange.body())
    body[len(body) // 2] ^= 1
    return exchange.forward(bytes(body))


def swallowed(status: int) -> Action:
    """Say that it is done, and do nothing."""

    def act(exchange: Exchange) -> Reply:
        exchange.body()
        return Reply(status)

    return act


def after(act: Callable[[Request], object]) -> Action:
    """Pass it on once `act` is done."""

    def then_pass_on(exchange: Exchange) -> None:
        act(exchange.request)

    return then_pass_on


class Fault:
    """Something that happens to some requests. Made by `Proxy.on`.

    Attributes:
        fired: how often it has happened.
    """

    def __init__(self, action: Action, matches: Callable[[Request], bool], times: int | None) -> None:
        self.action = action
        self.fired = 0
        self._matches = matches
        self._left = times
        self._lock = threading.Lock()

    def takes(self, request: Request) -> bool:
        with self._lock:
            if self._left == 0 or not self._matches(request):
                return False
            if self._left is not None:
                self._left -= 1
            self.fired += 1
            return True

    def lift(self) -> None:
        """From now on requests pass."""
        with self._lock:
            self._left = 0

    def wait(self, times: int = 1, *, deadline_s: float = 20) -> None:
        """Return when it has fired so often."""
        until(lambda: self.fired >= times, deadline_s=deadline_s)


class Proxy:
    """Passes everything on, except where a fault takes it.

    Attributes:
        endpoint: its address.
        requests: all that came, in order, also those that a fault took.
        partitioned: requests that were held or refused during a partition.
        sign: signs what goes on to the real server; None: passed on under its own signature.
    """

    def __init__(self, server: S3Server) -> None:
        target = urlsplit(server.endpoint)
        self.requests: list[Request] = []
        self.partitioned = 0
        self.sign: Signer | None = None
        self._upstream = (target.hostname or "", target.port or 80)
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._reachable = threading.Event()
        self._reachable.set()
        self._partition: Literal["silent", "refusing"] | None = None
        self._cut = threading.Event()
        # outside the range of outgoing connections, one of which might take it while nobody listens
        self._listen(free_ports(1)[0])
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def on(
        self,
        operation: str,
        action: Action,
        *,
        key: str = "",
        when: Callable[[Request], bool] = lambda request: True,
        times: int | None = 1,
    ) -> Fault:
        """Let `action` have the next requests of an operation, the last fault added first.

        Args:
            operation: S3's name of it; several with blanks between; empty for any.
            action: what happens to them.
            key: how the object's name must end.
            when: what else must hold; asked for each of them, in order.
            times: how often; None for always.
        """
        operations = operation.split()

        def matches(request: Request) -> bool:
            return (not operations or request.operation in operations) and request.key.endswith(key) and when(request)

        fault = Fault(action, matches, times)
        with self._lock:
            self._faults.insert(0, fault)
        return fault

    def seen(self, operation: str, key: str = "") -> list[Request]:
        """The requests of an operation that have come, for objects whose name ends in `key`."""
        with self._lock:
            return [r for r in self.requests if r.operation in operation.split() and r.key.endswith(key)]

    def forget(self) -> None:
        """All faults, and what has come until now."""
        with self._lock:
            self._faults.clear()
            self.requests.clear()

    def partition(self, kind: Literal["silent", "refusing"]) -> None:
        """Answer nobody until `heal`: take requests and say nothing, or refuse connections."""
        self._partition = kind
        self._reachable.clear()
        if kind == "refusing":
            self._close()
            # bound and not listening: it refuses, and nobody else takes the port meanwhile
            self._bound = socket.socket()
            self._bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._bound.bind(("127.0.0.1", self._port))
        self._cut.set()

    def heal(self) -> None:
        """End the partition, once it is complete; whoever was held is cut off."""
        until(self._cut.is_set)
        self._cut.clear()
        if self._partition == "refusing":
            self._bound.close()
            self._listen(self._port)
        self._partition = None
        self._reachable.set()

    def handle(self, handler: BaseHTTPRequestHandler) -> Reply:
        """The answer to one request."""
        exchange = Exchange(_parsed(handler), handler, self._upstream, self.sign)
        with self._lock:
            self.requests.append(exchange.request)
            faults = tuple(self._faults)
        if not self._reachable.is_set():
            with self._lock:
                self.partitioned += 1
            if self._partition == "silent":
                self._reachable.wait()
            exchange.reset()
        for fault in faults:
            if fault.takes(exchange.request) and (reply := fault.action(exchange)) is not None:
                return reply
        return exchange.forward()

    def _listen(self, port: int) -> None:
        self._server = _Server(("127.0.0.1", port), self)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._partition == "refusing":
            self._bound.close()
        else:
            self._close()
        self._reachable.set()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_any(self) -> None:
        try:
            reply = self.server.proxy.handle(self)
        except ConnectionEndedError:
            self.close_connection = True
            return
        self.send_response(reply.status)
        kept = [(name, value) for name, value in reply.headers if name.lower() not in _HOP_BY_HOP]
        told = {name.lower(): value for name, value in reply.headers}.get("content-length", "0")
        for name, value in kept:
            self.send_header(name, value)
        self.send_header("Content-Length", told if self.command == "HEAD" else str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def _reset(handler: BaseHTTPRequestHandler) -> None:
    # closed with nothing to linger for, the kernel sends a reset instead of a goodbye
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(handler.connection.detach())


def _parsed(handler: BaseHTTPRequestHandler) -> Request:
    path, _, query_text = handler.path.partition("?")
    query = dict(parse_qsl(query_text, keep_blank_values=True))
    key = unquote(path).removeprefix("/").partition("/")[2]
    headers = {name.lower(): value for name, value in handler.headers.items()}
    return Request(_operation(handler.command, key, query), handler.command, key, query, headers)


def _operation(method: str, key: str, query: Mapping[str, str]) -> str:
    if not key:
        listing = "ListMultipartUploads" if "uploads" in query else "ListObjectsV2"
        return listing if method == "GET" else f"{method} bucket"
    if method == "PUT":
        return "UploadPart" if "partNumber" in query else "PutObject"
    if method == "POST":
        return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
    if method == "DELETE":
        return "AbortMultipartUpload" if "uploadId" in query else "DeleteObject"
    if method == "HEAD":
        return "HeadObject"
    return "ListParts" if "uploadId" in query else "GetObject"
