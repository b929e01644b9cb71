"""``ray-sink show``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ray_sink.cli import output
from ray_sink.cli.listing import only_run
from ray_sink.cli.options import json_option, open_existing, run_option, staging_path, store_options

if TYPE_CHECKING:
    from ray_sink.config import UploadOptions
    from ray_sink.records import Receipt, RunInfo
    from ray_sink.stores.base import Store


@click.command()
@click.argument("key")
@click.argument("dest", required=False)
@click.option("--staging", type=staging_path, help="Look in a staging folder instead, by its journals.")
@run_option
@click.option("--limit", type=click.IntRange(1), default=10, show_default=True, help="Most outputs to show.")
@click.option("--no-values", is_flag=True, help="Only what the receipts say: no file is read.")
@json_option
@store_options
@click.pass_context
def show(
    ctx: click.Context,
    key: str,
    dest: str | None,
    staging: Path | None,
    run_id: str | None,
    limit: int,
    no_values: bool,
    as_json: bool,
    upload: UploadOptions,
) -> None:
    """Show the output KEY of a sealed run at DEST, or those whose key begins with KEY: files, shapes, dtypes, values.

    With --staging, of a run that is still under way, or ended early. Files are read back and checked against their
    checksums. No pickle is executed.

    Exits with 1 if there is no such output, or if a file is gone or was changed.

    \b
    JSON: {"run_id", "more": bool, "outputs": [{"key", "attempt", "state", "verification", "bytes", "notes",
           "files": [{"path", "uri", "bytes", "checksum", "member", "offset", "length"}],
           "tensors": [{"name", "dtype", "shape", "min", "max", "mean", "nans"}] or null, "problem"}]}
           (numbers that JSON has not are "inf" and "-inf")
    """  # noqa: D301 - click wants the character
    if (dest is None) == (staging is None):
        raise click.UsageError("name either DEST or --staging PATH")
    with ExitStack() as opened:
        source: _AtDest | _InStaging
        if staging is not None:
            source = _InStaging(staging, run_id, key, upload, opened)
        else:
            source = _AtDest(str(dest), run_id, key, upload, opened)
        found = list(islice(_best(key, source.found), limit + 1))
        more, found = len(found) > limit, found[:limit]
        rows = [_row(source, receipt, no_values=no_values) for receipt in found]
    if as_json:
        output.print_json({"run_id": source.info.run_id, "more": more, "outputs": rows})
    else:
        for row in rows:
            _print(row)
        if more:
            click.echo(f"… and more: --limit shows up to so many (now {limit})")
        if not rows:
            click.echo(f"run {source.info.run_id} has no output whose key begins with {key!r}")
    ctx.exit(0 if rows and all(row["problem"] is None for row in rows) else 1)


def _best(key: str, found: Iterable[Receipt]) -> Iterator[Receipt]:
    """The output of that very key, if there is one, else all that begin with it: in order, it would be the first."""
    for receipt in found:
        yield receipt
        if receipt.key == key:
            return


class _AtDest:
    def __init__(self, dest: str, run_id: str | None, key: str, upload: UploadOptions, opened: ExitStack) -> None:
        from ray_sink.catalogue import find_sealed, seal_of

        self._store = open_existing(dest, upload)
        opened.callback(self._store.close)
        seal = seal_of(self._store, run_id if run_id is not None else only_run(self._store))
        self.info: RunInfo = seal.run
        self.found: Iterable[Receipt] = find_sealed(self._store, seal, key)

    def store_of(self, receipt: Receipt) -> Store:
        return self._store


class _InStaging:
    def __init__(self, root: Path, run_id: str | None, key: str, upload: UploadOptions, opened: ExitStack) -> None:
        from ray_sink.catalogue import find_staged, found_receipts, the_staged_run
        from ray_sink.filesystem import PosixFilesystem

        fs = PosixFilesystem()
        tally = find_staged(fs, root, the_staged_run(fs, root, run_id), key)
        assert tally.info is not None
        self.info: RunInfo = tally.info
        self.found: Iterable[Receipt] = found_receipts(tally)
        self._root, self._upload, self._opened = root, upload, opened
        self._stores: dict[str, Store] = {}

    def store_of(self, receipt: Receipt) -> Store:
        from ray_sink.config import UploadOptions
        from ray_sink.records import State
        from ray_sink.stores import open_store

        staged = receipt.state is State.STAGED or self.info.dest is None
        where = str(self._root) if staged else str(self.info.dest)
        if where not in self._stores:
            self._stores[where] = open_store(where, UploadOptions() if staged else self._upload)
            self._opened.callback(self._stores[where].close)
        return self._stores[where]


def _row(source: _AtDest | _InStaging, receipt: Receipt, *, no_values: bool) -> dict[str, Any]:
    row = {**asdict(receipt), "bytes": receipt.bytes, "tensors": None, "problem": None}
    if no_values:
        return row
    from ray_sink.config import DictMode
    from ray_sink.describing import summaries
    from ray_sink.errors import ConfigError, StoreError
    from ray_sink.reading import load_receipt

    split = DictMode(source.info.dict_mode) is DictMode.SPLIT
    try:
        value = load_receipt(receipt, source.store_of(receipt), None, split=split)
    except (ConfigError, StoreError) as error:
        return {**row, "problem": str(error)}
    return {**row, "tensors": [_plain(asdict(summary)) for summary in summaries(value)]}


def _plain(summary: dict[str, Any]) -> dict[str, Any]:
    """The same, with text for the numbers that JSON has not."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in summary.items()
    }


def _print(row: dict[str, Any]) -> None:
    proof = f", {row['verification']}" if row["verification"] else ""
    click.echo(f"{row['key']}: {row['state']}{proof}, {output.size(row['bytes'])}, attempt {row['attempt'] or '-'}")
    for file in row["files"]:
        click.echo(f"  {file['uri'] or file['path']}  {file['bytes']} bytes  {file['checksum'] or '-'}")
    for note in row["notes"]:
        click.echo(f"  note: {note}")
    for tensor in row["tensors"] or ():
        shape = " x ".join(map(str, tensor["shape"])) or "scalar"
        name = f"{tensor['name']}: " if tensor["name"] is not None else ""
        shown = {what: tensor[what] for what in ("min", "max", "mean") if tensor[what] is not None}
        numbers = "".join(f"  {what} {float(number):.6g}" for what, number in shown.items())
        nans = f"  NaN {tensor['nans']}" if tensor["nans"] else "  no NaN"
        click.echo(f"  {name}{tensor['dtype']} {shape}{numbers}{nans}")
    if row["problem"] is not None:
        click.echo(f"  problem: {row['problem']}")
