"""AsyncWriter as its users see it: files, order, waiting, errors, crashes."""

from __future__ import annotations

import inspect
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_sink.async_writer import AsyncWriter
from ray_sink.config import DictMode, SaveFormat
from ray_sink.errors import ConfigError, InvalidKeyError, SinkClosedError, UnsupportedValueError
from ray_sink.formats import values
from ray_sink.formats.base import Value
from ray_sink.formats.loading import load
from ray_sink.ordering import PathOrder, Turn
from tests.waiting import until

LARGE = 20_000
"""Elements of a float32 tensor that is written in the background."""


class Gated:
    """One number a file; `gate` is called with the number before it is written, in the thread that writes."""

    name = "gated"
    suffix = ".n"

    def __init__(self, gate: Callable[[int], None] = lambda number: None) -> None:
        self.gate = gate

    def check(self, value: Value) -> None:
        values.check_value(value)

    def encode(self, value: Value, file: BinaryIO) -> Sequence[str]:
        for _, tensor in values.tensors_of(value):
            number = int(tensor.reshape(-1)[0])
            self.gate(number)
            file.write(str(number).encode())
        return ()

    def decode(self, file: BinaryIO) -> Value:
        return torch.tensor(float(file.read()))


class Gate:
    """Holds every write back until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered: list[int] = []

    def __call__(self, number: int) -> None:
        self.entered.append(number)
        assert self.opened.wait(30)


def large(number: float) -> Tensor:
    return torch.full((LARGE,), float(number))


def small(number: float) -> Tensor:
    return torch.tensor([float(number)])


def first(value: Value) -> float:
    assert isinstance(value, Tensor)
    return float(value.reshape(-1)[0])


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@contextmanager
def running(target: Callable[[], object]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=target)
    thread.start()
    yield thread
    thread.join(30)
    assert not thread.is_alive()


def test_the_signature_is_the_one_that_is_promised() -> None:
    parameters = inspect.signature(AsyncWriter).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "out_root": inspect.Parameter.empty,
        "save_format": SaveFormat.PYTORCH_PT,
        "dict_mode": DictMode.SINGLE,
        "workers": 4,
        "max_inflight": 256,
        "small_sync_bytes": 64_000,
        "upload_queue": None,
    }
    assert list(inspect.signature(AsyncWriter.write).parameters) == ["self", "relative_path_no_ext", "to_save"]


def test_its_attributes_are_what_was_given(tmp_path: Path) -> None:
    paths: queue.Queue[Path] = queue.Queue()
    writer = AsyncWriter(tmp_path / "a/b", SaveFormat.NUMPY_NPZ, DictMode.SPLIT, 2, 7, 9, paths)
    assert writer.root == tmp_path / "a/b"
    assert writer.root.is_dir()
    assert (writer.save_format, writer.dict_mode) == (SaveFormat.NUMPY_NPZ, DictMode.SPLIT)
    assert (writer.max_inflight, writer.small_sync_bytes, writer.upload_queue) == (7, 9, paths)
    assert isinstance(writer.pool, ThreadPoolExecutor)
    writer.close()


@pytest.mark.parametrize("save_format", SaveFormat)
@pytest.mark.parametrize("count", [1, LARGE])
def test_a_tensor_becomes_one_file(tmp_path: Path, save_format: SaveFormat, count: int) -> None:
    with AsyncWriter(tmp_path, save_format) as writer:
        writer.write("runs/x", torch.full((count,), 2.0))
    (name,) = files(tmp_path)
    assert name == f"runs/x{Path(name).suffix}"
    assert first(load(tmp_path / name)) == 2.0


@pytest.mark.parametrize("count", [1, LARGE])
def test_mappings_and_sequences_become_one_file_or_one_each(tmp_path: Path, count: int) -> None:
    u, v = torch.zeros(count), torch.ones(count)
    with AsyncWriter(tmp_path) as single, AsyncWriter(tmp_path, dict_mode=DictMode.SPLIT) as split:
        for writer, prefix in ((single, "single"), (split, "split")):
            writer.write(f"{prefix}/d", {"u": u, "v": v})
            writer.write(f"{prefix}/l", (u, v))
    with AsyncWriter(tmp_path, SaveFormat.NUMPY_NPZ) as writer:
        writer.write("single/l", [u, v])
    assert files(tmp_path) == [
        *("single/d.pt", "single/l.npz", "single/l.pt"),
        *("split/d_u.pt", "split/d_v.pt", "split/l_0.pt", "split/l_1.pt"),
    ]
    mapping = torch.load(tmp_path / "single/d.pt", weights_only=True)
    assert list(mapping) == ["u", "v"]
    assert isinstance(torch.load(tmp_path / "single/l.pt", weights_only=True), list)
    with np.load(tmp_path / "single/l.npz", allow_pickle=False) as archive:
        assert archive.files == ["arr_0", "arr_1"]
    assert first(load(tmp_path / "split/d_v.pt")) == 1.0


def test_the_caller_may_overwrite_its_tensors_at_once(tmp_path: Path) -> None:
    gate = Gate()
    tensor = large(1)
    mapping = {"u": large(1)}
    sequence = [large(1)]
    writer = AsyncWriter(tmp_path, Gated(gate))
    writer.write("a", tensor)
    writer.write("b", tensor[10:])  # small enough to be a view, and still a copy
    writer.write("c", mapping)
    writer.write("d", sequence)
    for each in (tensor, mapping["u"], sequence[0]):
        each.fill_(7)
    mapping["v"] = large(2)
    sequence.clear()
    gate.opened.set()
    writer.close()
    assert {name: (tmp_path / name).read_text() for name in files(tmp_path)} == dict.fromkeys(
        ["a.n", "b.n", "c.n", "d.n"], "1"
    )


def test_small_outputs_are_written_in_the_calling_thread_and_large_ones_are_not(tmp_path: Path) -> None:
    threads: dict[int, str] = {}
    writer = AsyncWriter(
        tmp_path, Gated(lambda number: threads.update({number: threading.current_thread().name})), small_sync_bytes=400
    )
    writer.write("small", torch.full((99,), 1.0))
    assert (tmp_path / "small.n").read_text() == "1"
    writer.write("limit", torch.full((100,), 2.0))
    writer.write("view", torch.full((1000,), 3.0)[:99])
    writer.write("expanded", torch.full((1,), 4.0).expand(1000))
    writer.close()
    me = threading.current_thread().name
    assert [threads[number] == me for number in (1, 2, 3, 4)] == [True, False, True, False]


def test_at_max_inflight_the_caller_waits_for_one_to_finish(tmp_path: Path) -> None:
    turns = threading.Semaphore(0)

    def gate(number: int) -> None:
        turns.acquire()

    writer = AsyncWriter(tmp_path, Gated(gate), workers=1, max_inflight=2)
    writer.write("0", large(0))
    writer.write("1", large(1))
    done = threading.Event()

    def third() -> None:
        writer.write("2", large(2))
        done.set()

    with running(third):
        assert not done.wait(0.2)
        turns.release()
        assert done.wait(30)
    turns.release(2)
    writer.close()
    assert files(tmp_path) == ["0.n", "1.n", "2.n"]


def test_a_small_write_comes_after_a_pending_write_to_its_path(tmp_path: Path) -> None:
    gate = Gate()
    writer = AsyncWriter(tmp_path, Gated(gate))
    writer.write("x", large(1))
    until(lambda: gate.entered == [1])
    with running(lambda: writer.write("x", small(2))):
        writer_of_another = threading.Thread(target=writer.write, args=("y", large(3)))
        writer_of_another.start()
        until(lambda: 3 in gate.entered)
        assert 2 not in gate.entered
        gate.opened.set()
    writer_of_another.join()
    writer.close()
    assert (tmp_path / "x.n").read_text() == "2"


def test_split_pieces_of_different_keys_that_meet_in_one_path_keep_their_order(tmp_path: Path) -> None:
    gate = Gate()
    writer = AsyncWriter(tmp_path, Gated(gate), DictMode.SPLIT, workers=4)
    writer.write("a", {"b_c": large(1), "d": large(1)})
    until(lambda: gate.entered == [1])
    writer.write("a_b", {"c": large(2)})
    writer.write("e", {"f": large(3)})
    until(lambda: 3 in gate.entered)
    assert 2 not in gate.entered
    gate.opened.set()
    writer.close()
    assert (tmp_path / "a_b_c.n").read_text() == "2"


@settings(deadline=None, max_examples=25)
@given(
    plan=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=40),
    workers=st.integers(1, 4),
    max_inflight=st.integers(1, 6),
    seed=st.integers(0, 2**16),
)
def test_writes_to_one_path_land_in_the_order_of_the_calls(
    plan: list[tuple[int, bool]], workers: int, max_inflight: int, seed: int
) -> None:
    """Whatever is small or large, however many workers: each path sees its writes in order."""
    chance = random.Random(seed)
    landed: queue.SimpleQueue[int] = queue.SimpleQueue()

    def gate(number: int) -> None:
        if chance.random() < 0.3:
            os.sched_yield()
        landed.put(number)

    with tempfile.TemporaryDirectory() as folder:
        writer = AsyncWriter(folder, Gated(gate), DictMode.SPLIT, workers, max_inflight, small_sync_bytes=1000)
        for number, (path, is_small) in enumerate(plan):
            tensor = torch.full((10 if is_small else 1000,), float(number))
            # path 2 is two files, one of which path 1 has, too
            writer.write(f"p{path}", {"q": tensor} if path < 2 else {"q": tensor, "r": tensor})
            if path == 2:
                writer.write("p1", {"q": tensor})
        writer.close()
        order = [landed.get() for _ in range(landed.qsize())]
        for path in range(3):
            mine = [number for number, (where, _) in enumerate(plan) if where == path]
            assert [number for number in dict.fromkeys(order) if number in mine] == mine
            if mine and path == 0:
                assert (Path(folder) / "p0_q.n").read_text() == str(mine[-1])
        assert not [name for name in files(Path(folder)) if "tmp" in name]


def test_many_threads_may_write_at_once(tmp_path: Path) -> None:
    with AsyncWriter(tmp_path, SaveFormat.NUMPY_NPY, workers=2, max_inflight=3, small_sync_bytes=100) as writer:

        def produce(thread: int) -> None:
            for n in range(30):
                writer.write(f"{thread}/last", torch.full((10 if n % 2 else 100,), float(n)))
                writer.write(f"{thread}/{n}", torch.full((100,), float(n)))
                writer.write("shared", torch.full((10 if n % 3 else 100,), float(n)))

        threads = [threading.Thread(target=produce, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(files(tmp_path)) == 6 * 31 + 1
    for thread_number in range(6):
        assert first(load(tmp_path / str(thread_number) / "last.npy")) == 29
        assert first(load(tmp_path / str(thread_number) / "7.npy")) == 7


def test_finished_paths_come_on_the_upload_queue_complete(tmp_path: Path) -> None:
    paths: queue.Queue[Path] = queue.Queue()
    with AsyncWriter(tmp_path, SaveFormat.NUMPY_NPY, DictMode.SPLIT, upload_queue=paths) as writer:
        writer.write("s", small(1))
        assert paths.get_nowait() == tmp_path / "s.npy"
        writer.write("l", {"u": large(2), "v": large(3)})
        for name in ("u", "v"):
            path = paths.get(timeout=30)
            assert path == tmp_path / f"l_{name}.npy"
            assert isinstance(load(path), Tensor)
    assert paths.empty()


def test_a_full_upload_queue_is_waited_for(tmp_path: Path) -> None:
    paths: queue.Queue[Path] = queue.Queue(maxsize=1)
    writer = AsyncWriter(tmp_path, SaveFormat.NUMPY_NPY, workers=1, upload_queue=paths)
    for n in range(5):
        writer.write(str(n), large(n))
    with running(writer.close) as closing:
        until(paths.full)
        assert closing.is_alive()
        assert [paths.get(timeout=30).name for _ in range(5)] == [f"{n}.npy" for n in range(5)]
    assert len(files(tmp_path)) == 5


def test_a_failed_output_is_not_queued(tmp_path: Path) -> None:
    paths: queue.Queue[Path] = queue.Queue()
    writer = AsyncWriter(tmp_path, Gated(fail_on(1)), upload_queue=paths)
    for n in range(3):
        writer.write(str(n), large(n))
    with pytest.raises(ZeroDivisionError):
        writer.close()
    assert sorted(paths.get_nowait().name for _ in range(paths.qsize())) == ["0.n", "2.n"]


def fail_on(*numbers: int) -> Callable[[int], None]:
    def gate(number: int) -> None:
        if number in numbers:
            raise ZeroDivisionError(f"on {number}")

    return gate


def test_close_raises_the_one_error_there_was_and_says_of_which_path(tmp_path: Path) -> None:
    writer = AsyncWriter(tmp_path, Gated(fail_on(1)))
    for n in range(3):
        writer.write(f"k{n}", large(n))
    with pytest.raises(ZeroDivisionError, match="on 1") as caught:
        writer.close()
    assert "'k1'" in caught.value.__notes__[0]
    assert files(tmp_path) == ["k0.n", "k2.n"]
    writer.close()


def test_close_raises_all_errors_as_a_group(tmp_path: Path) -> None:
    writer = AsyncWriter(tmp_path, Gated(fail_on(1, 3)))
    for n in range(5):
        writer.write(f"k{n}", large(n))
    with pytest.raises(ExceptionGroup) as caught:
        writer.close()
    assert sorted(str(error) for error in caught.value.exceptions) == ["on 1", "on 3"]
    assert files(tmp_path) == ["k0.n", "k2.n", "k4.n"]


def test_a_small_write_that_fails_raises_in_the_caller(tmp_path: Path) -> None:
    with AsyncWriter(tmp_path, Gated(fail_on(1))) as writer:
        with pytest.raises(ZeroDivisionError):
            writer.write("k", small(1))
        writer.write("k", small(2))
    assert files(tmp_path) == ["k.n"]


def test_a_failed_write_leaves_the_older_file_and_the_path_goes_on(tmp_path: Path) -> None:
    writer = AsyncWriter(tmp_path, Gated(fail_on(2)), workers=1)
    writer.write("k", large(1))
    writer.write("k", large(2))
    with pytest.raises(ZeroDivisionError):
        writer.close()
    assert (tmp_path / "k.n").read_text() == "1"


def test_an_error_of_the_body_is_not_masked_and_everything_is_still_written(tmp_path: Path) -> None:
    def use() -> None:
        with AsyncWriter(tmp_path, Gated(fail_on(1))) as writer:
            writer.write("a", large(0))
            writer.write("b", large(1))
            raise KeyError("body")

    with pytest.raises(KeyError, match="body") as caught:
        use()
    assert any("on 1" in note for note in caught.value.__notes__)
    assert files(tmp_path) == ["a.n"]


def test_an_error_of_a_write_comes_out_of_the_with_block(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), AsyncWriter(tmp_path, Gated(fail_on(1))) as writer:
        writer.write("b", large(1))


def test_close_twice_does_nothing_and_a_write_after_it_is_an_error(tmp_path: Path) -> None:
    writer = AsyncWriter(tmp_path)
    writer.close()
    writer.close()
    for value in (small(1), large(1)):
        with pytest.raises(SinkClosedError):
            writer.write("x", value)
    assert files(tmp_path) == []


def test_a_write_that_waits_for_its_place_while_the_writer_closes_is_refused(tmp_path: Path) -> None:
    gate = Gate()
    writer = AsyncWriter(tmp_path, Gated(gate), max_inflight=1)
    writer.write("a", large(1))
    refused: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def late() -> None:
        with pytest.raises(SinkClosedError):
            writer.write("b", large(2))
        refused.put(True)

    with running(late), running(writer.close):
        until(lambda: writer._closed)
        gate.opened.set()
    assert refused.get(timeout=30)
    assert files(tmp_path) == ["a.n"]


@pytest.mark.parametrize("value", [None, 1.0, "x", [1], {"a": 1}, {1: torch.zeros(1)}, np.zeros(1)], ids=repr)
def test_what_is_no_tensor_is_a_type_error_before_anything_is_scheduled(tmp_path: Path, value: Value) -> None:
    with AsyncWriter(tmp_path) as writer, pytest.raises(TypeError):
        writer.write("x", value)
    assert files(tmp_path) == []


def test_a_dtype_the_format_cannot_hold_is_refused_in_the_caller(tmp_path: Path) -> None:
    with (
        AsyncWriter(tmp_path, SaveFormat.NUMPY_NPY) as writer,
        pytest.raises(UnsupportedValueError, match="float8_e5m2"),
    ):
        writer.write("x", torch.zeros(LARGE * 8, dtype=torch.float8_e5m2))


@pytest.mark.parametrize("key", ["", "/x", "../x", "a//b", "a\\b", "a\0", "_ray_sink/x", "a" * 300, 3])
def test_paths_are_checked_not_cleaned(tmp_path: Path, key: str) -> None:
    with AsyncWriter(tmp_path / "root") as writer, pytest.raises(InvalidKeyError):
        writer.write(key, small(1))
    assert files(tmp_path) == []


def test_a_pure_path_is_a_path(tmp_path: Path) -> None:
    with AsyncWriter(str(tmp_path)) as writer:
        writer.write(PurePosixPath("a") / "b", small(1))
    assert files(tmp_path) == ["a/b.pt"]


def test_the_longest_name_that_is_allowed_can_be_written(tmp_path: Path) -> None:
    key = "n" * (255 - 16 - len(".pt"))
    with AsyncWriter(tmp_path) as writer:
        writer.write(key, small(1))
    assert files(tmp_path) == [f"{key}.pt"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"workers": 1.5},
        {"max_inflight": 0},
        {"max_inflight": True},
        {"small_sync_bytes": -1},
        {"save_format": "jpeg"},
        {"dict_mode": "both"},
        {"upload_queue": []},
        {"out_root": 3},
        {"out_root": __file__},
    ],
    ids=repr,
)
def test_wrong_arguments_are_told_at_once(tmp_path: Path, wrong: dict[str, object]) -> None:
    arguments: dict[str, object] = {"out_root": tmp_path} | wrong
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AsyncWriter(**arguments)  # type: ignore[arg-type]


def test_errors_that_are_kept_do_not_keep_the_tensors(tmp_path: Path) -> None:
    import gc
    import weakref

    kept: list[weakref.ref[Tensor]] = []

    class Failing(Gated):
        def encode(self, value: Value, file: BinaryIO) -> Sequence[str]:
            assert isinstance(value, Tensor)
            kept.append(weakref.ref(value))
            raise ZeroDivisionError("always")

    writer = AsyncWriter(tmp_path, Failing())
    writer.write("x", large(1))
    until(lambda: writer._pending == 0)
    gc.collect()
    assert len(kept) == 1
    assert kept[0]() is None
    with pytest.raises(ZeroDivisionError):
        writer.close()


def test_a_program_that_forgets_to_close_still_writes_what_it_was_given(tmp_path: Path) -> None:
    code = f"""
