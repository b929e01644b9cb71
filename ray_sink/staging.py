"""The staging folder: temps that are complete before the decision, names that appear only after it.

Layout below the staging root::

    <path of an output>                staged files, under their final names
    _ray_sink/<run>/journal/<term>     the ledger's journals
    _ray_sink/<run>/{tmp,fenced}/      temps: see `ray_sink.terms`
    _ray_sink/<run>/failed/            notes about outputs that the run went on without
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ray_sink.checksum import Checksum, checksum_of
from ray_sink.errors import StagingError
from ray_sink.filesystem import Append, Buffer, Filesystem, NewFile
from ray_sink.keys import RESERVED
from ray_sink.probes import is_probe
from ray_sink.records import FileRecord, Proposal, TempFile
from ray_sink.terms import Terms

_ROUNDS = 100


class Staging:
    """One run's part of the staging folder. Knows nothing of what is decided; does as the ledger says.

    A writer calls, for each batch: `stage` for every file, `sync_temps` once, then (after the decision) `publish`
    for the winners and `drop` for the losers. The ledger alone calls `Terms.begin`, `roll_forward` and `sweep`.
    """

    def __init__(self, fs: Filesystem, root: Path, run_id: str) -> None:
        self.fs = fs
        self.root = root
        self.run_dir = root / RESERVED / run_id
        self.journal_dir = self.run_dir / "journal"
        self.terms = Terms(fs, root, self.run_dir)
        self._made: set[Path] = set()

    def stage(self, term: str, name: str, path: str, chunks: Iterable[Buffer]) -> TempFile:
        """As `stage_with`, with all that `chunks` gives."""

        def write(append: Append) -> None:
            for chunk in chunks:
                append(chunk)

        return self.stage_with(term, name, path, write)

    def stage_with(self, term: str, name: str, path: str, write: Callable[[Append], None]) -> TempFile:
        """Write and fsync one file under a temp name; no reader looks there.

        Args:
            term: the term of the ledger that will be asked.
            name: unique among all attempts, e.g. attempt id and file number.
            path: the final relative path.
            write: appends the contents.

        Raises:
            StagingError: the term is fenced, the disk is full, or a write or fsync failed. The temp is then gone
                or will be swept; a later try must use another name.
            Exception: what `write` raised that is no OSError; the temp is gone, too.
        """
        target = self.terms.folder(term) / name
        try:
            file = self.fs.create(target)
        except FileNotFoundError as error:
            raise StagingError(
                f"the temp folder of term {term} is gone: a newer owner has taken the run over"
            ) from error
        except FileExistsError as error:
            # whoever was here before us may have had it decided: not ours to remove
            raise StagingError(f"could not stage {path!r}: temp {name!r} is there already") from error
        except OSError as error:
            raise StagingError(f"could not stage {path!r}: {error}") from error
        try:
            return TempFile(f"{term}/{name}", self._filled(file, path, write))
        except OSError as error:
            self._remove_quietly(target)
            raise StagingError(f"could not stage {path!r}: {error}") from error
        except Exception:
            self._remove_quietly(target)
            raise

    def _filled(self, file: NewFile, path: str, write: Callable[[Append], None]) -> FileRecord:
        """What `write` has appended, synced and closed."""
        checksum = Checksum()
        size = 0

        def append(data: Buffer) -> None:
            nonlocal size
            checksum.update(data)
            file.write(data)
            size += memoryview(data).nbytes

        try:
            write(append)
            file.sync()
        finally:
            file.close()
        return FileRecord(path, size, checksum.text)

    def sync_temps(self, term: str) -> None:
        """Make the names of this term's temps durable. Without it a decided attempt could be lost at a power cut."""
        try:
            self.fs.sync_dir(self.terms.folder(term))
        except OSError as error:
            raise StagingError(f"the temp folder of term {term} cannot be synced: {error}") from error

    def publish(self, proposals: Sequence[Proposal]) -> list[str]:
        """Move decided attempts to their final names, durably. May be repeated, by anyone, at any time.

        Returns:
            Keys of which a file is neither under its temp name nor, as far as can be told from here, under its final
            one: published, uploaded and freed by others, or fenced. The ledger knows which.

        Raises:
            StagingError: a rename failed and both names were looked at, another file is in the place, or the names
                could not be made durable.
        """
        return self._publish(proposals, self.terms.tmp)

    def _publish(self, proposals: Sequence[Proposal], folder: Path) -> list[str]:
        vanished: list[str] = []
        named: list[TempFile] = []
        self._make_parents([temp for proposal in proposals for temp in proposal.files], folder)
        try:
            for proposal in proposals:
                for temp in proposal.files:
                    source, target = folder / temp.temp, self.root / temp.file.path
                    try:
                        if target.parent not in self._made:
                            raise FileNotFoundError(f"{source} is gone")
                        self.fs.rename(source, target)
                    except OSError as error:
                        if not self._adopt(source, target, temp.file, error):
                            vanished.append(proposal.key)
                            continue
                        self._make_parent(target)
                    named.append(temp)
            self._sync({(self.root / temp.file.path).parent for temp in named})
        except OSError as error:
            for temp in named:
                self._restore(temp, folder)
            raise StagingError(f"final names could not be made durable: {error}") from error
        return vanished

    def _make_parents(self, temps: Sequence[TempFile], folder: Path) -> None:
        """Before anything is named: where a folder cannot be made durable, nothing else in its parent is either."""
        for temp in temps:
            target = self.root / temp.file.path
            # a fenced writer must not leave a folder where another key's file belongs
            if target.parent in self._made or self.fs.size(folder / temp.temp) is None:
                continue
            try:
                self._make_parent(target)
            except FileNotFoundError:
                continue  # another writer takes away what it could not make durable: it is looked at again
            except OSError as error:
                raise StagingError(f"could not publish {temp.file.path!r}: {error}") from error

    def _sync(self, folders: Iterable[Path]) -> None:
        for folder in sorted(folders):
            # where it is gone, all that was in it is: others have published, uploaded and cleared away
            with suppress(FileNotFoundError):
                self.fs.sync_dir(folder)

    def _restore(self, temp: TempFile, folder: Path) -> None:
        """Give a published file its temp back, as a copy: its name could not be made durable.

        A second sync that says yes proves nothing about the name. With the temp there, whoever publishes again, in this
        life or the next, gives it anew. Readers keep the file that they see.
        """
        source = folder / temp.temp
        copy = source.with_name(f"{source.name}~again")
        try:
            data = self.fs.read(self.root / temp.file.path)
            if checksum_of([data]) != temp.file.checksum:
                return
            file = self.fs.create(copy)
            try:
                file.write(data)
                file.sync()
            finally:
                file.close()
            # under a decided name only what is whole
            self.fs.rename(copy, source)
        except OSError:
            # a disk that cannot do this either, or a newer life has taken the temps away
            self._remove_quietly(copy)

    def _adopt(self, source: Path, target: Path, file: FileRecord, error: OSError) -> bool:
        """After a failed rename, look at both names (NFS may have renamed and reported an error).

        Returns:
            Whether the file has its final name, from us; False when there is none under either name, or when the
            temps' folder is gone: this life is fenced then, and what has the name may be the next one's.
        """
        if self.fs.size(source) is not None:
            self._made.discard(target.parent)
            self._make_parent(target)
            with suppress(OSError):  # an empty folder in a file's place; where it is not, the rename says so
                self.fs.remove_dir(target)
            try:
                self.fs.rename(source, target)
            except OSError as again:
                if self.fs.size(source) is not None:
                    raise StagingError(f"could not publish {file.path!r}: {again}") from error
            else:
                return True
        size = self.fs.size(target)
        if size is not None and size != file.bytes:
            raise StagingError(
                f"{target} holds {size} bytes where {file.bytes} were decided: something else writes into the"
                " staging folder"
            ) from error
        return size is not None and self._name_anew(source, target)

    def _name_anew(self, source: Path, target: Path) -> bool:
        """Give again a name that somebody else has given.

        Its folder's sync may have failed him, and he has not come to do anything about it: ours would say yes, and
        prove nothing about a name that is not ours.

        Returns:
            False when the file is freed, or the temps' folder is gone.
        """
        for _ in range(_ROUNDS):
            try:
                self.fs.rename(target, source)
            except FileNotFoundError:
                if self.fs.size(source) is None:
                    return False
            try:
                self.fs.rename(source, target)
            except FileNotFoundError:
                continue  # somebody else has just given it
            return True
        raise StagingError(f"{target} never stays: others publish it again and again")

    def _make_parent(self, target: Path) -> None:
        if target.parent not in self._made:
            self.fs.make_dirs(target.parent, below=self.root)
            self._made.add(target.parent)

    def drop(self, proposals: Iterable[Proposal]) -> None:
        """Remove the temps of attempts that lost."""
        for proposal in proposals:
            for temp in proposal.files:
                self._remove_quietly(self.terms.tmp / temp.temp)

    def holds(self, file: FileRecord) -> bool:
        """Whether exactly this file is staged under its final name; all of it is read."""
        path = self.root / file.path
        if self.fs.size(path) != file.bytes:
            return False
        try:
            return checksum_of([self.fs.read(path)]) == file.checksum
        except FileNotFoundError:
            return False

    def free(self, files: Iterable[FileRecord]) -> None:
        """Remove staged files whose upload is in the journal."""
        for file in files:
            self.fs.remove(self.root / file.path)

    def set_aside(self, name: str, data: bytes) -> Path:
        """Keep a note about outputs that the run went on without; returns where."""
        folder = self.run_dir / "failed"
        self.fs.make_dirs(folder, below=self.root)
        self.fs.replace_with(folder / name, data)
        return folder / name

    def _remove_quietly(self, path: Path) -> None:
        try:
            self.fs.remove(path)
        except OSError:
            # what stays behind is swept when the run ends or is taken over
            return

    def roll_forward(self, term: str, proposals: Iterable[Proposal]) -> list[str]:
        """Publish what earlier terms decided and did not publish; `Terms.begin` comes first.

        Which those are is told by a listing of the fenced temps alone, never of the world. Of all others only the
        folders are synced: whoever published them may have died before doing so.

        Returns:
            As `publish`.
        """
        mine = self.terms.taken(term)
        left = self.terms.left(term)
        pending: list[Proposal] = []
        others: set[str] = set()
        for proposal in proposals:
            if any(temp.temp in left for temp in proposal.files):
                pending.append(proposal)
            others.update(temp.file.path.rpartition("/")[0] for temp in proposal.files)
        vanished = self._publish(pending, mine)
        try:
            named = {temp.file.path.rpartition("/")[0] for p in pending for temp in p.files}
            self._sync(self.root / folder for folder in others - named)
        except OSError as error:
            raise StagingError(f"final names could not be made durable: {error}") from error
        return vanished

    def sweep(self, term: str, *, finished: bool = False) -> None:
        """Remove the temps of all terms before `term`, when `term` is finished its own, and probes of the dead."""
        self.terms.sweep(term, finished=finished)
        for name in self.fs.list(self.root / RESERVED):
            if is_probe(name):
                self.fs.remove(self.root / RESERVED / name)

    def temps(self) -> list[str]:
        """Names of all temps of all terms, below the run's folder, for checks and clean-up reports."""
        return self.terms.temps()
