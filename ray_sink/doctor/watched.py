"""What a filesystem shows to others while names are published, replaced and fought for."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ray_sink.doctor import watcher
from ray_sink.doctor.findings import Finding, Status
from ray_sink.doctor.observers import Observer, ObserverError
from ray_sink.doctor.watcher import Place, Sightings
from ray_sink.filesystem import Filesystem

_AREA = "staging"
_WATCHED_S = 1.5
_LEAST_ROUNDS = 50
_READY_S = 60.0
"""Until an observer has started, seconds: on a node that is new to the cluster a process starts slowly."""
_ANSWER_S = 60.0
_SLOW_S = 1.0
_SHOWN = 5
_RACERS = 4
"""Observers that race; all of a large cluster would wait for each other for long."""

OK, WEAK, FAILED = Status.OK, Status.WEAK, Status.FAILED

RENAME, VISIBLE, EXCLUSIVE, FENCE = "atomic rename", "visibility", "exclusive create", "fence elsewhere"
_PROMISES = {RENAME: ("P1",), VISIBLE: ("P1", "P2", "P5"), EXCLUSIVE: ("P3", "P7"), FENCE: ("P3", "P5")}


def _finding(name: str, status: Status, message: str, advice: str = "") -> Finding:
    return Finding(_AREA, name, status, message, advice, _PROMISES[name])


def examine(fs: Filesystem, root: Path, folder: Path, observers: Sequence[Observer]) -> list[Finding]:
    """Publish, replace and race in `folder`, below the staging folder `root`, while `observers` look.

    Raises:
        OSError: the doctor itself cannot write there.
    """
    token = secrets.token_hex(16)
    try:
        fs.make_dirs(folder / watcher.FENCE, below=folder)
        _put(fs, folder, watcher.TOKEN, token.encode())
        for number, observer in enumerate(observers):
            observer.start(str(folder.relative_to(root)), str(number), token)
        racers = ["doctor", *_wait_until_ready(folder, observers)[:_RACERS]]
        rounds = _publish(fs, folder)
        _fence(fs, folder / watcher.FENCE)
        _put(fs, folder, watcher.END, f"{rounds} {' '.join(racers)}".encode())
        won = {"the doctor": watcher.race(folder, "doctor", racers)}
        seen: dict[str, Sightings] = {}
        trouble: dict[str, str] = {}
        for observer in observers:
            try:
                seen[observer.name] = observer.sightings(_ANSWER_S)
            except ObserverError as error:
                trouble[observer.name] = str(error)
    finally:
        for observer in observers:
            observer.stop()
    same = {name: sight for name, sight in seen.items() if sight.place is Place.SAME}
    names = [observer.name for number, observer in enumerate(observers) if str(number) in racers]
    won |= {name: list(same[name].won) for name in names if name in same}
    return [
        *_visible(root, seen, trouble, rounds),
        *([_renamed(same, rounds), _fenced(same)] if same else []),
        _raced(won),
    ]


def _put(fs: Filesystem, folder: Path, name: str, data: bytes) -> None:
    """Publish as the sink does: whole under a temp name, then renamed."""
    temp = folder / "temp"
    file = fs.create(temp)
    try:
        file.write(data)
        file.sync()
    finally:
        file.close()
    fs.rename(temp, folder / name)


def _wait_until_ready(folder: Path, observers: Sequence[Observer]) -> list[str]:
    """Until each looks or has ended; who is later than that misses some. The names of those who look."""
    pause = threading.Event()
    end = time.monotonic() + _READY_S
    for number, observer in enumerate(observers):
        while not (folder / f"ready-{number}").exists() and not observer.ended() and time.monotonic() < end:
            pause.wait(0.02)
    return [str(number) for number in range(len(observers)) if (folder / f"ready-{number}").exists()]


def _publish(fs: Filesystem, folder: Path) -> int:
    rounds, end = 0, time.monotonic() + _WATCHED_S
    while rounds < _LEAST_ROUNDS or time.monotonic() < end:
        for target in (watcher.REPLACED, watcher.new_name(rounds)):
            # sizes differ, so that a half-written file cannot pass for a whole one
            _put(fs, folder, target, watcher.sealed(os.urandom(2**14 + rounds % 2**10)))
        rounds += 1
    return rounds


def _visible(root: Path, seen: Mapping[str, Sightings], trouble: Mapping[str, str], rounds: int) -> list[Finding]:
    """One finding for each observer that sees less than it should, one for all others together."""
    found = [
        _finding(VISIBLE, WEAK, f"{name} could not look: {why}", "see that it can, and try again")
        for name, why in trouble.items()
    ]
    good: dict[str, Sightings] = {}
    for name, sight in seen.items():
        if sight.place is Place.MISSING:
            advice = "mount the staging filesystem there, at the same path"
            found.append(_finding(VISIBLE, FAILED, f"{name}: there is no folder {root}", advice))
        elif sight.place is Place.OTHER:
            advice = "mount the same filesystem on every node, at the same path"
            said = f"{name}: {root} is another filesystem there ({sight.mount}): what was put here is not seen"
            found.append(_finding(VISIBLE, FAILED, said, advice))
        elif sight.published < rounds:
            said = f"{name}: {rounds - sight.published} of {rounds} new names not seen {watcher.LATE_S:g} s later"
            found.append(_finding(VISIBLE, WEAK, said, "mount it with shorter times for cached names"))
        else:
            good[name] = sight
    if good:
        longest = max(max(sight.appeared_s, sight.late_s) for sight in good.values())
        when = f", the slowest after {longest:.1f} s" if longest > _SLOW_S else ""
        found.append(_finding(VISIBLE, OK, f"every new name is seen by {_named(good)}{when}"))
    return found


def _renamed(seen: Mapping[str, Sightings], rounds: int) -> Finding:
    reads = sum(sight.reads for sight in seen.values())
    torn = {name: sight.torn for name, sight in seen.items() if sight.torn}
    gone = {name: sight.vanished for name, sight in seen.items() if sight.vanished}
    said = f"{reads} reads during {2 * rounds} renames, by {_named(seen)}"
    if not torn and not gone:
        return _finding(RENAME, OK, f"{said}: each of a whole file")
    where = _named(torn | gone)
    message = f"{said}: {sum(torn.values())} torn, {sum(gone.values())} times gone (seen by {where})"
    return _finding(RENAME, FAILED, message, "use another filesystem for staging")


def _fence(fs: Filesystem, folder: Path) -> None:
    """Move it away, empty and remove it, as a new life of the ledger does with the temps of the old ones."""
    moved = folder.with_name(f"{folder.name}d")
    fs.rename(folder, moved)
    for name in fs.list(moved):
        fs.remove(moved / name)
    with suppress(OSError):  # whoever still creates files in it is seen doing so
        fs.remove_dir(moved)


def _fenced(seen: Mapping[str, Sightings]) -> Finding:
    """A folder that is gone keeps dead owners out only where no machine goes on by its old name."""
    late = {name: sight.unfenced_s for name, sight in seen.items() if sight.unfenced_s}
    if not late:
        return _finding(FENCE, OK, f"a folder that is moved away and removed is closed at once to {_named(seen)}")
    longest = max(late.values())
    said = f"{_named(late)} could create files in a folder {longest:.1f} s after it was removed"
    if longest >= watcher.LATE_S:
        return _finding(FENCE, FAILED, said, "use another filesystem for staging, or mount it without caching names")
    advice = "mount it without caching names (NFS: lookupcache=none), or be sure that an owner is dead"
    return _finding(FENCE, WEAK, said, advice)


def _raced(won: Mapping[str, Sequence[int]]) -> Finding:
    """How many thought that they were the first: claims of a run rest on it, its outputs do not."""
    winners = [sum(number in numbers for numbers in won.values()) for number in range(watcher.RACES)]
    several = sum(count > 1 for count in winners)
    if several:
        advice = "see that no two drivers use this folder at a time, or use another filesystem for staging"
        said = f"{several} of {watcher.RACES} names had several winners, among {_named(won)}"
        return _finding(EXCLUSIVE, WEAK, said, advice)
    if 0 in winners:
        said = f"{winners.count(0)} of {watcher.RACES} names were refused to everybody, among {_named(won)}"
        return _finding(EXCLUSIVE, WEAK, said, "a start that was refused is tried again by hand")
    return _finding(EXCLUSIVE, OK, f"each of {watcher.RACES} names was created once, in a race of {_named(won)}")


def _named(names: Mapping[str, object]) -> str:
    shown = list(names)[:_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
