"""Who owns a destination and a staging folder: claims that can be created once, and a counter that shows life.

In each root, below ``_ray_sink/_owner/``::

    epoch-<n>       who took over, and for which run; created once
    beat-<n>        a counter that epoch n's owner moves on while it lives
    released-<n>    epoch n's owner left in good order

The highest number is the owner. It is alive while its counter moves on the observer's own clock; nobody compares
clocks. A root is one owner's at a time, whichever run it is for, and a driver takes the destination first, then
staging, so that two that want the same roots meet at the first. What makes a takeover safe is not this, but the fence
in `ray_sink.staging`: this makes it rare.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from ray_sink.errors import ObjectExistsError, ObjectMissingError, RunFencedError, RunOwnedError, SinkError
from ray_sink.events import ReleaseMissed, emit
from ray_sink.filesystem import Filesystem, temp_for
from ray_sink.keys import RESERVED
from ray_sink.stores.base import SmallObjects

_FOLDER = f"{RESERVED}/_owner"
_EPOCH = re.compile(r"epoch-(\d{6})")


class Place(Protocol):
    """A root in which claims are kept: small files by name."""

    name: str

    def create(self, name: str, data: bytes) -> bool:
        """Create `name` unless it is there; whether it was created."""

    def put(self, name: str, data: bytes) -> None:
        """Put `data` under `name`, whatever was there."""

    def get(self, name: str) -> bytes | None:
        """What is under `name`, if anything."""

    def names(self) -> list[str]:
        """All names."""

    def remove(self, name: str) -> None:
        """Remove `name` if it is there."""


class FolderPlace:
    """Claims in the staging folder."""

    def __init__(self, fs: Filesystem, root: Path) -> None:
        self.name = str(root)
        self._fs, self._root, self._folder = fs, root, root / _FOLDER
        fs.make_dirs(self._folder, below=root)

    def create(self, name: str, data: bytes) -> bool:
        """See `Place.create`."""
        try:
            self._fs.create_with(self._folder / name, data)
        except FileExistsError:
            # ours, if it was made and its reply was lost (NFS)
            return self.get(name) == data
        return True

    def put(self, name: str, data: bytes) -> None:
        """See `Place.put`."""
        self._fs.replace_with(self._folder / name, data)

    def get(self, name: str) -> bytes | None:
        """See `Place.get`."""
        try:
            return self._fs.read(self._folder / name)
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """See `Place.names`."""
        return self._fs.list(self._folder)

    def remove(self, name: str) -> None:
        """See `Place.remove`."""
        self._fs.remove(self._folder / name)


class StorePlace:
    """Claims at a destination that keeps its word on create-only puts."""

    def __init__(self, store: SmallObjects) -> None:
        self.name = store.url
        self._store = store

    def create(self, name: str, data: bytes) -> bool:
        """See `Place.create`. A put whose reply was lost is told from another's by its content."""
        try:
            self._store.put_bytes(f"{_FOLDER}/{name}", data, replace=False)
        except ObjectExistsError:
            return self.get(name) == data
        return True

    def put(self, name: str, data: bytes) -> None:
        """See `Place.put`."""
        self._store.put_bytes(f"{_FOLDER}/{name}", data, replace=True)

    def get(self, name: str) -> bytes | None:
        """See `Place.get`."""
        try:
            return self._store.get_bytes(f"{_FOLDER}/{name}")
        except ObjectMissingError:
            return None

    def names(self) -> list[str]:
        """See `Place.names`."""
        return sorted(info.path.rpartition("/")[2] for info in self._store.list(f"{_FOLDER}/"))

    def remove(self, name: str) -> None:
        """See `Place.remove`."""
        self._store.delete(f"{_FOLDER}/{name}")


@dataclass(frozen=True, slots=True)
class Owner:
    """What a claim says: for people who meet it, and to tell two claims apart.

    Attributes:
        run_id: the run it is for.
        host: where the driver runs.
        pid: the driver's process id there.
        nonce: random, so that no two claims are alike.
    """

    run_id: str
    host: str
    pid: int
    nonce: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """The newest claim at a root, as somebody sees it who only looks.

    Attributes:
        owner: whose it is.
        epoch: its number.
        released: the owner left in good order; False says only that it did not.
        beat: its counter, as it stands.
        note: what it said about its run when it moved the counter on last, JSON; None where it said nothing.
    """

    owner: Owner
    epoch: int
    released: bool
    beat: bytes | None
    note: Any


def owner_of(store: SmallObjects) -> Sighting | None:
    """The newest claim at a root, or None; writes nothing."""
    place = StorePlace(store)
    top = _top(place)
    raw = place.get(f"epoch-{top:06d}") if top else None
    if not raw:
        return None
    beat = place.get(f"beat-{top:06d}")
    note = (beat or b"").partition(b"\n")[2]
    said = json.loads(note) if note else None
    return Sighting(Owner(**json.loads(raw)), top, f"released-{top:06d}" in place.names(), beat, said)


