from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ray_sink.errors import InvalidKeyError
from ray_sink.keys import check_key


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "runs/sample_0001",
        "a.b.c",
        "...",
        ".hidden",
        "a b",
        "ü/日本/🙂",
        "a/_ray_sink",
        "_ray_sink_2/x",
        "_SUCCESS",
        "-rf",
        "~",
        "C:",
        "n" * 239,
        "/".join(["n" * 100] * 10),
    ],
)
def test_a_key_that_names_a_file_comes_back_unchanged(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("", "empty"),
        ("/a", "absolute"),
        ("//a", "absolute"),
        ("a//b", "empty path component"),
        ("a/", "empty path component"),
        (".", "'.' component"),
        ("..", "'..' component"),
        ("a/../b", "'..' component"),
        ("a/./b", "'.' component"),
        ("a\\b", "backslash"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x7f", "control"),
        ("a\x85", "control"),
        ("\ud800", "surrogate"),
        ("n" * 240, "component of 240 bytes"),
        ("é" * 120, "component of 240 bytes"),
        ("n" * 256 + "/a", "component of 256 bytes"),
        ("/".join(["n" * 100] * 11), "1110 bytes"),
        ("_ray_sink", "reserved"),
        ("_ray_sink/journal/x", "reserved"),
        (7, "must be a str"),
        (None, "must be a str"),
        (b"a", "must be a str"),
        (Path("a"), "must be a str"),
    ],
)
def test_a_key_that_cannot_is_rejected_and_told_why(key: object, why: str) -> None:
    with pytest.raises(InvalidKeyError, match=why) as caught:
        check_key(key)
    assert caught.value.key == str(key)


def test_the_suffix_counts_for_the_length() -> None:
    check_key("n" * 235, suffix="_u.pt"[1:])
    with pytest.raises(InvalidKeyError):
        check_key("n" * 235, suffix="_u.pt")
    with pytest.raises(InvalidKeyError):
        check_key("/".join(["n" * 204] * 5), suffix=".pt")


@settings(max_examples=100, deadline=None)
@given(
    key=st.text(max_size=30)
    | st.lists(st.sampled_from(["a", "..", ".", "", "b" * 200, "_ray_sink", "~", "\\", "\0"]), max_size=6).map("/".join)
)
@example("a/../../b")
def test_whatever_is_accepted_is_one_file_inside_the_root(key: str) -> None:
    try:
        check_key(key, suffix=".pt")
    except InvalidKeyError:
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "root"
        path = root / f"{key}.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        assert path.resolve().is_relative_to(root)
        found = [os.path.join(where, name) for where, _, names in os.walk(root) for name in names]
        assert found == [str(root / key) + ".pt"]
        assert os.listdir(folder) == ["root"]
