"""One rich run, with something going wrong at each of its operations in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.faults.runs import ALL
from tests.model.disk import Fault
from tests.model.script import Process, Until
from tests.model.world import World, chooser

EVERY = 1 if ALL else 16
"""In `make test` each 16th operation; which ones depends on what goes wrong and where."""

pytestmark = pytest.mark.timeout(900)


def scenario(world: World) -> None:
    """Batches, SPLIT outputs, retries with the same and with other bytes, uploads, a restart, a takeover, a seal.

    Whoever is gone when his turn comes is passed over.
    """
    world.take_over()
    if not world.lives:
        return
    first = world.lives[-1]
    world.write(first, [("a", ("b", "c"), 0), ("d/e", (), 0)])
    half = world.write(first, [("d/f", ("b", "c"), 0), ("g", (), 0)], 19)  # staged, synced, decided …
    world.write(first, [("d/e", (), 0), ("a", ("b", "c"), 1), ("h", (), 1)])
    if world.info.dest is not None:
        upload = world.upload(first, 0, 6)
        world.upload(first, 0)  # another in its place
        world.upload(first, 1)
        upload.run()
    world.restart_ledger(world.drivers[-1], kill=False)
    half.run()  # … and published only after the ledger's next life has begun
    second = world.lives[-1]
    late = world.write(second, [("g", (), 2), ("a_b", (), 0), ("i", (), 0), ("late", (), 0)], 21)
    # `i` and `late` are staged, their writer sleeps
    world.publish_rest(second)
    world.take_over()
    third = world.lives[-1]
    world.write(third, [("i", (), 1), ("d/e", (), 1)])
    late.run()  # the old ledger still decides, and nobody counts it
    if world.info.dest is not None:
        world.upload(third, 0)
        world.upload(third, 1)
    world.close(world.drivers[-1])


def kill(world: World) -> Callable[[Process], None]:
    return Process.kill


def cut_power(seed: int) -> Callable[[World], Callable[[Process], None]]:
    return lambda world: lambda process: world.power_cut(chooser(seed))


def kill_and_cut_power(world: World) -> Callable[[Process], None]:
    """Somebody dies; his successor builds on what he left, and then that must not be lost either."""

    def both(process: Process) -> None:
        process.kill()
        world.script.plan[world.script.ops + 120] = lambda _: world.power_cut(chooser(0))

    return both


def fail_to_sync_a_folder(world: World) -> Callable[[Process], None]:
    """The next one, whoever asks for it; the ones after it say yes, and what was lost stays lost."""

    def fail(process: Process) -> None:
        world.disk.faults["sync_dir"] = Fault(after=False, times=1)

    return fail


def get_another_ledger(world: World) -> Callable[[Process], None]:
    """The process finds, when it goes on, that the ledger has ended and another was started."""

    def meanwhile(process: Process) -> None:
        if world.drivers[-1].claim is not None:
            world.restart_ledger(world.drivers[-1], kill=True)

    return meanwhile


def be_taken_over(*, until: Until, seal: bool) -> Callable[[World], Callable[[Process], None]]:
    """The process sleeps while another driver takes over and works up to a point."""

    def make(world: World) -> Callable[[Process], None]:
        def meanwhile(process: Process) -> None:
            world.script.note(f"{process.name} falls asleep")
            world.take_over()
            if world.lives:
                life = world.lives[-1]
                world.write(life, [("new", ("b", "c"), 5), ("i", (), 5)], until)
                world.write(life, [("d/e", (), 7), ("g", (), 7)])
                if world.info.dest is not None:
                    world.upload(life, 0, until)
            if seal and world.drivers:
                world.close(world.drivers[-1])
            world.script.note(f"{process.name} wakes up")

        return meanwhile

    return make


FAULTS: dict[str, Callable[[World], Callable[[Process], None]]] = {
    "process dies": kill,
    "folder not synced": fail_to_sync_a_folder,
    "process dies, power cut later": kill_and_cut_power,
    "another ledger": get_another_ledger,
    "power cut, all lost": cut_power(0),
    "power cut, all kept": cut_power(1),
    "power cut, some lost": cut_power(2),
    "taken over, decided": be_taken_over(until=19, seal=False),
    "taken over, published": be_taken_over(until=None, seal=False),
    "taken over, sealed": be_taken_over(until=None, seal=True),
}


def play(with_store: bool, at: int, fault: Callable[[World], Callable[[Process], None]]) -> World:
    world = World(with_store=with_store)
    world.script.plan[at] = fault(world)
    try:
        scenario(world)
        assert world.script.happened["planned"]
        world.finish()
    except BaseException as error:
        error.add_note(world.script.told())
        raise
    finally:
        world.forget()
    return world


@pytest.mark.parametrize("with_store", [False, True], ids=["folder", "store"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_run_survives_this_at_every_operation(name: str, with_store: bool) -> None:
    undisturbed = World(with_store=with_store)
    scenario(undisturbed)
    undisturbed.forget()
    assert undisturbed.check_sealed()
    assert len(undisturbed.record.receipts) >= 4
    happened: Counter[str] = Counter()
    begin = 1 + (list(FAULTS).index(name) + with_store) % EVERY
    for at in range(begin, undisturbed.script.ops + 1, EVERY):
        try:
            happened += play(with_store, at, FAULTS[name]).script.happened
        except BaseException as error:
            error.add_note(f"{name} at operation {at} of {undisturbed.script.ops}")
            raise
    assert happened["planned"]
    assert happened["call made again"] or name != "another ledger"
