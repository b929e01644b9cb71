"""``ray-sink ls``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ray_sink.cli import output
from ray_sink.cli.options import json_option, open_existing, run_option, staging_path, store_options

if TYPE_CHECKING:
    from ray_sink.config import UploadOptions
    from ray_sink.manifest import Seal
    from ray_sink.records import Receipt
    from ray_sink.stores.base import Store


@click.command()
@click.argument("dest", required=False)
@click.option("--staging", type=staging_path, help="Look at the journals of a staging folder instead.")
@run_option
@click.option("--prefix", default="", help="Outputs of the run whose key begins with this.")
@click.option("--long", "long_", is_flag=True, help="Every file of every output, with its checksum.")
@json_option
@store_options
def ls(
    dest: str | None,
    staging: Path | None,
    run_id: str | None,
    prefix: str,
    long_: bool,
    as_json: bool,
    upload: UploadOptions,
) -> None:
    """List the sealed runs at DEST, or with --run one run's outputs.

    With --staging, list the runs that a staging folder holds, by their journals and without touching them: what is
    decided, uploaded, still to be uploaded, and why a run cannot be sealed yet.

    \b
    JSON: {"dest", "runs": [{"run_id", "outputs", "files", "bytes", "verification", "epoch", "save_format",
           "dict_mode", "fingerprint", "rows", "conflicts"}]}
      --run:     {"dest", "run_id", "outputs": [{"key", "bytes", "state", "verification", "attempt", "notes",
                  "files": [{"path", "uri", "bytes", "checksum", "member", "offset", "length"}]}]}
      --staging: {"staging", "runs": [{"run_id", "dest", "save_format", "epoch", "decided", "uploaded", "pending",
                  "pending_bytes", "kept", "multiparts", "closing", "unfinished", "owner", "released"}]},
                  and with --run also "outputs" as above
    """  # noqa: D301 - click wants the character
    if (dest is None) == (staging is None):
        raise click.UsageError("name either DEST or --staging PATH")
    if staging is not None:
        _list_staging(staging, run_id, prefix, long_=long_, as_json=as_json)
        return
    from ray_sink.catalogue import find_sealed, manifest_receipts, seal_of, sealed_runs

    assert dest is not None
    store = open_existing(dest, upload)
    try:
        if run_id is None and not prefix:
            _print_runs(dest, [seal_of(store, name) for name in sealed_runs(store)], as_json=as_json)
            return
        seal = seal_of(store, run_id if run_id is not None else only_run(store))
        everything = (receipt for file in seal.manifest for receipt in manifest_receipts(store, file))
        receipts = find_sealed(store, seal, prefix) if prefix else everything
        head: dict[str, object] = {"dest": dest, "run_id": seal.run.run_id}
        _print_outputs(head, receipts, long_=long_, as_json=as_json)
    finally:
        store.close()


def only_run(store: Store) -> str:
    """The only sealed run at a destination."""
    from ray_sink.catalogue import sealed_runs
    from ray_sink.errors import RunError

    found = sealed_runs(store)
    if len(found) != 1:
        raise RunError(f"{store.url} has {len(found)} sealed runs{': name one with --run' if found else ''}")
    return found[0]


def _print_runs(dest: str, seals: list[Seal], *, as_json: bool) -> None:
    if as_json:
        output.print_json({"dest": dest, "runs": [_run_row(seal) for seal in seals]})
        return
    if not seals:
        click.echo(f"no sealed run at {dest}")
        return
    table = output.table(
        "run", "outputs", "files", "size", "proof", "format", "epoch", right=("outputs", "files", "size", "epoch")
    )
    for seal in seals:
        table.add_row(
            seal.run.run_id,
            str(seal.outputs),
            str(seal.files),
            output.size(seal.total_bytes),
            seal.verification or "-",
            f"{seal.run.save_format} {seal.run.dict_mode}",
            str(seal.epoch),
        )
    output.console().print(table)


def _run_row(seal: Seal) -> dict[str, Any]:
    return {
        "run_id": seal.run.run_id,
        "outputs": seal.outputs,
        "files": seal.files,
        "bytes": seal.total_bytes,
        "verification": seal.verification,
        "epoch": seal.epoch,
        "save_format": seal.run.save_format,
        "dict_mode": seal.run.dict_mode,
        "fingerprint": seal.run.fingerprint,
        "rows": asdict(seal.rows),
        "conflicts": asdict(seal.conflicts),
    }


def _print_outputs(head: dict[str, object], receipts: Iterator[Receipt], *, long_: bool, as_json: bool) -> None:
    from ray_sink.manifest import row_of

    if as_json:
        output.print_json_rows(head, "outputs", map(row_of, receipts))
        return
    output.print_lines(line for receipt in receipts for line in _lines(receipt, long_=long_))


def _lines(receipt: Receipt, *, long_: bool) -> Iterator[str]:
    proof = receipt.verification or "-"
    if not long_:
        yield f"{output.size(receipt.bytes):>10}  {receipt.state:<8}  {proof:<12}  {receipt.key}"
        return
    for file in receipt.files:
        where = file.uri or file.path
        yield f"{file.bytes:>12}  {receipt.state:<8}  {proof:<12}  {file.checksum or '-':<26}  {where}"


def _list_staging(root: Path, run_id: str | None, prefix: str, *, long_: bool, as_json: bool) -> None:
    from ray_sink.catalogue import (
        find_staged,
        found_receipts,
        read_book,
        staged_receipts,
        staged_run,
        staged_run_ids,
        the_staged_run,
    )
    from ray_sink.config import UploadOptions
    from ray_sink.filesystem import PosixFilesystem
    from ray_sink.standing import tally_of
    from ray_sink.stores import open_store

    fs, store = PosixFilesystem(), open_store(str(root), UploadOptions())
    one = the_staged_run(fs, root, run_id) if run_id is not None or prefix else None
    names = [one] if one is not None else staged_run_ids(fs, root)
    runs = [staged_run(tally_of(root, name), name, store) for name in names]
    head: dict[str, object] = {"staging": str(root), "runs": [asdict(run) for run in runs]}

    def receipts(name: str) -> Iterator[Receipt]:
        if prefix:
            return iter(found_receipts(find_staged(fs, root, name, prefix)))
        return staged_receipts(read_book(fs, root, name))

    if one is not None and as_json:
        _print_outputs(head, receipts(one), long_=long_, as_json=True)
        return
    if as_json:
        output.print_json(head)
        return
    if not runs:
        click.echo(f"no run in {root}")
        return
    shown = output.console()
    for run in runs:
        stands = "its driver had come to its end" if run.closing else "nothing is known to be unfinished"
        shown.print(
            f"run {run.run_id} to {run.dest or 'its staging folder'}: {run.decided} decided, {run.uploaded} uploaded,"
            f" {run.pending} to upload ({output.size(run.pending_bytes)}); epoch {run.epoch},"
            f" owner {run.owner or 'unknown'}{', who has left' if run.released else ''};"
            f" {'; '.join(run.unfinished) or stands}",
            soft_wrap=True,
        )
    if one is not None:
        _print_outputs({}, receipts(one), long_=long_, as_json=False)
