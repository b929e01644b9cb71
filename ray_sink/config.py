"""What a user can choose, as small frozen dataclasses that check themselves."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from ray_sink.errors import ConfigError

MiB = 2**20
GiB = 2**30

Ack = Literal["staged", "uploaded"]
OnConflict = Literal["error", "replace", "keep"]
Engine = Literal["auto", "obstore", "fsspec"]


class SaveFormat(StrEnum):
    """The formats that come with the package; a value's name in journals and manifests."""

    PYTORCH_PT = "pytorch_pt"
    """``.pt``, as ``torch.save`` writes it, read by ``torch.load(weights_only=True)``."""
    NUMPY_NPZ = "numpy_npz"
    """``.npz``, read by ``numpy.load(allow_pickle=False)``."""
    NUMPY_NPY = "numpy_npy"
    """``.npy``: one tensor, or `DictMode.SPLIT`."""
    SAFETENSORS = "safetensors"
    """``.safetensors``: recommended for new work; bfloat16 and float8, no pickle, no copy."""


class DictMode(StrEnum):
    """What becomes of a mapping or a sequence of tensors."""

    SINGLE = "single"
    """One file holds all of them."""
    SPLIT = "split"
    """One file each: ``<key>_<name>``, ``<key>_<index>``."""


@dataclass(frozen=True, slots=True)
class NodeLocal:
    """Staging on a disk of each node's own, for clusters that share no filesystem: ``staging=NodeLocal("/nvme")``.

    An uploader beside each writer puts its files into the destination at once, so it takes ``ack="uploaded"``; the
    journal is in the destination, too. Nothing that is on a node's disk is needed when the node is gone.

    Attributes:
        path: an existing folder on each node that gets a writer, absolute. Nothing stays in it.
    """

    path: str

    def __post_init__(self) -> None:
        """Check the path.

        Raises:
            ConfigError: it is none, or not absolute.
        """
        try:
            path = os.fspath(self.path)
        except TypeError:
            raise ConfigError(f"NodeLocal takes the path of a folder, got {self.path!r}") from None
        if not Path(path).is_absolute():
            raise ConfigError(f"NodeLocal takes an absolute path, the same on each node, got {path!r}")
        object.__setattr__(self, "path", os.path.normpath(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterOptions:
    """The writer actors.

    Attributes:
        per_node: writer actors on each node that has producers.
        threads: outputs that one writer encodes and writes at a time.
        num_cpus: CPUs that Ray sets aside for each writer; 0 leaves Ray Data's own accounting alone.
        memory_bytes: memory declared to Ray for each writer.
        resources: custom resources that a writer's node must have; writers then go there and not to
            the producers' nodes.
        label_selector: labels that a writer's node must have, as above.
        temp_dir: folder for local temp files on the writer's node; None: the system's. Where it is on the staging
            folder's filesystem, the built-in formats are encoded straight into the staging folder.
    """

    per_node: int = 1
    threads: int = 4
    num_cpus: float = 0
    memory_bytes: int = 512 * MiB
    resources: Mapping[str, float] = field(default_factory=dict)
    label_selector: Mapping[str, str] = field(default_factory=dict)
    temp_dir: str | None = None

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: a field is out of range.
        """
        _count("WriterOptions.per_node", self.per_node, 1)
        _count("WriterOptions.threads", self.threads, 1)
        _at_least("WriterOptions.num_cpus", self.num_cpus, 0)
        _at_least("WriterOptions.memory_bytes", self.memory_bytes, 0)
        _mapping("WriterOptions.resources", self.resources)
        _mapping("WriterOptions.label_selector", self.label_selector)
        if self.temp_dir is not None and not Path(self.temp_dir).is_absolute():
            raise ConfigError(f"WriterOptions.temp_dir must be absolute, got {self.temp_dir!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOptions:
    """The way to the object store.

    Attributes:
        engine: ``"auto"`` takes obstore where it knows the scheme and fsspec elsewhere.
        uploaders: uploader actors; keys are shared out among them by hash.
        concurrency: most objects in flight in one uploader.
        buffer_bytes: most bytes of file contents that one uploader holds in memory.
        multipart_above_bytes: files above this size go up in parts.
        keep_staged: leave staged files where they are after upload instead of freeing them.
        label_selector: labels that an uploader's node must have; if empty, any node but the head. For clusters where
            only some nodes have a way and the right to the store.
        credentials: ``"module:function"``, called in the uploader's process only; returns a mapping of
            credential options for the engine. None: environment, profile or workload identity.
        storage_options: endpoint_url, region, ca_bundle, profile, sse_kms_key_id, storage_class for S3;
            for other schemes, arguments of the fsspec filesystem. Never secrets: those are refused.
    """

    engine: Engine = "auto"
    uploaders: int = 1
    concurrency: int = 16
    buffer_bytes: int = 512 * MiB
    multipart_above_bytes: int = 256 * MiB
    keep_staged: bool = False
    label_selector: Mapping[str, str] = field(default_factory=dict)
    credentials: str | None = None
    storage_options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: a field is out of range, or ``storage_options`` holds a secret.
        """
        _one_of("UploadOptions.engine", self.engine, ("auto", "obstore", "fsspec"))
        _count("UploadOptions.uploaders", self.uploaders, 1)
        _count("UploadOptions.concurrency", self.concurrency, 1)
        _at_least("UploadOptions.buffer_bytes", self.buffer_bytes, MiB)
        _at_least("UploadOptions.multipart_above_bytes", self.multipart_above_bytes, 5 * MiB)
        if self.credentials is not None and not _DOTTED.fullmatch(self.credentials):
            raise ConfigError(
                f"UploadOptions.credentials must look like 'package.module:function', got {self.credentials!r:.60}"
            )
        _mapping("UploadOptions.label_selector", self.label_selector)
        _mapping("UploadOptions.storage_options", self.storage_options)
        refuse_secrets(self.storage_options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the sink may use. When one is full the producer waits.

    Attributes:
        object_store_bytes: our objects in each node's object store; None: a fifth of it.
        inflight_outputs: outputs that one producer may have accepted and not acknowledged.
        temp_bytes: local temp files of one writer; with `NodeLocal`, all that it has on its node's disk.
        staging_bytes: staged files and temps on the shared filesystem that are not uploaded yet.
        drain_s: how long leaving the ``with`` block by an exception waits for what was accepted, seconds.
        takeover_s: how long an owner's counter must stand still until its run may be taken over, seconds.
        storage_wait_s: how long a filesystem is waited for that is full or does not answer, and a node with room for
            a writer where the last one is gone, until what waits for it fails by name, seconds.
        max_failures: outputs that may fail, by an error of their own, without ending the run: they are set aside by
            name, and the run is sealed with ``_PARTIAL`` in the place of ``_SUCCESS``.
        device_bytes: one producer's outputs on their way off its GPUs: so many bytes of copies there, and as many of
            page-locked host memory. Two batches should fit; one above it goes alone, and slower.
    """

    object_store_bytes: int | None = None
    inflight_outputs: int = 4096
    temp_bytes: int = 4 * GiB
    staging_bytes: int = 256 * GiB
    drain_s: float = 60.0
    takeover_s: float = 60.0
    storage_wait_s: float = 600.0
    max_failures: int = 0
    device_bytes: int = 512 * MiB

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: a field is out of range.
        """
        if self.object_store_bytes is not None:
            _at_least("Limits.object_store_bytes", self.object_store_bytes, 1 * MiB)
        _count("Limits.inflight_outputs", self.inflight_outputs, 1)
        _at_least("Limits.temp_bytes", self.temp_bytes, 1 * MiB)
        _at_least("Limits.staging_bytes", self.staging_bytes, 1 * MiB)
        _at_least("Limits.drain_s", self.drain_s, 0)
        _at_least("Limits.takeover_s", self.takeover_s, 1)
        _at_least("Limits.storage_wait_s", self.storage_wait_s, 1)
        _count("Limits.max_failures", self.max_failures, 0)
        _at_least("Limits.device_bytes", self.device_bytes, 1 * MiB)


_DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_SECRET = re.compile(
    r"^(key|secret|token|password|passwd|pwd|sas_token|account_key|connection_string|credential|credentials"
    r"|service_account_key|client_secret|username)$"
    r"|secret|access_key|session_token|private_key|api_key|sas_key|shared_key|bearer",
    re.IGNORECASE,
)


def refuse_secrets(options: Mapping[str, object], where: str = "storage_options") -> None:
    """Refuse a mapping that carries credentials, at any depth.

    Options travel through Ray to other processes and are shown by its state API: a secret in them is public.

    Raises:
        ConfigError: a name or a URL in `options` looks like a credential; its value is not repeated.
    """
    for name, value in options.items():
        if _SECRET.search(str(name)):
            raise ConfigError(
                f"{where}[{name!r}] looks like a secret and would be visible in Ray's state API and logs. Give the"
                " uploader its credentials by environment variables, a profile or workload identity, or name a"
                " function that returns them: UploadOptions(credentials='module:function')"
            )
        _refuse_inside(value, f"{where}[{name!r}]")


def _refuse_inside(value: object, where: str) -> None:
    if isinstance(value, Mapping):
        refuse_secrets(value, where)
    elif isinstance(value, str):
        if re.search(r"://[^/@\s]+:[^/@\s]*@", value):
            raise ConfigError(f"{where} is a URL with a password in it; see UploadOptions.credentials")
    elif isinstance(value, Sequence):
        for index, part in enumerate(value):
            _refuse_inside(part, f"{where}[{index}]")


def _at_least(name: str, value: object, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        raise ConfigError(f"{name} must be a number of at least {least}, got {value!r}")


def _count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be an int of at least {least}, got {value!r}")


def _mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a mapping, got {type(value).__name__}")


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