import torch
from ray_sink.async_writer import AsyncWriter
from ray_sink.config import DictMode
writer = AsyncWriter({str(tmp_path)!r}, dict_mode=DictMode.SPLIT, workers=1)
for n in range(10):
    tensor = torch.full(({LARGE},), float(n))
    writer.write("same", {{"x": tensor, "y": tensor}})
    writer.write("same_x", tensor)
    writer.write("same_y", tensor + 100)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert first(load(tmp_path / "same_x.pt")) == 9
    assert first(load(tmp_path / "same_y.pt")) == 109


def test_a_killed_process_leaves_no_torn_file_under_a_final_name(tmp_path: Path) -> None:
    """SIGKILL while it overwrites: every file under a final name is one of the whole ones."""
    code = f"""
import torch
from ray_sink.async_writer import AsyncWriter
writer = AsyncWriter({str(tmp_path)!r}, small_sync_bytes=0)
n = 0
while True:
    writer.write(f"k{{n % 3}}", torch.full((500_000,), float(n)))
    n += 1
    if n == 8:
        print("go", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        until(lambda: len([name for name in files(tmp_path) if name.endswith(".pt")]) == 3)
        process.send_signal(signal.SIGKILL)
    finals = [name for name in files(tmp_path) if not name.startswith(".tmp-")]
    assert finals == ["k0.pt", "k1.pt", "k2.pt"]
    for name in finals:
        tensor = load(tmp_path / name)
        assert isinstance(tensor, Tensor)
        assert tensor.shape == (500_000,)
        assert len(tensor.unique()) == 1


@pytest.mark.parametrize("moment", ["half written", "before the name"])
def test_whenever_a_process_is_killed_the_older_file_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The two moments that matter, each hit exactly, in a forked process that kills itself there."""

    class Dying(Gated):
        def encode(self, value: Value, file: BinaryIO) -> Sequence[str]:
            file.write(b"to")
            file.flush()
            if moment == "half written":
                os.kill(os.getpid(), signal.SIGKILL)
            file.write(b"rn")
            return ()

    (tmp_path / "x.n").write_text("whole")
    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(os, "replace", lambda *paths: os.kill(os.getpid(), signal.SIGKILL))
            AsyncWriter(tmp_path, Dying()).write("x", small(1))
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "x.n").read_text() == "whole"


