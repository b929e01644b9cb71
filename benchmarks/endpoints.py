"""S3 endpoints to measure against: one that keeps nothing, for the limits of clients, and a real one in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.parse
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from seaweedfs import SeaweedFS, ServerNotFoundError, ServerProcess, free_ports

BUCKET: Final = "outputs"
MEMORY: Final = Path("/dev/shm")
# bodies are read into one buffer: what is larger is refused, never spooled to a disk
LARGEST_BODY_BYTES: Final = 300 * 2**20

# Debian's nginx-light brings this module along. Plain `return 200` would answer before the body is read.
_ECHO = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")
# Large buffers would come fresh from the kernel for each request and go back after it: all pages touched anew.
_WARM = {"MALLOC_MMAP_THRESHOLD_": str(2**31), "MALLOC_TRIM_THRESHOLD_": str(2**35), "MALLOC_TOP_PAD_": str(2**26)}

# One process, no master: it ends with whoever started it. 201 and not 200, because nginx makes 304 of a 200 whose ETag
# meets an If-None-Match.
_CONFIGURATION: Final = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
load_module {echo};
events {{ worker_connections 1024; }}
http {{
  log_format bench '$request_method $status $request_length $request_uri';
  access_log requests.log bench buffer=64k;
  client_max_body_size {largest};
  client_body_buffer_size {largest};
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  scgi_temp_path scgi;
  uwsgi_temp_path uwsgi;
  keepalive_requests 10000000;
  keepalive_timeout 1h;
  default_type application/xml;
  map $request_method:$args $reply {{
    default '';
    ~^POST:uploads '{begun}';
    ~^POST:uploadId= '{completed}';
    ~^GET: '{listed}';
  }}
  server {{
    listen 127.0.0.1:{port};
    location = /_requests {{ return 204; }}
    location / {{
      if ($request_method = HEAD) {{ return 404; }}
      add_header ETag '"d41d8cd98f00b204e9800998ecf8427e"';
      echo_status 201;
      echo_read_request_body;
      echo -n $reply;
    }}
  }}
}}
"""
_BEGUN: Final = (
    "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key><UploadId>1</UploadId>"
    "</InitiateMultipartUploadResult>"
)
_COMPLETED: Final = (
    "<CompleteMultipartUploadResult><Location>/</Location><Bucket>b</Bucket><Key>k</Key><ETag>0</ETag>"
    "</CompleteMultipartUploadResult>"
)
_LISTED: Final = "<ListBucketResult><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"


class EndpointMissingError(RuntimeError):
    """A server that a benchmark needs is not installed; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How to reach an S3 server; the keys are good for this one only.

    Attributes:
        url: of the service.
        bucket: an empty bucket.
        access_key: the key's id.
        secret_key: the key's secret.
        region: what requests are signed for.
    """

    url: str
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to sign in, whatever its client library."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
        }


@dataclass(frozen=True, slots=True)
class Instant:
    """An endpoint that reads what it is sent and keeps nothing: no client can be faster than with this one.

    It answers puts, multipart uploads and deletes, shows no object, and checks neither signatures nor checksums.

    Attributes:
        endpoint: how to reach it.
        log: its requests.
    """

    endpoint: Endpoint
    log: Path

    def taken(self) -> Mapping[str, int]:
        """Bytes of the bodies and headers that came for each name since the last call, parts added up."""
        # a buffer that is full is written: this many lines push out what is in it
        filler = f"{self.endpoint.url}/_requests?{'x' * 2000}"
        for _ in range(40):
            urllib.request.urlopen(filler).close()
        found: defaultdict[str, int] = defaultdict(int)
        for line in self.log.read_text().splitlines():
            method, status, length_bytes, uri = line.split(" ", 3)
            if method == "PUT" and status == "201":
                name = urllib.parse.unquote(uri.partition("?")[0]).removeprefix(f"/{self.endpoint.bucket}/")
                found[name] += int(length_bytes)
        os.truncate(self.log, 0)
        return found


@contextmanager
def instant() -> Iterator[Instant]:
    """nginx as an S3 server that keeps nothing.

    Raises:
        EndpointMissingError: nginx or its echo module is not installed.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None or not _ECHO.exists():
        raise EndpointMissingError("nginx with its echo module is not installed: apt-get install nginx-light")
    (port,) = free_ports(1)
    folder = Path(tempfile.mkdtemp(prefix="rs-nginx-", dir=MEMORY))
    configuration = _CONFIGURATION.format(
        echo=_ECHO, port=port, largest=LARGEST_BODY_BYTES, begun=_BEGUN, completed=_COMPLETED, listed=_LISTED
    )
    (folder / "nginx.conf").write_text(configuration)
    environment = ["/usr/bin/env", *(f"{name}={value}" for name, value in _WARM.items())]
    server = ServerProcess([*environment, program, "-p", str(folder), "-c", "nginx.conf"], folder=folder)
    found = Instant(Endpoint(f"http://127.0.0.1:{port}", BUCKET, "instant", "instant-secret"), folder / "requests.log")
    try:
        server.wait_until(lambda: _answers(found), deadline_s=30)
        yield found
    finally:
        server.stop()


def _answers(server: Instant) -> bool:
    with suppress(OSError):
        return not server.taken()
    return False


@contextmanager
def weed() -> Iterator[SeaweedFS]:
    """SeaweedFS in memory: a real store, as fast as it gets on this machine.

    Raises:
        EndpointMissingError: it is not installed.
    """
    try:
        server = SeaweedFS(parent=MEMORY)
    except ServerNotFoundError as error:
        raise EndpointMissingError(str(error)) from error
    with server:
        yield server


@contextmanager
def bucket_of(server: SeaweedFS) -> Iterator[Endpoint]:
    """A new bucket. It goes with all that it holds, and so does the memory: deleted objects would keep theirs."""
    name = f"outputs-{uuid.uuid4().hex}"
    server.create_bucket(name)
    try:
        yield Endpoint(server.endpoint, name, server.access_key, server.secret_key, server.region)
    finally:
        server.client.delete_bucket(Bucket=name)
