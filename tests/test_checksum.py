from __future__ import annotations

import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_sink.checksum import Checksum, checksum_of, from_base64, to_base64


def test_it_is_crc64nvme() -> None:
    # the check value of the catalogue of CRCs: https://reveng.sourceforge.io/crc-catalogue/all.htm
    assert checksum_of([b"123456789"]) == "crc64nvme:ae8b14860a799888"
    assert checksum_of([]) == "crc64nvme:0000000000000000"


@given(parts=st.lists(st.binary(max_size=40)))
def test_how_the_bytes_are_cut_does_not_matter(parts: list[bytes]) -> None:
    assert checksum_of(parts) == checksum_of([b"".join(parts)])


@pytest.mark.parametrize(
    "data",
    [
        bytearray(b"12345678"),
        memoryview(b"12345678"),
        memoryview(b"x12345678")[1:],
        memoryview(array.array("I", b"12345678")),
    ],
)
def test_any_flat_buffer_is_taken(data: bytes) -> None:
    assert checksum_of([data]) == checksum_of([b"12345678"])


@pytest.mark.parametrize("data", [b"", bytearray(), memoryview(b""), memoryview(array.array("d"))])
def test_an_empty_buffer_changes_nothing(data: bytes) -> None:
    running = Checksum()
    running.update(b"x")
    running.update(data)
    assert running.text == checksum_of([b"x"])


def test_the_header_of_s3_is_the_same_number() -> None:
    text = checksum_of([b"123456789"])
    assert to_base64(text) == "rosUhgp5mIg="
    assert from_base64(to_base64(text)) == text
