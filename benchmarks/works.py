"""The works that are measured, from fixed seeds: every machine makes the same bytes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

MiB = 2**20


def fields(count: int) -> Iterator[torch.Tensor]:
    """W1: float32 tensors of 64 MiB, one a sample."""
    for number in range(count):
        yield torch.randn(4, 2048, 2048, generator=torch.Generator().manual_seed(number))


def volumes(count: int) -> Iterator[dict[str, torch.Tensor]]:
    """W2: mappings of four float32 arrays, 1 MiB together."""
    for number in range(count):
        whole = torch.randn(4, 64, 32, 32, generator=torch.Generator().manual_seed(number))
        yield dict(zip(("u", "v", "w", "p"), whole, strict=True))


def embeddings(count: int) -> torch.Tensor:
    """W3: so many float32 vectors of 4 KiB, as one tensor of (count, 1024)."""
    return torch.randn(count, 1024, generator=torch.Generator().manual_seed(0))


def mixed(count: int) -> Iterator[torch.Tensor]:
    """W4: uint8 tensors of log-normal sizes from 100 KiB to 100 MiB, a few MiB in the middle."""
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(np.log(3 * MiB), 1.5, count), 100 * 2**10, 100 * MiB).astype(int)
    for number, size in enumerate(sizes):
        yield torch.randint(0, 256, (int(size),), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
