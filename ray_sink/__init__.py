"""The output sink of GPU batch inference on Ray: nothing lost, torn or written twice, and the GPU never waits.

Importing this package loads neither ray nor torch nor s3fs: each public name brings what it needs when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_sink.async_writer import AsyncWriter
    from ray_sink.config import DictMode, Limits, NodeLocal, SaveFormat, UploadOptions, WriterOptions
    from ray_sink.errors import SinkError
    from ray_sink.formats.base import Format
    from ray_sink.reading import Manifest, load, open  # noqa: A004 - ray_sink.open reads best
    from ray_sink.records import FileRecord, Receipt, State, Verification
    from ray_sink.runtime.handle import SinkHandle
    from ray_sink.runtime.ticket import Ticket
    from ray_sink.sink import Sink

__version__ = "0.1.0"

__all__ = [
    "AsyncWriter",
    "DictMode",
    "FileRecord",
    "Format",
    "Limits",
    "Manifest",
    "NodeLocal",
    "Receipt",
    "SaveFormat",
    "Sink",
    "SinkError",
    "SinkHandle",
    "State",
    "Ticket",
    "UploadOptions",
    "Verification",
    "WriterOptions",
    "load",
    "open",
]

_HOMES = {
    "AsyncWriter": "async_writer",
    "DictMode": "config",
    "FileRecord": "records",
    "Format": "formats.base",
    "Limits": "config",
    "Manifest": "reading",
    "NodeLocal": "config",
    "Receipt": "records",
    "SaveFormat": "config",
    "Sink": "sink",
    "SinkError": "errors",
    "SinkHandle": "runtime.handle",
    "State": "records",
    "Ticket": "runtime.ticket",
    "UploadOptions": "config",
    "Verification": "records",
    "WriterOptions": "config",
    "load": "reading",
    "open": "reading",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"ray_sink.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ray_sink' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
