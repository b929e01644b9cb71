"""The Sink: one run, from its start in the driver to its seal."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from ray_sink.config import Ack, DictMode, Limits, NodeLocal, OnConflict, SaveFormat, UploadOptions, WriterOptions
from ray_sink.display import show_report
from ray_sink.doctor.starting import check_staging, check_store
from ray_sink.errors import ConfigError, OutputsFailed, RunIncomplete, SinkClosedError, SinkError
from ray_sink.events import emit
from ray_sink.filesystem import PosixFilesystem
from ray_sink.keys import RESERVED
from ray_sink.ledger import LedgerOptions, check_same_run
from ray_sink.manifest import Seal, read_seal
from ray_sink.ownership import Claim, FolderPlace, Owner, Place, StorePlace, claim
from ray_sink.patience import Patience
from ray_sink.reading import Manifest, read_table
from ray_sink.records import RunStatus
from ray_sink.report import Report
from ray_sink.runtime.actors import RunActors, join_cluster
from ray_sink.runtime.destination import Destination
from ray_sink.runtime.sealing import seal_run, set_aside
from ray_sink.settings import checked_settings
from ray_sink.stores import open_store

if TYPE_CHECKING:
    import ray.data
    from ray.data.dataset import MaterializedDataset

    from ray_sink.formats.base import Format
    from ray_sink.runtime.handle import SinkHandle

_log = logging.getLogger("ray_sink")
_LETTING_GO_S: Final = 10.0
"""How long letting go of a run may take where an exception is on its way out."""


class Sink:
    """One run: where outputs go, its actors, its end. Lives in the driver; use it as a context manager.

    Making one starts the run: it joins (or starts) Ray, checks staging and destination, claims them, and resumes what
    an earlier driver of the same run left. Leaving the block calls `close`; leaving it by an exception drains for
    ``limits.drain_s``, keeps everything for the next try, and seals nothing.

    Args:
        dest: an fsspec URL (``s3://``, ``gs://``, ``az://``, ``file://``, …) or a folder; None: staging is the
            destination.
        staging: an existing folder on a filesystem that all nodes mount at the same path; or, where there is no such
            filesystem, a `NodeLocal` folder on each node's own disk.
        run_id: names the run; None: derived from `dest` and `staging`, so that the same script resumes.
        fingerprint: what makes outputs comparable (a checkpoint's hash, a commit); another one is refused on resume.
        save_format: a `SaveFormat`, or anyone's own `Format`.
        dict_mode: one file for a mapping or sequence, or one for each tensor.
        ack: what a ticket waits for.
        on_conflict: what to do with other runs' outputs found under a key.
        writers: the writer actors.
        upload: the way to the object store.
        limits: budgets and times.
        progress: show in the driver how the run is doing, and a table at its end: in a terminal one line that is kept
            up to date, elsewhere a line every half minute.

    Attributes:
        manifest: the run's manifest, once it is sealed.

    Raises:
        ConfigError: an argument is wrong.
        StagingError: the staging folder is missing, read-only or broken.
        DestinationError: the destination cannot be reached or written.
        RunOwnedError: a live driver owns the destination or the staging folder.
        RunMismatchError: the run id belongs to a run with another fingerprint, format or destination.
    """

    def __init__(
        self,
        dest: str | os.PathLike[str] | None,
        *,
        staging: str | os.PathLike[str] | NodeLocal,
        run_id: str | None = None,
        fingerprint: str | None = None,
        save_format: SaveFormat | Format = SaveFormat.PYTORCH_PT,
        dict_mode: DictMode = DictMode.SINGLE,
        ack: Ack = "staged",
        on_conflict: OnConflict = "error",
        writers: WriterOptions = WriterOptions(),  # noqa: B008 - frozen
        upload: UploadOptions = UploadOptions(),  # noqa: B008
        limits: Limits = Limits(),  # noqa: B008
        progress: bool = True,
    ) -> None:
        self._settings = checked_settings(
            dest,
            staging=staging,
            run_id=run_id,
            fingerprint=fingerprint,
            save_format=save_format,
            dict_mode=dict_mode,
            ack=ack,
            on_conflict=on_conflict,
            writers=writers,
            upload=upload,
            limits=limits,
            progress=progress,
        )
        self._info = self._settings.info
        self._limits = self._settings.limits
        self.run_id = self._info.run_id
        self._began_s = time.monotonic()
        self._destination: Destination | None = None
        self._actors: RunActors | None = None
        self._claim: Claim | None = None
        self._manifest: Manifest | None = None
        self._closed = False
        try:
            self._start()
        except BaseException:
            self._stop(sweep=False)
            raise

    # -- the start ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        settings, root = self._settings, Path(self._info.staging)
        places: list[Place] = []
        if settings.node_local is None:
            check_staging(root, self._limits)
            places.append(FolderPlace(PosixFilesystem(), root))
        join_cluster()
        if self._info.dest is not None:
            self._destination = Destination.started(self._info, settings.upload)
            able = self._destination.probe()
            check_store(able)
            if settings.node_local is not None and not (able.create_only and able.metadata):
                raise ConfigError(
                    f"{self._info.dest} keeps no word on create-only puts, or no metadata: with NodeLocal, these alone"
                    " tell attempts of an output apart. Take a staging folder that all nodes mount"
                )
            if able.create_only:
                # a store that keeps its word comes first: two drivers meet there
                places.insert(0, StorePlace(self._destination))
            self._store: Any = self._destination
        else:
            self._store = open_store(str(root), UploadOptions())
        self._seal_found()
        owner = Owner(self.run_id, socket.gethostname(), os.getpid(), uuid.uuid4().hex)
        self._claim = claim(places, owner, takeover_s=self._limits.takeover_s, clock=time.monotonic, sleep=time.sleep)
        # once more: the owner before may have sealed since
        found = self._seal_found()
        if found is not None:
            self._manifest = Manifest(found, read_table(self._store, found), settings.upload)
        self._store.sweep()
        options = LedgerOptions(
            on_conflict=settings.on_conflict,
            foreign=self._listing(),
            uploaders=settings.upload.uploaders,
            keep_staged=settings.upload.keep_staged,
            sealed=None if self._manifest is None else tuple(self._manifest.receipts()),
        )
        self._actors = RunActors(
            settings.spec(self._claim.epoch), options, self._destination, self._claim, progress=settings.progress
        )

    def _seal_found(self) -> Seal | None:
        """The seal of this very run, refused if it is another's."""
        found = read_seal(self._store, self.run_id)
        if found is not None:
            check_same_run(found.run, self._info)
        return found

    def _listing(self) -> Mapping[str, int]:
        """What is at the destination already; looked through once."""
        if self._settings.node_local is not None:
            return {}  # whose it is, each put finds out: a crash leaves some of our own that no journal knows
        if self._destination is not None:
            return self._destination.listing()
        return {o.path: o.bytes for o in self._store.list() if not o.path.startswith(f"{RESERVED}/")}

    def _running(self) -> RunActors:
        if self._closed or self._actors is None:
            raise SinkClosedError("this sink is closed: make a new one to go on with the run")
        return self._actors

    # -- writing -----------------------------------------------------------------------------------------------------

    def handle(self) -> SinkHandle:
        """A producer's end: picklable, for tasks and actors; a context manager."""
        return self._running().handle()

    def run(
        self,
        ds: ray.data.Dataset,
        model: Any,
        *,
        key: str,
        columns: str | Sequence[str] | None = None,
        source: str | None = None,
        **map_batches_arguments: Any,
    ) -> MaterializedDataset[Any]:
        """Run a model over a dataset, once, to the end, and its outputs into the sink, row by row.

        Args:
            ds: the input.
            model: what `ray.data.Dataset.map_batches` takes: a class (made once in each actor) or a function. It is
                called unchanged.
            key: a column, or a template such as ``"{case_id}/{step:04d}"``, from the model's output, else its input.
            columns: what to save of the model's output: a column's tensor, a mapping of several, or with None all
                tensor columns that the model added or replaced.
            source: a column of `ds`, or a template over several, that names each row, for models that make many rows
                of one (a rollout). A row is done when all that the model made of it in one call is committed: then a
                resumed run leaves it out; one that is half done is computed again as a whole.
            **map_batches_arguments: any other argument of ``map_batches``.

        Returns:
            One row for each output: its receipt as columns, next to the columns kept. Rows whose key was committed
            before are not computed again; their receipts are in the manifest.

        Raises:
            ConfigError: an argument is wrong.
            DuplicateKeyError: two rows have one key, or one source.
            Exception: what the model raised.
        """
        from ray_sink.runtime import data

        return data.run(self._context(), ds, model, key=key, columns=columns, source=source, **map_batches_arguments)

    def map_batches(
        self,
        ds: ray.data.Dataset,
        model: Any,
        *,
        key: str,
        columns: str | Sequence[str] | None = None,
        source: str | None = None,
        **map_batches_arguments: Any,
    ) -> ray.data.Dataset:
        """`run`, lazily, for longer pipelines.

        The dataset must be run to its end before `close`: Ray Data runs it as often as it is consumed, and in part
        for ``take``; then `close` raises `RunIncomplete`.

        Where several datasets are put together, Ray Data runs them under the first one's context, and only this one's
        executions are watched: write ``this.union(other)``, ``this.zip(other)``. The other way round the rows are
        written just the same, and `close` raises `RunIncomplete` all the same.
        """
        from ray_sink.runtime import data

        context = self._context()
        return data.map_batches(context, ds, model, key=key, columns=columns, source=source, **map_batches_arguments)

    def wrap(self, model: Any, *, key: str, columns: str | Sequence[str] | None = None, **arguments: Any) -> Any:
        """The class behind `run`, for those who call ``ds.map_batches`` themselves.

        What comes back has its receipts as with `run`; what is left out of that is the driver's part. No row is taken
        out on a resume (put ``sink.remaining(ds, key=…)`` in front), two rows under one key are only found within a
        batch, and nobody watches whether the dataset runs to its end: after ``take(3)``, or where Ray Data dropped
        blocks, `close` seals what there is. `map_batches` does all of that.

        Give ``map_batches`` an ``ActorPoolStrategy`` with ``max_concurrent_calls_per_actor=4``, so that the model does
        not wait for receipts, and ``max_restarts=-1``: without it an error in front of the model can hang it for ever.
        """
        from ray_sink.runtime import data

        return data.wrap(self._context(), model, key=key, columns=columns, **arguments)

    def datasink(self, *, key: str, columns: str | Sequence[str] | None = None) -> ray.data.Datasink[Any]:
        """The end of a pipeline, for ``ds.write_datasink``: where the model is no class of the user's.

        A write task ends only with the receipts of all its rows. Rows whose key is committed already are dropped; to
        spare the model them, too, begin the pipeline with `remaining`. Ask for one for each dataset: it has to be
        written to its end before `close`, else `close` raises `RunIncomplete`.

        Args:
            key: a column of the dataset, or a template over several.
            columns: what to save: a column's tensor, a mapping of several, or with None all tensor columns.

        Raises:
            ConfigError: an argument is wrong.
        """
        from ray_sink.runtime import data

        return data.datasink(self._context(), key=key, columns=columns)

    def remaining(self, ds: ray.data.Dataset, *, key: str | None = None, source: str | None = None) -> ray.data.Dataset:
        """The rows of `ds` that are still to be done, before any GPU time is spent.

        Args:
            ds: the input; lazy, as what is returned.
            key: with it, rows whose output is staged or uploaded are taken out.
            source: with it, rows are taken out of which a `run` with the same `source` has all outputs: never a part.

        Raises:
            ConfigError: the columns are not in the dataset, or not one of `key` and `source` is given.
        """
        from ray_sink.runtime import data

        return data.remaining(self._context(), ds, key=key, source=source)

    def _context(self) -> RunActors:
        return self._running()

    # -- the end -----------------------------------------------------------------------------------------------------

    @property
    def manifest(self) -> Manifest:
        """The run's manifest.

        Raises:
            SinkError: the run is not sealed.
        """
        if self._manifest is None:
            raise SinkError("the run is not sealed yet: its manifest is there after close()")
        return self._manifest

    def status(self) -> RunStatus:
        """Where the run stands."""
        return self._running().glance()

    def close(self) -> Manifest:
        """Wait until every accepted output is committed, and seal the run. A second call returns the manifest again.

        Raises:
            RunIncomplete: a dataset did not run to its end, or a producer never closed its handle.
            OutputsFailed: naming the outputs that could not be committed, if they are more than `Limits.max_failures`.
                Up to that many are set aside, and the run is sealed without them: the manifest's `failures` names them,
                ``_PARTIAL`` is there instead of ``_SUCCESS``, and the same script again tries them again.
            RunFencedError: a newer owner has the run.
        """
        if self._closed:
            return self.manifest
        actors = self._running()
        sealed = False
        try:
            status = actors.status()
            if status.unfinished:
                actors.drain(self._limits.drain_s)
                raise RunIncomplete(
                    f"run {self.run_id!r} is not complete: {'; '.join(status.unfinished)}. What was accepted is safe;"
                    " run the same script again to finish it",
                    producers=status.open_producers,
                )
            status = actors.drain(None)
            report = self._report(actors, status)
            # a sealed run stays as it is: what failed there were new keys
            if len(status.failures) > (self._limits.max_failures if self._manifest is None else 0):
                raise OutputsFailed.of(status.failures)
            if self._manifest is None:
                self._manifest = self._seal(actors, status, report)
            sealed = True
        finally:
            self._stop(sweep=sealed)
        return self._manifest

    def _report(self, actors: RunActors, status: RunStatus) -> Report:
        assert self._claim is not None
        wall_s = time.monotonic() - self._began_s
        report = Report(self._info, self._claim.epoch, wall_s, actors.measured(), status)
        emit(report.event())
        if self._settings.progress and sys.stderr.isatty():
            show_report(report, sys.stderr)
        return report

    def _seal(self, actors: RunActors, status: RunStatus, report: Report) -> Manifest:
        assert self._claim is not None
        self._claim.check_all()
        report.keep(self._store)
        made = seal_run(actors, self._info, self._claim.epoch, status, self._destination or self._store)
        if made.failures and self._settings.node_local is None:
            set_aside(made)
        return Manifest(made, read_table(self._store, made), self._settings.upload)

    def _stop(self, *, sweep: bool, hurried: bool = False) -> None:
        """End the actors and let go of the run; whatever happens, all of it is tried.

        Args:
            sweep: remove what is left of this life.
            hurried: somebody waits for this process to end: a run that is not soon let go of is left to be taken over.
        """
        self._closed = True
        steps: list[Callable[[], None]] = []
        if self._actors is not None:
            steps.append(partial(self._actors.stop, sweep=sweep))
        if self._claim is not None:
            wait_s = self._limits.storage_wait_s
            patience = Patience(min(wait_s, _LETTING_GO_S) if hurried else wait_s)
            release = self._claim.release
            steps.append(partial(patience.within, "releasing the run", lambda tick: release()))
        if self._destination is not None:
            steps.append(self._destination.stop)
        for step in steps:
            try:
                step()
            except Exception:  # noqa: BLE001 - the run's fate is decided; a claim that stays is taken over in time
                _log.warning("sink.stop_failed", exc_info=True)

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif not self._closed:
            try:
                self._running().drain(self._limits.drain_s)
            except SinkError as own:
                error.add_note(f"and draining the sink raised {type(own).__name__}: {own}")
            finally:
                self._stop(sweep=False, hurried=True)
