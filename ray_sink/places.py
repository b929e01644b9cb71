"""Where a run may live: the staging folder, the destination and the run's name, checked before anything is written."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from ray_sink.errors import ConfigError, StagingError
from ray_sink.filesystem import Filesystem, PosixFilesystem
from ray_sink.keys import RESERVED
from ray_sink.probes import TRIES, probe_name

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def checked_staging(staging: str | os.PathLike[str]) -> Path:
    """The staging folder, without symlinks; what it must be able to do is tried under ``_ray_sink/``.

    Raises:
        ConfigError: it is no path.
        StagingError: it is missing, read-only, or does not take fsync and rename.
    """
    try:
        root = Path(staging)
    except TypeError:
        raise ConfigError(f"staging must be the path of a folder, got {staging!r}") from None
    if "://" in str(staging):
        raise ConfigError(f"staging must be a folder on a mounted filesystem, not a URL: {str(staging)!r}")
    if not root.is_dir():
        raise StagingError(
            f"there is no staging folder {root}: create it on a filesystem that all nodes mount, or name another"
        )
    root = root.resolve()
    for number in range(1, TRIES + 1):
        try:
            _probe(PosixFilesystem(), root)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and number < TRIES:
                continue  # the owner of the folder has swept it away
            raise StagingError(
                f"the staging folder {root} cannot be used: {error}. It must be writable and take fsync and rename"
            ) from error
        break
    return root


def _probe(fs: Filesystem, root: Path) -> None:
    folder = root / RESERVED
    name = f".{probe_name()}"
    fs.make_dirs(folder, below=root)
    file = fs.create(folder / name)
    try:
        file.write(b"probe")
        file.sync()
    finally:
        file.close()
    fs.rename(folder / name, folder / f"{name}-renamed")
    fs.sync_dir(folder)
    fs.remove(folder / f"{name}-renamed")


def checked_dest(dest: str | os.PathLike[str] | None, staging: Path) -> str | None:
    """The destination as journals and manifests hold it: a URL without a last slash, or a folder without symlinks.

    Raises:
        ConfigError: it is neither, carries credentials, or lies inside the staging folder or around it.
    """
    if dest is None:
        return None
    if not isinstance(dest, str | os.PathLike) or not str(dest):
        raise ConfigError(f"dest must be a URL, a folder or None, got {dest!r}")
    text = str(dest)
    scheme, found, rest = text.partition("://")
    if found and re.search(r"^[^/]*:[^/]*@", rest):
        raise ConfigError(
            "dest carries credentials: give them to the uploader by environment, profile or"
            " UploadOptions(credentials='module:function')"
        )
    if found and scheme not in ("file", "local"):
        return text.rstrip("/")
    folder = Path(rest if found else text).expanduser().resolve()
    if folder == staging:
        raise ConfigError(f"dest and staging are the same folder {folder}: say dest=None to keep outputs in staging")
    if staging in folder.parents or folder in staging.parents:
        raise ConfigError(f"dest {folder} and staging {staging} must not lie inside each other")
    return str(folder)


def checked_run_id(run_id: str | None, dest: str | None, staging: Path) -> str:
    """The run's name: the user's, or one that the same destination and staging folder always give.

    Raises:
        ConfigError: it cannot be a folder's name.
    """
    if run_id is None:
        named = hashlib.sha256(f"{dest} {staging}".encode())
        return f"run-{named.hexdigest()[:16]}"
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
        raise ConfigError(f"run_id must be 1 to 100 of A-Z a-z 0-9 . _ - and begin with a letter or digit: {run_id!r}")
    return run_id
