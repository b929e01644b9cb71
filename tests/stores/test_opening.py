from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ray_sink.config import UploadOptions
from ray_sink.errors import ConfigError
from ray_sink.records import Verification
from ray_sink.stores import open_store
from ray_sink.stores.object_store import Findings, ObjectStore
from ray_sink.stores.obstore_objects import ObstoreObjects
from ray_sink.stores.probing import Prober
from ray_sink.stores.replies import scrub
from tests.stores.conftest import no_multipart, staged


@pytest.mark.parametrize(
    ("dest", "says"),
    [
        ("memory://x", "one process"),
        ("nosuch://x/y", "unknown destination scheme"),
        ("sftp://host/x", "not installed"),
        ("s3://", "no bucket"),
        ("s3://bucket/a/../b", "component"),
        ("file://relative", "absolute"),
        ("s3://id:secret@bucket/x", "password|credentials"),
    ],
)
def test_a_destination_that_cannot_be_is_refused_with_the_reason(dest: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        open_store(dest, UploadOptions())
    assert "secret@" not in str(refused.value)


def test_unknown_options_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="endpoint, "):
        open_store("s3://bucket", UploadOptions(storage_options={"endpoint": "http://x", "zone": "1"}))
    with pytest.raises(ConfigError, match="http://"):
        open_store("s3://bucket", UploadOptions(storage_options={"endpoint_url": "127.0.0.1:9000"}))
    with pytest.raises(ConfigError, match="ca_bundle"):
        open_store("s3://bucket", UploadOptions(storage_options={"ca_bundle": "/no/such/file"}))
    with pytest.raises(ConfigError, match="profile"):
        open_store("s3://bucket", UploadOptions(storage_options={"profile": "no-such-profile"}))


def test_opening_loads_no_engine_but_the_one_it_needs() -> None:
    script = (
        "import sys; from ray_sink.stores import open_store; from ray_sink.config import UploadOptions;"
        "heavy = {'obstore', 's3fs', 'fsspec', 'botocore', 'aiobotocore', 'torch', 'ray'};"
        "open_store('/tmp', UploadOptions()); print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.strip() == "[]"


def test_words_of_servers_lose_their_secrets() -> None:
    text = "GET https://id:pass@host/x?X-Amz-Signature=abc123&sig=def456 AWSAccessKeyId=AKIA secret: hunter2 fine"
    shown = scrub(text)
    for secret in ("pass", "abc123", "def456", "AKIA", "hunter2"):
        assert secret not in shown
    assert "fine" in shown


def test_a_server_without_s3_gets_large_files_as_a_stream_that_shows_nothing_until_it_is_whole(
    tmp_path: Path,
) -> None:
    from obstore.store import MemoryStore

    memory = MemoryStore()
    objects = ObstoreObjects("gs://bucket", lambda _timeout_s, _checksum: memory, largest_bytes=10)
    prober = Prober("gs://bucket", objects, s3=None, multipart=None)

    def found() -> Findings:
        return prober()

    store = ObjectStore(
        "gs://bucket", objects, multipart=None, multipart_above_bytes=10, buffer_bytes=2**20, prober=found
    )
    data = b"0123456789abcdef" * 2**20
    local, file = staged(tmp_path, "large.pt", data)
    proof = store.put_file(local, file, metadata={}, replace=False, on_multipart=no_multipart)
    assert proof is Verification.SIZE_CHECKED
    assert store.get_bytes("large.pt") == data
    assert store.held_bytes(file) < 2**30
    changed, record = staged(tmp_path, "changed.pt", data)
    changed.write_bytes(data[:-1] + b"!")
    with pytest.raises(Exception, match="receipt says"):
        store.put_file(changed, record, metadata={}, replace=False, on_multipart=no_multipart)
    assert [info.path for info in store.list()] == ["large.pt"]
