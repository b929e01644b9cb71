"""What a `ray_sink.Sink` is asked for, checked before anything is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_sink.config import Ack, DictMode, Limits, NodeLocal, OnConflict, SaveFormat, UploadOptions, WriterOptions
from ray_sink.errors import ConfigError
from ray_sink.formats import resolve
from ray_sink.places import checked_dest, checked_run_id, checked_staging
from ray_sink.records import RunInfo
from ray_sink.runtime.messages import RunSpec


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments of a `ray_sink.Sink`, which says what they mean.

    Attributes:
        info: the run.
        format: the user's `Format`, or a `SaveFormat`: not every process that hears of it has to load torch.
        node_local: the staging folder, where each node has its own.
        ack: what a ticket waits for.
        on_conflict: what to do with other runs' outputs.
        writers: the writers' options.
        upload: the uploaders' options.
        limits: budgets and times.
        progress: whether the driver shows how the run is doing.
    """

    info: RunInfo
    format: Any
    node_local: str | None
    ack: Ack
    on_conflict: OnConflict
    writers: WriterOptions
    upload: UploadOptions
    limits: Limits
    progress: bool

    def spec(self, epoch: int) -> RunSpec:
        """What the actors of this epoch must know."""
        return RunSpec(
            info=self.info,
            epoch=epoch,
            format=self.format,
            ack=self.ack,
            writers=self.writers,
            upload=self.upload,
            limits=self.limits,
            node_local=self.node_local,
        )


def checked_settings(
    dest: str | os.PathLike[str] | None,
    *,
    staging: str | os.PathLike[str] | NodeLocal,
    run_id: str | None,
    fingerprint: str | None,
    save_format: Any,
    dict_mode: DictMode,
    ack: Ack,
    on_conflict: OnConflict,
    writers: WriterOptions,
    upload: UploadOptions,
    limits: Limits,
    progress: bool,
) -> Settings:
    """The arguments of a `ray_sink.Sink`.

    Raises:
        ConfigError: one of them is wrong.
        StagingError: the staging folder cannot be used.
    """
    _check_choice("ack", ack, ("staged", "uploaded"))
    _check_choice("on_conflict", on_conflict, ("error", "replace", "keep"))
    _check_type("writers", writers, WriterOptions)
    _check_type("upload", upload, UploadOptions)
    _check_type("limits", limits, Limits)
    if not isinstance(progress, bool):
        raise ConfigError(f"progress must be True or False, got {progress!r}")
    if fingerprint is not None and not isinstance(fingerprint, str):
        raise ConfigError(f"fingerprint must be a str, got {type(fingerprint).__name__}")
    format_ = resolve(save_format)
    root = Path(staging.path) if isinstance(staging, NodeLocal) else checked_staging(staging)
    where = checked_dest(dest, root)
    if isinstance(staging, NodeLocal):
        _check_node_local(where, dict_mode, ack, on_conflict)
    info = RunInfo(
        run_id=checked_run_id(run_id, where, root),
        dest=where,
        staging=str(root),
        save_format=format_.name,
        dict_mode=_checked_dict_mode(dict_mode).value,
        fingerprint=fingerprint,
    )
    return Settings(
        info=info,
        format=SaveFormat(save_format) if isinstance(save_format, str) else format_,
        node_local=staging.path if isinstance(staging, NodeLocal) else None,
        ack=ack,
        on_conflict=on_conflict,
        writers=writers,
        upload=upload,
        limits=limits,
        progress=progress,
    )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise ConfigError(f"{name} must be a {kind.__name__}(…), got {type(value).__name__}")


def _check_node_local(dest: str | None, dict_mode: object, ack: str, on_conflict: str) -> None:
    """What holds only where a staged file outlives its node.

    Raises:
        ConfigError: naming what to choose instead.
    """
    wanted = [
        (dest is not None, "a destination: what is on a node's disk is gone with the node"),
        (ack == "uploaded", 'ack="uploaded": nothing is safe before'),
        (on_conflict == "error", 'on_conflict="error": a create-only put settles which attempt has a name'),
        (str(dict_mode) == DictMode.SINGLE, "DictMode.SINGLE: one put settles one file"),
    ]
    for met, what in wanted:
        if not met:
            raise ConfigError(f"staging=NodeLocal(…) needs {what}. Or take a staging folder that all nodes mount")


def _checked_dict_mode(dict_mode: object) -> DictMode:
    try:
        return DictMode(str(dict_mode))
    except ValueError:
        raise ConfigError(f"dict_mode must be DictMode.SINGLE or DictMode.SPLIT, got {dict_mode!r}") from None
