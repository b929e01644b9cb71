"""Pieces of one block of memory, given back in the order in which they were taken."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

ALIGN_BYTES = 256
"""Every piece begins at a multiple of it: any dtype can be seen there, and the copy engines like it."""


def aligned(n_bytes: int) -> int:
    """The next multiple of `ALIGN_BYTES`."""
    return -(-n_bytes // ALIGN_BYTES) * ALIGN_BYTES


@dataclass(frozen=True, slots=True)
class _Piece:
    begin: int
    end: int
    alone: bool = False


class Ring:
    """Hands out a block's memory around and around. Not safe under threads.

    A piece larger than the whole block is ordinary memory of its own, taken when nothing else is out, and nothing else
    is handed out beside it.

    Args:
        memory: the block, uint8 of one dimension.
    """

    def __init__(self, memory: torch.Tensor) -> None:
        self._memory = memory
        self._out: deque[_Piece] = deque()

    def fits(self, n_bytes: int) -> bool:
        """Whether `take` would give something now."""
        return self._place(n_bytes) is not None

    def take(self, n_bytes: int) -> torch.Tensor | None:
        """`n_bytes`, uint8; None while there is no room."""
        piece = self._place(n_bytes)
        if piece is None:
            return None
        self._out.append(piece)
        if piece.alone:
            return torch.empty(n_bytes, dtype=torch.uint8, device="cpu")
        return self._memory[piece.begin : piece.begin + n_bytes]

    def give_back(self) -> None:
        """The piece that has been out for longest."""
        self._out.popleft()

    def _place(self, n_bytes: int) -> _Piece | None:
        size, need = len(self._memory), max(ALIGN_BYTES, aligned(n_bytes))
        if not self._out:
            return _Piece(0, need, alone=need > size)
        oldest, end = self._out[0].begin, self._out[-1].end
        if end > oldest and end + need <= size:
            return _Piece(end, end + need)
        begin = 0 if end > oldest else end  # it is full where they meet
        return _Piece(begin, begin + need) if begin + need <= oldest else None
