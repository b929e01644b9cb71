"""Keys out of columns: ``"case_id"``, or a template ``"{case_id}/{step:04d}"``."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_sink.errors import ConfigError, DuplicateKeyError
from ray_sink.runtime.batches import Batch, scalars

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class KeyTemplate:
    """How a row's key is made of its columns.

    Attributes:
        text: as the user wrote it.
        fields: the columns that it needs.
        is_column: it names one column, whose values are the keys.
    """

    text: str
    fields: tuple[str, ...]
    is_column: bool

    @classmethod
    def parse(cls, text: object, *, argument: str = "key") -> KeyTemplate:
        """Check what the user gave as ``key``, or as another argument that names rows.

        Raises:
            ConfigError: it is neither a column name nor a template of column names.
        """
        if not isinstance(text, str) or not text:
            raise ConfigError(
                f"{argument} must be a column name or a template such as '{{case_id}}/{{step:04d}}', got {text!r:.80}"
            )
        if "{" not in text and "}" not in text:
            return cls(text, (text,), True)
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ConfigError(f"{argument} template {text!r}: {error}") from None
        fields = [field for _, field, _, _ in parts if field is not None]
        wrong = [field for field in fields if not field or field.isdigit() or "." in field or "[" in field]
        if wrong:
            raise ConfigError(f"{argument} template {text!r}: {wrong[0]!r} is no column name; write '{{column}}'")
        if not fields:
            raise ConfigError(
                f"{argument} template {text!r} names no column, so that all rows would have one {argument}"
            )
        return cls(text, tuple(dict.fromkeys(fields)), False)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Columns that the template needs and `names` lacks."""
        there = set(names)
        return [field for field in self.fields if field not in there]

    def keys(self, columns: Mapping[str, Sequence[Any]]) -> list[str]:
        """The keys of rows whose `fields` are given as plain values.

        Raises:
            ConfigError: a value does not suit the template.
        """
        if self.is_column:
            return [self._plain(value) for value in columns[self.text]]
        rows = zip(*(columns[field] for field in self.fields), strict=True)
        try:
            return [self.text.format(**dict(zip(self.fields, row, strict=True))) for row in rows]
        except (ValueError, TypeError) as error:
            raise ConfigError(f"key template {self.text!r} does not suit its columns: {error}") from None

    def keys_of(self, batch: Batch) -> list[str]:
        """The keys of a batch that has all columns."""
        return self.keys({field: scalars(field, batch.column(field)) for field in self.fields})

    def _plain(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise ConfigError(
            f"key column {self.text!r} holds a {type(value).__name__} ({value!r:.60}): keys are strings or integers;"
            f" say how it is to be written, e.g. key='{{{self.text}:.3f}}'"
        )


def missing_error(
    template: KeyTemplate, missing: Sequence[str], where: str, columns: str, *, argument: str = "key"
) -> ConfigError:
    """The error for a key column that is not there; `columns` says what is."""
    names = ", ".join(map(repr, missing))
    return ConfigError(f"{argument}={template.text!r} needs column {names}, which {where} lacks. It has {columns}")


def require_unique(keys: Sequence[str], where: str, *, source: KeyTemplate | None = None) -> None:
    """Refuse keys that occur twice; or sources, where `source` has made them.

    Raises:
        DuplicateKeyError: names them.
    """
    if len(set(keys)) < len(keys):
        raise duplicate_error([key for key, count in Counter(keys).items() if count > 1], where, source=source)


def duplicate_error(keys: Sequence[str], where: str, *, source: KeyTemplate | None = None) -> DuplicateKeyError:
    """The error for several rows under one key, or from one `source`."""
    shown = ", ".join(map(repr, keys[:_SHOWN])) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
    if source is not None:
        return DuplicateKeyError(
            f"several rows of {where} have the source {shown}: once one of them is done, a resumed run would leave the"
            f" others out. Choose a column, or a template, that tells them apart; source={source.text!r} does not",
            keys=keys,
        )
    return DuplicateKeyError(
        f"several rows of {where} have the key {shown}: one would hide the other. Make the key unique, e.g."
        " key='{case_id}/{step:04d}'",
        keys=keys,
    )
