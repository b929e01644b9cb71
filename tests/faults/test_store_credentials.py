"""Row 35: credentials end while uploads are under way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import tests.credentials
from ray_sink.errors import StoreUnavailableError
from ray_sink.records import UploadOutcome
from tests.faults.s3_bench import ENGINES, Case, bench_at
from tests.faults.s3_credentials import Issuer
from tests.faults.s3_proxy import Fault, after, answer, lost
from tests.servers import S3Server

pytestmark = [pytest.mark.row(35), pytest.mark.timeout(120)]


@dataclass(frozen=True)
class Ending:
    """A case whose credentials end.

    Attributes:
        refused: fires for requests with a set that has ended.
    """

    case: Case
    issuer: Issuer
    refused: Fault

    def ends_at(self, operation: str, number: int) -> Fault:
        """The credentials end before the so manyeth request of an operation; the next ones are there to be found."""
        seen: list[object] = []

        def is_it(request: object) -> bool:
            seen.append(request)
            return len(seen) == number

        def end(request: object) -> None:
            self.issuer.expire()
            self.issuer.offer()

        return self.case.proxy.on(operation, after(end), when=is_it)


@pytest.fixture(params=[f"{engine} {source}" for engine in ENGINES for source in ("function", "profile")])
def ending(
    request: pytest.FixtureRequest, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ending]:
    engine, source = request.param.split()
    file = tmp_path / "credentials"
    issuer = Issuer(s3_server, file, profile=source == "profile")
    options = {"engine": engine, "concurrency": 8}
    if source == "function":
        monkeypatch.setenv(tests.credentials.VARIABLE, str(file))
        options["credentials"] = tests.credentials.FUNCTION
    else:
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    with bench_at(s3_server, signed_in=False, **options) as bench:
        issuer.guard(bench.proxy)
        with bench.case(tmp_path / "staging") as case:
            yield Ending(case, issuer, issuer.guard(case.proxy))


def assert_no_secret(case: Case, outcomes: Sequence[UploadOutcome], caplog: pytest.LogCaptureFixture) -> None:
    said = caplog.text + "".join(
        f"{outcome.error!r}{outcome.error and outcome.error.__notes__}" for outcome in outcomes
    )
    said += repr(case.store) + repr(case.uploader())
    for secret in ("secret-canary", "token-canary"):
        assert secret not in said


def test_many_puts_whose_credentials_end_go_on_with_new_ones(ending: Ending, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    case = ending.case
    end = ending.ends_at("PutObject", 10)
    outcomes = case.upload([case.task(f"{number}") for number in range(40)])
    assert end.fired == 1
    # whoever was on the way with the old set, and nobody a second time
    assert 1 <= ending.refused.fired <= 2 * 8
    assert_no_secret(case, outcomes, caplog)
    case.check(outcomes)


def test_the_parts_of_a_large_file_go_on_with_new_credentials(ending: Ending, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    case = ending.case
    end = ending.ends_at("UploadPart", 2)
    outcomes = case.upload([case.large(f"{number}") for number in range(2)])
    assert end.fired == 1
    assert 1 <= ending.refused.fired <= 2 * 8
    # the parts that were there already did not go again
    assert len(case.multiparts) == 2
    assert_no_secret(case, outcomes, caplog)
    case.check(outcomes)


def test_a_look_that_meets_the_end_is_made_again(ending: Ending) -> None:
    # the answer to a HEAD has no body that could say why it was refused
    case = ending.case
    fault = case.proxy.on("PutObject", lost(answer(500, "InternalError")))
    end = ending.ends_at("HeadObject", 1)
    outcomes = case.upload([case.task("a")])
    assert (fault.fired, end.fired) == (1, 1)
    assert ending.refused.fired >= 1
    assert case.asked("a") == ["PutObject", "HeadObject", "HeadObject"]
    case.check(outcomes)


def test_credentials_that_come_late_are_waited_for_and_those_that_never_come_are_named(
    ending: Ending, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    case = ending.case
    ending.issuer.expire()
    poor = case.uploader(attempts=3).upload(case.task("poor"))
    assert case.asked("poor") == ["PutObject", "HeadObject", "HeadObject"]
    assert ending.refused.fired >= 3
    assert isinstance(poor.error, StoreUnavailableError)
    assert "expired" in str(poor.error)
    offering = case.proxy.on("HeadObject", after(lambda _: ending.issuer.offer()), key="good.npy")
    good = case.uploader().upload(case.task("good"))
    assert offering.fired == 1
    assert_no_secret(case, [poor, good], caplog)
    case.check([poor, good], failed=["poor"])
