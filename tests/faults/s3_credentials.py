"""Temporary credentials that end: an issuer, and the proxy's part in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.faults.s3_proxy import Fault, Proxy, Request, answer
from tests.servers import S3Server

_OF_A_SIGNATURE = ("authorization", "x-amz-security-token", "x-amz-date", "x-amz-content-sha256", "host", "expect")


class Issuer:
    """Gives one set of credentials after the other; the proxy knows which of them is good.

    The real server knows one pair of keys alone, so what the proxy lets through is signed anew with those.

    Attributes:
        number: of the set that is good now.
        offered: of the set that clients find.
    """

    def __init__(self, server: S3Server, file: Path, *, profile: bool = False) -> None:
        self.number = 1
        self.offered = 0
        self._server = server
        self._file = file
        self._profile = profile
        self.offer()

    def offer(self) -> None:
        """Let clients find the set that is good now."""
        self.offered = self.number
        keys = {
            "access_key_id": f"AKIATEMPORARY{self.number}",
            "secret_access_key": f"secret-canary-{self.number}",
            "session_token": f"token-canary-{self.number}",
        }
        text = json.dumps(keys)
        if self._profile:
            text = "\n".join(["[default]", *(f"aws_{name} = {value}" for name, value in keys.items())])
        fresh = self._file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self._file)

    def expire(self) -> None:
        """The set that was good is so no longer; the next one is, once it is offered."""
        self.number += 1

    def guard(self, proxy: Proxy) -> Fault:
        """Refuse whoever comes with another set, as S3 does."""
        proxy.sign = partial(signed_anew, self._server)
        return proxy.on("", answer(400, "ExpiredToken"), when=self._has_ended, times=None)

    def _has_ended(self, request: Request) -> bool:
        return request.headers.get("x-amz-security-token") != f"token-canary-{self.number}"


def signed_anew(server: S3Server, request: Request, target: str, body: bytes) -> Mapping[str, str]:
    """A `Signer`: the headers of a request as the server's own keys sign it, now."""
    headers = {name: value for name, value in request.headers.items() if name not in _OF_A_SIGNATURE}
    signed = AWSRequest(request.method, server.endpoint + target, headers, body)
    S3SigV4Auth(Credentials(server.access_key, server.secret_key), "s3", server.region).add_auth(signed)
    return dict(signed.headers.items())
