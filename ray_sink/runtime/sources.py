"""Input rows that share a source, which is a mistake: closed by one of them, the others would be skipped."""

from __future__ import annotations

import numpy as np


class Sources:
    """The sources of the rows that datasets took in. In memory only: no crash depends on them."""

    def __init__(self) -> None:
        self._hashes: dict[str, dict[str, dict[str, np.ndarray]]] = {}

    def seen(self, dataset_id: str, execution: str, place: str, hashes: np.ndarray) -> None:
        """The sources of some rows of an execution, by their place in it; a repeated task says the same again."""
        self._hashes.setdefault(dataset_id, {}).setdefault(execution, {})[place] = hashes

    def sharing(self, dataset_id: str) -> int:
        """How many rows of a dataset have the source of an earlier one."""
        executions = self._hashes.get(dataset_id, {}).values()
        found = (np.concatenate(list(places.values())) for places in executions)
        return max((len(hashes) - len(np.unique(hashes)) for hashes in found), default=0)
