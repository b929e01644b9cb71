"""Where an uploader's credentials come from. Nothing here is imported outside the uploader's process."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ray_sink.errors import ConfigError, DestinationError, StoreUnavailableError

# Both engines renew within five minutes of the end, so each set of a renewing source is used for five.
_LIFE = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class S3Credentials:
    """One set of credentials; its repr shows none of them.

    Attributes:
        access_key_id: the id.
        secret_access_key: the secret.
        session_token: the token of temporary credentials.
        expires_at: when to ask for new ones; None: never.
    """

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None


S3Source = Callable[[], S3Credentials]
"""Gives the credentials of this moment; called again when they expire."""


def load(spec: str) -> Callable[[], Mapping[str, object]]:
    """The function that ``UploadOptions.credentials`` names, with its errors turned into ours.

    Raises:
        ConfigError: there is no such module or function.
    """
    module_name, _, function_name = spec.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"UploadOptions.credentials={spec!r} cannot be found where the uploader runs ({error}): it needs a module"
            " that every node can import, and a function in it"
        ) from error
    if not callable(function):
        raise ConfigError(f"UploadOptions.credentials={spec!r} names a {type(function).__name__}, not a function")

    def called() -> Mapping[str, object]:
        try:
            values = function()
        except Exception as error:  # noqa: BLE001 its words may hold what it was about to return
            raise DestinationError(f"UploadOptions.credentials={spec!r} raised {type(error).__name__}") from None
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"UploadOptions.credentials={spec!r} returned a {type(values).__name__}; it must return a mapping"
            )
        return values

    return called


def s3_source(spec: str | None, session: Any) -> S3Source:
    """The source for S3: the named function, or botocore's own chain.

    Args:
        spec: ``UploadOptions.credentials``.
        session: a `botocore.session.Session`, already on the right profile.

    Raises:
        DestinationError: nothing gives credentials here.
    """
    if spec is not None:
        function = load(spec)
        return lambda: _from_mapping(function(), spec)
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    try:
        found = session.get_credentials()
    except BotoCoreError as error:
        raise DestinationError(f"the AWS credentials cannot be loaded: {type(error).__name__}") from None
    if found is None:
        raise DestinationError(
            "no S3 credentials where the uploader runs: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY there, name a"
            " profile in storage_options, give its pods a workload identity, or use UploadOptions(credentials=…)"
        )
    renews = hasattr(found, "refresh_needed")

    def from_chain() -> S3Credentials:
        try:
            # what cannot renew itself is looked up again: somebody may have written new ones into the file
            now = found if renews else Session(profile=session.profile).get_credentials() or found
            frozen = now.get_frozen_credentials()
        except BotoCoreError as error:
            raise StoreUnavailableError(f"the AWS credentials cannot be renewed: {type(error).__name__}") from None
        # a wrong clock asks too early or too late: whoever is refused asks anew
        expires_at = datetime.now(UTC) + _LIFE if renews else None  # noqa: TID251 - the engines compare it with theirs
        return S3Credentials(frozen.access_key, frozen.secret_key, frozen.token, expires_at)

    return from_chain


_NAMES = ("access_key_id", "secret_access_key", "session_token", "expires_at")


def _from_mapping(values: Mapping[str, object], spec: str) -> S3Credentials:
    plain = {str(name).removeprefix("aws_"): value for name, value in values.items()}
    unknown = sorted(set(plain) - set(_NAMES))
    if unknown or not all(isinstance(plain.get(name), str) for name in _NAMES[:2]):
        raise ConfigError(
            f"UploadOptions.credentials={spec!r} must return access_key_id and secret_access_key, and may return"
            f" session_token and expires_at (an aware datetime); it returned {', '.join(sorted(plain)) or 'nothing'}"
        )
    token, expires_at = plain.get("session_token"), plain.get("expires_at")
    if expires_at is not None and not (isinstance(expires_at, datetime) and expires_at.tzinfo):
        raise ConfigError(f"UploadOptions.credentials={spec!r}: expires_at must be a datetime with a time zone")
    return S3Credentials(
        str(plain["access_key_id"]),
        str(plain["secret_access_key"]),
        str(token) if token is not None else None,
        expires_at,
    )
