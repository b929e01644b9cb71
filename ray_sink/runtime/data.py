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
    sink: SinkContext, ds: Dataset, model: Any, *, key: str, columns: Any = None, **arguments: Any
) -> MaterializedDataset[Any]:
    """See `ray_sink.Sink.run`.

    Raises:
        SinkError: what the sink has to say, as itself.
        Exception: what the model raised, as Ray Data wraps it.
    """
    made, watched = _made(sink, ds, model, key, columns, arguments)
    try:
        receipts: MaterializedDataset[Any] = made.materialize()
    except RayTaskError as error:
        raise own_error(error) from error
    unwatch(receipts, watched)
    return receipts


def map_batches(
    sink: SinkContext, ds: Dataset, model: Any, *, key: str, columns: Any = None, **arguments: Any
) -> Dataset:
    """See `ray_sink.Sink.map_batches`."""
    return _made(sink, ds, model, key, columns, arguments)[0]


def wrap(sink: SinkContext, model: Any, *, key: str, columns: Any = None) -> type[SinkStage]:
    """See `ray_sink.Sink.wrap`. Nothing is taken out beforehand, and whether the dataset ran to its end is not watched.

    Pass what `ray_sink.runtime.pool.pool_arguments` puts in: ``compute=ActorPoolStrategy(…,
    max_concurrent_calls_per_actor=4)`` and ``max_restarts=-1``.
    """
    return _wrapped(sink, model, KeyTemplate.parse(key), columns, takes_out=False, label="sink")


def remaining(sink: SinkContext, ds: Dataset, *, key: str) -> Dataset:
    """See `ray_sink.Sink.remaining`.

    Raises:
        ConfigError: the key's columns are not in the dataset.
    """
    template = KeyTemplate.parse(key)
    _check_known_schema(ds, template, required=True)
    stage = Remaining(template, _committed(sink), required=True)
    return ds.map_batches(stage, batch_size=None, batch_format=None)


def datasink(sink: SinkContext, *, key: str, columns: Any = None) -> SinkDatasink:
    """See `ray_sink.Sink.datasink`."""
    template, names = KeyTemplate.parse(key), check_columns(columns)
    return SinkDatasink(
        sink.handle(needs_goodbye=False),
        WatchedDataset(sink.coordinator, f"datasink-{uuid.uuid4().hex[:8]}"),
        Remaining(template, _committed(sink), required=True),
        template,
        names,
    )


def manifest_dataset(table: pa.Table) -> Dataset:
    """A manifest's rows as a dataset."""
    return ray.data.from_arrow(table)


def _made(
    sink: SinkContext, ds: Dataset, model: Any, key: str, columns: Any, arguments: dict[str, Any]
) -> tuple[Dataset, WatchedDataset]:
    """The lazy dataset: admission, then the model, watched."""
    if not isinstance(ds, Dataset):
        raise ConfigError(f"the dataset must be a ray.data.Dataset, got {type(ds).__name__}")
    template = KeyTemplate.parse(key)
    _check_known_schema(ds, template, required=False)
    label = f"sink-{uuid.uuid4().hex[:8]}"
    stage = _wrapped(sink, model, template, columns, takes_out=True, label=label)
    pool = pool_arguments(arguments, ds.context)
    refuse_duplicates(ds, template)
    admission = Admission(Remaining(template, _committed(sink), required=False), sink.coordinator, stage.__name__)
    admitted = ds.map_batches(admission, batch_size=None, batch_format=None, **_admission_arguments(ds))
    made = _map_batches(admitted, stage, pool)
    watched = WatchedDataset(sink.coordinator, stage.__name__)
    return watch(made, watched), watched


def _wrapped(
    sink: SinkContext, model: Any, template: KeyTemplate, columns: Any, *, takes_out: bool, label: str
) -> type[SinkStage]:
    spec = StageSpec(
        model=check_model(model),
        handle=sink.handle(needs_goodbye=False),
        key=template,
        columns=check_columns(columns),
        takes_out=takes_out,
    )
    return wrap_model(spec, label=label)


def _map_batches(ds: Dataset, stage: type[SinkStage], pool: dict[str, Any]) -> Dataset:
    with warnings.catch_warnings():
        # the remote argument that Ray deprecates is ours, not the user's
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        return ds.map_batches(stage, **pool)


def _admission_arguments(ds: Dataset) -> dict[str, Any]:
    """Behind a read the stage becomes a part of its tasks. Before materialized blocks it has tasks of its own.

    Those must run beside actors that may have taken all CPUs, and there must not be a process for each block.
    """
    if not isinstance(ds, MaterializedDataset):
        return {}
    cpus = int(ray.cluster_resources().get("CPU", 1))
    return {"num_cpus": 0, "compute": TaskPoolStrategy(size=max(1, cpus // 2))}


def _committed(sink: SinkContext) -> Any:
    """A reference to the hashes of what is committed now, or None."""
    hashes = result(sink.coordinator.committed_keys.remote())
    return ray.put(hashes) if len(hashes) else None


def _check_known_schema(ds: Dataset, template: KeyTemplate, *, required: bool) -> None:
    """Say at once what can be said without running anything."""
    schema = ds.schema(fetch_if_missing=False)
    if schema is None:
        return
    types = dict(zip(schema.names, schema.types, strict=True))
    if SOURCE in types:
        raise ConfigError(f"the dataset has a column {SOURCE!r}, which is the sink's own: rename it")
    missing = template.missing(types)
    if missing and required:
        raise missing_error(template, missing, "the dataset", ", ".join(map(repr, types)))
    for name in template.fields:
        if name in types and _holds_many(types[name]):
            raise ConfigError(f"key column {name!r} holds {types[name]}: a key needs one plain value a row")


def _holds_many(kind: object) -> bool:
    return isinstance(kind, pa.BaseExtensionType) or (isinstance(kind, pa.DataType) and pa.types.is_nested(kind))
