"""Ray Data through the sink: what ``Sink.run``, ``map_batches``, ``wrap`` and ``remaining`` do."""

from __future__ import annotations

import uuid
import warnings
from typing import Any, Protocol

import pyarrow as pa
import ray
import ray.data
from ray.data import Dataset, TaskPoolStrategy
from ray.data.dataset import MaterializedDataset
from ray.exceptions import RayTaskError

from ray_sink.errors import ConfigError
from ray_sink.runtime.calls import result
from ray_sink.runtime.columns import check_columns
from ray_sink.runtime.datasink import SinkDatasink
from ray_sink.runtime.duplicates import refuse_duplicates
from ray_sink.runtime.execution import WatchedDataset, unwatch, watch
from ray_sink.runtime.failing import own_error
from ray_sink.runtime.handle import SinkHandle
from ray_sink.runtime.keying import KeyTemplate, missing_error
from ray_sink.runtime.model import SinkStage, StageSpec, check_model
from ray_sink.runtime.model import wrap as wrap_model
from ray_sink.runtime.pool import pool_arguments
from ray_sink.runtime.rows import SOURCE, Admission, Remaining


class SinkContext(Protocol):
    """What this module needs of a running sink.

    Attributes:
        coordinator: handle of the coordinator's actor. `dataset_opened` comes first, when the dataset is made;
            `rows_seen` from its tasks, `rows_ended` and `dataset_closed` from its driver when an execution ends. All
            may be repeated.
    """

    coordinator: Any

    def handle(self, *, needs_goodbye: bool = True) -> SinkHandle:
        """A producer's end."""


def run(
    sink: SinkContext,
    ds: Dataset,
    model: Any,
    *,
    key: str,
    columns: Any = None,
    source: str | None = None,
    **arguments: Any,
) -> MaterializedDataset[Any]:
    """See `ray_sink.Sink.run`.

    Raises:
        SinkError: what the sink has to say, as itself.
        Exception: what the model raised, as Ray Data wraps it.
    """
    made, watched = _made(sink, ds, model, key, columns, source, arguments)
    try:
        receipts: MaterializedDataset[Any] = made.materialize()
    except RayTaskError as error:
        raise own_error(error) from error
    unwatch(receipts, watched)
    return receipts


def map_batches(
    sink: SinkContext,
    ds: Dataset,
    model: Any,
    *,
    key: str,
    columns: Any = None,
    source: str | None = None,
    **arguments: Any,
) -> Dataset:
    """See `ray_sink.Sink.map_batches`."""
    return _made(sink, ds, model, key, columns, source, arguments)[0]


def wrap(sink: SinkContext, model: Any, *, key: str, columns: Any = None) -> type[SinkStage]:
    """See `ray_sink.Sink.wrap`. Nothing is taken out beforehand, and whether the dataset ran to its end is not watched.

    Pass what `ray_sink.runtime.pool.pool_arguments` puts in: ``compute=ActorPoolStrategy(…,
    max_concurrent_calls_per_actor=4)`` and ``max_restarts=-1``.
    """
    return _wrapped(sink, model, KeyTemplate.parse(key), columns, None, takes_out=False, label="sink")


def remaining(sink: SinkContext, ds: Dataset, *, key: str | None = None, source: str | None = None) -> Dataset:
    """See `ray_sink.Sink.remaining`.

    Raises:
        ConfigError: the columns are not in the dataset, or not one of `key` and `source` is given.
    """
    if (key is None) == (source is None):
        raise ConfigError("remaining needs key=… or source=…, as the run has it: what names a row in the dataset")
    stage = _remaining(sink, ds, key, source, required=True)
    return ds.map_batches(stage, batch_size=None, batch_format=None, **_admission_arguments(ds))


def _remaining(sink: SinkContext, ds: Dataset, key: str | None, source: str | None, *, required: bool) -> Remaining:
    """What takes rows out: by their source, if there is one, else by their key."""
    if source is None:
        template = KeyTemplate.parse(key)
        _check_known_schema(ds, template, required=required)
        return Remaining(template, _hashes(sink.coordinator.committed_keys.remote()), required=required)
    template = KeyTemplate.parse(source, argument="source")
    _check_known_schema(ds, template, required=True, argument="source")
    closed = _hashes(sink.coordinator.closed_sources.remote())
    return Remaining(template, closed, required=True, argument="source")


