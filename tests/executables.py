"""Programs of this Python's environment, for what looks for them in a folder."""

from __future__ import annotations

import sys
from pathlib import Path

_PROGRAMS = {"python": "", "ray": "-m ray.scripts.scripts", "ray-sink": "-m ray_sink.cli"}


def environment(folder: Path) -> Path:
    """Make a folder with ``bin/python``, ``bin/ray`` and ``bin/ray-sink``, wherever this Python has its own."""
    (folder / "bin").mkdir(parents=True)
    for name, arguments in _PROGRAMS.items():
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    return folder
