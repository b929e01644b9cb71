"""The beginning of a ledger's life: fence the older ones, read what they decided, say where it goes on from there."""

from __future__ import annotations

from dataclasses import dataclass

from ray_sink.book import Book, open_record, read_history, read_info
from ray_sink.errors import RunError, RunFencedError, RunMismatchError
from ray_sink.journal import Journal
from ray_sink.records import RunInfo
from ray_sink.staging import Staging
from ray_sink.terms import term_name

_MOST_LIVES = 999


@dataclass(frozen=True, slots=True)
class Life:
    """A new life: its open journal, all that was decided before it, and its name."""

    journal: Journal
    book: Book
    term: str


def begin_life(staging: Staging, info: RunInfo, epoch: int) -> Life:
    """Begin the next life of the run's ledger in `epoch`. May be repeated after a crash at any point.

    Raises:
        RunMismatchError: the run id belongs to another run; nothing was changed.
        RunFencedError: a newer life has begun.
        RunError: too many lives.
        JournalCorruptError: a journal is damaged.
    """
    fs = staging.fs
    check_same_run(read_info(fs, staging.journal_dir), info)
    fs.make_dirs(staging.journal_dir, below=staging.root)
    names = fs.list(staging.journal_dir)
    if any(name > term_name(epoch, _MOST_LIVES) for name in names):
        raise RunFencedError(f"run {info.run_id!r} was taken over by epoch {int(max(names).partition('.')[0])}")
    lives = max((int(name.rpartition(".")[2]) for name in names if name.startswith(f"{epoch:06d}.")), default=0)
    if lives >= _MOST_LIVES:
        raise RunError(f"the ledger of run {info.run_id!r} was started {lives} times: see why it ends, then run again")
    term = term_name(epoch, lives + 1)
    journal = Journal(fs, staging.journal_dir / term)
    try:
        staging.terms.begin(term)
    except FileNotFoundError as error:
        raise RunFencedError(f"run {info.run_id!r} was taken over, and cleared up, while its ledger started") from error
    if max(fs.list(staging.journal_dir)) > term:
        raise RunFencedError(f"run {info.run_id!r} was taken over while its ledger started")
    # only now: what a fenced ledger still writes cannot be published any more
    history = read_history(fs, staging.journal_dir)
    first = open_record(info, epoch, term, history)
    history.book.apply(first, journal.append(first))
    return Life(journal, history.book, term)


def check_same_run(known: RunInfo | None, wanted: RunInfo) -> None:
    """Refuse to go on with another run's journal.

    Raises:
        RunMismatchError: naming what differs, with both values.
    """
    if known is None:
        return
    for name in ("run_id", "dest", "save_format", "dict_mode", "fingerprint"):
        old, new = getattr(known, name), getattr(wanted, name)
        if old != new:
            raise RunMismatchError(
                f"run {known.run_id!r} was started with {name}={old!r}, and this is {name}={new!r}. Go on with the"
                " same value, or give this run another run_id"
            )
