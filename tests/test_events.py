from __future__ import annotations

import dataclasses
import logging

import pytest

from ray_sink import events
from ray_sink.events import ConcurrencyChanged, UploadRetried, emit

ALL = [
    kind
    for kind in vars(events).values()
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind.__module__ == events.__name__
]


def test_an_event_is_one_line_with_a_constant_name_and_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, events.LOGGER_NAME):
        emit(UploadRetried("a b.pt", 2, 0.5, True, "503\nforged_event x=1"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.event == "upload_retried"  # type: ignore[attr-defined]
    assert record.fields["pause_s"] == 0.5  # type: ignore[attr-defined]
    assert "\n" not in record.getMessage()
    assert record.getMessage().startswith('upload_retried path="a b.pt" failed_try=2 pause_s=0.5 slow_down=true')


def test_an_event_below_the_level_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, events.LOGGER_NAME):
        emit(ConcurrencyChanged(16, 8))
    assert caplog.records == []


def test_names_are_unique_and_every_field_is_documented() -> None:
    assert len({kind.NAME for kind in ALL}) == len(ALL) > 3  # type: ignore[attr-defined]
    for kind in ALL:
        for field in dataclasses.fields(kind):
            assert f"        {field.name}: " in (kind.__doc__ or ""), (kind, field.name)


def test_events_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ConcurrencyChanged(1, 2).before = 3  # type: ignore[misc]
