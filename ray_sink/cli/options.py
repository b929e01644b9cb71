"""Options that several commands have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ray_sink.config import UploadOptions
    from ray_sink.stores.base import Store

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")

run_option = click.option("--run", "run_id", metavar="ID", help="Which run, if there are several.")

staging_path = click.Path(path_type=Path, file_okay=False, resolve_path=True)


def store_options(command: F) -> F:
    """Add the options that say how a destination is reached; the command gets them as `upload`, an UploadOptions."""

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        endpoint_url: str | None,
        region: str | None,
        ca_bundle: str | None,
        profile: str | None,
        storage_option: tuple[str, ...],
        credentials: str | None,
        engine: str,
        concurrency: int,
        **kwargs: Any,
    ) -> Any:
        named = {"endpoint_url": endpoint_url, "region": region, "ca_bundle": ca_bundle, "profile": profile}
        options: dict[str, object] = {name: value for name, value in named.items() if value is not None}
        for text in storage_option:
            name, found, value = text.partition("=")
            if not found or not name:
                # the text itself may be a secret in the wrong place
                raise click.UsageError("--storage-option must look like NAME=VALUE")
            options[name] = value
        return command(*args, upload=_upload_options(options, credentials, engine, concurrency), **kwargs)

    decorators = [
        click.option("--endpoint-url", metavar="URL", help="S3 server other than AWS's own."),
        click.option("--region", help="Region of the bucket."),
        click.option("--ca-bundle", metavar="FILE", help="Certificates to trust."),
        click.option("--profile", help="Profile of the AWS configuration."),
        click.option(
            "--storage-option",
            multiple=True,
            metavar="NAME=VALUE",
            help="As in UploadOptions.storage_options; may be repeated. Never a secret: credentials come from the"
            " environment, a profile or workload identity.",
        ),
        click.option("--credentials", metavar="MODULE:FUNCTION", help="A function that returns credentials."),
        click.option("--engine", type=click.Choice(["auto", "obstore", "fsspec"]), default="auto", show_default=True),
        click.option(
            "--concurrency", type=click.IntRange(1), default=16, show_default=True, help="Objects in flight at a time."
        ),
    ]
    result: Any = wrapped
    for decorator in reversed(decorators):
        result = decorator(result)
    return result  # type: ignore[no-any-return]


def open_existing(dest: str, upload: UploadOptions) -> Store:
    """The store for a destination that somebody wants to look at.

    Raises:
        DestinationError: it is a folder, and not there.
        ConfigError: see `ray_sink.stores.open_store`.
    """
    from ray_sink.errors import DestinationError
    from ray_sink.stores import open_store
    from ray_sink.stores.folder import FolderStore

    store = open_store(dest, upload)
    if isinstance(store, FolderStore) and not store.root.is_dir():
        raise DestinationError(f"there is no folder {dest}")
    return store


def _upload_options(
    options: dict[str, object], credentials: str | None, engine: str, concurrency: int
) -> UploadOptions:
    from ray_sink.config import UploadOptions

    return UploadOptions(
        engine=engine,  # type: ignore[arg-type]  # click has checked it
        concurrency=concurrency,
        credentials=credentials,
        storage_options=options,
    )
