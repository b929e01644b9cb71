"""What only S3 has: parts, secrets, servers that break their word, and answers that lie."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ray_sink.config import UploadOptions
from ray_sink.errors import (
    ConfigError,
    DestinationError,
    ObjectExistsError,
    SinkError,
    StagedFileChangedError,
    StoreUnavailableError,
)
from ray_sink.records import FileRecord, MultipartUpload, Verification
from ray_sink.stores import Store, open_store
from tests.faults.s3_proxy import Action, Fault, Proxy, after, answer, no_answer
from tests.servers import S3Bucket, S3Server
from tests.stores.conftest import MULTIPART_ABOVE, no_multipart, sign_in, staged

LARGE = os.urandom(2 * MULTIPART_ABOVE + 2**20)


def open_at(url: str, engine: str, **options: object) -> Store:
    return open_store(
        url,
        UploadOptions(engine=engine, multipart_above_bytes=MULTIPART_ABOVE, storage_options=options),  # type: ignore[arg-type]
    )


def uploads_of(bucket: S3Bucket) -> list[dict[str, Any]]:
    found = bucket.server.client().list_multipart_uploads(Bucket=bucket.name)
    uploads: list[dict[str, Any]] = found.get("Uploads", [])
    return uploads


def small_parts(store: Store, part_bytes: int = 5 * 2**20) -> Store:
    """Parts as small as servers take them, so that there are several."""
    multipart = store._multipart  # type: ignore[attr-defined]
    multipart._part_bytes = part_bytes
    return store


@pytest.fixture
def store(s3_bucket: S3Bucket, engine: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    sign_in(monkeypatch, s3_bucket.server)
    return small_parts(open_at(s3_bucket.url, engine))


def test_a_large_file_goes_in_parts_whose_upload_is_known_first(
    store: Store, s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    client = s3_bucket.server.client()
    seen: list[tuple[MultipartUpload, int]] = []

    def journal(upload: MultipartUpload) -> None:
        parts = client.list_parts(Bucket=s3_bucket.name, Key=upload.path, UploadId=upload.upload_id)
        seen.append((upload, len(parts.get("Parts", []))))

    local, file = staged(tmp_path, "large é.pt", LARGE)
    proof = store.put_file(local, file, metadata={"sinkkey": "é"}, replace=False, on_multipart=journal)
    assert proof is Verification.VERIFIED
    assert [(upload.path, parts) for upload, parts in seen] == [("large é.pt", 0)]
    assert s3_bucket.read("large é.pt") == LARGE
    info = store.head("large é.pt")
    assert info is not None
    assert info.metadata["sinkkey"] == "é"
    assert info.checksum in (None, file.checksum)
    assert store.held_bytes(FileRecord("huge.pt", 10 * 2**30, "")) < 64 * 2**20
    assert uploads_of(s3_bucket) == []


def test_a_large_file_is_create_only_too_and_leaves_no_upload(
    store: Store, s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    s3_bucket.server.client().put_object(Bucket=s3_bucket.name, Key="large.pt", Body=b"somebody's")
    local, file = staged(tmp_path, "large.pt", LARGE)
    with pytest.raises(ObjectExistsError):
        store.put_file(local, file, metadata={}, replace=False, on_multipart=lambda _: None)
    assert s3_bucket.read("large.pt") == b"somebody's"
    assert uploads_of(s3_bucket) == []
    store.put_file(local, file, metadata={}, replace=True, on_multipart=lambda _: None)
    assert s3_bucket.read("large.pt") == LARGE


def test_a_large_file_that_changed_is_not_completed_and_leaves_no_upload(
    store: Store, s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    local, file = staged(tmp_path, "large.pt", LARGE)
    local.write_bytes(LARGE[:-1] + bytes([LARGE[-1] ^ 1]))
    with pytest.raises(StagedFileChangedError):
        store.put_file(local, file, metadata={}, replace=False, on_multipart=lambda _: None)
    assert s3_bucket.names() == []
    assert uploads_of(s3_bucket) == []


def test_an_upload_whose_journal_refuses_is_aborted(store: Store, s3_bucket: S3Bucket, tmp_path: Path) -> None:
    def refuse(upload: MultipartUpload) -> None:
        assert len(uploads_of(s3_bucket)) == 1
        raise SinkError("fenced")

    local, file = staged(tmp_path, "large.pt", LARGE)
    with pytest.raises(SinkError, match="fenced"):
        store.put_file(local, file, metadata={}, replace=False, on_multipart=refuse)
    assert uploads_of(s3_bucket) == []


def test_abort_ends_an_upload_and_may_be_repeated(store: Store, s3_bucket: S3Bucket) -> None:
    client = s3_bucket.server.client()
    made = client.create_multipart_upload(Bucket=s3_bucket.name, Key="a.pt")
    client.upload_part(Bucket=s3_bucket.name, Key="a.pt", UploadId=made["UploadId"], PartNumber=1, Body=b"part")
    upload = MultipartUpload("a.pt", made["UploadId"])
    store.abort(upload)
    assert uploads_of(s3_bucket) == []
    store.abort(upload)


ANSWERS: list[tuple[Action, type[SinkError], bool | None]] = [
    (answer(503, "SlowDown"), StoreUnavailableError, True),
    (answer(429, "TooManyRequests"), StoreUnavailableError, True),
    (answer(500, "InternalError"), StoreUnavailableError, False),
    (answer(400, "RequestTimeout"), StoreUnavailableError, False),
    (answer(400, "BadDigest"), StoreUnavailableError, False),
    (answer(409, "ConditionalRequestConflict"), StoreUnavailableError, False),
    (no_answer, StoreUnavailableError, False),
    (answer(412, "PreconditionFailed"), ObjectExistsError, None),
    (answer(403, "AccessDenied"), DestinationError, None),
    (answer(404, "NoSuchBucket"), DestinationError, None),
    (answer(301, "PermanentRedirect"), DestinationError, None),
]


def test_each_answer_to_a_put_has_its_meaning(
    s3_bucket: S3Bucket, engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    local, file = staged(tmp_path, "a.pt", b"data")
    with Proxy(s3_bucket.server) as proxy:
        store = open_at(s3_bucket.url, engine, endpoint_url=proxy.endpoint)
        store.probe()
        for number, (action, error, slow_down) in enumerate(ANSWERS):
            # aiohttp sends a put once more by itself when a connection that it kept is cut
            fault = proxy.on("PutObject", action, times=2 if action is no_answer and engine == "fsspec" else 1)
            with pytest.raises(error) as raised:
                store.put_file(local, file, metadata={}, replace=False, on_multipart=no_multipart)
            assert fault.fired > 0, number
            assert getattr(raised.value, "slow_down", None) is slow_down, number
            assert raised.value.path == "a.pt"  # type: ignore[attr-defined]
            again = pickle.loads(pickle.dumps(raised.value))
            assert (type(again), str(again), vars(again)) == (type(raised.value), str(raised.value), vars(raised.value))
    assert s3_bucket.names() == []


def test_a_200_that_holds_an_error_is_no_success_and_leaves_no_upload(
    s3_bucket: S3Bucket, engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    with Proxy(s3_bucket.server) as proxy:
        store = small_parts(open_at(s3_bucket.url, engine, endpoint_url=proxy.endpoint))
        store.probe()
        fault = proxy.on("CompleteMultipartUpload", answer(200, "InternalError"))
        local, file = staged(tmp_path, "large.pt", LARGE)
        with pytest.raises(StoreUnavailableError):
            store.put_file(local, file, metadata={}, replace=False, on_multipart=lambda _: None)
        assert fault.fired == 1
    assert s3_bucket.names() == []
    assert uploads_of(s3_bucket) == []


def test_a_part_that_fails_for_now_is_sent_again(
    s3_bucket: S3Bucket, engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    with Proxy(s3_bucket.server) as proxy:
        store = small_parts(open_at(s3_bucket.url, engine, endpoint_url=proxy.endpoint))
        store.probe()
        fault = proxy.on("UploadPart", answer(503, "SlowDown"), when=lambda part: part.query["partNumber"] == "3")
        local, file = staged(tmp_path, "large.pt", LARGE)
        proof = store.put_file(local, file, metadata={}, replace=False, on_multipart=lambda _: None)
        assert fault.fired == 1
    assert proof is Verification.VERIFIED
    assert s3_bucket.read("large.pt") == LARGE


def rejecting(proxy: Proxy, header: str, action: Action) -> Fault:
    """Every request that has the header gets this."""
    return proxy.on("", action, when=lambda request: header in request.headers, times=None)


def test_a_server_that_rejects_the_checksum_header_is_used_without_it(
    s3_bucket: S3Bucket, engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    with Proxy(s3_bucket.server) as proxy:
        store = open_at(s3_bucket.url, engine, endpoint_url=proxy.endpoint)
        fault = rejecting(proxy, "x-amz-checksum-crc64nvme", answer(501, "NotImplemented"))
        found = store.probe()
        assert fault.fired > 0
        assert (found.verification, found.create_only) == (Verification.SIZE_CHECKED, True)
        local, file = staged(tmp_path, "a.pt", b"data")
        assert store.put_file(local, file, metadata={}, replace=False, on_multipart=no_multipart) is found.verification
    assert s3_bucket.names() == ["a.pt"]


def test_a_server_that_rejects_conditions_is_used_without_them(
    s3_bucket: S3Bucket, engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    with Proxy(s3_bucket.server) as proxy:
        store = open_at(s3_bucket.url, engine, endpoint_url=proxy.endpoint)
        fault = rejecting(proxy, "if-none-match", answer(400, "InvalidRequest"))
        found = store.probe()
        assert fault.fired > 0
        assert (found.verification, found.create_only) == (Verification.VERIFIED, False)
        local, file = staged(tmp_path, "a.pt", b"data")
        store.put_file(local, file, metadata={}, replace=False, on_multipart=no_multipart)
        with pytest.raises(ObjectExistsError):
            store.put_file(local, file, metadata={}, replace=False, on_multipart=no_multipart)
    assert s3_bucket.names() == ["a.pt"]


def assert_says_nothing_secret(error: BaseException, *secrets: str) -> None:
    shown = "".join(traceback.format_exception(error)) + repr(pickle.loads(pickle.dumps(error)).__dict__)
    for secret in secrets:
        assert secret not in shown


def test_a_wrong_secret_is_found_at_once_and_shown_nowhere(
    s3_bucket: S3Bucket, engine: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sign_in(monkeypatch, s3_bucket.server, secret="wrong-but-secret")
    store = open_at(s3_bucket.url, engine)
    with pytest.raises(DestinationError, match="credentials") as refused:
        store.probe()
    secrets = ("wrong-but-secret", s3_bucket.server.access_key)
    assert_says_nothing_secret(refused.value, *secrets)
    assert not any(secret in caplog.text + repr(store) for secret in secrets)


def test_what_a_server_repeats_of_the_signature_is_not_shown(
    s3_bucket: S3Bucket, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    with Proxy(s3_bucket.server) as proxy:
        store = open_at(s3_bucket.url, engine, endpoint_url=proxy.endpoint)
        store.probe()
        # what AWS sends with a signature that it does not like
        more = "<AWSAccessKeyId>AKIAREPEATED</AWSAccessKeyId><StringToSign>REPEATED-TOKEN</StringToSign>"
        fault = proxy.on("PutObject", answer(403, "SignatureDoesNotMatch", more))
        with pytest.raises(DestinationError, match="SignatureDoesNotMatch") as refused:
            store.put_bytes("a", b"1", replace=True)
        assert fault.fired == 1
    assert_says_nothing_secret(refused.value, "AKIAREPEATED", "REPEATED-TOKEN")


def test_a_missing_bucket_is_found_at_once_and_not_made(
    s3_server: S3Server, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(monkeypatch, s3_server)
    with pytest.raises(DestinationError, match="no such bucket"):
        open_at("s3://missing-bucket/x", engine).probe()
    buckets = s3_server.client().list_buckets()["Buckets"]
    assert "missing-bucket" not in [bucket["Name"] for bucket in buckets]


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid", "https://127.0.0.1:9"])
def test_an_endpoint_that_cannot_be_reached_is_found_within_seconds(
    engine: str, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(DestinationError, match="endpoint_url"):
        open_at("s3://bucket", engine, endpoint_url=endpoint).probe()


def test_without_credentials_it_says_how_to_give_them() -> None:
    with pytest.raises(DestinationError, match=r"UploadOptions\(credentials"):
        open_at("s3://bucket", "auto")


HANDED_OUT: list[str] = []
SERVER: list[S3Server] = []


def credentials_for_test() -> Mapping[str, object]:
    HANDED_OUT.append("set")
    server = SERVER[-1]
    return {
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
        "expires_at": datetime.now(UTC) + timedelta(minutes=2),
    }


def credentials_that_raise() -> Mapping[str, object]:
    raise RuntimeError("could not log in with hunter2")


def credentials_misnamed() -> Mapping[str, object]:
    return {"user": "hunter2"}


def test_credentials_come_from_a_function_and_are_renewed(
    s3_bucket: S3Bucket, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "HANDED_OUT", [])
    SERVER.append(s3_bucket.server)
    store = open_store(
        s3_bucket.url,
        UploadOptions(
            engine=engine,  # type: ignore[arg-type]
            credentials=f"{__name__}:credentials_for_test",
            storage_options={"endpoint_url": s3_bucket.server.endpoint},
        ),
    )
    store.put_bytes("a", b"1", replace=False)
    before = len(HANDED_OUT)
    # two minutes of life are less than either engine lets a set come to
    store.put_bytes("b", b"1", replace=False)
    store.put_bytes("c", b"1", replace=False)
    assert before >= 1
    assert s3_bucket.names() == ["a", "b", "c"]
    assert "test_credentials" not in repr(store)


@pytest.mark.parametrize("function", ["credentials_that_raise", "credentials_misnamed"])
def test_a_credentials_function_that_fails_is_named_without_its_words(function: str) -> None:
    with pytest.raises(SinkError, match=function) as refused:
        open_store("s3://bucket", UploadOptions(credentials=f"{__name__}:{function}")).probe()
    assert_says_nothing_secret(refused.value, "hunter2")


def test_a_credentials_function_that_is_not_there_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="cannot be found"):
        open_store("s3://bucket", UploadOptions(credentials="no.such.module:function"))


def test_both_engines_send_storage_class_and_key_of_encryption(
    s3_bucket: S3Bucket, engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    with Proxy(s3_bucket.server) as proxy:
        store = open_at(s3_bucket.url, engine, endpoint_url=proxy.endpoint, storage_class="STANDARD_IA")
        store.put_bytes("a", b"1", replace=False)
        assert {put.headers.get("x-amz-storage-class") for put in proxy.seen("PutObject", "a")} == {"STANDARD_IA"}
        proxy.on("PutObject", answer(403, "AccessDenied"), when=lambda put: "_ray_sink" in put.key, times=None)
        store = open_at(s3_bucket.url, engine, endpoint_url=proxy.endpoint, sse_kms_key_id="key-1")
        with pytest.raises(DestinationError):
            store.probe()
        sent = proxy.seen("PutObject")[-1].headers
        assert sent["x-amz-server-side-encryption"] == "aws:kms"
        assert sent["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"


def test_a_sweep_aborts_the_multipart_uploads_of_probes_and_no_others(
    s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    store = open_at(f"{s3_bucket.url}/runs", "auto")
    store.probe()
    client = s3_bucket.server.client()
    names = ["runs/_ray_sink/probe-0123456789abcdef", "runs/_ray_sink/other", "runs/probe-0123456789abcdef"]
    for name in names:
        client.create_multipart_upload(Bucket=s3_bucket.name, Key=name)
    store.sweep()
    assert sorted(upload["Key"] for upload in uploads_of(s3_bucket)) == sorted(names[1:])


def test_a_probe_that_an_owner_sweeps_away_is_no_weaker_for_it(
    s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second driver that took the store for a weak one would not claim it, and not be refused."""
    sign_in(monkeypatch, s3_bucket.server)
    owner = open_at(s3_bucket.url, "auto")
    owner.probe()
    with Proxy(s3_bucket.server) as proxy:
        # between its first put and the second
        puts = iter(range(100))
        fault = proxy.on("PutObject", after(lambda _: owner.sweep()), when=lambda _: next(puts) == 1)
        found = open_at(s3_bucket.url, "auto", endpoint_url=proxy.endpoint).probe()
    assert fault.fired == 1
    assert found == owner.probe()
    assert s3_bucket.names() == []
