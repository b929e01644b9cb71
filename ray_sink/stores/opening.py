"""From a URL to a store. Engines are imported when they are needed, and only here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ray_sink.config import UploadOptions, refuse_secrets
from ray_sink.errors import ConfigError
from ray_sink.stores.base import Store

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def open_store(dest: str, upload: UploadOptions) -> Store:
    """The store for `dest`, connected to nothing yet.

    Credentials are looked up here and stay in this process.

    Args:
        dest: a URL, or the path of a folder.
        upload: engine, options and the function that gives credentials.

    Raises:
        ConfigError: the scheme is unknown, cannot hold outputs, or an option is wrong.
        DestinationError: there are no credentials for it.
    """
    found = _SCHEME.match(dest)
    scheme = found[1].lower() if found else ""
    refuse_secrets({"dest": dest}, "Sink")
    factory = FACTORIES.get(scheme, _fsspec)
    return factory(dest, upload)


def _folder(dest: str, upload: UploadOptions) -> Store:
    from ray_sink.stores.folder import FolderStore

    path = dest.partition("://")[2] if _SCHEME.match(dest) else dest
    if not path or (path != dest and not path.startswith("/")):
        raise ConfigError(f"destination {dest!r} names no absolute folder: write file:///folder, or its path")
    # symlinks on the way to the root are the user's; below it they are refused
    return FolderStore(dest, Path(os.path.realpath(path)))


def _s3(dest: str, upload: UploadOptions) -> Store:
    from ray_sink.stores import s3_settings
    from ray_sink.stores.multipart import MultipartPut
    from ray_sink.stores.object_store import ObjectStore
    from ray_sink.stores.objects import Objects
    from ray_sink.stores.probing import Prober
    from ray_sink.stores.s3_objects import S3Objects

    settings = s3_settings.resolve(dest, upload)
    # room for the parts of each large file beside the single puts
    s3 = S3Objects(settings, connections=upload.concurrency * 4)
    objects: Objects = s3
    if upload.engine != "fsspec":
        from ray_sink.stores.obstore_objects import ObstoreObjects, S3Clients

        objects = ObstoreObjects(
            dest,
            S3Clients(settings),
            largest_bytes=upload.multipart_above_bytes,
            storage_class=settings.storage_class,
        )
    multipart = MultipartPut(s3)
    return ObjectStore(
        dest,
        objects,
        multipart=multipart,
        multipart_above_bytes=upload.multipart_above_bytes,
        buffer_bytes=upload.buffer_bytes,
        prober=Prober(dest, objects, s3=s3, multipart=multipart),
    )


def _cloud(dest: str, upload: UploadOptions) -> Store:
    if upload.engine == "fsspec":
        return _fsspec(dest, upload)
    from ray_sink.stores.object_store import ObjectStore
    from ray_sink.stores.obstore_objects import CloudClients, ObstoreObjects
    from ray_sink.stores.probing import Prober

    url = re.sub(r"^gcs://", "gs://", dest, flags=re.IGNORECASE)
    objects = ObstoreObjects(dest, CloudClients(url, upload), largest_bytes=upload.multipart_above_bytes)
    return ObjectStore(
        dest,
        objects,
        multipart=None,
        multipart_above_bytes=upload.multipart_above_bytes,
        buffer_bytes=upload.buffer_bytes,
        prober=Prober(dest, objects, s3=None, multipart=None),
    )


def _fsspec(dest: str, upload: UploadOptions) -> Store:
    import fsspec

    from ray_sink.stores import credentials
    from ray_sink.stores.fsspec_store import RENAMING, FsspecStore

    scheme = dest.partition("://")[0].lower()
    if upload.engine == "obstore":
        raise ConfigError(
            f"obstore does not know {scheme}://: leave UploadOptions.engine at 'auto', or choose 'fsspec'"
        )
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// needs a package that is not installed where the uploader runs: {error}"
        ) from error
    except ValueError as error:
        known = ", ".join(sorted(set(FACTORIES) - {"", "memory"}))
        raise ConfigError(
            f"unknown destination scheme {scheme}:// in {dest!r}: there are {known}"
            " and what fsspec knows (https://filesystem-spec.readthedocs.io); install the package that brings it"
        ) from error
    options: dict[str, Any] = kind._get_kwargs_from_urls(dest) | dict(upload.storage_options)
    if upload.credentials is not None:
        options |= credentials.load(upload.credentials)()
    try:
        filesystem = kind(**options, skip_instance_cache=True, use_listings_cache=False)
    except (TypeError, ValueError, ImportError) as error:
        # the words of others' errors may hold the credentials they were given
        raise ConfigError(f"{scheme}:// cannot be opened with these storage_options ({type(error).__name__})") from None
    return FsspecStore(dest, filesystem, kind._strip_protocol(dest), renames=scheme in RENAMING)


def _memory(dest: str, upload: UploadOptions) -> Store:
    raise ConfigError(
        "memory:// lives in one process: the uploader's, where nobody else could read the outputs, and they would be"
        " gone with it. Use a folder or a bucket"
    )


FACTORIES: Mapping[str, Callable[[str, UploadOptions], Store]] = MappingProxyType(
    {
        "": _folder,
        "file": _folder,
        "local": _folder,
        "s3": _s3,
        "s3a": _s3,
        "gs": _cloud,
        "gcs": _cloud,
        "az": _cloud,
        "abfs": _cloud,
        "abfss": _cloud,
        "memory": _memory,
    }
)
