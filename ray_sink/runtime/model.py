"""The class that Ray Data runs in the place of the user's model."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa

from ray_sink.errors import ConfigError
from ray_sink.records import Receipt
from ray_sink.runtime.batches import Batch, scalars
from ray_sink.runtime.columns import kept_columns, plain_array, select
from ray_sink.runtime.failing import failures_of, one_error, unwrapped
from ray_sink.runtime.holders import columns_of_ours
from ray_sink.runtime.keying import KeyTemplate, duplicate_error, missing_error, require_unique
from ray_sink.runtime.receipts import SCHEMA, receipt_table
from ray_sink.runtime.rows import SOURCE
from ray_sink.runtime.thread import ModelThread
from ray_sink.runtime.ticket import Outcome, Ticket, outcomes_of


@dataclass(frozen=True, slots=True)
class StageSpec:
    """What a wrapped model must know.

    Attributes:
        model: the user's class or function.
        handle: a `SinkHandle` that needs no goodbye: rows come back only with their receipts.
        key: the key template.
        columns: the columns to save, as `check_columns` returns them.
        takes_out: rows whose key is committed are taken out beforehand, by their key as the input has it.
        source: names each input row, so that it can be taken out when all that the model made of it is committed.
    """

    model: Any
    handle: Any
    key: KeyTemplate
    columns: str | tuple[str, ...] | None
    takes_out: bool
    source: KeyTemplate | None = None


@dataclass(slots=True)
class _Input:
    """What the outputs of one call are held against."""

    before: Batch
    keys: list[str] | None
    sources: list[str] | None
    names: list[str]
    seen: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Served:
    """What one call gave: its outputs, and the names of the input rows that are done with them."""

    pieces: list[_Piece]
    names: list[str]


@dataclass(frozen=True, slots=True)
class _Piece:
    """One output batch on its way."""

    tickets: list[Ticket]
    kept: dict[str, pa.Array]


class SinkStage:
    """An async UDF around the user's model.

    Several calls run at a time (``max_concurrent_calls_per_actor``). Each waits for its turn on the model's thread,
    where the model is called and its outputs are handed over to the sink one by one; then it waits for their receipts
    beside the next calls' turns. Rows come back only with their receipts: what Ray Data has seen is safe.
    """

    spec: ClassVar[StageSpec]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        model = self.spec.model
        self.spec.handle.prepare()  # a writer starts while the model loads
        self._asynchronous = is_async(model)
        self._thread = ModelThread(
            lambda: model(*args, **kwargs) if inspect.isclass(model) else model, asynchronous=self._asynchronous
        )

    async def __call__(self, batch: Any, *args: Any, **kwargs: Any) -> pa.Table:
        """Run the model on a batch; returns receipts and kept columns, see `ray_sink.runtime.receipts`."""
        with unwrapped():
            return await self._through(batch, args, kwargs)

    async def _through(self, batch: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> pa.Table:
        if self._asynchronous:
            turn = self._thread.submit_async(functools.partial(self._serve_async, batch, args, kwargs))
        else:
            turn = self._thread.submit(functools.partial(self._serve, batch, args, kwargs))
        del batch
        served = await asyncio.wrap_future(turn)
        pieces = served.pieces
        tickets = [ticket for piece in pieces for ticket in piece.tickets]
        outcomes = await outcomes_of(tickets)
        failures = failures_of(tickets, outcomes)
        if failures and not await asyncio.to_thread(self.spec.handle.set_aside, failures):
            raise one_error(failures)
        if served.names and not failures:  # a failed output may be of any of them
            await asyncio.to_thread(self.spec.handle.close_sources, served.names)
        left = iter(outcomes)
        tables = [_rows(piece, list(itertools.islice(left, len(piece.tickets)))) for piece in pieces]
        return pa.concat_tables(tables, promote_options="default") if tables else SCHEMA.empty_table()

    def __del__(self) -> None:
        thread = getattr(self, "_thread", None)
        if thread is not None:
            thread.stop()
            self.spec.handle.let_go()

    # -- on the model's thread ---------------------------------------------------------------------------------------

    def _serve(self, batch: Any, args: Sequence[Any], kwargs: Mapping[str, Any], model: Any) -> _Served:
        given, held = self._take_in(batch)
        del batch
        # outputs are in lists of one: a variable would hold them, too, see `columns_of_ours`
        made = [model(given.pop(), *args, **kwargs)]
        if inspect.isawaitable(made[0]) or inspect.isasyncgen(made[0]):
            raise ConfigError(f"{_name(self.spec.model)} returned an awaitable: make its __call__ an `async def`")
        if not isinstance(made[0], Iterator):
            return _Served([self._hand_over(made, held)], held.names)
        outputs = made.pop()
        pieces = []
        while made := list(itertools.islice(outputs, 1)):
            pieces.append(self._hand_over(made, held))
        return _Served(pieces, held.names)

    async def _serve_async(self, batch: Any, args: Sequence[Any], kwargs: Mapping[str, Any], model: Any) -> _Served:
        given, held = self._take_in(batch)
        del batch
        result = model(given.pop(), *args, **kwargs)
        if not isinstance(result, AsyncIterator):
            return _Served([self._hand_over([await result], held)], held.names)
        pieces = []
        with suppress(StopAsyncIteration):
            while True:
                pieces.append(self._hand_over([await anext(result)], held))
        return _Served(pieces, held.names)

    def _take_in(self, raw: Any) -> tuple[list[Any], _Input]:
        """The batch as the model gets it, in a list that alone holds it, and what must be remembered of it."""
        sources: list[str] | None = None
        if SOURCE in raw if isinstance(raw, Mapping | pd.DataFrame) else SOURCE in raw.column_names:
            sources = scalars(SOURCE, Batch(raw).column(SOURCE))
            raw = _without(raw, SOURCE)
        before = Batch(raw)
        keys = None
        if not self.spec.key.missing(before.names):
            keys = self.spec.key.keys_of(before)
            require_unique(keys, "a batch")
        names: list[str] = []
        if self.spec.source is not None:
            names = self.spec.source.keys_of(before)
            require_unique(names, "a batch", source=self.spec.source)
        # models put their outputs into the batch that they got
        given = dict(raw) if isinstance(raw, Mapping) else raw.copy(deep=False) if _is_frame(raw) else raw
        return [given], _Input(before, keys, sources, names)

    def _hand_over(self, made: list[Any], held: _Input) -> _Piece:
        """Save the one output in `made`; what nobody else holds of it is copied beside the model."""
        ours = columns_of_ours(made)
        output = Batch(made.pop())
        saved = select(self.spec.columns, output, {name: held.before.column(name) for name in held.before.names})
        keys, from_input = self._keys(output, held)
        kept = kept_columns(output, saved.names)
        for name in from_input:
            array = plain_array(held.before.column(name))
            if array is not None:
                kept[name] = array
        again = [key for key in keys if key in held.seen]
        if again:
            raise duplicate_error(again, "the model's output for one batch")
        held.seen.update(keys)
        if not keys:
            return _Piece([], kept)
        sources = self._sources(keys, output, held)
        copy = not ours.issuperset(saved.names)
        return _Piece(self.spec.handle.write_batch(keys, saved.value, sources=sources, copy=copy), kept)

    def _keys(self, output: Batch, held: _Input) -> tuple[list[str], list[str]]:
        """The keys of an output, each of their columns from the output if it is there, else from the input."""
        template = self.spec.key
        from_input = template.missing(output.names)
        lacking = template.missing([*output.names, *held.before.names])
        if lacking:
            has = f"{output.describe()} from the model, and {held.before.describe()} before it"
            raise missing_error(template, lacking, "every batch", has)
        if from_input and output.rows != held.before.rows:
            raise ConfigError(
                f"key={template.text!r}: the model returned {output.rows} rows for {held.before.rows}, so that column"
                f" {from_input[0]!r} of its input belongs to none of them: return it with the output, one value a row"
            )
        columns = {
            name: scalars(name, (held.before if name in from_input else output).column(name))
            for name in template.fields
        }
        keys = template.keys(columns)
        require_unique(keys, "the model's output for one batch")
        if self.spec.takes_out and held.keys is not None and not set(keys) <= set(held.keys):
            strange = next(key for key in keys if key not in set(held.keys))
            raise ConfigError(
                f"key={template.text!r}: the model's input has these columns too, with other values ({strange!r} is no"
                " input row's key). A resumed run would take out the wrong rows: give the output's column a name of its"
                " own, and use that in key="
            )
        return keys, from_input

    def _sources(self, keys: Sequence[str], output: Batch, held: _Input) -> list[str] | None:
        """Which input row each output comes from, where that can be told."""
        if held.sources is None:
            return None
        if self.spec.source is not None and not self.spec.source.missing(output.names):
            by_name = dict(zip(held.names, held.sources, strict=True))
            names = self.spec.source.keys_of(output)
            if set(names) <= set(by_name):
                return [by_name[name] for name in names]
        if held.keys is not None and set(keys) <= set(held.keys):
            by_key = dict(zip(held.keys, held.sources, strict=True))
            return [by_key[key] for key in keys]
        return held.sources if len(keys) == len(held.sources) else None


def wrap(spec: StageSpec, *, label: str) -> type[SinkStage]:
    """A class for ``map_batches`` that calls ``spec.model`` unchanged and sends its outputs to the sink.

    Args:
        spec: the model and what is to be saved.
        label: goes into the class's name, and so into the operator's.

    Raises:
        ConfigError: the model is nothing that can be called with a batch.
    """
    name = f"{_name(spec.model)}@{label}"
    return type(name, (SinkStage,), {"spec": spec, "__doc__": getattr(spec.model, "__doc__", None)})


def check_model(model: Any) -> Any:
    """Check what the user gave as the model.

    Raises:
        ConfigError: it cannot be called with a batch, or Ray Data drives it itself.
    """
    from ray.data.util.torch_inference import TorchInference

    if not callable(model) or (inspect.isclass(model) and not callable(getattr(model, "__call__", None))):  # noqa: B004
        raise ConfigError(f"the model must be a class whose instances take a batch, or a function: {model!r}")
    if isinstance(model, TorchInference) or (inspect.isclass(model) and issubclass(model, TorchInference)):
        raise ConfigError(
            f"{_name(model)} is a TorchInference, whose batches Ray Data drives itself: give a class with __call__"
        )
    return model


def is_async(model: Any) -> bool:
    """Whether calls of the model, or of its instances, are awaited or iterated with ``async for``."""
    while isinstance(model, functools.partial):
        model = model.func
    call = model if inspect.isroutine(model) else model.__call__
    return inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call)


def _name(model: Any) -> str:
    model = model.func if isinstance(model, functools.partial) else model
    return str(getattr(model, "__name__", type(model).__name__))


def _is_frame(raw: Any) -> bool:
    return isinstance(raw, pd.DataFrame)


def _without(raw: Any, column: str) -> Any:
    if isinstance(raw, pa.Table):
        return raw.drop_columns([column])
    if isinstance(raw, pd.DataFrame):
        return raw.drop(columns=[column])
    return {name: values for name, values in raw.items() if name != column}


def _rows(piece: _Piece, outcomes: Sequence[Outcome]) -> pa.Table:
    """The rows of an output batch that have receipts."""
    receipts = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
    mask = pa.array([isinstance(outcome, Receipt) for outcome in outcomes], pa.bool_())
    return receipt_table(receipts, {name: column.filter(mask) for name, column in piece.kept.items()})
