"""Makes reference.md of the code: of signatures and docstrings, nothing by hand."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import ray_sink
from ray_sink import (
    AsyncWriter,
    DictMode,
    Limits,
    Manifest,
    NodeLocal,
    SaveFormat,
    Sink,
    SinkHandle,
    UploadOptions,
    WriterOptions,
)

PAGE = Path(__file__).with_name("reference.md")
_GIB, _MIB = 2**30, 2**20
_HEAD = """# Reference

Made from the code by `python docs/reference.py`; do not edit.

A name that ends in `_bytes` is in bytes, one that ends in `_s` in seconds; all others are counts, names or places.
"""


def render() -> str:
    """The whole page."""
    parts = [_HEAD, _call("Sink", Sink, "Sink(dest, *, staging, …)")]
    parts += [_group(group) for group in (Limits, WriterOptions, UploadOptions, NodeLocal)]
    for owner, names in (
        (Sink, ("run", "map_batches", "datasink", "wrap", "remaining", "handle", "close")),
        (SinkHandle, ("write", "write_batch", "flush", "close")),
        (ray_sink, ("open", "load")),
        (Manifest, ("keys", "receipt", "receipts", "load", "to_dataset")),
    ):
        for name in names:
            method: Callable[..., Any] = getattr(owner, name)
            parts.append(_call(f"{owner.__name__}.{name}", method, None))
    parts.append(_call("AsyncWriter", AsyncWriter, None))
    parts += [_choices(choices) for choices in (SaveFormat, DictMode)]
    return "\n".join(parts)


def _call(title: str, call: Callable[..., Any], title_shown: str | None) -> str:
    text = inspect.getdoc(call) or ""
    said = _section(text, "Args")
    lines = [f"## `{title_shown or title}`", "", _code(text.split("\n\n")[0].replace("\n", " ")), ""]
    parameters = [
        p for p in inspect.signature(call).parameters.values() if p.name != "self" and p.kind is not p.VAR_KEYWORD
    ]
    if said:
        lines += ["| argument | default | |", "|---|---|---|"]
        lines += [f"| `{p.name}` | {_default(p.name, p.default)} | {said[p.name]} |" for p in parameters]
        lines.append("")
    raised = _section(text, "Raises")
    if raised:
        lines += ["Raises:", ""] + [f"- `{name}`: {why}" for name, why in raised.items()] + [""]
    return "\n".join(lines)


def _group(group: type) -> str:
    text = inspect.getdoc(group) or ""
    said = _section(text, "Attributes")
    lines = [f"## `{group.__name__}`", "", _code(text.split("\n\n")[0]), "", "| option | default | |", "|---|---|---|"]
    lines += [
        f"| `{field.name}` | {_default(field.name, _of(field))} | {said[field.name]} |" for field in fields(group)
    ]
    return "\n".join([*lines, ""])


def _choices(choices: type[enum.Enum]) -> str:
    source = inspect.getsource(choices)
    said = dict(re.findall(r'^    (\w+) = .*\n    """(.*?)"""', source, re.MULTILINE))
    lines = [f"## `{choices.__name__}`", "", "| choice | |", "|---|---|"]
    lines += [f"| `{choice.name}` | {_code(said[choice.name])} |" for choice in choices]
    return "\n".join([*lines, ""])


def _section(text: str, title: str) -> Mapping[str, str]:
    """The entries of a section of a docstring."""
    found = re.search(rf"^{title}:\n((?: {{4}}.*\n?|\n)+)", text, re.MULTILINE)
    entries: dict[str, str] = {}
    name = ""
    for line in found[1].splitlines() if found else []:
        began = re.match(r" {4}(\**[\w.]+): (.*)", line)
        if began:
            name = began[1]
            entries[name] = began[2]
        elif line.strip():
            entries[name] += " " + line.strip()
    return {name: _code(entry).replace("|", "\\|") for name, entry in entries.items()}


def _code(text: str) -> str:
    """Docstrings mark code with two backticks, Markdown with one."""
    return text.replace("``", "`").strip()


def _of(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _default(name: str, value: Any) -> str:
    if value is inspect.Parameter.empty or value is MISSING:
        return "required"
    if isinstance(value, enum.Enum):
        return f"`{type(value).__name__}.{value.name}`"
    if isinstance(value, Limits | WriterOptions | UploadOptions):
        return f"`{type(value).__name__}()`"
    if name.endswith("_bytes") and isinstance(value, int):
        for unit, suffix in ((_GIB, "GiB"), (_MIB, "MiB")):
            if value and value % unit == 0:
                return f"{value // unit} {suffix}"
        return f"{value:,} bytes"
    if name.endswith("_s"):
        return f"{value:g} s"
    return f"`{value!r}`" if not isinstance(value, str) else f'`"{value}"`'


if __name__ == "__main__":
    PAGE.write_text(render())
