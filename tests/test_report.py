from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest

from ray_sink.display import Lines, OneLine, show_report
from ray_sink.events import LOGGER_NAME
from ray_sink.measures import ProducerMeasures, RunMeasures, UploaderMeasures, WriterMeasures
from ray_sink.records import ConflictCounts, RunInfo, RunStatus
from ray_sink.report import Live, Pace, Report
from ray_sink.stores.folder import FolderStore
from tests.test_measures import timings


def measured(outputs: int, *, retries: int = 0, failures: dict[str, str] | None = None) -> RunMeasures:
    return RunMeasures(
        producers=ProducerMeasures("", outputs + 1, 1000 * outputs, 1.5, 0.5, 0.25, 4.0),
        producer_count=2,
        writers=(WriterMeasures("w", 1, outputs, 1000 * outputs, timings(*[0.1] * outputs)),),
        uploaders=(UploaderMeasures("u", outputs, 500 * outputs, retries, 0, timings(*[1.0] * outputs), 16, 70),),
        failed=len(failures or {}),
        failures=failures or {},
        peak_in_flight_bytes=11,
        peak_staged_bytes=12,
    )


def report(outputs: int = 10) -> Report:
    status = RunStatus(failures={"k": "no"}, conflicts=ConflictCounts(retries=2, retries_differing=1))
    return Report(RunInfo("run-1", None, "/staging", "npy", "single"), 3, 4.0, measured(outputs, retries=5), status)


def test_a_report_says_what_was_measured() -> None:
    said = json.loads(report().to_json())
    assert (said["version"], said["run_id"], said["epoch"], said["wall_s"]) == (1, "run-1", 3, 4.0)
    assert (said["outputs"], said["bytes"], said["outputs_per_s"], said["bytes_per_s"]) == (10, 10_000, 2.5, 2500.0)
    assert (said["uploaded_files"], said["uploaded_bytes"], said["uploaded_bytes_per_s"]) == (10, 5000, 1250.0)
    waited = {"copy": 1.5, "device": 0.5, "credit": 0.25, "receipt": 4.0}
    assert said["producers"] == {"count": 2, "accepted": 11, "bytes": 10_000, "waited_s": waited}
    encode = {"count": 10, "total_s": 1.0, "p50_s": 0.1, "p90_s": 0.1, "p99_s": 0.1, "longest_s": 0.1}
    assert said["stages"]["encode"] == encode
    assert said["stages"]["publish"]["p50_s"] is None
    assert (said["retries"], said["failures"]) == ({"uploads": 5, "outputs": 3}, 1)
    assert said["peak_bytes"] == {"object_store": 11, "staging": 12, "upload": 70}
    assert said["writers"] == [{"name": "w", "batches": 1, "outputs": 10, "bytes": 10_000}]


def test_its_table_names_every_stage_that_ran_and_every_reason_to_wait() -> None:
    shown = io.StringIO()
    show_report(report(), shown)
    text = shown.getvalue()
    assert "copy 1.50 s, device 0.50 s, credit 0.25 s, receipt 4.00 s" in text
    assert "p50 100 ms" in text
    assert "upload" in text
    assert "publish" not in text


def test_a_report_that_cannot_be_kept_is_said_and_raises_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with caplog.at_level(logging.INFO, LOGGER_NAME):
        report().keep(FolderStore("dest", tmp_path / "dest"))
        assert caplog.records == []
        report().keep(FolderStore("file", tmp_path / "file"))
    assert [record.event for record in caplog.records] == ["report_missed"]  # type: ignore[attr-defined]
    assert (tmp_path / "dest/_ray_sink/run-1/report.json").read_bytes() == report().to_json()


def test_rates_are_those_of_the_last_ten_seconds() -> None:
    pace = Pace()
    assert pace.live(measured(100), 0.0).outputs_per_s == 0.0
    assert pace.live(measured(200), 5.0).outputs_per_s == 20.0
    for second in range(6, 40):
        live = pace.live(measured(200 + 3 * (second - 5)), float(second))
    assert (live.outputs_per_s, live.staged_bytes_per_s, live.uploaded_bytes_per_s) == (3.0, 3000.0, 1500.0)
    assert pace.live(measured(0), 41.0).outputs_per_s == 0.0  # a coordinator that was started again


def test_what_an_owner_notes_of_a_run_stays_small() -> None:
    writers = tuple(WriterMeasures(f"host-{n:05}", 10**6, 10**8, 10**12) for n in range(500))
    failures = {f"k{n}": "broke" for n in range(20)}
    live = Pace().live(RunMeasures(writers=writers, failed=10**6, failures=failures), 0.0)
    assert len(live.to_json()) < 4096
    assert json.loads(live.to_json())["failed"] == 10**6


def live(failed: int = 0) -> Live:
    return Live(7, 3, 4, 10, 1.5, 2e9, 1e9, {"copy": 0.1, "credit": 0.0, "receipt": 2.0}, failed, {}, [])


def test_without_a_terminal_a_line_comes_every_half_minute() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    for second in range(95):
        lines.show(live(), float(second))
    assert stream.getvalue().splitlines() == [live().line()] * 3
    assert live().line() == (
        "sink: 7 accepted, 3 staged, 4 uploaded; 1.5/s, 2.00 GB/s staged, 1.00 GB/s uploaded;"
        " producers waited: copy 0.1 s, credit 0.0 s, receipt 2.0 s"
    )


def test_in_a_terminal_one_line_is_kept_up_to_date_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    line = OneLine(terminal)
    line.show(live(), 0.0)
    line.show(live(failed=2), 1.0)
    assert "2 FAILED" in terminal.getvalue()
    assert terminal.getvalue().count("\n") == 0
    line.close()
    assert terminal.getvalue().rstrip("\r").endswith("\x1b[2K")
