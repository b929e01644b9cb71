"""Lives of the ledger, and the fence between them: each has a folder of temps, and a new life takes the older ones'.

Below the run's folder::

    tmp/<term>/<name>                    attempts of the present life of the ledger
    fenced/<term>/<older term>/<name>    what older lives left, in the hands of this one, until it is swept

A *term* is one life of the ledger: epoch and restart, ``000002.001``. A new life first moves the temp folders of all
earlier ones into its own, with one rename each, then their files out of them, and removes them. Whatever an old writer
still does then fails, also on a machine that caches names: it can neither create a temp nor publish one; and an old
ledger that was about to roll forward or sweep finds nothing. That is the fence; no clock and no lock takes part in it.
"""

from __future__ import annotations

import errno
import re
from contextlib import suppress
from pathlib import Path

from ray_sink.errors import StagingError
from ray_sink.filesystem import Filesystem

_TERM = re.compile(r"\d{6}\.\d{3}")
_MOVED = "~"
_MOST_ROUNDS = 1000


def term_name(epoch: int, life: int) -> str:
    """The term of the ledger's `life`-th start in `epoch`; names sort in the order of time."""
    return f"{epoch:06d}.{life:03d}"


class Terms:
    """The temp folders of one run. The ledger alone calls `begin` and `sweep`.

    Attributes:
        tmp: where the present life's folder of temps is.
    """

    def __init__(self, fs: Filesystem, root: Path, run_dir: Path) -> None:
        self._fs = fs
        self._root = root
        self._run_dir = run_dir
        self.tmp = run_dir / "tmp"
        self._fenced = run_dir / "fenced"

    def folder(self, term: str) -> Path:
        """Where a life makes its temps."""
        return self.tmp / term

    def taken(self, term: str) -> Path:
        """Where a life keeps what older ones left."""
        return self._fenced / term

    def left(self, term: str) -> set[str]:
        """Temps that older lives left, as they named them: ``<older term>/<name>``."""
        mine = self.taken(term)
        return {f"{old}/{name}" for old in self._fs.list(mine) for name in self._fs.list(mine / old)}

    def is_fenced(self, term: str) -> bool:
        """Whether a newer life has begun. While it has not, all that `term` has journaled so far will be counted."""
        return not self._fs.has_dir(self.folder(term))

    def begin(self, term: str) -> None:
        """Fence every earlier term, take over what it left, and open a temp folder for this one.

        The caller's journal is there already, and the caller looks for newer ones afterwards: of two lives that begin
        at once the newer one finds all that the older one makes, or the older one finds the newer one's journal.
        """
        mine = self.taken(term)
        self._fs.make_dirs(self.tmp, below=self._root)
        self._fs.make_dirs(mine, below=self._root)
        # in this order: a life that is fenced meanwhile moves folders from the first place to the second
        self._take(self.tmp, term)
        for older in self._fs.list(self._fenced):
            if older < term:
                self._take(self._fenced / older, term)
                self._fs.sync_dir(self._fenced / older)
        self._fs.sync_dir(self.tmp)
        self._fs.sync_dir(mine)
        self._fs.make_dirs(self.folder(term), below=self._root)

    def _take(self, place: Path, term: str) -> None:
        for name in self._fs.list(place):
            old = name.removesuffix(_MOVED)
            if _TERM.fullmatch(old) and old < term:
                moved = self._fenced / term / (old + _MOVED)
                try:
                    self._fs.rename(place / name, moved)
                except FileNotFoundError:
                    continue  # another life was faster; where it went is looked at next, or it is newer than we are
                self._empty(moved, self._fenced / term / old)

    def _empty(self, moved: Path, target: Path) -> None:
        """Move what is in a folder to another, and remove it.

        A machine that caches names goes by the old one to the folder itself, wherever that is now: only when it is
        gone nobody can create or publish in it any more.
        """
        self._fs.make_dirs(target, below=self._root)
        for _ in range(_MOST_ROUNDS):
            for name in self._fs.list(moved):
                with suppress(FileNotFoundError):  # its writer was faster, and has published it
                    self._fs.rename(moved / name, target / name)
            self._fs.sync_dir(target)
            try:
                self._fs.remove_dir(moved)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue  # a fenced writer has just made another one
            return
        raise StagingError(f"{moved} is never empty: somebody goes on writing into it. See that the old job has ended")

    def sweep(self, term: str, *, finished: bool = False) -> None:
        """Remove the temps of all terms before `term`, and when `term` is finished its own."""
        for older in self._fs.list(self._fenced):
            if older <= term:
                for inner in self._fs.list(self._fenced / older):
                    self._clear(self._fenced / older / inner)
                if finished or older < term:
                    self._remove_dir(self._fenced / older)
        for older in self._fs.list(self.tmp):
            if older < term or (finished and older == term):
                self._clear(self.tmp / older)

    def _clear(self, folder: Path) -> None:
        for name in self._fs.list(folder):
            self._fs.remove(folder / name)
        self._remove_dir(folder)

    def _remove_dir(self, folder: Path) -> None:
        # an older life that wakes up may still move something in; it is swept next time
        with suppress(OSError):
            self._fs.remove_dir(folder)

    def folders(self) -> list[str]:
        """Names of all folders of temps of all terms, below the run's folder."""
        places = [self.tmp, self._fenced]
        return [f"{place.name}/{term}" for place in places for term in self._fs.list(place)]

    def temps(self) -> list[str]:
        """Names of all temps of all terms, below the run's folder."""
        folders = [self.tmp, *(self._fenced / term for term in self._fs.list(self._fenced))]
        return [
            f"{(folder / term / name).relative_to(self._run_dir)}"
            for folder in folders
            for term in self._fs.list(folder)
            for name in self._fs.list(folder / term)
        ]
