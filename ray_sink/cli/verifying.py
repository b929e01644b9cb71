"""``ray-sink verify``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ray_sink.cli import output
from ray_sink.cli.options import json_option, open_existing, run_option, store_options

if TYPE_CHECKING:
    from ray_sink.config import UploadOptions
    from ray_sink.resuming import ResumeFile
    from ray_sink.stores.base import Store
    from ray_sink.verification import Checks, Found, RunVerdict


@click.command()
@click.argument("dest")
@run_option
@click.option("--quick", is_flag=True, help="Compare names and sizes with one listing; read no object.")
@click.option("--extra", is_flag=True, help="Also name objects below DEST that no sealed run has. They count as a no.")
@click.option(
    "--resume",
    "resume_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Note in FILE what is checked, and go on from there after a cut. It is removed at the end.",
)
@click.option(
    "--address",
    envvar="RAY_ADDRESS",
    show_envvar=True,
    help="A Ray cluster, 'auto' for this machine's: all its nodes read.",
)
@json_option
@store_options
@click.pass_context
def verify(
    ctx: click.Context,
    dest: str,
    run_id: str | None,
    quick: bool,
    extra: bool,
    resume_file: Path | None,
    address: str | None,
    as_json: bool,
    upload: UploadOptions,
) -> None:
    """Check the sealed runs at DEST: the seal, its manifest, and every object against its receipt.

    Every object is read and its CRC64NVME compared, unless --quick. Nothing is written at DEST. Exits with 1 if
    anything is missing, differs or cannot be read, or if there is no sealed run.

    With --address, tasks of one CPU each read, --concurrency objects at a time each. Credentials are looked up on
    their nodes, and a folder must be mounted there.

    With --resume FILE, what a verify that was cut off has checked is not looked at again; a change since then is for
    the next one to find. Once all is checked FILE is removed, and the same command begins anew; where objects could not
    be read it stays, and the same command tries only those again.

    \b
    JSON: {"dest", "ok", "checked": "checksums" | "sizes", "resumed": outputs that FILE knew,
           "runs": [{"run_id", "ok", "outputs", "files", "bytes",
                     "problems": [{"key", "path", "trouble": "missing" | "differs" | "unreadable", "message"}]}],
           "extra": null | [{"path", "bytes"}]}
    """  # noqa: D301 - click wants the character
    if quick and resume_file is not None:
        raise click.UsageError("--quick reads no object: there is nothing to --resume")
    from ray_sink.resuming import ResumeFile

    with ExitStack() as opened:
        where = dest if "://" in dest else os.path.abspath(dest)  # processes elsewhere have other working folders
        store = opened.enter_context(closing(open_existing(where, upload)))
        known = opened.enter_context(closing(ResumeFile(resume_file, where))) if resume_file is not None else None
        resumed = known.outputs if known is not None else 0
        if resumed:
            click.echo(f"{resumed} outputs are known from {resume_file}; they are not read again", err=True)
        reading = _Reading(where, store, upload, address if not quick else None)
        verdicts, extras = _verify(reading, run_id, known, quick=quick, extra=extra)
        ok = not any(verdict.problems for verdict in verdicts) and not extras
        if as_json:
            output.print_json(
                {
                    "dest": dest,
                    "ok": ok,
                    "checked": "sizes" if quick else "checksums",
                    "resumed": resumed,
                    "runs": [{"ok": not verdict.problems, **asdict(verdict)} for verdict in verdicts],
                    "extra": extras,
                }
            )
        else:
            _print(verdicts, extras, quick=quick)
        if known is not None:
            known.finish()
    ctx.exit(0 if ok else 1)


class _Reading:
    """How objects are read: by whom, and shown how."""

    def __init__(self, dest: str, store: Store, upload: UploadOptions, address: str | None) -> None:
        self.store = store
        self._dest, self._upload, self._address = dest, upload, address

    @contextmanager
    def checks(self, on_bytes: Callable[[int], None]) -> Iterator[Checks]:
        """What compares objects; tells how many bytes it has been through."""
        if not self._address:
            from ray_sink.checking import StoreChecks

            yield StoreChecks(self.store, concurrency=self._upload.concurrency, on_file=on_bytes)
            return
        from ray_sink.runtime.cluster import joined
        from ray_sink.runtime.verifying import ClusterChecks

        with joined(self._address):
            yield ClusterChecks(self._dest, self._upload, on_piece=on_bytes)


def _verify(
    reading: _Reading, run_id: str | None, known: ResumeFile | None, *, quick: bool, extra: bool
) -> tuple[list[RunVerdict], list[Found] | None]:
    from ray_sink.catalogue import sealed_runs
    from ray_sink.checking import ListingChecks
    from ray_sink.errors import RunError
    from ray_sink.manifest import Seal
    from ray_sink.verification import RunVerdict, Verification, listing_of

    store = reading.store
    everyone = sealed_runs(store) if extra or run_id is None else []
    names = [run_id] if run_id is not None else everyone
    if not names:
        raise RunError(f"{store.url} has no sealed run")
    listing = listing_of(store) if quick or extra else {}
    with ExitStack() as opened:
        shown = opened.enter_context(output.progress("checking"))

        def advance(n_bytes: int) -> None:
            shown.update(advance=n_bytes)

        checks: Checks = ListingChecks(store.url, listing)
        if not quick:
            checks = opened.enter_context(reading.checks(advance))
        checking = Verification(store, checks, known=known, on_known=lambda verdict: advance(verdict.bytes))
        seals = {name: checking.seal(name) for name in names}
        shown.update(total=sum(seal.total_bytes for seal in seals.values() if isinstance(seal, Seal)))
        verdicts = [
            checking.check(seal) if isinstance(seal, Seal) else RunVerdict(name, 0, 0, 0, (seal,))
            for name, seal in seals.items()
        ]
        if not extra:
            return verdicts, None
        seals |= {name: checking.seal(name) for name in everyone if name not in seals}
        damaged = [problem.path for verdict in verdicts for problem in verdict.problems if problem.key is None]
        damaged += [seal.path for seal in seals.values() if not isinstance(seal, Seal)]
        if damaged:
            # without every manifest nobody can tell what belongs to one
            return verdicts, None
        return verdicts, checking.extra([seal for seal in seals.values() if isinstance(seal, Seal)], listing)


def _print(verdicts: list[RunVerdict], extras: list[Found] | None, *, quick: bool) -> None:
    shown: Any = output.console()
    how = "sizes compared" if quick else "checksums compared"
    for verdict in verdicts:
        word = f"{len(verdict.problems)} problem(s)" if verdict.problems else "ok"
        shown.print(
            f"run {verdict.run_id}: {word}; {verdict.outputs} outputs, {verdict.files} files,"
            f" {output.size(verdict.bytes)}, {how}"
        )
        for problem in verdict.problems[: output.SHOWN_PROBLEMS]:
            shown.print(f"  {problem.trouble}: {problem.key or problem.path}: {problem.message}", soft_wrap=True)
        if (more := len(verdict.problems) - output.SHOWN_PROBLEMS) > 0:
            shown.print(f"  and {more} more: --json lists them all")
    if extras is not None:
        shown.print(f"{len(extras)} object(s) that no sealed run has" if extras else "nothing else is there")
        for found in extras[: output.SHOWN_PROBLEMS]:
            shown.print(f"  extra: {found.path} ({output.size(found.bytes)})", soft_wrap=True)
        if (more := len(extras) - output.SHOWN_PROBLEMS) > 0:
            shown.print(f"  and {more} more: --json lists them all")
