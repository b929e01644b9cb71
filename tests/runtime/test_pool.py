"""How a wrapped model's actors are asked for."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from ray_sink.errors import ConfigError
from ray_sink.runtime.pool import pool_arguments


def pool(**arguments: Any) -> Any:
    return pool_arguments(arguments, DataContext.get_current())["compute"]


def test_a_pool_of_fixed_size_gives_an_actor_one_task_more_than_it_runs() -> None:
    strategy = pool(compute=ActorPoolStrategy(size=2))
    assert strategy.max_concurrent_calls_per_actor == 4
    assert strategy.max_tasks_in_flight_per_actor == 5


def test_a_pool_that_grows_gets_enough_tasks_to_grow() -> None:
    strategy = pool(compute=ActorPoolStrategy(min_size=1, max_size=3))
    assert strategy.max_tasks_in_flight_per_actor == 7  # 1.75 tasks a call
    assert pool().max_tasks_in_flight_per_actor == 7
    assert (pool().min_size, pool().max_size) == (1, math.inf)


@pytest.mark.parametrize(
    ("concurrency", "sizes"), [(3, (3, 3, 3)), ((1, 4), (1, 4, 1)), ((1, 4, 2), (1, 4, 2))], ids=str
)
def test_concurrency_is_translated(concurrency: Any, sizes: tuple[int, int, int]) -> None:
    strategy = pool(concurrency=concurrency)
    assert (strategy.min_size, strategy.max_size, strategy.initial_size) == sizes


def test_concurrency_beside_a_strategy_without_sizes_keeps_its_other_fields() -> None:
    strategy = pool(concurrency=2, compute=ActorPoolStrategy(max_tasks_in_flight_per_actor=9))
    assert (strategy.min_size, strategy.max_size, strategy.max_tasks_in_flight_per_actor) == (2, 2, 9)


def test_concurrency_beside_a_strategy_with_sizes_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave concurrency out"):
        pool(concurrency=2, compute=ActorPoolStrategy(size=3))


@pytest.mark.parametrize("concurrency", ["2", 0, True, (1, 2, 3, 4), (4, 1), 1.5])
def test_what_is_no_concurrency_is_refused(concurrency: Any) -> None:
    with pytest.raises(ConfigError, match="concurrency"):
        pool(concurrency=concurrency)


@pytest.mark.parametrize("compute", [TaskPoolStrategy(), TaskPoolStrategy(size=2), "tasks"], ids=repr)
def test_tasks_are_refused_by_name(compute: Any) -> None:
    with pytest.raises(ConfigError, match=r"tasks|TaskPoolStrategy"):
        pool(compute=compute)


def test_what_the_user_set_stays() -> None:
    given = ActorPoolStrategy(
        min_size=2, max_size=5, initial_size=3, max_concurrent_calls_per_actor=2, max_tasks_in_flight_per_actor=11
    )
    assert pool(compute=given) == given
    assert pool(compute=given) is not given


def test_the_datasets_own_limit_of_tasks_stays() -> None:
    context = DataContext.get_current().copy()
    context.max_tasks_in_flight_per_actor = 3
    assert pool_arguments({}, context)["compute"].max_tasks_in_flight_per_actor is None


def test_other_arguments_go_on_to_ray() -> None:
    arguments = pool_arguments(
        {"num_gpus": 1, "batch_size": 8, "fn_constructor_args": (1,), "no_such": 2}, DataContext()
    )
    del arguments["compute"]
    assert arguments == {
        "num_gpus": 1,
        "batch_size": 8,
        "fn_constructor_args": (1,),
        "no_such": 2,
        "max_restarts": -1,
    }


def test_calls_may_be_given_as_ray_cores_max_concurrency() -> None:
    arguments = pool_arguments({"max_concurrency": 2, "concurrency": 1}, DataContext.get_current())
    assert arguments["compute"].max_concurrent_calls_per_actor == 2
    assert "max_concurrency" not in arguments
