"""The model of the pipeline, held against what can be computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.plant import CALLS_AT_ONCE, UPLOADS_AT_ONCE, Cost, Costs, Plant, Run
from benchmarks.scale import down_s, sized
from benchmarks.simulation import Budget, Journal, Servers, Simulation

MiB = 2**20
NOTHING = Cost(0.0, 0.0)
FREE = Costs(NOTHING, NOTHING, NOTHING, NOTHING, 0.0, 0.0, 0.0, 0.0)
PLANT = Plant(8, 0.1e9, 16 * MiB, staging_bytes_s=1e12)
DEMAND = 8 * 0.1e9


def rates(plant: Plant, costs: Costs) -> tuple[float, float, float]:
    outcome = Run(plant, costs).run(40 * plant.step_s)
    return outcome.waited, outcome.staged_bytes_s, outcome.uploaded_bytes_s


def test_servers_work_as_many_at_a_time_as_there_are() -> None:
    clock = Simulation()
    servers = Servers(clock, 2)
    ended: list[float] = []
    for _ in range(5):
        servers.serve(1.0, lambda: ended.append(clock.now_s))
    clock.run(10.0)
    assert ended == [1, 1, 2, 2, 3]
    assert servers.load() == pytest.approx(5 / 20)


def test_a_budget_serves_in_turn_and_lets_what_is_larger_go_alone() -> None:
    clock = Simulation()
    budget = Budget(clock, 10)
    went: list[int] = []
    for size in (6, 25, 3):
        budget.take(size, lambda size=size: went.append(size))  # type: ignore[misc]
    assert went == [6]
    budget.give(6)
    assert went == [6, 25]
    budget.give(25)
    assert went == [6, 25, 3]


def test_records_that_come_during_a_sync_share_the_next_one() -> None:
    clock = Simulation()
    journal = Journal(clock, 1.0)
    durable: list[float] = []
    for time_s in (0.0, 0.2, 0.9, 1.5):
        clock.at(time_s, lambda: journal.record(lambda: durable.append(clock.now_s)))
    clock.run(10.0)
    assert durable == [1.0, 2.0, 2.0, 3.0]


def test_a_pipeline_that_costs_nothing_brings_all_that_gpus_put_out() -> None:
    waited, staged, uploaded = rates(PLANT, FREE)
    assert waited == 0
    assert staged == pytest.approx(DEMAND, rel=0.06)
    assert uploaded == pytest.approx(DEMAND, rel=0.06)


@pytest.mark.parametrize(
    ("plant", "costs", "most"),
    [
        (PLANT, replace(FREE, encode=Cost(0.0, 1e-7)), 16 * 1e7 / 4),  # four threads of one writer
        (replace(PLANT, writers=2), replace(FREE, encode=Cost(0.0, 1e-7)), 16 * 1e7 / 2),
        (PLANT, replace(FREE, encode=Cost(1.0, 0.0)), 16 * MiB),  # Python of one writer
        (replace(PLANT, staging_bytes_s=0.05e9), FREE, 0.05e9),
        (PLANT, replace(FREE, ledger_batch_s=1.0), 8 * 16 * MiB),
        # of what the writer has in hand, half waits for one sync and half for the one after
        (PLANT, replace(FREE, sync_s=4.0), CALLS_AT_ONCE / 2 * 8 * 16 * MiB / 4),
    ],
)
def test_what_is_slowest_decides_how_much_is_acknowledged(plant: Plant, costs: Costs, most: float) -> None:
    outcome = Run(replace(plant, object_store_bytes=4 * 2**30), costs).run(400.0)
    assert outcome.staged_bytes_s == pytest.approx(most, rel=0.05)
    assert outcome.waited == pytest.approx(1 - most / DEMAND, abs=0.08)


@pytest.mark.parametrize(
    ("plant", "costs", "most"),
    [
        (PLANT, replace(FREE, upload=Cost(1.0, 0.0)), 16 * MiB),
        (replace(PLANT, uploaders=2), replace(FREE, upload=Cost(1.0, 0.0)), 2 * 16 * MiB),
        (replace(PLANT, store_latency_s=4.0), FREE, UPLOADS_AT_ONCE * 16 * MiB / 4),
        (replace(PLANT, store_puts_s=3.0), FREE, 3 * 16 * MiB),
        (replace(PLANT, store_bytes_s=0.03e9), FREE, 0.03e9),
    ],
)
def test_what_is_slowest_decides_how_much_is_uploaded(plant: Plant, costs: Costs, most: float) -> None:
    outcome = Run(replace(plant, staging_bytes=1e15), costs).run(100.0)
    assert outcome.staged_bytes_s == pytest.approx(DEMAND, rel=0.06)
    assert outcome.uploaded_bytes_s == pytest.approx(most, rel=0.1)


def test_how_long_a_store_may_be_down_is_what_the_model_sees_as_well() -> None:
    plant = replace(PLANT, staging_bytes=20e9, object_store_bytes=4e9)
    outcome = Run(plant, FREE).run(100.0)
    first_s = Run(plant, FREE, down_from_s=100.0).run(300.0).first_wait_s
    assert first_s is not None
    assert first_s - 100.0 == pytest.approx(down_s(plant, outcome), rel=0.15)
    assert down_s(plant, outcome) == pytest.approx(24e9 / DEMAND, rel=0.15)


def test_a_cluster_gets_the_fewest_writers_and_uploaders_that_are_enough() -> None:
    costs = replace(FREE, encode=Cost(0.0, 1e-7), upload=Cost(0.05, 0.0))
    found = sized(replace(PLANT, cores=100, object_store_bytes=4 * 2**30), costs)
    assert found.enough
    assert found.plant.writers == 24  # at 10 MB/s a thread it takes 20, and 24 are tried next
    assert found.plant.uploaders == 3  # 48 outputs a second at 20 each


def test_what_is_not_enough_is_said() -> None:
    found = sized(replace(PLANT, staging_bytes_s=0.4e9, object_store_bytes=4 * 2**30), FREE)
    assert not found.enough
    assert found.through == pytest.approx(0.5, rel=0.1)
    assert found.outcome.loads["staging"] > 0.95
