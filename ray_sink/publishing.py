"""Where a writer's files go, and how they get their final names: two policies behind one Protocol.

`ReplacePublishing` is AsyncWriter's: atomic for readers, no promise about power cuts. `DecidedPublishing` is the
Sink's: durable before the ledger is asked, under a final name only after it has decided.
"""

from __future__ import annotations

import copy
import os
import re
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Generic, Protocol, TypeVar

from ray_sink.append_file import append_file
from ray_sink.config import GiB
from ray_sink.errors import ConfigError, SinkError, StagingError
from ray_sink.filesystem import Append, Buffer
from ray_sink.patience import Patience, Tick, is_silence
from ray_sink.records import Decision, FileRecord, Proposal, Receipt, State, TempFile, receipt_of
from ray_sink.staging import Staging
from ray_sink.temps import LocalTemps, chunks_of_temp

FileT = TypeVar("FileT")
"""A file that is encoded and has no final name yet."""
ResultT = TypeVar("ResultT")
"""What a published output becomes."""
WorkT = TypeVar("WorkT")

Encode = Callable[[BinaryIO], None]

_ATTEMPT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class FileSlot:
    """One file to be written.

    Attributes:
        path: its final path relative to the root.
        attempt: the attempt that it belongs to.
        number: which of the attempt's files it is.
        bound_bytes: more than what a built-in format will write; for budgets.
        appends: whoever encodes it only appends.
    """

    path: str
    attempt: str
    number: int
    bound_bytes: int
    appends: bool = False


@dataclass(frozen=True, slots=True)
class Prepared(Generic[FileT]):
    """An output of which every file is encoded and none has its final name.

    Attributes:
        key: the user's key.
        attempt: id of this try.
        source: identity of the input row, where it is known.
        files: its files, in order.
        notes: for the receipt.
    """

    key: str
    attempt: str
    source: str | None
    files: tuple[FileT, ...]
    notes: tuple[str, ...] = ()


class Publishing(Protocol[FileT, ResultT]):
    """The policy of a `ray_sink.writer.Writer`. All of it may be called from several threads at once.

    The order of calls, for each batch:

    1. `prepare`, once for each file, several at a time; `together` around those that come one after the other. After an
       error nothing of that file is left.
    2. `discard`, for the files of each output of which another file failed.
    3. `publish`, once, with all outputs that are left.
    """

    def prepare(self, slot: FileSlot, encode: Encode) -> FileT:
        """Have `encode` write into a new file, and keep that away from readers.

        Raises:
            SinkError: this file cannot be had.
            OSError: likewise.
            Exception: whatever `encode` raised.
        """

    def together(self, work: Callable[[], WorkT]) -> WorkT:
        """Return what `work` returns, which calls `prepare` for several small files.

        Raises:
            StagingError: one of them hangs; what came of the others is not known.
        """

    def discard(self, files: Sequence[FileT]) -> None:
        """Remove files that will not be published."""

    def publish(self, outputs: Sequence[Prepared[FileT]]) -> list[ResultT | SinkError]:
        """Give the files their final names; one result for each output, in order."""


def about(key: str, error: SinkError) -> SinkError:
    """`error` with a message that names `key`, its type and attributes unchanged."""
    if repr(key) in str(error):
        return error
    named = copy.copy(error)
    named.args = (f"key {key!r}: {error}",)
    named.__cause__ = error.__cause__ or error
    return named


@dataclass(frozen=True, slots=True)
class Landed:
    """An output of AsyncWriter under its final names.

    Attributes:
        key: the user's key.
        paths: its files, in order.
        notes: what differs from the value handed in.
    """

    key: str
    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Beside:
    temp: Path
    final: Path


