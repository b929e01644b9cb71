"""B1: from value to staged file, by format, against a plain write, fsync and rename of the same bytes to that folder.

A real filesystem decides, tmpfs stands beside it; once straight into the staging folder and once through a local temp
on another device. Every file is read back with its own format and compared.

How a temp comes from the other device is a choice, and the last line is what it rests on: the kernel's own copy
(`sendfile`; `copy_file_range` refuses two filesystems) against ours, which computes the checksum on the way.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch

from benchmarks.measuring import Figure, medians
from benchmarks.works import MiB, embeddings, fields, volumes
from ray_sink.checksum import Checksum
from ray_sink.config import DictMode, SaveFormat
from ray_sink.filesystem import PosixFilesystem
from ray_sink.formats import resolve
from ray_sink.formats.base import Value
from ray_sink.formats.loading import load
from ray_sink.patience import Patience
from ray_sink.publishing import DecidedPublishing
from ray_sink.records import Decision, Proposal, Receipt, TempFile
from ray_sink.staging import Staging
from ray_sink.temps import chunks_of_temp
from ray_sink.terms import term_name
from ray_sink.writer import Output, Writer

DIRECT_BARS = {
    SaveFormat.NUMPY_NPY: 0.9,
    SaveFormat.SAFETENSORS: 0.9,
    SaveFormat.PYTORCH_PT: 0.85,
    SaveFormat.NUMPY_NPZ: 0.7,
}
TEMP_BAR = 0.5
_SHM = Path("/dev/shm")
_TERM = term_name(1, 1)


class Landing:
    """A writer whose ledger says yes: what it takes to decide is measured elsewhere."""

    def __init__(self, root: Path, save_format: SaveFormat, temp_dir: Path) -> None:
        self.root = root
        root.mkdir()
        self.staging = Staging(PosixFilesystem(), root, "run")
        self.staging.terms.begin(_TERM)
        publishing = DecidedPublishing(
            self.staging,
            _TERM,
            decide=_yes,
            published=lambda done: [],
            locate=lambda keys: [],
            temp_dir=temp_dir,
            patience=Patience(60.0),
        )
        self.writer: Writer[TempFile, Receipt] = Writer(
            resolve(save_format), DictMode.SINGLE, publishing, threads=min(4, os.cpu_count() or 1)
        )

    def write(self, values: Sequence[Value]) -> list[Receipt]:
        outputs = [Output(uuid.uuid4().hex, value, uuid.uuid4().hex) for value in values]
        receipts = self.writer.write_batch(outputs)
        assert all(isinstance(receipt, Receipt) for receipt in receipts), receipts
        return [receipt for receipt in receipts if isinstance(receipt, Receipt)]

    def clear(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            self.staging.free(receipt.files)


def _yes(proposals: Sequence[Proposal]) -> list[Decision]:
    return [Decision(proposal.key, winner=proposal) for proposal in proposals]


def plain(root: Path, contents: Sequence[memoryview]) -> None:
    """What any writer must do at least."""
    for data in contents:
        name = root / uuid.uuid4().hex
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
        os.close(fd)
        os.rename(name, root / "landed")
    folder = os.open(root, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    (root / "landed").unlink()


def bytes_of(value: Value) -> list[memoryview]:
    tensors = list(value.values()) if isinstance(value, dict) else [value]
    whole = torch.cat([tensor.reshape(-1) for tensor in tensors])  # type: ignore[union-attr]
    return [whole.numpy().data.cast("B")]


def answer() -> Iterator[Figure]:
    real = Path(tempfile.mkdtemp(prefix="rs-bench-"))
    memory = Path(tempfile.mkdtemp(prefix="rs-bench-", dir=_SHM))
    works: dict[str, tuple[list[Value], list[memoryview]]] = {}
    for name, values in (
        ("W1", list(fields(1))),
        ("W2", list(volumes(16))),
        ("W3", list(embeddings(256))),
    ):
        works[name] = (list(values), [part for value in values for part in bytes_of(value)])
    try:
        for where, root, other in (("disk", real, memory), ("tmpfs", memory, real)):
            for save_format, bar in DIRECT_BARS.items():
                for name, (values, contents) in works.items():
                    if name == "W2" and save_format is SaveFormat.NUMPY_NPY:
                        continue  # one tensor a file
                    yield from _against_plain(
                        f"{name} {save_format.value} to {where}",
                        root,
                        other,
                        save_format,
                        values,
                        contents,
                        bar if (name, where) == ("W1", "disk") else None,
                    )
        yield _copying(memory, real)
    finally:
        for folder in (real, memory):
            shutil.rmtree(folder, ignore_errors=True)


def _copying(source: Path, target: Path) -> Figure:
    """A temp of 64 MiB to another filesystem, fsynced."""
    data = os.urandom(64 * MiB)
    (source / "temp").write_bytes(data)

    def copied(copy: Callable[[BinaryIO, int], None]) -> float:
        began_s = time.perf_counter()
        with open(source / "temp", "rb") as temp:
            fd = os.open(target / "copy", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            copy(temp, fd)
            os.fsync(fd)
            os.close(fd)
        took_s = time.perf_counter() - began_s
        assert (target / "copy").read_bytes() == data
        (target / "copy").unlink()
        return took_s

    def ours(temp: BinaryIO, fd: int) -> None:
        checksum = Checksum()
        for chunk in chunks_of_temp(temp):
            checksum.update(chunk)
            assert os.write(fd, chunk) == len(chunk)

    def kernels(temp: BinaryIO, fd: int) -> None:
        sent = 0
        while sent < len(data):
            sent += os.sendfile(fd, temp.fileno(), sent, len(data) - sent)

    seconds = medians({"read, checksum, write": partial(copied, ours), "sendfile": partial(copied, kernels)})
    ratio = seconds["sendfile"] / seconds["read, checksum, write"]
    return Figure(
        "B1", "a temp of 64 MiB from tmpfs to disk, with its checksum", ratio, "x sendfile without", seconds=seconds
    )


def _against_plain(
    case: str,
    root: Path,
    other: Path,
    save_format: SaveFormat,
    values: Sequence[Value],
    contents: Sequence[memoryview],
    bar: float | None,
) -> Iterator[Figure]:
    direct = Landing(root / uuid.uuid4().hex, save_format, root)
    through = Landing(root / uuid.uuid4().hex, save_format, other)

    def checked(landing: Landing) -> float:
        began_s = time.perf_counter()
        receipts = landing.write(values)
        took_s = time.perf_counter() - began_s
        for value, receipt in zip(values, receipts, strict=True):
            _same(load(landing.root / receipt.files[0].path), value)
        landing.clear(receipts)
        return took_s

    ways: dict[str, Callable[[], float | None]] = {
        "plain": partial(plain, root, contents),
        "direct": partial(checked, direct),
        "temp": partial(checked, through),
    }
    seconds = medians(ways)
    yield Figure("B1", f"{case}, direct", seconds["plain"] / seconds["direct"], "x plain", least=bar, seconds=seconds)
    yield Figure("B1", f"{case}, through temp", seconds["plain"] / seconds["temp"], "x plain", least=bar and TEMP_BAR)
    for landing in (direct, through):
        landing.writer.close()


def _same(found: Value, value: Value) -> None:
    if isinstance(value, dict):
        assert isinstance(found, dict)
        assert found.keys() == value.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in value.items())
    else:
        assert isinstance(found, torch.Tensor)
        assert isinstance(value, torch.Tensor)
        assert torch.equal(found, value)
