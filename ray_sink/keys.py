"""Keys: the relative path, without extension, that names an output for ever."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING

from ray_sink.errors import InvalidKeyError

if TYPE_CHECKING:
    import numpy as np

RESERVED = "_ray_sink"
"""First path component that belongs to the sink, in staging and at the destination."""

MAX_KEY_BYTES = 1024
MAX_COMPONENT_BYTES = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # Unicode's category Cc
_ROOM_FOR_OUR_PREFIX = 16  # `.tmp-` and a few digits, where a local writer puts temps beside finals


def check_key(key: object, *, suffix: str = "") -> str:
    """Return `key` unchanged if it can name an output.

    Args:
        key: a relative POSIX path without extension, such as ``"runs/sample_0001"``.
        suffix: what will be appended to the last component (``"_u.pt"``), for the length check.

    Raises:
        InvalidKeyError: the key is empty, absolute, has an empty, ``.`` or ``..`` component, a backslash,
            NUL or another control character, a lone surrogate, a component over 255 bytes with its suffix,
            more than 1,024 bytes in all, or a reserved name.
    """
    if not isinstance(key, str):
        raise InvalidKeyError(
            f"a key must be a str, got {type(key).__name__} ({key!r:.80}): format it first, e.g. f'{{id:06d}}'",
            key=str(key),
        )
    why = _complaint(key, suffix)
    if why:
        raise InvalidKeyError(f"key {key!r:.120} {why}", key=key)
    return key


def _complaint(key: str, suffix: str) -> str | None:
    if not key:
        return "is empty: every output needs a name of its own"
    if key.startswith("/"):
        return "is absolute: use a path relative to the destination"
    if "\\" in key:
        return "has a backslash: separate components with '/'"
    if _CONTROL.search(key):
        return "has a NUL or control character"
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        return "has a lone surrogate, which no UTF-8 file name can hold"
    if len(encoded) + len(suffix.encode()) > MAX_KEY_BYTES:
        return (
            f"is {len(encoded)} bytes long with {len(suffix.encode())} of suffix; at most {MAX_KEY_BYTES} are allowed"
        )
    components = key.split("/")
    for index, component in enumerate(components):
        if component == "":
            return "has an empty path component"
        if component in (".", ".."):
            return f"has a {component!r} component: nothing is written outside the destination"
        room = MAX_COMPONENT_BYTES
        if index == len(components) - 1:
            room -= len(suffix.encode()) + _ROOM_FOR_OUR_PREFIX
        if len(component.encode()) > room:
            return f"has a component of {len(component.encode())} bytes; at most {room} fit beside our suffixes"
    if components[0] == RESERVED:
        return f"begins with the reserved name {RESERVED!r}"
    return None


def hash_keys(keys: Iterable[str]) -> np.ndarray:
    """128-bit hashes of keys, so that sets of millions are compared without a Python object for each.

    Returns:
        Array of dtype ``S16``, in the order of `keys`; the caller's to sort in place.
    """
    import numpy as np

    digests = bytearray()
    for key in keys:
        digests += blake2b(key.encode(), digest_size=16).digest()
    return np.frombuffer(digests, dtype="S16")
