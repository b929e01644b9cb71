"""User metadata in a form that every server and proxy carries unchanged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

# Headers are ASCII without surrounding spaces; S3 and Azure reject or mangle the rest.
_PLAIN = "/:=+,@"
# most values need nothing, and this sees it many times as fast as `quote` does
_NEEDS_NOTHING = re.compile(rf"[A-Za-z0-9_.~{_PLAIN}-]*")


def encoded(metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` with percent-encoded values."""
    return {
        name: value if _NEEDS_NOTHING.fullmatch(value) else quote(value, safe=_PLAIN)
        for name, value in metadata.items()
    }


def decoded(metadata: Mapping[str, str]) -> dict[str, str]:
    """The inverse of `encoded`; names in lower case, because headers do not keep theirs."""
    return {name.lower(): unquote(value) for name, value in metadata.items()}
