"""What is installed here; nothing of it is imported."""

from __future__ import annotations

import importlib.metadata
import platform

from ray_sink.doctor.findings import Finding, Status

PACKAGES = ("ray", "torch", "numpy", "pyarrow", "safetensors", "fsspec", "obstore", "s3fs", "awscrt")


def versions() -> dict[str, str | None]:
    """Versions by package, None for what is missing; ``python`` first."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def examine(found: dict[str, str | None]) -> list[Finding]:
    """What is missing."""
    return [
        Finding("installation", name, Status.NOTE, "not installed here", f"pip install {name}, where jobs run")
        for name, version in found.items()
        if version is None
    ]
