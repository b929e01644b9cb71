"""What a writer has on its own node where staging is node-local: a folder, and an uploader beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_sink.budget import ByteBudget
from ray_sink.measures import UploaderMeasures
from ray_sink.node_local import LocalFolder, NodeLocalPublishing, Uploads
from ray_sink.patience import Patience
from ray_sink.records import Decision, Proposal, UploadOutcome, UploadTask
from ray_sink.runtime import placement
from ray_sink.runtime.calls import result
from ray_sink.runtime.messages import RunSpec
from ray_sink.runtime.uploading import UploaderShell

_BATCHES_AT_ONCE = 16


class Beside:
    """The uploader is the writer's own: it ends with it, and no one else knows of it.

    Args:
        spec: the run.
        coordinator: its actor handle.
        node: id of this node.

    Attributes:
        folder: where files are staged.
        room: for them; see `ray_sink.Limits.temp_bytes`.

    Raises:
        StagingError: there is no folder.
    """

    def __init__(self, spec: RunSpec, coordinator: Any, node: str) -> None:
        assert spec.node_local is not None
        self.folder = LocalFolder(Path(spec.node_local), spec.info.run_id)
        self.room = ByteBudget(spec.limits.temp_bytes)
        self._coordinator = coordinator
        self._measures: UploaderMeasures | None = None
        self._uploader = placement.spawn(
            UploaderShell,
            spec.info,
            spec.upload,
            max_concurrency=_BATCHES_AT_ONCE,
            max_restarts=-1,
            max_task_retries=-1,
            **placement.on_node(node),
        )

    def publishing(self, term: str, patience: Patience) -> NodeLocalPublishing:
        """The policy for one life of the ledger."""
        return NodeLocalPublishing(
            self.folder, term, foresee=self._foresee, upload=self._upload, commit=self._commit, patience=patience
        )

    def _foresee(self, proposals: Sequence[Proposal]) -> list[Decision]:
        return list(result(self._coordinator.foresee.remote(proposals)))

    def _upload(self, tasks: Sequence[UploadTask]) -> list[UploadOutcome]:
        outcomes, self._measures = result(self._uploader.upload.remote(tasks, self._coordinator))
        return list(outcomes)

    def _commit(self, uploads: Uploads) -> list[Decision]:
        assert self._measures is not None
        return list(result(self._coordinator.commit.remote(uploads, self._measures)))
