"""The filesystem of the journal fails, or falls silent, under a coordinator at work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ray_sink import Limits, Sink
from ray_sink.errors import StagingError
from tests.faults.processes import Injection, attach
from tests.fields import field
from tests.runtime.conftest import Run, pids_of
from tests.waiting import until

HANGS = "delay_enter=6000000"


def journal_of(run: Run, sink: Sink, term: str = "000001.001") -> Path:
    return run.staging / "_ray_sink" / sink.run_id / "journal" / term


@contextmanager
def on_journal(run: Run, sink: Sink, fault: Injection) -> Iterator[Path]:
    """The fault at the coordinator's calls on its journal; strace's log of them."""
    (pid,) = pids_of("Coordinator")
    log = run.staging.parent / "strace"
    tracing = attach(pid, log, [fault], "write,fsync", [journal_of(run, sink)])
    try:
        yield log
    finally:
        tracing.terminate()
        tracing.wait()


@pytest.mark.row(23)
def test_a_journal_that_hangs_holds_back_its_receipts_and_nothing_else(staging_run: Run) -> None:
    with staging_run.sink() as sink, sink.handle() as handle:
        handle.write("before", field(1)).result(60)
        with on_journal(staging_run, sink, Injection("fsync", HANGS, "1")) as log:
            ticket = handle.write("while", field(2))
            until(lambda: "fsync(" in log.read_text())
            began_s = time.monotonic()
            assert sink.status().decided == 1, "what is not durable is not told"
            assert time.monotonic() - began_s < 3
            assert "DELAYED" not in log.read_text(), "and it hangs still"
            assert not ticket.done()
            assert ticket.result(60).key == "while"
            assert "DELAYED" in log.read_text()
        assert sink.status().decided == 2
    assert set(staging_run.outputs()) == {"before.pt", "while.pt"}


@pytest.mark.row(23)
def test_a_journal_that_hangs_for_too_long_ends_the_run_by_name_and_it_resumes(staging_run: Run) -> None:
    sink = staging_run.sink(limits=Limits(takeover_s=5, storage_wait_s=1))
    handle = sink.handle()
    handle.write("before", field(1)).result(60)
    with on_journal(staging_run, sink, Injection("fsync", f"{HANGS}0", "1")) as log:
        ticket = handle.write("while", field(2))
        said = rf"syncing {journal_of(staging_run, sink)}: the filesystem has not answered for 1 s"
        began_s = time.monotonic()
        with pytest.raises(StagingError, match=said):
            ticket.result(30)
        with pytest.raises(StagingError, match=said):
            sink.status()
        with pytest.raises(StagingError, match=said):
            handle.close()
        with pytest.raises(StagingError, match=said):
            sink.close()
        assert time.monotonic() - began_s < 30
        assert "fsync(" in log.read_text()
        assert "DELAYED" not in log.read_text(), "and it hangs still"
    with staging_run.sink() as again, again.handle() as handle:
        handle.write("while", field(2))
    assert set(staging_run.outputs()) == {"before.pt", "while.pt"}


@pytest.mark.row(16)
@pytest.mark.row(21)
@pytest.mark.parametrize(("call", "error"), [("fsync", "EIO"), ("fsync", "ESTALE"), ("write", "ESTALE")])
def test_a_journal_that_failed_is_left_behind_and_the_ledgers_next_life_goes_on(
    staging_run: Run, call: str, error: str
) -> None:
    with staging_run.sink() as sink, sink.handle() as handle:
        handle.write("before", field(1)).result(60)
        with on_journal(staging_run, sink, Injection(call, f"error={error}", "1")) as log:
            assert handle.write("while", field(2)).result(60).key == "while"
            calls = [line for line in log.read_text().splitlines() if f"/{journal_of(staging_run, sink).name}>" in line]
            assert "(INJECTED)" in calls[-1], "nothing is done to it any more"
        assert journal_of(staging_run, sink, "000001.002").exists()
        handle.write("after", field(3)).result(60)
    assert set(staging_run.outputs()) == {"before.pt", "while.pt", "after.pt"}
