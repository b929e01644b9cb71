"""``ray-sink doctor``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ray_sink.cli import output
from ray_sink.cli.options import json_option, staging_path, store_options

if TYPE_CHECKING:
    from ray_sink.config import UploadOptions
    from ray_sink.doctor.findings import Finding, PromiseVerdict

_COLOURS = {
    "ok": "green",
    "holds": "green",
    "weak": "yellow",
    "weaker": "yellow",
    "failed": "bold red",
    "cannot hold": "bold red",
}


@click.command()
@click.option("--staging", type=staging_path, help="A run's staging folder.")
@click.option("--dest", help="A run's destination.")
@click.option(
    "--address",
    envvar="RAY_ADDRESS",
    show_envvar=True,
    help="A Ray cluster, 'auto' for this machine's: all its nodes watch the staging folder.",
)
@click.option(
    "--watch-from",
    type=staging_path,
    multiple=True,
    metavar="PATH",
    help="The staging folder through another mount on this machine; may be repeated.",
)
@click.option("--temp-dir", type=staging_path, help="WriterOptions.temp_dir.  [default: the system's]")
@json_option
@store_options
@click.pass_context
def doctor(
    ctx: click.Context,
    staging: Path | None,
    dest: str | None,
    address: str | None,
    watch_from: tuple[Path, ...],
    temp_dir: Path | None,
    as_json: bool,
    upload: UploadOptions,
) -> None:
    """Try out what this machine, a staging folder and a destination can promise.

    Run it where the job will run, with the job's user and environment. What it writes lies below _ray_sink/ and is
    removed again. A second process reads what it publishes; with --address one on every node of that cluster does,
    too. Exits with 1 if a promise cannot hold.

    \b
    JSON: {"ok", "staging", "dest", "versions": {package: version or null},
           "promises": [{"promise": "P1"…"P7", "title", "verdict": "holds" | "weaker" | "cannot hold" | "not checked",
                         "because": [message]}],
           "findings": [{"area", "name", "status": "ok" | "note" | "weak" | "failed", "message", "advice",
                         "promises"}]}
    """  # noqa: D301 - click wants the character
    if staging is None and dest is None:
        raise click.UsageError("name --staging PATH, --dest URL or both")
    if watch_from and staging is None:
        raise click.UsageError("--watch-from is another way to the folder that --staging names")
    from ray_sink.doctor import installation, temp
    from ray_sink.doctor.findings import Verdict, verdicts
    from ray_sink.places import checked_dest

    if staging is not None:
        checked_dest(dest, staging)  # what a Sink would refuse is refused here
    findings: list[Finding] = []
    if dest is not None:
        from ray_sink.doctor import destination

        findings += destination.examine(dest, upload)
    if staging is not None:
        findings = _staging(staging, address, watch_from) + findings
    findings += temp.examine(temp_dir, staging)
    versions = installation.versions()
    findings += installation.examine(versions)
    promises = verdicts(findings)
    ok = not any(verdict.verdict is Verdict.CANNOT_HOLD for verdict in promises)
    if as_json:
        output.print_json(
            {
                "ok": ok,
                "staging": str(staging) if staging is not None else None,
                "dest": dest,
                "versions": versions,
                "promises": [asdict(verdict) for verdict in promises],
                "findings": [asdict(finding) for finding in findings],
            }
        )
    else:
        _print(findings, promises, versions)
    ctx.exit(0 if ok else 1)


def _staging(root: Path, address: str | None, watch_from: tuple[Path, ...]) -> list[Finding]:
    from ray_sink.doctor.observers import SecondProcess
    from ray_sink.doctor.staging import examine

    others = [SecondProcess(path, f"a process that looks through {path}") for path in watch_from]
    if address is None or not root.is_dir():
        return examine(root, others)
    from ray_sink.runtime.observing import on_every_node

    with on_every_node(address, root) as nodes:
        return examine(root, [*others, *nodes])


def _print(findings: list[Finding], promises: list[PromiseVerdict], versions: dict[str, str | None]) -> None:
    from rich.text import Text

    shown = output.console()
    shown.print(", ".join(f"{name} {version}" for name, version in versions.items() if version is not None))
    looks = output.table("where", "what", "", "seen")
    for finding in findings:
        seen = Text(finding.message)
        if finding.advice:
            seen.append(f"\n→ {finding.advice}", style="dim")
        status = Text(finding.status, style=_COLOURS.get(finding.status, ""))
        looks.add_row(finding.area, finding.name, status, seen)
    shown.print(looks)
    table = output.table("promise", "", "verdict", "because")
    for verdict in promises:
        word = Text(verdict.verdict, style=_COLOURS.get(verdict.verdict, "dim"))
        table.add_row(verdict.promise, verdict.title, word, Text("\n".join(verdict.because)))
    shown.print(table)
