"""Who owns a root: the live are left alone, the dead are followed, and two never both win."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ray_sink.errors import RunFencedError, RunOwnedError, SinkError, StoreUnavailableError
from ray_sink.filesystem import PosixFilesystem
from ray_sink.ownership import Claim, FolderPlace, Owner, Place, StorePlace, claim
from tests.model.disk import Disk, Fault
from tests.model.script import Clock, Process, Script
from tests.model.store import PUT_FAULTS, Bucket, SimulatedStore

TAKEOVER_S = 60.0


class Roots:
    """A destination and a staging folder, and drivers that want them."""

    def __init__(self) -> None:
        self.script = Script()
        self.disk = Disk(self.script)
        self.bucket = Bucket(self.script)
        self.clock = Clock()
        self.claims: list[Claim] = []

    def places(self, *, dest: bool = True, staging: str | None = "a", process: Process | None = None) -> list[Place]:
        process = process or Process("driver")
        fs = self.disk.view(process)
        made: list[Place] = [StorePlace(SimulatedStore(self.bucket, process, fs))] if dest else []
        if staging is not None:
            root = self.disk.root / f"_ray_sink{staging}"
            fs.make_dirs(root, below=self.disk.root)
            made.append(FolderPlace(fs, root))
        return made

    def claim(self, name: str = "one", places: list[Place] | None = None) -> Claim:
        owner = Owner(f"run-{name}", "host", 42, name)
        made = claim(
            places if places is not None else self.places(),
            owner,
            takeover_s=TAKEOVER_S,
            clock=self.clock.read,
            sleep=self.clock.sleep,
        )
        self.claims.append(made)
        return made

    def show_life(self) -> None:
        self.owners()

    def owners(self) -> list[str]:
        """Who can still go on."""
        alive = []
        for made in self.claims:
            try:
                made.beat()
            except RunFencedError:
                continue
            alive.append(made.owner.nonce)
        return alive


@pytest.fixture
def roots() -> Roots:
    return Roots()


def test_the_first_claim_is_epoch_one_and_costs_no_waiting(roots: Roots) -> None:
    assert roots.claim().epoch == 1
    assert roots.clock.read() == 0


def test_a_live_owner_is_left_alone_and_named(roots: Roots) -> None:
    owner = roots.claim()
    roots.clock.while_waiting = owner.beat
    with pytest.raises(RunOwnedError, match=r"sim://bucket is in use: run 'run-one' \(process 42 on host\)"):
        roots.claim("two")
    assert roots.owners() == ["one"]


def test_an_owner_that_stands_still_is_followed_and_fenced(roots: Roots) -> None:
    first = roots.claim()
    second = roots.claim("two")
    assert second.epoch == first.epoch + 1
    assert roots.clock.read() >= TAKEOVER_S
    for refuse in (first.beat, first.check_all):
        with pytest.raises(RunFencedError, match="epoch 2"):
            refuse()
    assert roots.owners() == ["two"]


def test_an_owner_that_moves_only_once_is_alive(roots: Roots) -> None:
    owner = roots.claim()

    def once() -> None:
        if roots.clock.read() > TAKEOVER_S / 2:
            owner.beat()

    roots.clock.while_waiting = once
    with pytest.raises(RunOwnedError):
        roots.claim("two")


def test_who_leaves_in_good_order_is_followed_at_once(roots: Roots) -> None:
    roots.claim().release()
    assert roots.claim("two").epoch == 2
    assert roots.clock.read() == 0


def test_only_the_newest_claim_is_kept(roots: Roots) -> None:
    for number in range(4):
        roots.claim(str(number)).release()
    for place in roots.places():
        assert place.names() == ["beat-000004", "epoch-000004", "released-000004"]


def test_temps_of_claims_and_beats_that_died_are_cleared_away_and_those_of_later_ones_are_not(tmp_path: Path) -> None:
    place = FolderPlace(PosixFilesystem(), tmp_path)
    folder = tmp_path / "_ray_sink/_owner"
    for name in ("epoch-000001", "beat-000001", "released-000001", "epoch-000002"):
        (folder / f".{name}.0123456789ab").touch()
    claim([place], Owner("run", "host", 1, "a"), takeover_s=1, clock=lambda: 0.0, sleep=lambda seconds: None)
    assert place.names() == [".epoch-000002.0123456789ab", "beat-000001", "epoch-000001"]


def test_a_shared_staging_folder_is_refused_whatever_the_destination(roots: Roots) -> None:
    owner = roots.claim(places=roots.places(dest=False))
    roots.clock.while_waiting = owner.beat
    with pytest.raises(RunOwnedError):
        roots.claim("two")
    assert roots.places(staging=None)[0].names() == []


def test_a_claim_that_fails_half_way_leaves_the_first_root_free(roots: Roots) -> None:
    places = roots.places()
    later = roots.places(dest=False)[0]

    def somebody_is_faster(process: Process) -> None:
        later.create("epoch-000001", b'{"run_id": "x", "host": "h", "pid": 1, "nonce": "n"}')

    create = next(n for n in range(1, 40) if _is_second_create(n))
    roots.script.plan[roots.script.ops + create] = somebody_is_faster
    with pytest.raises(RunOwnedError, match="run 'x'"):
        roots.claim(places=places)
    assert "released-000001" in places[0].names()


def _is_second_create(number: int) -> bool:
    """Whether that operation of an undisturbed claim creates the staging root's file."""
    roots = Roots()
    places = roots.places()
    before = roots.script.ops
    roots.claim(places=places)
    return "create_with" in [s[2] for s in roots.script.trace if s[0] == before + number]


