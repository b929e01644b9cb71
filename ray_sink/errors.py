"""Everything that can go wrong, as one small tree.

::

    SinkError
    ├── ConfigError (ValueError)            an option or argument is wrong
    ├── InvalidKeyError (ValueError)        a key cannot name an output
    ├── DuplicateKeyError (ValueError)      two different rows share one key
    ├── UnsupportedValueError (TypeError)   the format cannot hold the value
    ├── SinkClosedError                     used after close()
    ├── StagingError                        the staging folder is unusable
    │   └── StagedFileChangedError          a staged file is not what its receipt says
    ├── StoreError                          an object store said no
    │   ├── StoreUnavailableError           ... for now; trying again makes sense
    │   ├── ObjectExistsError               a create-only put met an object
    │   ├── ObjectMissingError              nothing under that name
    │   └── DestinationError                the destination cannot be reached or written
    │       └── DestinationUnavailableError (StoreUnavailableError)   ... for now, as far as one can tell
    ├── DestinationConflict                 another run's output has the key
    ├── PathConflict                        another key of this run has the path
    ├── RunError
    │   ├── RunOwnedError                   a live driver owns the run, or its roots
    │   ├── RunFencedError                  a newer owner took the run over
    │   ├── RunMismatchError                the run id belongs to a different run
    │   ├── RunSealedError                  the run is complete; no new keys
    │   ├── RunIncomplete                   close() cannot seal: not all of it ran
    │   └── JournalCorruptError             a journal record is damaged
    └── OutputsFailed                       outputs that could not be committed, by key

Every class survives pickling with its attributes: the message is the only positional argument and all
others have defaults, so that ``Exception.__reduce__`` can rebuild it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self


class SinkError(Exception):
    """Base of all errors of this package. The message says what the reader can do about it."""


class ConfigError(SinkError, ValueError):
    """An option or argument is wrong; nothing was written."""


class InvalidKeyError(SinkError, ValueError):
    """A key cannot name an output; it was rejected, not cleaned.

    Attributes:
        key: the key as it came in.
    """

    def __init__(self, message: str, *, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class DuplicateKeyError(SinkError, ValueError):
    """Two different rows carry the same key.

    Attributes:
        keys: the keys that occur more than once.
    """

    def __init__(self, message: str, *, keys: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


class UnsupportedValueError(SinkError, TypeError):
    """The format cannot hold the value: its type, shape or dtype. The message names it."""


class SinkClosedError(SinkError):
    """A sink, a handle or a writer was used after ``close()``."""


class StagingError(SinkError):
    """The staging folder is missing, read-only, not shared, full or broken."""


class StagedFileChangedError(StagingError):
    """A staged file's bytes are not those that its receipt names; it was not uploaded."""


class StoreError(SinkError):
    """An object store refused or failed. Trying the same again makes no sense.

    Attributes:
        path: the object's path relative to the destination, where there is one.
    """

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class StoreUnavailableError(StoreError):
    """The store did not answer, or asked to slow down: the outcome may be unknown; look, then try again.

    Attributes:
        slow_down: the store asked for less or did not keep up (503 SlowDown, 429, a timeout).
    """

    def __init__(self, message: str, *, path: str | None = None, slow_down: bool = False) -> None:
        super().__init__(message, path=path)
        self.slow_down = slow_down


class ObjectExistsError(StoreError):
    """A create-only put met an object under that name."""


class ObjectMissingError(StoreError):
    """There is no object under that name."""


class DestinationError(StoreError):
    """The destination cannot be reached, read or written with what was configured."""


class DestinationUnavailableError(DestinationError, StoreUnavailableError):
    """The destination did not answer who asked what it can do: wrong at the start of a run, and waited for later."""


class DestinationConflict(SinkError):
    """Another run's output was found under a key, and ``on_conflict="error"``.

    Attributes:
        keys: the keys in question.
    """

    def __init__(self, message: str, *, keys: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


class PathConflict(SinkError):
    """Two keys of one run lead to the same file (``a_b`` + ``c``, ``a`` + ``b_c``).

    Attributes:
        keys: the key that has the path, and the one that wanted it.
        path: the path.
    """

    def __init__(self, message: str, *, keys: Sequence[str] = (), path: str = "") -> None:
        super().__init__(message)
        self.keys = tuple(keys)
        self.path = path


class RunError(SinkError):
    """Something about the run as a whole."""


class RunOwnedError(RunError):
    """A live driver owns this run, this destination or this staging folder."""


class RunFencedError(RunError):
    """A newer owner, or a newer life of the ledger, has taken over; what came from the older is refused."""


class RunMismatchError(RunError):
    """The run id belongs to a run with another fingerprint, format or destination."""


class RunSealedError(RunError):
    """The run is sealed; it takes no new keys."""


class RunIncomplete(RunError):
    """``close()`` cannot seal: a dataset or a producer did not come to its end.

    Attributes:
        producers: names of producers that never said goodbye.
    """

    def __init__(self, message: str, *, producers: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.producers = tuple(producers)


class JournalCorruptError(RunError):
    """A journal record is damaged in a way that no crash explains. Nothing was dropped."""


class OutputsFailed(SinkError):
    """Outputs that were accepted and could not be committed.

    Attributes:
        failures: reason by key.
    """

    def __init__(self, message: str, *, failures: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.failures = dict(failures or {})

    @classmethod
    def of(cls, failures: Mapping[str, str]) -> Self:
        """The error that names outputs, reason by key; the first ten in its message."""
        shown = "; ".join(f"{key!r}: {reason}" for key, reason in list(failures.items())[:10])
        more = f"; and {len(failures) - 10} more" if len(failures) > 10 else ""
        return cls(f"{len(failures)} output(s) could not be committed: {shown}{more}", failures=failures)
