"""``ray-sink sweep``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ray_sink.cli import output
from ray_sink.cli.options import json_option, run_option, staging_path, store_options

if TYPE_CHECKING:
    from ray_sink.config import UploadOptions
    from ray_sink.sweeping import Leavings


@click.command()
@click.option("--staging", type=staging_path, required=True, help="The staging folder.")
@run_option
@click.option(
    "--takeover-s",
    type=click.FloatRange(1),
    default=60.0,
    show_default=True,
    help="How long an owner must show no life; not less than the run's own Limits.takeover_s.",
)
@click.option("--dry-run", is_flag=True, help="Only say what there is. A live run's own temps are among it.")
@json_option
@store_options
@click.pass_context
def sweep(
    ctx: click.Context,
    staging: Path,
    run_id: str | None,
    takeover_s: float,
    dry_run: bool,
    as_json: bool,
    upload: UploadOptions,
) -> None:
    """Remove what dead runs left in a staging folder: temps, fenced folders, probes, and uploads in parts.

    Each run is taken over first, as `upload` does: a live owner's is left alone. What was decided and not published is
    published. Outputs are never removed, staged ones neither, nor journals; the same script still resumes.

    Exits with 1 if a live owner has the folder.

    \b
    JSON: {"staging", "dry_run", "runs": [{"run_id", "swept": bool, "temps": [path], "unpublished": [path],
           "folders": [path], "probes": [path], "multiparts": [{"path", "upload_id"}], "bytes"}]}
    """  # noqa: D301 - click wants the character
    from ray_sink.catalogue import staged_run_ids, the_staged_run
    from ray_sink.filesystem import PosixFilesystem
    from ray_sink.recovery import journaled_run
    from ray_sink.stores import open_store
    from ray_sink.sweeping import leavings
    from ray_sink.sweeping import sweep as sweep_run

    fs = PosixFilesystem()
    names = staged_run_ids(fs, staging) if run_id is None else [the_staged_run(fs, staging, run_id)]
    found = [leavings(staging, name) for name in names]
    for left in found if not dry_run else ():
        if not left:
            continue
        info = journaled_run(staging, left.run_id, None)
        store = open_store(info.dest or str(staging), upload)
        try:
            click.echo(f"taking over run {left.run_id}: a dead owner is watched for up to {takeover_s:g} s", err=True)
            sweep_run(staging, info, store, takeover_s=takeover_s)
        finally:
            store.close()
    if as_json:
        runs = [{**asdict(left), "swept": bool(left) and not dry_run} for left in found]
        output.print_json({"staging": str(staging), "dry_run": dry_run, "runs": runs})
        return
    for left in found:
        _print(left, dry_run=dry_run)
    if not found:
        click.echo(f"no run in {staging}")


def _print(left: Leavings, *, dry_run: bool) -> None:
    if not left:
        click.echo(f"run {left.run_id}: nothing to remove")
        return
    parts = {
        "temp(s)": len(left.temps),
        "folder(s) of temps": len(left.folders),
        "probe(s)": len(left.probes),
        "upload(s) in parts": len(left.multiparts),
    }
    what = ", ".join(f"{number} {name}" for name, number in parts.items() if number)
    verb = "would remove" if dry_run else "removed"
    if what:
        click.echo(f"run {left.run_id}: {verb} {what}; {output.size(left.bytes)}")
    if left.unpublished:
        verb = "would publish" if dry_run else "published"
        click.echo(f"run {left.run_id}: {verb} {len(left.unpublished)} file(s) of decided outputs")
    if dry_run:
        for name in [*left.temps, *left.probes, *(upload.path for upload in left.multiparts)][: output.SHOWN_PROBLEMS]:
            click.echo(f"  {name}")
