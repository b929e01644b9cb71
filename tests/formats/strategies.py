"""Tensors of every dtype, shape and stride, for hypothesis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["file", "allow_pickle", "a/b", "a.npy", "a", "../x", "cpu", "storage", "0", "", "arr_0", "tensor", "self"]
)


def filled(dtype: torch.dtype, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Every bit pattern a dtype has may occur in it, NaNs included."""
    count = 1
    for size in shape:
        count *= size
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    if count == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    if dtype == torch.bool:
        raw %= 2
    return raw.view(dtype).reshape(tuple(shape))


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """All that makes a tensor the same as another one."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    raw = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return plain.dtype, tuple(plain.shape), raw


@st.composite
def tensors(draw: st.DrawFn, dtypes: Sequence[torch.dtype]) -> Tensor:
    """A tensor, or a view of one: transposed, strided, overlapping, a window, lazily conjugated."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    tensor = filled(dtype, shape, draw(st.integers(0, 2**31)))
    view = draw(st.sampled_from(["whole", "transposed", "strided", "expanded", "window", "conjugated"]))
    if view == "transposed":
        tensor = tensor.permute(tuple(reversed(range(tensor.dim()))))
    elif view == "strided" and tensor.dim():
        tensor = tensor[..., ::2]
    elif view == "expanded":
        tensor = tensor.unsqueeze(0).expand(3, *tensor.shape)
    elif view == "window" and tensor.dim():
        tensor = tensor[1:]
    elif view == "conjugated" and tensor.is_complex() and dtype != torch.complex32:
        tensor = tensor.conj()
    return tensor