def beat_path(epoch: int) -> str:
    """Path of an owner's counter below its root."""
    return f"{_FOLDER}/beat-{epoch:06d}"


class Claim:
    """A claim that was won. The owner calls `beat` several times per ``takeover_s``."""

    def __init__(self, places: Sequence[Place], epoch: int, owner: Owner) -> None:
        self.epoch = epoch
        self.owner = owner
        self._places = places
        self._count = 0

    def beat(self, note: str = "") -> None:
        """Move the counters on, and see whether anybody has taken over.

        Args:
            note: for `Sighting.note`, JSON.

        Raises:
            RunFencedError: a newer epoch exists; stop.
        """
        self._count += 1
        for place in self._places:
            self.check(place)
            place.put(f"beat-{self.epoch:06d}", f"{self._count}\n{note}".encode())

    def check(self, place: Place) -> None:
        """Raise `RunFencedError` if a newer epoch is claimed at `place`."""
        top = _top(place)
        if top > self.epoch:
            raise RunFencedError(
                f"run {self.owner.run_id!r}: epoch {self.epoch} was taken over by epoch {top} at {place.name}"
            )

    def check_all(self) -> None:
        """`check` every place; before sealing."""
        for place in self._places:
            self.check(place)

    def release(self) -> None:
        """Leave in good order: the next owner needs not wait. Where that fails, it waits."""
        for place in self._places:
            try:
                place.put(f"released-{self.epoch:06d}", b"")
            except (SinkError, OSError) as error:
                # must not hide why the owner leaves, which is what names the outputs that failed
                emit(ReleaseMissed(self.epoch, place.name, str(error)))


def claim(
    places: Sequence[Place],
    owner: Owner,
    *,
    takeover_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Claim:
    """Claim all `places` for `owner`, the destination first.

    Args:
        places: the roots, in the fixed order.
        owner: who claims.
        takeover_s: how long a counter must stand still, in seconds.
        clock: monotonic, seconds.
        sleep: waits for seconds.

    Raises:
        RunOwnedError: a live driver owns one of them; nothing was claimed.
    """
    tops = [_wait_until_free(place, takeover_s, clock, sleep) for place in places]
    epoch = 1 + max(tops)
    data = json.dumps(asdict(owner)).encode()
    won: list[Place] = []
    for place, top in zip(places, tops, strict=True):
        # every number in between: two claimants whose numbers differ meet at the first that both want
        for number in range(top + 1, epoch + 1):
            if _top(place) >= number or not place.create(f"epoch-{number:06d}", data):
                Claim(won, epoch, owner).release()
                raise RunOwnedError(_owned(place, _top(place), "has just taken it"))
        won.append(place)
    made = Claim(won, epoch, owner)
    made.check_all()
    for place in won:
        _tidy(place, epoch)
    made.beat()
    return made


def _wait_until_free(
    place: Place, takeover_s: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> int:
    """Watch the owner of `place` until it is known to be gone; its epoch."""
    top = _top(place)
    if top == 0:
        return 0
    seen = place.get(f"beat-{top:06d}")
    since = clock()
    while f"released-{top:06d}" not in place.names():
        if clock() - since >= takeover_s:
            return top
        sleep(min(1.0, takeover_s / 20))
        if _top(place) > top or place.get(f"beat-{top:06d}") != seen:
            raise RunOwnedError(_owned(place, top, "is alive"))
    return top


def _owned(place: Place, epoch: int, what: str) -> str:
    raw = place.get(f"epoch-{epoch:06d}")
    who = Owner(**json.loads(raw)) if raw else None
    by = f"run {who.run_id!r} (process {who.pid} on {who.host})" if who else "another run"
    return (
        f"{place.name} is in use: {by}, epoch {epoch}, {what}. One driver at a time may own a destination and a staging"
        " folder: wait for it to end, stop it, or use others"
    )


def _top(place: Place) -> int:
    found = [int(match[1]) for name in place.names() if (match := _EPOCH.fullmatch(name))]
    return max(found, default=0)


def _tidy(place: Place, epoch: int) -> None:
    """Remove what earlier epochs left; the highest claim stays for ever, so that numbers only grow."""
    for name in place.names():
        whole = temp_for(name)
        kind, _, number = (whole or name).rpartition("-")
        # nobody has use for a temp of the present number, either: its claim is ours, and we have not beaten yet
        last = epoch if whole else epoch - 1
        if kind in ("epoch", "beat", "released") and number.isdigit() and int(number) <= last:
            place.remove(name)
