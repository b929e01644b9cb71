"""One block of memory, handed out around and around."""

from __future__ import annotations

import random
from collections import deque

import torch

from ray_sink.ring import ALIGN_BYTES, Ring


def ring(pieces: int) -> Ring:
    return Ring(torch.zeros(pieces * ALIGN_BYTES, dtype=torch.uint8))


def test_pieces_never_overlap_and_come_around() -> None:
    chance = random.Random(0)
    made = ring(16)
    out: deque[tuple[torch.Tensor, int]] = deque()
    taken = 0
    for number in range(3000):
        piece = made.take(chance.randrange(0, 6 * ALIGN_BYTES))
        if piece is None or chance.random() < 0.3:
            if piece is not None:
                out.append((piece.fill_(number % 251), number % 251))
            if out:
                held, value = out.popleft()
                assert (held == value).all()
                made.give_back()
            continue
        assert piece.data_ptr() % 16 == 0
        out.append((piece.fill_(number % 251), number % 251))
        taken += 1
    assert taken > 500


def test_a_full_ring_gives_nothing_until_the_oldest_is_back() -> None:
    made = ring(3)
    for _ in range(3):
        assert made.take(1) is not None
    assert not made.fits(1)
    assert made.take(1) is None
    made.give_back()
    assert made.take(ALIGN_BYTES + 1) is None
    assert made.take(ALIGN_BYTES) is not None


def test_what_is_larger_than_the_ring_goes_alone() -> None:
    made = ring(2)
    assert made.take(1) is not None
    assert made.take(5 * ALIGN_BYTES) is None
    made.give_back()
    large = made.take(5 * ALIGN_BYTES)
    assert large is not None
    assert len(large) == 5 * ALIGN_BYTES
    assert made.take(1) is None
    made.give_back()
    assert made.take(1) is not None
