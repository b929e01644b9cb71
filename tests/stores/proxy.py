"""A server in front of a real one that answers in its place when told to. Every fault counts when it fires.

Clients sign the address that they call, so this one passes requests on under the same signature by keeping the
``Host`` header: the real server checks it against that.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.servers import S3Server

_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "expect"}


@dataclass(frozen=True)
class Answer:
    """An S3 error, or with status None a connection that ends without one."""

    status: int | None
    code: str = ""
    more: str = ""

    @property
    def body(self) -> bytes:
        error = f"<Error><Code>{self.code}</Code><Message>as told</Message>{self.more}</Error>"
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{error}'.encode()


@dataclass
class _Fault:
    matches: Callable[[BaseHTTPRequestHandler], bool]
    answer: Answer
    times: int
    after: bool  # the real server gets the request first


class Proxy:
    """Passes everything on, except what it was told to answer itself."""

    def __init__(self, server: S3Server) -> None:
        self.fired = 0
        self._faults: list[_Fault] = []
        self._requests: list[tuple[str, str, dict[str, str]]] = []
        self._lock = threading.Lock()
        target = urlsplit(server.endpoint)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                if self.headers.get("Expect", "").lower() == "100-continue":
                    self.send_response_only(100)
                    self.end_headers()
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy._take(self)
                if fault is not None and not fault.after:
                    self.reply(fault.answer)
                    return
                upstream = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
                kept = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
                upstream.request(self.command, self.path, body, kept | {"Content-Length": str(len(body))})
                answer = upstream.getresponse()
                data = answer.read()
                upstream.close()
                if fault is not None:
                    self.reply(fault.answer)
                    return
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in _HOP_BY_HOP:
                        self.send_header(name, value)
                length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

            def reply(self, answer: Answer) -> None:
                if answer.status is None:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer_instead(self, method: str, answer: Answer, *, having: str = "", times: int = 1) -> None:
        """Answer the next requests of `method` whose target has `having` in it; the server never sees them."""
        self._add(lambda r: r.command == method and having in r.path, answer, times, after=False)

    def lose_reply(self, method: str, *, having: str = "", times: int = 1, answer: Answer | None = None) -> None:
        """Let the server do it, and give its client nothing, or `answer`."""
        self._add(lambda r: r.command == method and having in r.path, answer or Answer(None), times, after=True)

    def reject_header(self, name: str, answer: Answer) -> None:
        """Answer every request that has the header."""
        self._add(lambda r: name in r.headers, answer, 10**9, after=False)

    def headers_of(self, method: str, having: str) -> list[dict[str, str]]:
        """Headers, with names in lower case, of the requests that came."""
        with self._lock:
            return [headers for found, path, headers in self._requests if found == method and having in path]

    def _add(
        self, matches: Callable[[BaseHTTPRequestHandler], bool], answer: Answer, times: int, *, after: bool
    ) -> None:
        with self._lock:
            self._faults.append(_Fault(matches, answer, times, after))

    def _take(self, request: BaseHTTPRequestHandler) -> _Fault | None:
        with self._lock:
            headers = {name.lower(): value for name, value in request.headers.items()}
            self._requests.append((request.command, request.path, headers))
            for fault in self._faults:
                if fault.times > 0 and fault.matches(request):
                    fault.times -= 1
                    self.fired += 1
                    return fault
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