def datasink(sink: SinkContext, *, key: str, columns: Any = None) -> SinkDatasink:
    """See `ray_sink.Sink.datasink`."""
    template, names = KeyTemplate.parse(key), check_columns(columns)
    return SinkDatasink(
        sink.handle(needs_goodbye=False),
        WatchedDataset(sink.coordinator, f"datasink-{uuid.uuid4().hex[:8]}"),
        Remaining(template, _hashes(sink.coordinator.committed_keys.remote()), required=True),
        template,
        names,
    )


def manifest_dataset(table: pa.Table) -> Dataset:
    """A manifest's rows as a dataset."""
    return ray.data.from_arrow(table)


def _made(
    sink: SinkContext,
    ds: Dataset,
    model: Any,
    key: str,
    columns: Any,
    source: str | None,
    arguments: dict[str, Any],
) -> tuple[Dataset, WatchedDataset]:
    """The lazy dataset: admission, then the model, watched."""
    if not isinstance(ds, Dataset):
        raise ConfigError(f"the dataset must be a ray.data.Dataset, got {type(ds).__name__}")
    template = KeyTemplate.parse(key)
    of_source = None if source is None else KeyTemplate.parse(source, argument="source")
    label = f"sink-{uuid.uuid4().hex[:8]}"
    stage = _wrapped(sink, model, template, columns, of_source, takes_out=of_source is None, label=label)
    pool = pool_arguments(arguments, ds.context)
    remaining = _remaining(sink, ds, key, source, required=False)
    if of_source is None:
        refuse_duplicates(ds, template)
    else:
        refuse_duplicates(ds, of_source, sources=True)
    admission = Admission(remaining, sink.coordinator, stage.__name__)
    admitted = ds.map_batches(admission, batch_size=None, batch_format=None, **_admission_arguments(ds))
    made = _map_batches(admitted, stage, pool)
    watched = WatchedDataset(sink.coordinator, stage.__name__)
    return watch(made, watched), watched


def _wrapped(
    sink: SinkContext,
    model: Any,
    template: KeyTemplate,
    columns: Any,
    source: KeyTemplate | None,
    *,
    takes_out: bool,
    label: str,
) -> type[SinkStage]:
    spec = StageSpec(
        model=check_model(model),
        handle=sink.handle(needs_goodbye=False),
        key=template,
        columns=check_columns(columns),
        takes_out=takes_out,
        source=source,
    )
    return wrap_model(spec, label=label)


def _map_batches(ds: Dataset, stage: type[SinkStage], pool: dict[str, Any]) -> Dataset:
    with warnings.catch_warnings():
        # the remote argument that Ray deprecates is ours, not the user's
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        return ds.map_batches(stage, **pool)


def _admission_arguments(ds: Dataset) -> dict[str, Any]:
    """Behind a read, or a function in tasks, the stage becomes a part of its tasks; else it has tasks of its own.

    Those must run beside actors that may have taken all CPUs, and there must not be a process for each block.
    """
    if isinstance(getattr(ds._logical_plan.dag, "compute", None), TaskPoolStrategy):
        return {}
    cpus = int(ray.cluster_resources().get("CPU", 1))
    return {"num_cpus": 0, "compute": TaskPoolStrategy(size=max(1, cpus // 2))}


def _hashes(ref: Any) -> Any:
    """The reference itself, or None if there are none: 16 bytes each, read in place by every process of a node."""
    return ref if len(result(ref)) else None


def _check_known_schema(ds: Dataset, template: KeyTemplate, *, required: bool, argument: str = "key") -> None:
    """Say at once what can be said without running anything."""
    schema = ds.schema(fetch_if_missing=False)
    if schema is None:
        return
    types = dict(zip(schema.names, schema.types, strict=True))
    if SOURCE in types:
        raise ConfigError(f"the dataset has a column {SOURCE!r}, which is the sink's own: rename it")
    missing = template.missing(types)
    if missing and required:
        raise missing_error(template, missing, "the dataset", ", ".join(map(repr, types)), argument=argument)
    for name in template.fields:
        if name in types and _holds_many(types[name]):
            raise ConfigError(
                f"{argument} column {name!r} holds {types[name]}: a {argument} needs one plain value a row"
            )


def _holds_many(kind: object) -> bool:
    return isinstance(kind, pa.BaseExtensionType) or (isinstance(kind, pa.DataType) and pa.types.is_nested(kind))
