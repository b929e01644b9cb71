"""Row 32: a server that ignores conditions and checksums, or rejects their headers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_sink.errors import DestinationConflict, DestinationError
from ray_sink.records import Verification
from tests.faults.s3_bench import ENGINES, Bench, Case, bench_at
from tests.faults.s3_proxy import Action, Fault, Proxy, answer, lost, truncated
from tests.servers import S3Server

pytestmark = pytest.mark.row(32)


@pytest.fixture(scope="module", params=ENGINES)
def bench(request: pytest.FixtureRequest, rclone_s3: S3Server) -> Iterator[Bench]:
    with bench_at(rclone_s3, engine=request.param) as made:
        yield made


@pytest.fixture
def case(bench: Bench, tmp_path: Path) -> Iterator[Case]:
    with bench.case(tmp_path) as made:
        yield made


@pytest.mark.parametrize("large", [False, True])
def test_what_cannot_be_verified_is_recorded_as_size_checked(case: Case, large: bool) -> None:
    found = case.store.probe()
    assert (found.create_only, found.verification) == (False, Verification.SIZE_CHECKED)
    outcomes = case.upload([case.large("a") if large else case.task("a")])
    assert outcomes[0].verification is Verification.SIZE_CHECKED
    assert case.asked("a")[-1] == "HeadObject"
    case.check(outcomes)


def test_what_is_there_already_is_refused_all_the_same(case: Case) -> None:
    theirs = case.put_by_another("a")
    outcomes = case.upload([case.task("a")])
    assert isinstance(outcomes[0].error, DestinationConflict)
    assert "PutObject" not in case.asked("a")
    case.check(outcomes, failed=["a"], others={"a": theirs})


@pytest.mark.row(31)
def test_a_body_that_came_short_is_found_by_its_size_and_put_again(case: Case) -> None:
    task = case.task("a")
    whole = case.local("a").read_bytes()
    fault = case.proxy.on("PutObject", truncated)
    outcomes = case.upload([task])
    assert fault.fired == 1
    assert outcomes[0].verification is Verification.SIZE_CHECKED
    # such a server shows what it got: nobody but it could keep a reader from that
    case.check(outcomes, others={"a": whole[: len(whole) // 2]})


@pytest.mark.row(28)
def test_what_such_a_server_tells_of_a_checksum_proves_nothing(case: Case) -> None:
    fault = case.proxy.on("PutObject", lost(answer(500, "InternalError")))
    outcomes = case.upload([case.task("a")])
    assert fault.fired == 1
    # adopted by looking, and no better known for it: rclone repeats the checksum that it was sent
    assert outcomes[0].verification is Verification.SIZE_CHECKED
    case.check(outcomes)


HEADERS = ["x-amz-checksum-crc64nvme", "if-none-match"]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize(
    "action",
    [answer(400, "InvalidRequest"), answer(501, "NotImplemented"), answer(403, "SignatureDoesNotMatch")],
    ids=["400", "501", "signature"],
)
def test_a_server_that_rejects_a_header_is_found_at_the_start_and_used_without_it(
    s3_server: S3Server, tmp_path: Path, header: str, action: Action
) -> None:
    with bench_at(s3_server) as bench:
        fault = rejecting(bench.proxy, header, action)
        found = bench.store.probe()
        assert fault.fired > 0
        assert found.create_only == (header != "if-none-match")
        expected = Verification.SIZE_CHECKED if header == HEADERS[0] else Verification.VERIFIED
        assert found.verification is expected
        with bench.case(tmp_path) as case:
            fault = rejecting(case.proxy, header, action)
            outcomes = case.upload([case.task("a"), case.large("b")])
            assert fault.fired == 0
            assert {outcome.verification for outcome in outcomes} == {expected}
            case.check(outcomes)


def test_a_server_that_takes_no_put_at_all_is_refused_at_the_start(s3_server: S3Server) -> None:
    with bench_at(s3_server) as bench:
        fault = bench.proxy.on("PutObject", answer(501, "NotImplemented"), times=None)
        with pytest.raises(DestinationError):
            bench.store.probe()
        assert fault.fired > 0


def rejecting(proxy: Proxy, header: str, action: Action) -> Fault:
    """Every request that has the header gets this."""
    return proxy.on("", action, when=lambda request: header in request.headers, times=None)
