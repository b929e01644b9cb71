"""Rows 25, 26, 28, 30, 31 and 41: one put, and everything that its request and its reply can meet on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_sink.errors import DestinationConflict, DestinationError, StagedFileChangedError, StoreUnavailableError
from ray_sink.records import Verification
from tests.faults.s3_bench import ENGINES, Bench, Case, bench_at, events
from tests.faults.s3_proxy import Action, Reply, after, answer, cut_body, flipped, lost, no_answer, truncated
from tests.servers import S3Server


@pytest.fixture(scope="module", params=ENGINES)
def bench(request: pytest.FixtureRequest, s3_server: S3Server) -> Iterator[Bench]:
    with bench_at(s3_server, engine=request.param) as made:
        yield made


@pytest.fixture
def case(bench: Bench, tmp_path: Path) -> Iterator[Case]:
    with bench.case(tmp_path) as made:
        yield made


PASSING: dict[str, Action] = {
    "500": answer(500, "InternalError"),
    "502": answer(502),
    "504": lambda exchange: Reply(504, (("Content-Type", "text/html"),), exchange.body()[:0] + b"<html>Gateway</html>"),
    "503": answer(503, "ServiceUnavailable"),
    "slow": answer(503, "SlowDown"),
    "429": answer(429, "TooManyRequests"),
    "408": answer(400, "RequestTimeout"),
    "409": answer(409, "ConditionalRequestConflict"),
    "aborted": answer(409, "OperationAborted"),
}


@pytest.mark.row(25)
@pytest.mark.row(30)
def test_what_passes_is_tried_again_by_one_layer_alone(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    tasks = [case.task(name) for name in PASSING]
    faults = [case.proxy.on("PutObject", action, key=f"/{name}.npy", times=2) for name, action in PASSING.items()]
    outcomes = case.upload(tasks)
    assert [fault.fired for fault in faults] == [2] * len(PASSING)
    for name in PASSING:
        # nobody below tries again by itself, and a look comes before each further try
        assert case.asked(name) == ["PutObject", "HeadObject", "PutObject", "HeadObject", "PutObject"], name
    assert len(events(caplog, "upload_retried")) == 2 * len(PASSING)
    case.check(outcomes)


@pytest.mark.row(25)
def test_what_does_not_pass_ends_after_bounded_tries_and_is_named(case: Case) -> None:
    tasks = [case.task("poor"), case.task("good")]
    fault = case.proxy.on("PutObject HeadObject", answer(500, "InternalError"), key="poor.npy", times=None)
    outcomes = case.upload(tasks, attempts=5)
    assert fault.fired == 5
    (error,) = [outcome.error for outcome in outcomes if outcome.error is not None]
    assert isinstance(error, StoreUnavailableError)
    assert "gave up after 5 tries" in error.__notes__[0]
    assert case.local("poor").exists()
    case.check(outcomes, failed=["poor"])


@pytest.mark.row(25)
def test_what_cannot_pass_is_asked_once(case: Case) -> None:
    fault = case.proxy.on("PutObject", answer(403, "AccessDenied"), times=None)
    outcomes = case.upload([case.task("a")])
    assert fault.fired == len(case.asked("a")) == 1
    assert isinstance(outcomes[0].error, DestinationError)
    case.check(outcomes, failed=["a"])


@pytest.mark.row(26)
@pytest.mark.parametrize(("way", "action"), [("in the body", cut_body), ("before the reply", no_answer)])
def test_a_connection_that_is_reset_is_reconciled(case: Case, way: str, action: Action) -> None:
    tasks = [case.task(f"{number}", 3_000_000) for number in range(3)]
    fault = case.proxy.on("PutObject", action, times=3)
    outcomes = case.upload(tasks)
    assert fault.fired == 3
    assert len(case.proxy.seen("PutObject")) == 6, way
    case.check(outcomes)


@pytest.mark.row(28)
@pytest.mark.parametrize("instead", [no_answer, answer(500, "InternalError"), answer(412, "PreconditionFailed")])
def test_a_put_that_landed_without_its_reply_is_a_success_that_is_looked_at(
    case: Case, instead: Action, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "ray_sink")
    fault = case.proxy.on("PutObject", lost(instead))
    outcomes = case.upload([case.task("a")])
    assert fault.fired == 1
    assert outcomes[0].verification is Verification.VERIFIED
    assert [event["adopted"] for event in events(caplog, "uploaded")] == [True]
    assert case.proxy.seen("HeadObject")
    case.check(outcomes)


@pytest.mark.row(28)
def test_a_retry_that_gets_412_is_a_success_only_if_the_object_is_ours(case: Case) -> None:
    # the first try is lost on its way there, and its name is taken before the second
    theirs: dict[str, bytes] = {}
    fault = case.proxy.on("PutObject", no_answer, key="taken.npy")
    second = case.proxy.on(
        "PutObject",
        after(lambda put: theirs.setdefault("taken", case.put_by_another("taken", b"a" * 2000))),
        key="taken.npy",
        when=lambda put: fault.fired == 1,
    )
    outcomes = case.upload([case.task("taken"), case.task("free")])
    assert (fault.fired, second.fired) == (1, 1)
    (error,) = [outcome.error for outcome in outcomes if outcome.error is not None]
    assert isinstance(error, DestinationConflict)
    assert error.keys == (case.key("taken"),)
    case.check(outcomes, failed=["taken"], others=theirs)


@pytest.mark.row(31)
@pytest.mark.parametrize(("way", "action"), [("truncated", truncated), ("flipped", flipped)])
def test_what_the_way_does_to_a_body_is_caught(
    case: Case, way: str, action: Action, caplog: pytest.LogCaptureFixture
) -> None:
    fault = case.proxy.on("PutObject", action, times=2)
    outcomes = case.upload([case.task("a", 100_000)])
    assert fault.fired == 2
    assert len(events(caplog, "upload_retried")) == 2, way
    assert outcomes[0].verification is Verification.VERIFIED
    case.check(outcomes)


@pytest.mark.row(31)
@pytest.mark.parametrize(("way", "action"), [("truncated", truncated), ("flipped", flipped)])
def test_what_the_way_does_to_a_part_is_caught(case: Case, way: str, action: Action) -> None:
    fault = case.proxy.on("UploadPart", action, times=2)
    outcomes = case.upload([case.large()])
    assert fault.fired == 2, way
    assert outcomes[0].verification is Verification.VERIFIED
    assert len(case.multiparts) == 1
    case.check(outcomes)


@pytest.mark.row(41)
@pytest.mark.parametrize("large", [False, True])
def test_a_staged_file_that_changed_is_named_and_not_uploaded(case: Case, large: bool) -> None:
    task = case.large("a") if large else case.task("a")
    local = case.local("a")
    data = bytearray(local.read_bytes())
    data[-1] ^= 1
    local.write_bytes(data)
    outcomes = case.upload([task])
    assert isinstance(outcomes[0].error, StagedFileChangedError)
    assert "a.npy" in str(outcomes[0].error)
    assert local.exists()
    assert not case.proxy.seen("PutObject CompleteMultipartUpload")
    case.check(outcomes, failed=["a"])