def claim_meanwhile(roots: Roots, places: list[Place]) -> Callable[[Process], None]:
    def meanwhile(process: Process) -> None:
        try:
            roots.claim("two", places)
        except RunOwnedError:
            roots.script.note("two is refused")

    return meanwhile


@pytest.mark.parametrize(("one", "other"), [("both", "both"), ("both", "dest"), ("dest", "both"), ("both", "other")])
@pytest.mark.parametrize("numbers_differ", [False, True])
def test_two_at_once_never_both_own_a_root(one: str, other: str, numbers_differ: bool) -> None:
    """The second claims all its roots before each operation of the first, in turn."""
    number = 0
    while True:
        number += 1
        roots = Roots()
        kinds: dict[str, Callable[[], list[Place]]] = {
            "both": roots.places,
            "dest": lambda roots=roots: roots.places(staging=None),  # type: ignore[misc]
            "other": lambda roots=roots: roots.places(staging="b"),  # type: ignore[misc]
        }
        if numbers_differ:
            for _ in range(3):
                roots.claim("old", roots.places(dest=False)).release()
            roots.claims.clear()
        mine, theirs = kinds[one](), kinds[other]()
        # owners show life while others watch them; who is in the middle of claiming cannot
        roots.clock.while_waiting = roots.show_life
        roots.script.plan[roots.script.ops + number] = claim_meanwhile(roots, theirs)
        try:
            roots.claim("one", mine)
        except (RunOwnedError, RunFencedError):
            pass
        if not roots.script.happened:
            break
        assert len(roots.owners()) == 1, number
        if roots.clock.read() < TAKEOVER_S:  # nobody was asleep for long enough to be followed
            assert len(roots.claims) == 1, number
    assert number > 5


def test_who_dies_while_claiming_is_followed(roots: Roots) -> None:
    number = 0
    while True:
        number += 1
        roots = Roots()
        process = Process("dying")
        places = roots.places(process=process)
        roots.script.plan[roots.script.ops + number] = Process.kill
        try:
            roots.claim("one", places)
        except BaseException as error:
            if not roots.script.happened:
                raise error
        if not roots.script.happened:
            break
        roots.claims.clear()
        roots.claim("two")
        assert roots.owners() == ["two"]


def test_a_lost_reply_to_our_own_claim_in_a_folder_is_told_from_another(roots: Roots) -> None:
    class Forgetful(FolderPlace):
        """A network filesystem that sends a request again whose reply it lost."""

        def create(self, name: str, data: bytes) -> bool:
            super().create(name, data)
            return super().create(name, data)

    process = Process("driver")
    fs = roots.disk.view(process)
    assert roots.claim("one", [Forgetful(fs, roots.disk.root)]).epoch == 1
    assert not FolderPlace(fs, roots.disk.root).create("epoch-000001", b"other")


def test_a_store_that_does_not_answer_is_asked_again_by_the_next_claim(roots: Roots) -> None:
    for fault in PUT_FAULTS[:2]:
        roots.bucket.fault = fault
        with pytest.raises(StoreUnavailableError):
            roots.claim("one")
        assert roots.claim("one").epoch >= 1
        roots.claims.pop().release()


def test_a_folder_that_fails_is_an_error_and_no_claim(roots: Roots) -> None:
    places = roots.places()
    roots.disk.faults["create_with"] = Fault(after=False, times=1)
    with pytest.raises((OSError, SinkError)):
        roots.claim("one", places)
    assert roots.claim("two").epoch == 2
