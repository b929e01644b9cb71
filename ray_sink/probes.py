"""Names of what is put somewhere to see whether it can be put there.

Whoever put it removes it. What a process left that was killed is removed by the next owner's sweep, which cannot tell
it from a living process's: whoever probes puts up with losing it.
"""

from __future__ import annotations

import os
import re

PROBE = "probe-"
_NAME = re.compile(rf"\.?{PROBE}[0-9a-f]{{16}}([.-]\w+)?")
TRIES = 3
"""A sweep comes once, at the start of an owner: who is met by it is not met again at once."""


def probe_name() -> str:
    """A name that nobody else has."""
    return f"{PROBE}{os.urandom(8).hex()}"


def is_probe(name: str) -> bool:
    """Whether `name` is one of `probe_name`, or of a temp of it."""
    return _NAME.fullmatch(name) is not None
