"""What an S3 destination is, resolved once and meant the same by both engines."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ray_sink.config import UploadOptions
from ray_sink.errors import ConfigError
from ray_sink.stores.credentials import S3Source, s3_source

OPTIONS = ("endpoint_url", "region", "ca_bundle", "profile", "sse_kms_key_id", "storage_class")


@dataclass(frozen=True, slots=True)
class S3Settings:
    """One bucket, and the way to it.

    Attributes:
        url: the destination as the user gave it.
        bucket: its name.
        prefix: what precedes every path, without slashes at its ends; may be empty.
        endpoint_url: the server, or None for AWS's own.
        region: the region.
        ca_bundle: file of certificates to trust, or None.
        sse_kms_key_id: key that the server encrypts with, or None.
        storage_class: storage class of new objects, or None.
        credentials: gives the credentials of this moment.
    """

    url: str
    bucket: str
    prefix: str
    endpoint_url: str | None
    region: str
    ca_bundle: str | None
    sse_kms_key_id: str | None
    storage_class: str | None
    credentials: S3Source = field(repr=False)

    @property
    def allow_http(self) -> bool:
        """Whether the user chose a server without TLS."""
        return (self.endpoint_url or "").startswith("http://")

    @property
    def unsigned_payload(self) -> bool:
        """Whether the body needs no signature of its own.

        Its CRC64NVME travels in a signed header; TLS, or a path that never leaves the machine, keeps it from being
        forged. https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
        """
        return not self.allow_http or _is_loopback(urlsplit(self.endpoint_url or "").hostname or "")


def resolve(dest: str, upload: UploadOptions) -> S3Settings:
    """Settings for ``s3://bucket/prefix``: the options first, then environment and profile.

    Raises:
        ConfigError: an option is unknown or wrong.
        DestinationError: nothing gives credentials here.
    """
    bucket, prefix = split(dest)
    options = _texts(upload.storage_options)
    import botocore.session
    from botocore.exceptions import ProfileNotFound

    session = botocore.session.Session(profile=options.get("profile"))
    try:
        config = session.get_scoped_config()
    except ProfileNotFound as error:
        raise ConfigError(f"storage_options['profile']: {error}") from None
    endpoint = options.get("endpoint_url") or _configured_endpoint(config)
    if endpoint is not None and urlsplit(endpoint).scheme not in ("http", "https"):
        raise ConfigError(f"endpoint_url must begin with http:// or https://, got {endpoint!r}")
    bundle = options.get("ca_bundle") or session.get_config_variable("ca_bundle")
    if bundle is not None and not Path(bundle).is_file():
        raise ConfigError(f"ca_bundle {bundle!r} is no file where the uploader runs")
    return S3Settings(
        url=dest,
        bucket=bucket,
        prefix=prefix,
        endpoint_url=endpoint,
        region=options.get("region") or session.get_config_variable("region") or "us-east-1",
        ca_bundle=bundle,
        sse_kms_key_id=options.get("sse_kms_key_id"),
        storage_class=options.get("storage_class"),
        credentials=s3_source(upload.credentials, session),
    )


def split(dest: str) -> tuple[str, str]:
    """Bucket and prefix of ``scheme://bucket/prefix``.

    Raises:
        ConfigError: there is no bucket, or there are credentials in the URL.
    """
    # by hand: '#' and '?' are ordinary characters in object names
    place = dest.partition("://")[2]
    bucket, _, prefix = place.partition("/")
    if "@" in bucket:
        raise ConfigError("the destination has credentials in it, which logs would show: see UploadOptions.credentials")
    if not bucket:
        raise ConfigError(f"destination {dest!r} names no bucket: write s3://bucket/prefix")
    prefix = prefix.strip("/")
    if any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise ConfigError(f"destination {dest!r} has an empty, '.' or '..' component")
    return bucket, prefix


def _texts(options: Mapping[str, object]) -> dict[str, str]:
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ConfigError(f"unknown storage_options for S3: {', '.join(unknown)}; there are {', '.join(OPTIONS)}")
    for name, value in options.items():
        if not isinstance(value, str) or not value:
            raise ConfigError(f"storage_options[{name!r}] must be a str that is not empty, got {value!r:.60}")
    return {name: str(value) for name, value in options.items()}


def _configured_endpoint(config: Mapping[str, object]) -> str | None:
    found = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or config.get("endpoint_url")
    return str(found) if found else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