def test_readers_see_whole_files_while_they_are_overwritten(tmp_path: Path) -> None:
    paths: queue.Queue[Path] = queue.Queue()
    with AsyncWriter(tmp_path, SaveFormat.NUMPY_NPY, upload_queue=paths) as writer:
        writer.write("x", torch.zeros(500_000))
        assert paths.get(timeout=30) == tmp_path / "x.npy"
        for n in range(30):
            writer.write("x", torch.full((500_000,), float(n)))
        while paths.qsize() < 30:
            tensor = load(tmp_path / "x.npy")
            assert isinstance(tensor, Tensor)
            assert tensor.shape == (500_000,)
            assert tensor.min() == tensor.max()


def test_giving_up_ones_place_lets_the_others_through() -> None:
    order = PathOrder()
    one, two, three = Turn(["a"]), Turn(["a", "b"]), Turn(["b"])
    assert [order.enter(turn) for turn in (one, two, three)] == [True, False, False]
    assert order.leave(two) == [three]
    assert order.leave(one) == []
    assert order.leave(three) == []
    assert order.enter(Turn(["a", "b"]))


def test_a_full_disk_is_an_oserror_and_leaves_nothing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    with small_disk(tmp_path) as disk:
        for save_format in SaveFormat:
            writer = AsyncWriter(disk, save_format)
            writer.write("x", torch.zeros(1_000_000))
            with pytest.raises(OSError, match="No space left"):
                writer.close()
            assert files(disk) == []


@contextmanager
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)
