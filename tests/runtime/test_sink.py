"""The whole way on one node: from tensors to a sealed run, to every kind of destination."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import ray
import torch
from safetensors import safe_open

import ray_sink
from ray_sink import DictMode, Limits, SaveFormat, Sink, State
from ray_sink.errors import (
    ConfigError,
    DestinationConflict,
    DestinationError,
    DuplicateKeyError,
    InvalidKeyError,
    OutputsFailed,
    PathConflict,
    RunIncomplete,
    RunMismatchError,
    RunOwnedError,
    RunSealedError,
    SinkClosedError,
    StagingError,
    UnsupportedValueError,
)
from ray_sink.ownership import Claim, claim
from tests.fields import field
from tests.runtime.conftest import LIMITS, Run, pids_of
from tests.servers import S3Server
from tests.shouting import Shouting


@ray.remote(num_cpus=0.1)
def produce(handle: ray_sink.SinkHandle, start: int, say_goodbye: bool) -> list[str]:
    tickets = [handle.write(f"t/{i}", field(i)) for i in range(start, start + 5)]
    keys = [ticket.result(60).key for ticket in tickets]
    if say_goodbye:
        handle.close()
    return keys


# -- one sink for what needs none of its own --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Iterator[Sink]:
    """A sink with room for little; staging is its destination."""
    limits = Limits(takeover_s=5, object_store_bytes=4 * 2**20, inflight_outputs=3)
    with Sink(
        None, staging=tmp_path_factory.mktemp("staging"), save_format=SaveFormat.NUMPY_NPZ, limits=limits
    ) as shared:
        yield shared


def test_a_retried_key_gets_the_first_receipt_and_is_counted(sink: Sink) -> None:
    before = sink.status().conflicts
    with sink.handle() as handle:
        first = handle.write("retried", field(1)).result(60)
        again = handle.write("retried", field(1)).result(60)
        other = handle.write("retried", field(2)).result(60)
        assert first.attempt == again.attempt == other.attempt
    after = sink.status().conflicts
    assert (after.retries - before.retries, after.retries_differing - before.retries_differing) == (1, 1)
    value: object = ray_sink.load(first)
    assert isinstance(value, torch.Tensor)
    assert torch.equal(value, field(1))


def test_tickets_can_be_awaited(sink: Sink) -> None:
    async def write(handle: ray_sink.SinkHandle) -> list[ray_sink.Receipt]:
        return list(
            await asyncio.gather(*handle.write_batch(["await/a", "await/b"], torch.stack([field(1), field(2)])))
        )

    with sink.handle() as handle:
        assert [receipt.key for receipt in asyncio.run(write(handle))] == ["await/a", "await/b"]


def test_handles_travel_to_tasks(sink: Sink) -> None:
    before = sink.status().decided
    handle = sink.handle()
    keys = ray.get([produce.remote(handle, start, True) for start in (0, 5, 10)])
    assert {key for some in keys for key in some} == {f"t/{i}" for i in range(15)}
    assert sink.status().decided == before + 15


def test_bad_outputs_are_refused_in_the_caller_and_harm_nothing(sink: Sink) -> None:
    before = sink.status().decided
    with sink.handle() as handle:
        with pytest.raises(TypeError, match="str"):
            handle.write("bad", "text")
        with pytest.raises(InvalidKeyError, match=r"'\.\.'"):
            handle.write("../bad", field(1))
        with pytest.raises(DuplicateKeyError, match="bad"):
            handle.write_batch(["bad", "bad"], torch.zeros(2, 3))
        with pytest.raises(UnsupportedValueError, match="first dimension"):
            handle.write_batch(["bad", "b"], torch.zeros(3, 3))
        with pytest.raises(UnsupportedValueError, match="float8"):
            handle.write("bad", torch.zeros(3).to(torch.float8_e4m3fn))
        assert handle.write("good", field(1)).result(60).key == "good"
    assert sink.status().decided == before + 1


def test_what_coordinator_and_uploader_are_told_loads_no_torch(sink: Sink) -> None:
    assert sink._actors is not None
    told = pickle.dumps(sink._actors.spec).hex()
    code = f"import pickle, sys; pickle.loads(bytes.fromhex('{told}')); import ray_sink.runtime.coordinator"
    code += ", ray_sink.runtime.uploading; print([name for name in ('torch', 'pandas') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_limits_hold_the_producer_back_and_let_oversized_items_through(sink: Sink) -> None:
    before = sink.status().decided
    with sink.handle() as handle:
        for number in range(12):
            handle.write(f"mib/{number}", torch.full((2**18,), float(number)))
            assert handle.outstanding <= 3
        handle.write("oversized", torch.zeros(2**21))
    assert sink.status().decided == before + 13


# -- sinks of their own ----------------------------------------------------------------------------------------------


def test_outputs_arrive_byte_for_byte_and_are_sealed(run: Run) -> None:
    with run.sink() as sink, sink.handle() as handle:
        buffer = field(0)
        ticket = handle.write("runs/first", buffer)
        buffer.zero_()  # what is saved is what it held at the call
        batch = {"u": torch.stack([field(i) for i in range(1, 9)]), "v": torch.arange(8)}
        tickets = handle.write_batch([f"runs/{i:03d}" for i in range(8)], batch)
        receipts = [t.result(60) for t in [ticket, *tickets]]
        assert {receipt.state for receipt in receipts} <= {State.STAGED, State.UPLOADED}
    manifest = run.manifest()
    assert list(manifest) == sorted(["runs/first", *(f"runs/{i:03d}" for i in range(8))])
    assert torch.equal(manifest.load("runs/first"), field(0))  # type: ignore[arg-type]
    loaded = manifest.load("runs/003")
    assert isinstance(loaded, dict)
    assert torch.equal(loaded["u"], field(4))
    assert loaded["v"].item() == 3
    assert run.outputs().keys() == {f"{key}.pt" for key in manifest}
    final = State.UPLOADED if run.dest else State.STAGED
    assert {receipt.state for receipt in manifest.receipts()} == {final}
    assert sink.manifest.seal == manifest.seal
    assert manifest.seal.outputs == 9
    own = run.staging / "_ray_sink" / sink.run_id
    assert [path for name in ("tmp", "fenced") for path in (own / name).rglob("*")] == []
    if run.dest:
        assert list(run.staging.rglob("*.pt")) == []  # freed after upload


def test_ack_uploaded_waits_for_the_store(folder_run: Run) -> None:
    with folder_run.sink(ack="uploaded") as sink, sink.handle() as handle:
        receipt = handle.write("a", field(1)).result(60)
        assert receipt.state is State.UPLOADED
        assert list(folder_run.outputs()) == ["a.pt"]


def test_split_outputs_have_one_receipt_and_all_files(staging_run: Run) -> None:
    with staging_run.sink(dict_mode=DictMode.SPLIT, save_format=SaveFormat.NUMPY_NPY) as sink, sink.handle() as handle:
        receipt = handle.write("s", {"u": field(1), "v": field(2)}).result(60)
        assert [file.path for file in receipt.files] == ["s_u.npy", "s_v.npy"]
        handle.write("a_b", {"c": field(3)}).result(60)
        with pytest.raises(PathConflict, match=r"'a_b' and 'a'"):
            handle.write("a", {"b_c": field(4)}).result(60)
        with pytest.raises(OutputsFailed):
            handle.flush()
        # a failure is a failure until its key is committed after all
        with pytest.raises(PathConflict):
            handle.write("a", {"b_c": field(4)}).result(60)
        handle.write("a", {"d": field(4)}).result(60)
        with pytest.raises(OutputsFailed):
            handle.flush()


def test_outputs_are_read_by_others(folder_run: Run, tmp_path: Path) -> None:
    with folder_run.sink(save_format=SaveFormat.SAFETENSORS) as sink, sink.handle() as handle:
        handle.write("x", {"a": field(1), "b": torch.ones(3, dtype=torch.bfloat16)})
        handle.write("odd ü#?%", {"a": field(2)})
    assert folder_run.dest is not None
    with safe_open(f"{folder_run.dest}/x.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("a"), field(1))
        assert file.get_tensor("b").dtype == torch.bfloat16
    files = f"{folder_run.dest}/_ray_sink/*/manifest-*.parquet"
    rows = duckdb.connect().execute(
        f"select key, state, len(files), files[1].bytes from read_parquet('{files}') order by key"
    )
    assert [row[:3] for row in rows.fetchall()] == [("odd ü#?%", "uploaded", 1), ("x", "uploaded", 1)]


def test_a_format_of_the_users_own_goes_the_whole_way(folder_run: Run) -> None:
    with folder_run.sink(save_format=Shouting()) as sink, sink.handle() as handle:
        with pytest.raises(UnsupportedValueError, match="only tensors"):
            handle.write("b", {"x": field(1)})
        receipt = handle.write("a", field(1)).result(60)
        assert receipt.notes == ("loud",)
        assert receipt.files[0].path == "a.shout"
    assert torch.equal(folder_run.manifest().load("a", save_format=Shouting()), field(1))  # type: ignore[arg-type]


def test_a_producer_that_never_said_goodbye_keeps_the_run_open(staging_run: Run) -> None:
    sink = staging_run.sink()
    ray.get(produce.remote(sink.handle(), 0, False))
    with pytest.raises(RunIncomplete, match="never closed its handle") as caught:
        sink.close()
    assert len(caught.value.producers) == 1
    # what was accepted is safe: the next run of the script finds it
    with staging_run.sink() as again, again.handle() as handle:
        assert handle.write("t/0", torch.zeros(1)).result(60).files[0].bytes > 1000
    assert len(staging_run.manifest()) == 5


def test_a_producer_that_left_by_an_exception_with_outputs_under_way_keeps_the_run_open(staging_run: Run) -> None:
    others = set(pids_of("WriterShell"))
    sink = staging_run.sink(limits=Limits(takeover_s=5.0, drain_s=1.0))
    tickets = []

    def leave() -> None:
        with sink.handle() as handle:
            handle.write("a", field(1)).result(60)
            for pid in set(pids_of("WriterShell")) - others:
                os.kill(pid, signal.SIGSTOP)
            tickets.append(handle.write("b", field(2)))
            raise ZeroDivisionError

    try:
        with pytest.raises(ZeroDivisionError) as left:
            leave()
        assert "1 output(s) had no receipt" in "".join(left.value.__notes__)
    finally:
        for pid in set(pids_of("WriterShell")) - others:
            os.kill(pid, signal.SIGCONT)
    assert tickets[0].result(60).key == "b"
    with pytest.raises(RunIncomplete, match="never closed its handle"):
        sink.close()


@pytest.mark.parametrize("run", ["s3"], indirect=True)
def test_an_exception_in_the_block_seals_nothing_and_loses_nothing(run: Run) -> None:
    with pytest.raises(ZeroDivisionError), run.sink() as sink, sink.handle() as handle:  # noqa: PT012
        handle.write("a", field(1))
        raise ZeroDivisionError
    with pytest.raises(ray_sink.SinkError, match=r"not sealed|no sealed run"):
        run.manifest()
    with run.sink() as sink, sink.handle() as handle:
        assert handle.write("a", field(2)).result(60).key == "a"
        handle.write("b", field(3))
    assert torch.equal(run.manifest().load("a"), field(1))  # type: ignore[arg-type]
    assert len(run.manifest()) == 2


@pytest.mark.parametrize("run", ["folder"], indirect=True)
def test_a_sealed_run_reopens_and_takes_no_new_keys(run: Run) -> None:
    with run.sink() as sink, sink.handle() as handle:
        first = handle.write("a", field(1)).result(60)
    sealed = run.manifest().seal
    with run.sink() as sink, sink.handle() as handle:
        assert sink.manifest.seal == sealed
        assert handle.write("a", field(2)).result(60).attempt == first.attempt
    sink = run.sink()
    handle = sink.handle()
    with pytest.raises(RunSealedError, match="'b' is not in it"):
        handle.write("b", field(2)).result(60)
    with pytest.raises(OutputsFailed, match="'b'"):
        handle.close()
    with pytest.raises(OutputsFailed, match="'b'"):
        sink.close()
    assert run.manifest().seal == sealed


@pytest.mark.parametrize("run", ["s3"], indirect=True)
def test_a_run_that_is_sealed_while_the_next_driver_starts_is_sealed_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run.sink()
    with first.handle() as handle:
        handle.write("a", field(1))

    def late(*places: Any, **options: Any) -> Claim:
        first.close()
        return claim(*places, **options)

    monkeypatch.setattr(ray_sink.sink, "claim", late)
    second = run.sink()
    assert second.manifest.seal == first.manifest.seal
    with pytest.raises(OutputsFailed, match="'b' is not in it"), second.handle() as handle:
        handle.write("b", field(2))
    with pytest.raises(OutputsFailed, match="'b'"):
        second.close()
    assert run.manifest().seal == first.manifest.seal


def test_another_fingerprint_or_format_is_refused_with_both_values(staging_run: Run) -> None:
    with staging_run.sink(fingerprint="sha-1") as sink, sink.handle() as handle:
        handle.write("a", field(1))
    with pytest.raises(RunMismatchError, match=r"'sha-1'.*'sha-2'"):
        staging_run.sink(fingerprint="sha-2")
    with pytest.raises(RunMismatchError, match=r"'pytorch_pt'.*'safetensors'"):
        staging_run.sink(fingerprint="sha-1", save_format=SaveFormat.SAFETENSORS)


def test_a_second_driver_is_refused_while_the_first_lives(folder_run: Run) -> None:
    with folder_run.sink() as sink:
        with pytest.raises(RunOwnedError, match="is in use"):
            folder_run.sink()
        with pytest.raises(RunOwnedError, match=str(folder_run.staging)):
            Sink(None, staging=folder_run.staging, run_id="other", limits=LIMITS)
        with sink.handle() as handle:
            handle.write("a", field(1)).result(60)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["error", "keep", "replace"])
def test_other_runs_outputs_are_treated_as_the_user_said(folder_run: Run, policy: str) -> None:
    assert folder_run.dest is not None
    os.makedirs(folder_run.dest)
    old = Path(folder_run.dest) / "a.pt"
    torch.save(field(7), old)
    before = old.read_bytes()
    sink = folder_run.sink(on_conflict=policy)
    handle = sink.handle()
    if policy == "error":
        with pytest.raises(DestinationConflict, match="on_conflict"):
            handle.write("a", field(1)).result(60)
        with pytest.raises(OutputsFailed):
            handle.close()
        with pytest.raises(OutputsFailed, match="'a'"):
            sink.close()
        assert old.read_bytes() == before
        return
    receipt = handle.write("a", field(1)).result(60)
    handle.write("b", field(2))
    handle.close()
    manifest = sink.close()
    if policy == "keep":
        assert receipt.state is State.KEPT
        assert old.read_bytes() == before
        assert manifest.seal.conflicts.kept == 1
    else:
        assert torch.equal(torch.load(old, weights_only=True), field(1))
        assert manifest.seal.conflicts.replaced == 1


def test_rows_of_one_key_from_two_sources_are_an_error(staging_run: Run) -> None:
    with staging_run.sink() as sink:
        handle = sink.handle()
        handle.write("a", field(1), source="run1/0").result(60)
        assert handle.write("a", field(1), source="run1/0").result(60).key == "a"
        with pytest.raises(DuplicateKeyError, match="two different rows"):
            handle.write("a", field(2), source="run1/5").result(60)
        with pytest.raises(OutputsFailed):
            handle.close()


def test_a_closed_handle_and_a_closed_sink_say_so(staging_run: Run) -> None:
    sink = staging_run.sink()
    handle = sink.handle()
    handle.write("a", field(1))
    handle.close()
    handle.close()
    with pytest.raises(SinkClosedError):
        handle.write("b", field(1))
    late = sink.handle()
    manifest = sink.close()
    assert sink.close() is manifest
    with pytest.raises(SinkClosedError):
        sink.handle()
    with pytest.raises(SinkClosedError):
        late.write("c", field(1))


def test_bad_places_are_found_at_the_start(tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(StagingError, match="no staging folder"):
        Sink(None, staging=tmp_path / "missing")
    with pytest.raises(ConfigError, match="dest=None"):
        Sink(tmp_path, staging=tmp_path)
    with pytest.raises(ConfigError, match="inside each other"):
        Sink(tmp_path / "x", staging=tmp_path)
    with pytest.raises(ConfigError, match="memory://"):
        Sink("memory://x", staging=tmp_path)
    with pytest.raises(ConfigError, match="unknown destination scheme"):
        Sink("nonsense://x", staging=tmp_path)
    with pytest.raises(ConfigError, match="credentials"):
        Sink("s3://key:secret@bucket/x", staging=tmp_path)
    with pytest.raises(ConfigError, match="run_id"):
        Sink(None, staging=tmp_path, run_id="_x/y")
    with pytest.raises(ConfigError, match="ack"):
        Sink(None, staging=tmp_path, ack="enqueued")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="progress"):
        Sink(None, staging=tmp_path, progress="bar")  # type: ignore[arg-type]
    with pytest.raises(DestinationError):
        Sink(
            "s3://bucket/x",
            staging=tmp_path,
            upload=ray_sink.UploadOptions(storage_options={"endpoint_url": "http://127.0.0.1:9"}),
        )


@pytest.mark.parametrize("run", ["s3"], indirect=True)
def test_no_process_but_the_uploader_sees_credentials(run: Run, s3_server: S3Server) -> None:
    with run.sink() as sink, sink.handle() as handle:
        handle.write("a", field(1)).result(60)
        for shell in ("WriterShell", "Coordinator"):
            assert pids_of(shell)
            for pid in pids_of(shell):
                assert s3_server.secret_key.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        assert s3_server.secret_key.encode() not in pickle.dumps(handle)
    for path in run.staging.rglob("*"):
        if path.is_file():
            assert s3_server.secret_key.encode() not in path.read_bytes()
