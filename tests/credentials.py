"""Credentials for the uploader alone: a function that reads a file which only a test writes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.servers import S3Server

VARIABLE = "SINK_TESTS_CREDENTIALS"
FUNCTION = "tests.credentials:from_file"


def offer(server: S3Server) -> None:
    """Let `from_file` find the keys of `server`."""
    keys = {"access_key_id": server.access_key, "secret_access_key": server.secret_key}
    Path(os.environ[VARIABLE]).write_text(json.dumps(keys))


def from_file() -> dict[str, str]:
    """What ``UploadOptions(credentials=…)`` names."""
    found: dict[str, str] = json.loads(Path(os.environ[VARIABLE]).read_text())
    return found


def wrong() -> dict[str, str]:
    """Credentials that no server takes."""
    return {
        "access_key_id": "nobody",
        "secret_access_key": "wrong-canary-8f1c2d",
        "session_token": "token-canary-77ab01",
    }
