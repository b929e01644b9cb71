"""``ray-sink status``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ray_sink.cli import output
from ray_sink.cli.options import json_option, open_existing, run_option, staging_path, store_options

if TYPE_CHECKING:
    from ray_sink.config import UploadOptions
    from ray_sink.manifest import Seal
    from ray_sink.standing import OwnerSeen, Standing


@click.command()
@click.argument("dest", required=False)
@click.option("--staging", type=staging_path, help="Look at the journals of a staging folder: that tells most.")
@run_option
@click.option(
    "--watch-s",
    type=click.FloatRange(0),
    default=0.4,
    show_default=True,
    help="How long an owner's counter is watched; an owner moves it on eight times in Limits.takeover_s.",
)
@json_option
@store_options
@click.pass_context
def status(
    ctx: click.Context,
    dest: str | None,
    staging: Path | None,
    run_id: str | None,
    watch_s: float,
    as_json: bool,
    upload: UploadOptions,
) -> None:
    """Say how the runs in a staging folder, or at DEST, are doing. Writes nothing, and needs no cluster.

    With --staging the journals are read, however far they are; while a run's owner lives, it adds what only the
    cluster knows: rates, what producers waited for, each writer. DEST alone knows seals, and what an owner says there;
    and all of it where journals are there: in a folder that is staging and destination, or where staging is node-local.

    An owner that has not moved its counter while it was watched is judged by the date of its last sign of life.
    --watch-s 60 waits until it moves, or has not for so long.

    Exits with 1 if outputs failed, or if a run is not complete and nobody works on it.

    \b
    JSON: {"staging" or "dest", "ok", "runs": [{"run_id", "dest", "staging",
           "state": "sealed" | "partial" | "running" | "committed" | "stopped", "outputs", "bytes",
           "staged", "staged_bytes", "uploaded", "uploaded_bytes", "kept", "failures": {key: reason},
           "unfinished": [reason], "conflicts", "rows",
           "owner": {"host", "pid", "epoch", "life": "alive" | "recent" | "silent" | "left", "silent_s"} or null,
           "live": {"accepted", "staged", "uploaded", "bytes", "outputs_per_s", "staged_bytes_per_s",
                    "uploaded_bytes_per_s", "waited_s": {reason: s}, "failed", "failures",
                    "writers": [{"name", "outputs", "bytes", "batches"}]} or null}]}
    """  # noqa: D301 - click wants the character
    if (dest is None) == (staging is None):
        raise click.UsageError("name either DEST or --staging PATH")
    if staging is not None:
        runs = _staged(staging, run_id, watch_s)
    else:
        assert dest is not None
        runs = _at(dest, run_id, watch_s, upload)
    ok = bool(runs) and all(run.is_well for run in runs)
    if as_json:
        where = {"staging": str(staging)} if staging is not None else {"dest": dest}
        output.print_json({**where, "ok": ok, "runs": [asdict(run) for run in runs]})
    else:
        if not runs:
            click.echo(f"no run in {staging or dest}")
        for run in runs:
            _print(run)
    ctx.exit(0 if ok else 1)


def _staged(root: Path, run_id: str | None, watch_s: float) -> list[Standing]:
    from ray_sink.catalogue import staged_run_ids, the_staged_run
    from ray_sink.filesystem import PosixFilesystem
    from ray_sink.standing import Onlooker, staged_standing, tally_of
    from ray_sink.stores.folder import FolderStore

    fs, store = PosixFilesystem(), FolderStore(str(root), root)
    names = staged_run_ids(fs, root) if run_id is None else [the_staged_run(fs, root, run_id)]
    onlooker = Onlooker(store, clock=time.monotonic, wall=time.time, folder=root)  # noqa: TID251 - shown only
    # read while the owner's counter may move
    tallies = {name: tally_of(root, name) for name in names}
    seen = onlooker.sighting
    mine = seen.owner.run_id if seen is not None and seen.owner.run_id in tallies else None
    owner = onlooker.seen(watch_s, time.sleep) if mine is not None else None
    return [
        staged_standing(
            root,
            name,
            tally,
            _seal_nearby(tally.info.dest or str(root), name) if tally.info is not None else None,
            owner if name == mine else None,
            onlooker.note if name == mine else None,
        )
        for name, tally in tallies.items()
    ]


def _seal_nearby(dest: str, run_id: str) -> Seal | None:
    """The seal, if the destination is a folder: others may be far away, or need credentials."""
    from ray_sink.manifest import read_partial_seal, read_seal
    from ray_sink.stores.folder import FolderStore

    if "://" in dest or not Path(dest).is_dir():
        return None
    store = FolderStore(dest, Path(dest))
    return read_seal(store, run_id) or read_partial_seal(store, run_id)


def _at(dest: str, run_id: str | None, watch_s: float, upload: UploadOptions) -> list[Standing]:
    from ray_sink.catalogue import sealed_runs
    from ray_sink.manifest import read_partial_seal, read_seal
    from ray_sink.standing import Onlooker, claimed_standing, sealed_standing, staged_standing, tally_at

    store = open_existing(dest, upload)
    try:
        folder = Path(dest) if "://" not in dest else None
        # a run may have no other destination than its staging folder
        staged = {run.run_id: run for run in _staged(folder, None, watch_s)} if folder is not None else {}
        onlooker = Onlooker(store, clock=time.monotonic, wall=time.time, folder=folder)  # noqa: TID251 - shown only
        seen = onlooker.sighting
        owned = [seen.owner.run_id] if seen is not None else []
        names = dict.fromkeys([*sealed_runs(store), *staged, *owned])
        found: list[Standing] = []
        for name in names if run_id is None else [run_id]:
            if name in staged:
                found.append(staged[name])
                continue
            seal = read_seal(store, name) or read_partial_seal(store, name)
            mine = seen is not None and seen.owner.run_id == name
            owner = onlooker.seen(watch_s, time.sleep) if mine else None
            if seal is not None:
                found.append(sealed_standing(seal, owner))
            elif (tally := tally_at(store, name)) is not None:
                found.append(staged_standing(None, name, tally, None, owner, onlooker.note))
            elif owner is not None:
                found.append(claimed_standing(name, dest, owner, onlooker.note))
        return found
    finally:
        store.close()


def _print(run: Standing) -> None:
    """Some lines a run, what is wrong last: that is where people look."""
    what = run.state if run.is_well else f"{run.state}, NOT WELL"
    say = click.echo
    say(f"run {run.run_id} to {run.dest or 'its staging folder'}: {what}")
    told = run.staging is not None or run.live is not None or run.outputs > 0
    if told:
        say(f"  outputs    {run.outputs} ({output.size(run.bytes)}) decided")
    if told and run.dest is not None:
        to_go = f"{run.staged} ({output.size(run.staged_bytes)}) to go"
        say(f"  uploaded   {run.uploaded} ({output.size(run.uploaded_bytes)}), {to_go}")
    if run.live is not None:
        _print_live(run.live)
    counted = {name: number for name, number in asdict(run.conflicts).items() if number}
    if counted:
        say(f"  conflicts  {', '.join(f'{name} {number}' for name, number in counted.items())}")
    if run.owner is not None:
        say(f"  owner      {_owner(run.owner)}")
    for key, reason in list(run.failures.items())[: output.SHOWN_PROBLEMS]:
        say(f"  failed     {key}: {reason}")
    if len(run.failures) > output.SHOWN_PROBLEMS:
        say(f"  failed     … {len(run.failures)} in all: --json names every one")
    if not run.is_well or run.state == "running":
        for reason in run.unfinished:
            say(f"  unfinished {reason}")
    if run.state == "stopped":
        say("  to do      run the same script again: it resumes. Or, if it never will: ray-sink upload")


def _print_live(live: Mapping[str, Any]) -> None:
    rate = f"{live['outputs_per_s']:.1f} outputs/s, {live['staged_bytes_per_s'] / 1e9:.3f} GB/s staged"
    click.echo(
        f"  now        {live['accepted']} accepted; {rate}, {live['uploaded_bytes_per_s'] / 1e9:.3f} GB/s uploaded"
    )
    waited = ", ".join(f"{reason} {seconds:.1f} s" for reason, seconds in live["waited_s"].items())
    click.echo(f"  producers  waited for {waited}")
    for writer in live["writers"]:
        click.echo(f"  {writer['name']:<10} {writer['outputs']} outputs, {output.size(writer['bytes'])}")


def _owner(owner: OwnerSeen) -> str:
    what = {
        "alive": "alive: its counter moves",
        "recent": "alive by the date of its last sign",
        "silent": "no sign of life",
        "left": "has left in good order",
    }[owner.life]
    since = f" for {owner.silent_s:.0f} s" if owner.life == "silent" and owner.silent_s is not None else ""
    ago = f", {owner.silent_s:.0f} s ago" if owner.life == "recent" and owner.silent_s is not None else ""
    return f"process {owner.pid} on {owner.host}, epoch {owner.epoch}: {what}{since}{ago}"
