"""What a driver shows and leaves of its run: the note for those who look on, the display, the report."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
import torch

from ray_sink import Sink, WriterOptions
from ray_sink.errors import OutputsFailed
from tests.cli.conftest import ROOT, call
from tests.picky import Picky
from tests.runtime.conftest import Run, kill
from tests.waiting import until


def report_of(run: Run, sink: Sink) -> dict[str, object]:
    root = Path(run.dest or run.staging)
    return dict(json.loads((root / "_ray_sink" / sink.run_id / "report.json").read_bytes()))


def test_a_run_ends_with_a_report_of_all_its_outputs(folder_run: Run) -> None:
    with folder_run.sink() as sink:
        for producer in range(2):
            with sink.handle() as handle:
                handle.write_batch([f"{producer}/{n}" for n in range(10)], torch.zeros(10, 100))
                handle.write(f"{producer}/0", torch.ones(100))
    said = report_of(folder_run, sink)
    assert (said["run_id"], said["epoch"], said["outputs"], said["uploaded_files"]) == (sink.run_id, 1, 22, 20)
    assert said["uploaded_bytes"] == sum(map(len, folder_run.outputs().values()))
    assert said["producers"]["accepted"] == 22  # type: ignore[index]
    assert said["producers"]["bytes"] == said["bytes"] == 22 * 400  # type: ignore[index]
    counts = {name: stage["count"] for name, stage in said["stages"].items()}  # type: ignore[attr-defined]
    assert counts == {"encode": 22, "stage": 22, "decide": 4, "publish": 4, "upload": 20}
    assert said["retries"] == {"uploads": 0, "outputs": 2}
    assert 0 < said["peak_bytes"]["staging"] <= said["uploaded_bytes"]  # type: ignore[index]
    assert [writer["outputs"] for writer in said["writers"]] == [22]  # type: ignore[attr-defined]
    before = dict(said)
    folder_run.sink().close()  # a sealed run keeps its report
    assert report_of(folder_run, sink) == before


def test_a_report_counts_on_when_the_coordinator_was_started_again(staging_run: Run) -> None:
    with staging_run.sink() as sink, sink.handle() as handle:
        handle.write_batch(["a", "b"], torch.zeros(2, 10))
        handle.flush()
        kill("Coordinator")
        handle.write_batch(["c", "d", "e"], torch.zeros(3, 10))
    said = report_of(staging_run, sink)
    assert said["outputs"] == said["producers"]["accepted"] == 5  # type: ignore[index]


def test_who_looks_on_is_told_what_only_the_cluster_knows(folder_run: Run) -> None:
    with folder_run.sink() as sink, sink.handle() as handle:
        handle.write_batch([f"k{n}" for n in range(5)], torch.zeros(5, 10))
        handle.flush()

        def seen() -> dict[str, object]:
            where = ["--staging", folder_run.staging, "--watch-s", 0, "--json"]
            (row,) = call("status", *where).json["runs"]
            return dict(row)

        until(lambda: (seen()["live"] or {}).get("uploaded") == 5, deadline_s=20)  # type: ignore[attr-defined]
        row = seen()
        live: dict[str, object] = row["live"]  # type: ignore[assignment]
        assert (row["state"], live["accepted"], live["failed"]) == ("running", 5, 0)
        assert [writer["outputs"] for writer in live["writers"]] == [5]  # type: ignore[attr-defined]
        assert set(live["waited_s"]) == {"copy", "device", "credit", "receipt"}  # type: ignore[call-overload]
        text = call("status", "--staging", folder_run.staging)
        assert "5 accepted" in text.out
        assert "producers  waited for copy" in text.out


def test_failures_are_counted_and_a_run_that_fails_leaves_no_report(
    staging_run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    sink = staging_run.sink(save_format=Picky(), writers=WriterOptions())
    handle = sink.handle()
    handle.write("good", torch.zeros(3))
    handle.write("bad", torch.tensor([float("nan")]))
    with pytest.raises(OutputsFailed):
        handle.close()
    with caplog.at_level("INFO", "ray_sink"), pytest.raises(OutputsFailed):
        sink.close()
    (ended,) = [record for record in caplog.records if getattr(record, "event", None) == "run_ended"]
    assert (ended.fields["outputs"], ended.fields["failures"]) == (1, 1)  # type: ignore[attr-defined]
    assert not list(staging_run.staging.rglob("report.json"))


SCRIPT = """
import os, sys, time, ray, ray.data, torch
from ray_sink import Sink

def model(batch):
    time.sleep(0.5)
    return {"id": batch["id"], "p": torch.zeros(len(batch["id"]), 4)}

ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
for mode in ("uploads", "handle", "off", "dataset"):
    print("begin", flush=True)
    dest = f"{sys.argv[1]}/{mode}" if mode == "uploads" else None
    staging = f"{sys.argv[1]}/staging/{mode}"
    os.makedirs(staging)
    with Sink(dest, staging=staging, run_id=mode, progress=mode != "off") as sink:
        if mode == "dataset":
            ray.data.DataContext.get_current().enable_progress_bars = True
            sink.run(ray.data.range(8), model, key="d/{id}", batch_size=1)
        else:
            with sink.handle() as handle:
                handle.write(mode, torch.zeros(3)).result()
"""


def in_terminal(staging: Path) -> str:
    """All that a driver writes into a terminal of its own."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 250))  # bars have no room in a terminal without a size
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "250", "LINES": "40"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(staging)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    heard: list[bytes] = []

    def listen() -> None:
        with contextlib.suppress(OSError):  # what a terminal says whose last writer is gone
            while data := os.read(ours, 65536):
                heard.append(data)

    listening = threading.Thread(target=listen)
    listening.start()
    try:
        assert process.wait(360) == 0, b"".join(heard).decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        listening.join()
        os.close(ours)
    return b"".join(heard).decode(errors="replace")


@pytest.mark.ray
def test_a_driver_in_a_terminal_shows_a_line_and_a_table_unless_told_not_to(tmp_path: Path) -> None:
    told = in_terminal(tmp_path)
    assert "Coordinator" not in told  # its end is nobody's failure
    _, _, handle, off, dataset = told.split("begin")
    assert "sink: 1 accepted, 1 staged" in handle
    assert "\x1b[2K" in handle  # the line is taken away again
    assert "run handle" in handle
    assert "encode" in handle
    assert "sink: " not in off
    assert "run off" not in off
    # a line among Ray Data's own bars
    assert "MapBatches" in dataset
    assert "sink: " in dataset
    assert "run dataset" in dataset