class ReplacePublishing:
    """A unique temp beside the final name, then ``os.replace``.

    Readers see the old file or the new one, whole. Nothing is fsynced. A process that is killed can leave ``.tmp-…``.

    Args:
        root: the folder below which all files go; it exists. Symlinks below it are not followed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: set[Path] = set()

    def prepare(self, slot: FileSlot, encode: Encode) -> _Beside:
        """See `Publishing.prepare`."""
        final = self.root / slot.path
        temp = final.with_name(f".tmp-{os.urandom(5).hex()}")
        self._make_dirs(final.parent)
        try:
            fd = os.open(temp, _NEW_FILE, 0o666)
        except FileNotFoundError:
            # somebody cleared the folder away since we made it
            self._made.clear()
            self._make_dirs(final.parent)
            fd = os.open(temp, _NEW_FILE, 0o666)
        try:
            with os.fdopen(fd, "w+b") as file:
                encode(file)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        return _Beside(temp, final)

    def _make_dirs(self, folder: Path) -> None:
        if folder in self._made:
            return
        here = self.root
        for part in folder.relative_to(self.root).parts:
            here = here / part
            try:
                here.mkdir()
            except FileExistsError:
                if not stat.S_ISDIR(here.lstat().st_mode):
                    raise NotADirectoryError(
                        f"{here} is in the way: a folder is needed there, and a symlink or file is found"
                    ) from None
        self._made.add(folder)

    def together(self, work: Callable[[], WorkT]) -> WorkT:
        """See `Publishing.together`."""
        return work()

    def discard(self, files: Sequence[_Beside]) -> None:
        """See `Publishing.discard`."""
        for file in files:
            file.temp.unlink(missing_ok=True)

    def publish(self, outputs: Sequence[Prepared[_Beside]]) -> list[Landed | SinkError]:
        """See `Publishing.publish`."""
        return [self._replace(output) for output in outputs]

    def _replace(self, output: Prepared[_Beside]) -> Landed | SinkError:
        try:
            for file in output.files:
                os.replace(file.temp, file.final)
        except OSError as error:
            self.discard(output.files)
            failure = StagingError(f"key {output.key!r} could not be written: {error}")
            failure.__cause__ = error
            return failure
        return Landed(output.key, tuple(file.final for file in output.files), output.notes)


class DecidedPublishing:
    """Local temp, staged temp, decision, final name, receipt: the order that loses nothing.

    1. Each file is encoded locally: see `ray_sink.temps.LocalTemps`.
    2. It is copied into the staging folder under a temp name, checksummed and fsynced; after an error under a new one.
       Where both are one filesystem, and the format only appends, it is encoded there at once.
    3. Once a batch: the temps' folder is synced, the ledger decides, the winners get their names, the ledger is told,
       the losers' temps are removed.

    Whenever it is not known whether the ledger has decided, the temps stay: a decided attempt lives by them until it is
    published. The ledger's next life publishes or sweeps them.

    Args:
        staging: the run's staging folder.
        term: the term of the ledger that is asked.
        decide: asks the ledger; one decision for each proposal, in order. It may raise SinkError.
        published: tells the ledger which (key, attempt) have their final names, durably; returns files of those that
            others have uploaded and freed meanwhile, which are to be freed again. It may raise SinkError.
        locate: asks the ledger for the receipts of decided keys whose files were found under neither name, because
            others published, uploaded and freed them meanwhile; in order. It may raise SinkError.
        patience: with disks that are full, broken or silent.
        temp_dir: folder for local temps; None: the system's.
        temp_bytes: most bytes of local temps at a time, in memory and on disk; a larger file goes alone. Counted by
            `FileSlot.bound_bytes`.
    """

    def __init__(
        self,
        staging: Staging,
        term: str,
        *,
        decide: Callable[[Sequence[Proposal]], Sequence[Decision]],
        published: Callable[[Sequence[tuple[str, str]]], Sequence[FileRecord]],
        locate: Callable[[Sequence[str]], Sequence[Receipt | SinkError]],
        patience: Patience,
        temp_dir: str | os.PathLike[str] | None = None,
        temp_bytes: int = 4 * GiB,
    ) -> None:
        """Make `temp_dir` if it is missing.

        Raises:
            ConfigError: `temp_dir` cannot be made.
        """
        self._staging = staging
        self._term = term
        self._decide = decide
        self._published = published
        self._locate = locate
        self._patience = patience
        self._temps = LocalTemps(temp_dir, temp_bytes, self._patience)
        self._direct = self._temps.is_beside(staging.root)

    def prepare(self, slot: FileSlot, encode: Encode) -> TempFile:
        """See `Publishing.prepare`.

        Raises:
            ConfigError: the attempt's id cannot be part of a file name.
            StagingError: a local or a shared disk is full or broken, or the term is fenced.
        """
        if not _ATTEMPT.fullmatch(slot.attempt):
            raise ConfigError(f"attempt {slot.attempt!r:.80} must be 1 to 200 of A-Z a-z 0-9 _ - and inner dots")
        name = f"{slot.attempt}.{slot.number}"
        if self._direct and slot.appends:
            return self._stage(slot, name, lambda append: _appended(encode, append))
        with self._temps.encoded(slot.bound_bytes, encode) as local:
            return self._stage(slot, name, lambda append: _copied(local, append))

    def _stage(self, slot: FileSlot, name: str, write: Callable[[Append], None]) -> TempFile:
        """Stage what `write` appends; it is called again after an error of the disk."""

        def stage(name: str, tick: Tick) -> TempFile:
            def ticking(append: Append) -> None:
                def ticked(data: Buffer) -> None:
                    tick()
                    append(data)

                write(ticked)

            return self._staging.stage_with(self._term, name, slot.path, ticking)

        def again(number: int) -> TempFile:
            anew = f"{name}~{number}" if number else name
            doing = f"staging {slot.path!r} in {self._staging.root}"
            return self._patience.within(doing, lambda tick: stage(anew, tick))

        return self._patience.again(again)

    def together(self, work: Callable[[], WorkT]) -> WorkT:
        """See `Publishing.together`."""
        return self._patience.steps(work)

    def discard(self, files: Sequence[TempFile]) -> None:
        """See `Publishing.discard`."""
        self._drop([Proposal("", "", tuple(files))])

    def _drop(self, proposals: Sequence[Proposal]) -> None:
        # temps that cannot be removed now are swept
        with suppress(StagingError):
            self._patience.within("removing temps", lambda tick: self._staging.drop(proposals))

    def publish(self, outputs: Sequence[Prepared[TempFile]]) -> list[Receipt | SinkError]:
        """See `Publishing.publish`. An error that is no SinkError comes through; the temps stay then, too."""
        proposals = [
            Proposal(output.key, output.attempt, output.files, output.source, output.notes) for output in outputs
        ]
        try:
            self._patience.within("syncing temps", lambda tick: self._staging.sync_temps(self._term))
        except StagingError as error:
            self._drop(proposals)
            return [about(proposal.key, error) for proposal in proposals]
        try:
            decisions = self._decide(proposals)
        except SinkError as error:
            return [about(proposal.key, error) for proposal in proposals]
        pairs = list(zip(proposals, decisions, strict=True))
        outcomes = self._settle([d.winner for _, d in pairs if d.winner is not None and d.receipt is None])
        if losers := [p for p, d in pairs if d.winner is None or d.winner.attempt != p.attempt]:
            self._drop(losers)
        return [self._outcome(decision, outcomes) for decision in decisions]

    def _outcome(self, decision: Decision, outcomes: dict[str, Receipt | SinkError]) -> Receipt | SinkError:
        if decision.error is not None:
            return about(decision.key, decision.error)
        return decision.receipt if decision.receipt is not None else outcomes[decision.key]

    def _settle(self, winners: Sequence[Proposal]) -> dict[str, Receipt | SinkError]:
        """Publish decided attempts, ours and those whose writer never came to it, and tell the ledger."""
        # a batch may hold two attempts of one key; they have one winner
        left = {winner.key: winner for winner in winners}
        outcomes: dict[str, Receipt | SinkError] = {}
        vanished = self._publish(list(left.values()), outcomes)
        done = [winner for key, winner in left.items() if key not in outcomes and key not in vanished]
        if done:
            try:
                self._free(self._published([(winner.key, winner.attempt) for winner in done]))
            except SinkError as error:
                outcomes.update({winner.key: about(winner.key, error) for winner in done})
            else:
                root = str(self._staging.root)
                outcomes.update({winner.key: receipt_of(winner, State.STAGED, root) for winner in done})
        if vanished:
            try:
                located = dict(zip(vanished, self._locate(vanished), strict=True))
                outcomes.update(located)
                # some of its files may have got their names once more before another was found to be freed
                freed = [
                    key for key, out in located.items() if isinstance(out, Receipt) and out.state is State.UPLOADED
                ]
                if freed:
                    self._free(self._published([(key, left[key].attempt) for key in freed]))
            except SinkError as error:
                outcomes.update({key: about(key, error) for key in vanished if key not in outcomes})
        return {key: about(key, out) if isinstance(out, SinkError) else out for key, out in outcomes.items()}

    def _free(self, files: Sequence[FileRecord]) -> None:
        if files:
            # they are uploaded: what stays of them takes room, and no more
            with suppress(OSError, StagingError):
                self._patience.within("freeing", lambda tick: self._staging.free(files))

    def _publish(self, winners: Sequence[Proposal], failed: dict[str, Receipt | SinkError]) -> list[str]:
        """Publish, put what failed into `failed`, and return the keys that vanished."""
        if not winners:
            return []
        try:
            found = self._patience.again(
                lambda _: self._patience.within("publishing", lambda tick: self._staging.publish(winners))
            )
            return list(dict.fromkeys(found))
        except StagingError as error:
            if len(winners) == 1 or is_silence(error):
                failed.update({winner.key: about(winner.key, error) for winner in winners})
                return []
        # one of them stands in the way of the others: publishing may be repeated, so find out which
        return [key for winner in winners for key in self._publish([winner], failed)]


def _appended(encode: Encode, append: Append) -> None:
    file = append_file(append)
    encode(file)
    file.flush()


def _copied(local: BinaryIO, append: Append) -> None:
    for chunk in chunks_of_temp(local):
        append(chunk)
