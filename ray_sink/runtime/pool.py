"""The arguments of ``map_batches`` that decide how a wrapped model runs: its actors, and its place in the plan."""

from __future__ import annotations

import copy
import gc
import inspect
import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy
from ray.data._internal.logical.operators import InputData

from ray_sink.errors import ConfigError

_log = logging.getLogger("ray_sink")

CALLS: Final = 4
"""Calls of one actor that run at a time: one infers while others wait for their receipts."""

_ENDING_S: Final = 10.0
"""What actors may take to go after their dataset has ended, seconds."""


def pool_arguments(arguments: Mapping[str, Any], context: DataContext) -> dict[str, Any]:
    """Arguments for ``map_batches`` out of the user's: only what the sink must have is put in.

    Args:
        arguments: what the user gave; ``compute`` and ``concurrency`` in any form that Ray Data takes.
        context: the dataset's context.

    Raises:
        ConfigError: the arguments ask for tasks, or for two pools at once.
    """
    given = dict(arguments)
    strategy = _strategy(given.pop("compute", None), given.pop("concurrency", None))
    calls = strategy.max_concurrent_calls_per_actor or given.pop("max_concurrency", None) or CALLS
    strategy.max_concurrent_calls_per_actor = calls
    if strategy.max_tasks_in_flight_per_actor is None and context.max_tasks_in_flight_per_actor is None:
        strategy.max_tasks_in_flight_per_actor = _in_flight(strategy, calls, context)
    return {**given, "compute": strategy, **_apart(given)}


def leaving_room(pool: dict[str, Any], ds: Dataset) -> dict[str, Any]:
    """The pool's arguments, its actors' share of the CPUs made smaller if they would leave none to read their rows.

    Where Ray Data may fuse reading and model, the actors read for themselves, and such a pool runs; apart (see
    `_apart`), reading would wait for ever for a CPU. The sizes of pools before it count too, and what others on the
    cluster have. A cluster that can still grow is left to grow.
    """
    before = list(_operators(ds._logical_plan.dag))
    if all(isinstance(operator, InputData) for operator in before):
        return pool
    cpus = ray.cluster_resources().get("CPU", 0)
    if cpus < 1 or cpus < _cpus_to_come():
        return pool
    pools = [o for o in before if isinstance(getattr(o, "compute", None), ActorPoolStrategy)]
    others = 1 + sum(o.compute.min_size * _share(o.ray_remote_args) for o in pools)
    actors = pool["compute"].min_size
    free = _free_cpus(min(cpus, others + actors * _share(pool)))
    room = max(0.0, free - others)
    if actors * _share(pool) <= room:
        return pool
    share = math.floor(room / actors * 100) / 100
    told = {"actors": actors, "asked": _share(pool), "given": share, "cpus_free": free}
    _log.warning("pool.cpus_reduced", extra=told)
    return {**pool, "num_cpus": share}


def _operators(last: Any) -> Iterator[Any]:
    yield last
    for operator in last.input_dependencies:
        yield from _operators(operator)


def _share(arguments: Mapping[str, Any]) -> float:
    """CPUs of an actor, as Ray Data counts them: one, if nothing is said."""
    given = arguments.get("num_cpus")
    return 1 if given is None else float(given)


def _free_cpus(wanted: float) -> float:
    """CPUs that nobody has, once they are as many as wanted or it is clear that they will not be.

    The actors of a dataset that has ended go when the last reference to them has gone, which may be in a cycle.
    """
    free = _available_cpus()
    if free < wanted:
        gc.collect()
        deadline = time.monotonic() + _ENDING_S
        while free < wanted and time.monotonic() < deadline:
            time.sleep(0.2)
            free = _available_cpus()
    return free


def _available_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0))


def _cpus_to_come() -> float:
    """What an autoscaler may make of the cluster; 0 if there is none."""
    return float((ray._private.state.state.get_max_resources_from_cluster_config() or {}).get("CPU", 0))


def _in_flight(strategy: ActorPoolStrategy, calls: int, context: DataContext) -> int:
    """How many tasks one actor may have.

    In a pool of fixed size the first actor to be ready would take twice as many tasks as it can run, and the others
    would wait for work: it gets one beside those that run, so that the next call begins before Ray Data's scheduler has
    seen the last one end. A pool that grows does so at a ratio of tasks to calls that it must be able to reach.
    """
    if strategy.min_size == strategy.max_size:
        return calls + 1
    return max(calls, math.ceil(context.autoscaling_config.actor_pool_util_upscaling_threshold * calls))


def _apart(given: Mapping[str, Any]) -> dict[str, Any]:
    """An argument that keeps Ray Data from fusing the model with what comes before it.

    In a fused operator an exception of the earlier function, raised in the middle of a block, leaves an async model
    hanging for ever: the executor of async functions fails its own assertion and tells nobody (Ray 2.60). Operators
    with different remote arguments are never fused. The value is Ray Data's own default for actors.
    """
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(Dataset.map_batches).parameters.values())
    if takes_any:
        return {"max_restarts": given.get("max_restarts", -1)}
    return {"label_selector": given.get("label_selector") or {}}


def _strategy(compute: object, concurrency: object) -> ActorPoolStrategy:
    if isinstance(compute, TaskPoolStrategy) or compute == "tasks":
        raise ConfigError(
            f"compute={compute!r}: a model behind a sink runs in actors, which keep it loaded and wait for receipts"
            " beside it. Use ray.data.ActorPoolStrategy(size=…), or leave compute out"
        )
    if compute == "actors":
        compute = None
    if compute is not None and not isinstance(compute, ActorPoolStrategy):
        raise ConfigError(f"compute must be a ray.data.ActorPoolStrategy, got {compute!r}")
    if concurrency is None:
        return ActorPoolStrategy(min_size=1) if compute is None else copy.copy(compute)
    sized = _from_concurrency(concurrency)
    if compute is None:
        return sized
    if (compute.min_size, compute.max_size, compute.initial_size) != (1, math.inf, 1):
        raise ConfigError(
            f"concurrency={concurrency!r} and compute={compute!r} both give the pool's size, and Ray Data would ignore"
            " the first: leave concurrency out"
        )
    merged = copy.copy(compute)
    merged.min_size, merged.max_size, merged.initial_size = sized.min_size, sized.max_size, sized.initial_size
    return merged


def _from_concurrency(concurrency: object) -> ActorPoolStrategy:
    numbers = concurrency if isinstance(concurrency, tuple) else (concurrency,)
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers) or not 1 <= len(numbers) <= 3:
        raise ConfigError(
            f"concurrency must be a number of actors, or a tuple (min, max) or (min, max, initial), got {concurrency!r}"
        )
    try:
        if len(numbers) == 1:
            return ActorPoolStrategy(size=numbers[0])
        return ActorPoolStrategy(min_size=numbers[0], max_size=numbers[1], initial_size=(*numbers, None)[2])
    except ValueError as error:
        raise ConfigError(f"concurrency={concurrency!r}: {error}") from None
