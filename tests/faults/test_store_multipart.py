"""Rows 27, 28, 29, 30, 33 and 34: a large file, which goes up in parts.

Everywhere an upload in parts that somebody else began under the same name stays as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_sink.errors import DestinationConflict, DestinationError, StoreUnavailableError
from ray_sink.records import Verification
from tests.faults.s3_bench import Bench, Case, bench_at, events
from tests.faults.s3_proxy import Action, Exchange, Fault, Reply, after, answer, cut_body, lost, no_answer, swallowed
from tests.servers import S3Server


@pytest.fixture(scope="module")
def bench(s3_server: S3Server) -> Iterator[Bench]:
    # with either engine parts go the same way
    with bench_at(s3_server) as made:
        yield made


@pytest.fixture
def case(bench: Bench, tmp_path: Path) -> Iterator[Case]:
    with bench.case(tmp_path) as made:
        yield made


@pytest.fixture
def theirs(case: Case) -> str:
    return case.multipart_by_another("large")


def completing_fails(case: Case, action: Action | None = None) -> Fault:
    return case.proxy.on("CompleteMultipartUpload", action or answer(500, "InternalError"))


def nothing_in_it(exchange: Exchange) -> Reply:
    exchange.body()
    return Reply(200)


@pytest.mark.row(27)
@pytest.mark.parametrize("action", [answer(200, "InternalError"), answer(200, "SlowDown"), nothing_in_it])
def test_a_200_that_holds_an_error_is_no_success(case: Case, theirs: str, action: Action) -> None:
    fault = completing_fails(case, action)
    outcomes = case.upload([case.large()])
    assert fault.fired == 1
    assert outcomes[0].verification is Verification.VERIFIED
    assert len(case.multiparts) == len(case.proxy.seen("CompleteMultipartUpload")) == 2
    case.check(outcomes, multiparts=[theirs])


@pytest.mark.row(27)
@pytest.mark.row(28)
@pytest.mark.parametrize("instead", [answer(200, "InternalError"), no_answer, answer(412, "PreconditionFailed")])
def test_what_was_completed_without_its_reply_is_a_success_that_is_looked_at(
    case: Case, theirs: str, instead: Action
) -> None:
    fault = completing_fails(case, lost(instead))
    outcomes = case.upload([case.large()])
    assert fault.fired == 1
    assert len(case.multiparts) == len(case.proxy.seen("CompleteMultipartUpload")) == 1
    assert case.proxy.seen("HeadObject")
    case.check(outcomes, multiparts=[theirs])


@pytest.mark.row(29)
@pytest.mark.parametrize("run_id", ["run-0", "run-1"])
def test_no_such_upload_is_a_failure_where_an_older_object_has_the_name(case: Case, theirs: str, run_id: str) -> None:
    older = case.uploader(run_id).upload(case.large(attempt="attempt-0"))
    assert older.error is None
    others = {"large": case.local("large").read_bytes()}
    fault = completing_fails(case, answer(404, "NoSuchUpload"))
    outcomes = case.upload([case.large()])
    assert fault.fired == 1
    assert isinstance(outcomes[0].error, DestinationConflict)
    case.check(outcomes, failed=["large"], others=others, multiparts=[theirs])


@pytest.mark.row(29)
@pytest.mark.row(39)
def test_where_an_older_object_may_be_replaced_it_is_not_taken_for_ours(case: Case, theirs: str) -> None:
    older = case.put_by_another("large")
    fault = completing_fails(case, answer(404, "NoSuchUpload"))
    outcomes = case.upload([case.large(replace=True)])
    assert fault.fired == 1
    assert len(case.multiparts) == 2
    case.check(outcomes, others={"large": older}, multiparts=[theirs])


@pytest.mark.row(30)
def test_a_409_begins_again_with_a_new_upload(case: Case, theirs: str) -> None:
    fault = completing_fails(case, answer(409, "ConditionalRequestConflict"))
    outcomes = case.upload([case.large()])
    assert fault.fired == 1
    assert len(case.multiparts) == len(case.proxy.seen("CreateMultipartUpload")) == 2
    assert len(case.proxy.seen("UploadPart")) == 6
    case.check(outcomes, multiparts=[theirs])


@pytest.mark.row(26)
@pytest.mark.parametrize("action", [cut_body, no_answer, lost()])
def test_a_part_whose_connection_is_reset_goes_again_alone(case: Case, theirs: str, action: Action) -> None:
    fault = case.proxy.on("UploadPart", action, times=2)
    outcomes = case.upload([case.large()])
    assert fault.fired == 2
    assert len(case.multiparts) == 1
    assert len(case.proxy.seen("UploadPart")) == 3 + 2
    case.check(outcomes, multiparts=[theirs])


@pytest.mark.row(25)
def test_a_part_that_never_gets_through_ends_after_bounded_tries(
    case: Case, theirs: str, caplog: pytest.LogCaptureFixture
) -> None:
    fault = case.proxy.on("UploadPart", answer(503, "SlowDown"), times=None)
    outcomes = case.upload([case.large()], attempts=3)
    assert isinstance(outcomes[0].error, StoreUnavailableError)
    # the bench tries a part 4 times and a file 3 times; parts behind the first are sent once
    assert fault.fired <= 3 * (4 + 2)
    told = [event["part"] for event in events(caplog, "upload_retried")]
    assert told == [1, 1, 1, None, 1, 1, 1, None, 1, 1, 1]
    case.check(outcomes, failed=["large"], multiparts=[theirs])


@pytest.mark.row(33)
def test_an_abort_that_raced_a_part_is_made_again(case: Case, theirs: str) -> None:
    fault = completing_fails(case)
    # as if a part had landed behind it: parts are there afterwards
    racing = case.proxy.on("AbortMultipartUpload", swallowed(204), times=2)
    outcomes = case.upload([case.large()])
    assert (fault.fired, racing.fired) == (1, 2)
    case.check(outcomes, multiparts=[theirs])


@pytest.mark.row(33)
def test_a_part_in_flight_when_its_upload_is_aborted_leaves_nothing(case: Case, theirs: str) -> None:
    aborted, landed = threading.Event(), threading.Event()

    def late(exchange: Exchange) -> Reply:
        exchange.body()
        aborted.wait(30)
        reply = exchange.forward()
        landed.set()
        return reply

    held = case.proxy.on("UploadPart", late, when=lambda part: part.query["partNumber"] == "2")

    def refuse(exchange: Exchange) -> Reply | None:
        held.wait()
        return answer(403, "AccessDenied")(exchange)

    refused = case.proxy.on("UploadPart", refuse, when=lambda part: part.query["partNumber"] == "1")
    outcomes = case.upload([case.large()])
    aborted.set()
    assert landed.wait(30)
    assert (held.fired, refused.fired) == (1, 1)
    assert isinstance(outcomes[0].error, DestinationError)
    case.check(outcomes, failed=["large"], multiparts=[theirs])


@pytest.mark.row(24)
@pytest.mark.row(33)
@pytest.mark.parametrize("times", [2, 6])
def test_an_abort_that_is_refused_for_now_is_made_up_for(case: Case, theirs: str, times: int) -> None:
    fault = completing_fails(case)
    busy = case.proxy.on("AbortMultipartUpload", answer(503, "SlowDown"), times=times)
    outcomes = case.upload([case.large()])
    assert (fault.fired, busy.fired) == (1, times)
    case.check(outcomes, multiparts=[theirs])


@pytest.mark.row(33)
def test_whoever_may_not_list_parts_aborts_all_the_same(case: Case, theirs: str) -> None:
    fault = completing_fails(case)
    denied = case.proxy.on("ListParts", answer(403, "AccessDenied"), times=None)
    # SeaweedFS answers a second abort as S3 does: there is no such upload
    aborts = case.proxy.on("AbortMultipartUpload", swallowed(204))
    outcomes = case.upload([case.large()])
    assert (fault.fired, aborts.fired) == (1, 1)
    assert denied.fired >= 1
    case.check(outcomes, multiparts=[theirs])


@pytest.mark.row(34)
@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_an_upload_that_a_lifecycle_rule_removes_begins_again(case: Case, theirs: str, operation: str) -> None:
    def remove(request: object) -> None:
        begun = case.multiparts[-1]
        case.client.abort_multipart_upload(Bucket=case.bucket, Key=begun.path, UploadId=begun.upload_id)

    fault = case.proxy.on(operation, after(remove))
    outcomes = case.upload([case.large()])
    assert fault.fired == 1
    assert len(case.multiparts) == 2
    # a part of an upload that is gone is not sent again
    assert len(case.proxy.seen("UploadPart")) <= 6
    case.check(outcomes, multiparts=[theirs])
