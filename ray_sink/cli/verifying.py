"""``ray-sink verify``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ray_sink.cli import output
from ray_sink.cli.options import json_option, run_option, store_options

if TYPE_CHECKING:
    from ray_sink.config import UploadOptions
    from ray_sink.stores.base import Store
    from ray_sink.verification import Found, RunVerdict


@click.command()
@click.argument("dest")
@run_option
@click.option("--quick", is_flag=True, help="Compare names and sizes with one listing; read no object.")
@click.option("--extra", is_flag=True, help="Also name objects below DEST that no sealed run has. They count as a no.")
@json_option
@store_options
@click.pass_context
def verify(
    ctx: click.Context,
    dest: str,
    run_id: str | None,
    quick: bool,
    extra: bool,
    as_json: bool,
    upload: UploadOptions,
) -> None:
    """Check the sealed runs at DEST: the seal, its manifest, and every object against its receipt.

    Every object is read and its CRC64NVME compared, unless --quick. Exits with 1 if anything is missing, differs or
    cannot be read, or if there is no sealed run.

    \b
    JSON: {"dest", "ok", "checked": "checksums" | "sizes",
           "runs": [{"run_id", "ok", "outputs", "files", "bytes",
                     "problems": [{"key", "path", "trouble": "missing" | "differs" | "unreadable", "message"}]}],
           "extra": null | [{"path", "bytes"}]}
    """  # noqa: D301 - click wants the character
    from ray_sink.stores import open_store

    store = open_store(dest, upload)
    try:
        verdicts, extras = _verify(store, run_id, quick, extra, upload.concurrency)
    finally:
        store.close()
    ok = not any(verdict.problems for verdict in verdicts) and not extras
    if as_json:
        output.print_json(
            {
                "dest": dest,
                "ok": ok,
                "checked": "sizes" if quick else "checksums",
                "runs": [{"ok": not verdict.problems, **asdict(verdict)} for verdict in verdicts],
                "extra": extras,
            }
        )
    else:
        _print(verdicts, extras, quick=quick)
    ctx.exit(0 if ok else 1)


def _verify(
    store: Store, run_id: str | None, quick: bool, extra: bool, concurrency: int
) -> tuple[list[RunVerdict], list[Found] | None]:
    from ray_sink.catalogue import sealed_runs
    from ray_sink.errors import RunError
    from ray_sink.manifest import Seal
    from ray_sink.verification import RunVerdict, Verification, listing_of

    everyone = sealed_runs(store) if extra or run_id is None else []
    names = [run_id] if run_id is not None else everyone
    if not names:
        raise RunError(f"{store.url} has no sealed run")
    listing = listing_of(store) if quick or extra else {}
    with output.progress("checking", None) as (bar, task):
        checking = Verification(
            store,
            listing=listing if quick else None,
            concurrency=concurrency,
            on_file=lambda n_bytes: bar.advance(task, n_bytes),
        )
        seals = {name: checking.seal(name) for name in names}
        bar.update(task, total=sum(seal.total_bytes for seal in seals.values() if isinstance(seal, Seal)))
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
