"""The model: dense features of a tile, by a fixed bank of filters. The same input gives the same bytes."""

from __future__ import annotations

import math
import os
import socket
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from photographs import SIZE

SCALES = (1.0, 1.5, 2.25, 3.4)
"""Standard deviations of the Gaussians, in pixels."""
_FAINT = 1e-4
_ORDERS = ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0))

FINGERPRINT = f"gaussian derivatives to order 2 over contrast at {SCALES}, float16"
"""What makes one run's outputs comparable with another's; for a trained model, its checkpoint's hash."""


class FilterBank(torch.nn.Module):
    """Derivatives of Gaussians up to the second order, at each scale, for each colour, over their local contrast.

    The filters are separable, and filtering along one axis is a product with a matrix.
    """

    operators: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("operators", torch.stack([_operators(scale) for scale in SCALES]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Features of one tile.

        Args:
            image: colours, y, x; float32.

        Returns:
            Maps (scales · derivatives · colours), y, x; float16.
        """
        along_x = image @ self.operators[:, :, None].mT  # scales, orders, colours, y, x
        maps = torch.stack([self.operators[:, y, None] @ along_x[:, x] for y, x in _ORDERS], dim=1)
        widest = self.operators[-1, 0]
        contrast = (widest @ maps.square() @ widest.mT + _FAINT).sqrt()
        return (maps / contrast).flatten(end_dim=2).half()


def _operators(scale: float) -> torch.Tensor:
    """Matrices that smooth a line of pixels, and take its first and second derivative; the ends are mirrored."""
    radius = math.ceil(4 * scale)
    taps = torch.arange(-radius, radius + 1, dtype=torch.float64)
    gaussian = torch.exp(-(taps**2) / (2 * scale**2))
    gaussian /= gaussian.sum()
    kernels = (gaussian, -taps / scale * gaussian, (taps**2 / scale**2 - 1) * gaussian)
    line = torch.arange(SIZE)
    operators = torch.zeros(3, SIZE, SIZE, dtype=torch.float64)
    for operator, kernel in zip(operators, kernels, strict=True):
        for tap, weight in zip(taps.long(), kernel, strict=True):
            place = line + tap
            place = torch.where(place < 0, -1 - place, torch.where(place >= SIZE, 2 * SIZE - 1 - place, place))
            operator[line, place] += weight
    return operators.float()


class Features:
    """What ``map_batches`` runs: takes tiles, returns their features, and when it began and ended computing."""

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.bank = FilterBank().to(self.device)
        self.actor = f"{socket.gethostname()}-{os.getpid()}"

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
        began = time.monotonic()
        features = self.compute(batch["pixels"])
        rows = len(features)
        return {
            "features": features,
            "actor": np.full(rows, self.actor),
            "began": np.full(rows, began),
            "ended": np.full(rows, time.monotonic()),
        }

    @torch.inference_mode()
    def compute(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Features of tiles, one by one: a tile's bytes must not depend on how Ray Data made up the batch."""
        images = torch.from_numpy(pixels.copy()).to(self.device).permute(0, 3, 1, 2).float() / 255
        features = torch.stack([self.bank(image) for image in images])
        if features.is_cuda:
            torch.cuda.synchronize()
        return features
