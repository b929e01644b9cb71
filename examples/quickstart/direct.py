"""As it is done today: the model's own actor saves its outputs."""

from __future__ import annotations

import tempfile
from typing import Any

import fsspec
import numpy.typing as npt
import torch
from features import Features
from fsspec.implementations.local import LocalFileSystem
from photographs import Tile


class SavingFeatures(Features):
    """`Features`, and ``torch.save`` and a put for each of them in the same call."""

    def __init__(self, dest: str) -> None:
        super().__init__()
        self.files, self.root = open_place(dest)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
        rows = super().__call__(batch)
        features = rows.pop("features").cpu()
        for row, tensor in enumerate(features):
            tile = Tile(str(batch["photo"][row]), int(batch["y"][row]), int(batch["x"][row]))
            with tempfile.NamedTemporaryFile(suffix=".pt") as file:
                torch.save(tensor.clone(), file)  # of a view, all of the batch would be saved
                file.flush()
                self.files.put_file(file.name, f"{self.root}/{tile.key}.pt")
        return rows


def open_place(url: str) -> tuple[Any, str]:
    """The filesystem of a URL or folder, and the path in it; S3's credentials come from the environment."""
    files, root = fsspec.url_to_fs(url, use_listings_cache=False)
    if isinstance(files, LocalFileSystem):
        files.auto_mkdir = True
    return files, str(root)
