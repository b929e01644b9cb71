"""Errors cross processes: whatever they carry must arrive."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from ray_sink import errors
from ray_sink.errors import SinkError, StoreUnavailableError, UnsupportedValueError

SAMPLES: dict[str, object] = {
    "key": "runs/1",
    "keys": ("a", "b"),
    "path": "a_b.pt",
    "slow_down": True,
    "producers": ("actor-1",),
    "failures": {"k": "disk full"},
}


def tree(root: type[SinkError] = SinkError) -> list[type[SinkError]]:
    below = [error for child in root.__subclasses__() for error in tree(child)]
    return [error for error in [root, *below] if error.__module__ == errors.__name__]


def an_error(kind: type[SinkError]) -> SinkError:
    """One with a value of its own for everything that it can carry."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    named = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    return kind("what to do", **{name: SAMPLES[name] for name in named})


@pytest.mark.parametrize("kind", tree(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("through", ["pickle", "copy"])
def test_every_error_survives_with_its_attributes(kind: type[SinkError], through: str) -> None:
    error = an_error(kind)
    there = pickle.loads(pickle.dumps(error)) if through == "pickle" else copy.copy(error)
    assert type(there) is kind
    assert str(there) == "what to do"
    assert vars(there) == vars(error)
    assert not vars(error) or any(value in SAMPLES.values() for value in vars(there).values())


@pytest.mark.parametrize("kind", tree(), ids=lambda kind: kind.__name__)
def test_a_message_alone_makes_every_error(kind: type[SinkError]) -> None:
    assert str(pickle.loads(pickle.dumps(kind("only this")))) == "only this"


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = str(errors.__doc__)
    for kind in tree():
        assert f" {kind.__name__}" in drawn, kind


def test_they_are_what_callers_of_python_functions_expect() -> None:
    assert issubclass(UnsupportedValueError, TypeError)
    for kind in (errors.ConfigError, errors.InvalidKeyError, errors.DuplicateKeyError):
        assert issubclass(kind, ValueError)
    assert StoreUnavailableError("later", path="x").slow_down is False
