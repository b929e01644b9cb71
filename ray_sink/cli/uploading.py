"""``ray-sink upload``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ray_sink.cli import output
from ray_sink.cli.options import json_option, run_option, staging_path, store_options

if TYPE_CHECKING:
    from ray_sink.config import UploadOptions
    from ray_sink.records import RunInfo
    from ray_sink.recovery import Uploads


@click.command()
@click.option("--staging", type=staging_path, required=True, help="The run's staging folder.")
@click.option("--dest", help="The run's destination, to be sure; the journal knows it.")
@run_option
@click.option(
    "--takeover-s",
    type=click.FloatRange(1),
    default=60.0,
    show_default=True,
    help="How long an owner must show no life; not less than the run's own Limits.takeover_s.",
)
@click.option(
    "--on-conflict",
    type=click.Choice(["error", "replace", "keep"]),
    default="error",
    show_default=True,
    help="What the run itself was told.",
)
@click.option("--keep-staged", is_flag=True, help="Leave staged files where they are.")
@json_option
@store_options
@click.pass_context
def upload(
    ctx: click.Context,
    staging: Path,
    dest: str | None,
    run_id: str | None,
    takeover_s: float,
    on_conflict: str,
    keep_staged: bool,
    as_json: bool,
    upload: UploadOptions,
) -> None:
    """Finish what a run left whose cluster is gone: upload everything it has staged.

    Takes the run over (a live owner is left alone, a dead one watched for --takeover-s), publishes what was decided,
    aborts uploads in parts that were left, uploads, journals, and frees staged files. May be repeated at any time.

    The run is sealed only if its driver had come to its end. Otherwise run the same script again: it resumes,
    computes only what is missing, and seals. A sealed run takes no new outputs.

    Exits with 1 if a live owner has the run, or if an output could not be uploaded.

    \b
    JSON: {"run_id", "dest", "staging", "ok", "state": "already sealed" | "sealed" | "not sealed",
           "uploaded", "uploaded_bytes", "freed_bytes", "aborted_multiparts", "outputs",
           "failures": {key: reason}, "unfinished": [reason]}
    """  # noqa: D301 - click wants the character
    from ray_sink.catalogue import the_staged_run
    from ray_sink.filesystem import PosixFilesystem
    from ray_sink.manifest import read_seal
    from ray_sink.recovery import Recovery, Uploads, journaled_run
    from ray_sink.stores import open_store

    name = the_staged_run(PosixFilesystem(), staging, run_id)
    info = journaled_run(staging, name, dest)
    options = replace(upload, keep_staged=keep_staged)
    store = open_store(info.dest or str(staging), options)
    try:
        found = read_seal(store, name)
        if found is not None:
            _report(info, "already sealed", Uploads(0, 0, 0, 0, {}), found.outputs, (), as_json=as_json)
            return
        recovery = Recovery(
            staging,
            info,
            store,
            upload=options,
            on_conflict=on_conflict,  # type: ignore[arg-type]  # click has checked it
            takeover_s=takeover_s,
        )
        click.echo(f"taking over run {name}: a dead owner is watched for up to {takeover_s:g} s", err=True)
        with recovery:
            before = recovery.status()
            with output.progress("uploading") as shown:
                shown.update(total=before.staged_bytes)
                done = recovery.upload(lambda so_far: shown.update(completed=so_far.bytes))
            state = "not sealed"
            if recovery.may_be_sealed():
                recovery.seal()
                state = "sealed"
            after = recovery.status()
    finally:
        store.close()
    _report(info, state, done, after.decided, after.unfinished, as_json=as_json, failures=after.failures)
    ctx.exit(1 if after.failures else 0)


def _report(
    info: RunInfo,
    state: str,
    done: Uploads,
    outputs: int,
    unfinished: tuple[str, ...],
    *,
    as_json: bool,
    failures: dict[str, str] | None = None,
) -> None:
    failed = failures or {}
    if as_json:
        document: dict[str, Any] = {
            "run_id": info.run_id,
            "dest": info.dest,
            "staging": info.staging,
            "ok": not failed,
            "state": state,
            "uploaded": done.outputs,
            "uploaded_bytes": done.bytes,
            "freed_bytes": done.freed_bytes,
            "aborted_multiparts": done.aborted,
            "outputs": outputs,
            "failures": failed,
            "unfinished": list(unfinished),
        }
        output.print_json(document)
        return
    shown = output.console()
    where = info.dest or info.staging
    if state == "already sealed":
        shown.print(f"run {info.run_id} is sealed at {where} with {outputs} outputs: nothing is left to do")
        return
    shown.print(f"run {info.run_id}: {done.outputs} outputs uploaded to {where}, {output.size(done.bytes)}")
    if done.aborted:
        shown.print(f"{done.aborted} upload(s) in parts of a dead owner aborted")
    for key, reason in list(failed.items())[: output.SHOWN_PROBLEMS]:
        shown.print(f"  failed: {key}: {reason}", soft_wrap=True)
    if state == "sealed":
        shown.print(f"sealed with {outputs} outputs")
        return
    if failed:
        shown.print(f"not sealed: {len(failed)} output(s) failed. What is staged stays; see to it and upload again")
        return
    why = "; ".join(unfinished) or "its driver never came to its end"
    shown.print(f"not sealed: {why}. Run the same script again: it resumes, and seals", soft_wrap=True)
