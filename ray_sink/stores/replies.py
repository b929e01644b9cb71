"""What a server's answer means: one table for every engine that speaks HTTP.

S3's codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ray_sink.errors import (
    DestinationError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
)

PART = "put part of"
"""What was asked, where it was a part of a larger object."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is no success.

    Attributes:
        status: HTTP status, or None where no answer came.
        code: the server's own code, such as ``"NoSuchBucket"``; empty where it gave none.
        message: the server's or the client's words; secrets are taken out here.
        timed_out: no answer came in time.
    """

    status: int | None
    code: str = ""
    message: str = ""
    timed_out: bool = False


_TRY_LATER = frozenset(
    [
        "SlowDown",
        "InternalError",
        "ServiceUnavailable",
        "RequestTimeout",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "TooManyRequests",
        "BandwidthLimitExceeded",
        "OperationAborted",
        "ConditionalRequestConflict",
        "NoSuchUpload",
        "BadDigest",
        "XAmzContentChecksumMismatch",
        "InvalidDigest",
        "IncompleteBody",
        "RequestExpired",
    ]
)
_EXPIRED = frozenset(["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"])
_SLOW_DOWN = frozenset(
    [
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "TooManyRequests",
        "BandwidthLimitExceeded",
    ]
)
_EXISTS = frozenset(["PreconditionFailed", "BlobAlreadyExists"])
_NO_ACCESS = frozenset(
    [
        "AccessDenied",
        "AllAccessDisabled",
        "AccountProblem",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "InvalidToken",
        "Forbidden",
        "AuthorizationHeaderMalformed",
        "InvalidSecurity",
        "NotSignedUp",
    ]
)
_WRONG_PLACE = frozenset(["PermanentRedirect", "IllegalLocationConstraintException", "MovedPermanently", "Redirect"])

# a 409 that names a race is none of "exists"; one that names nothing is (Azure)
_RACES = frozenset(["ConditionalRequestConflict", "OperationAborted"])


def may_be_expired(reply: Reply, doing: str) -> bool:
    """Whether new credentials may help. The answer to a HEAD has no body, so none says why it is a bare 400."""
    return reply.code in _EXPIRED or (doing == "head" and reply.status == 400 and not reply.code)


def error_for(reply: Reply, doing: str, url: str, path: str | None) -> StoreError:
    """The error that `reply` stands for.

    Args:
        reply: what came back.
        doing: what was asked, such as ``"put"``.
        url: the destination.
        path: the object's path relative to the destination, where there is one.
    """
    status, code = reply.status, reply.code
    where = f"{url.rstrip('/')}/{path}" if path is not None else url
    said = f"{status or 'no answer'}{' ' + code if code else ''}"
    words = scrub(reply.message).strip().rstrip(".")
    text = f"{doing} {where}: {said}{': ' + words if words else ''}"

    if code == "NoSuchUpload" and doing in ("abort", PART):
        return ObjectMissingError(text, path=path)
    if may_be_expired(reply, doing):
        return StoreUnavailableError(f"{text}. The credentials have, or may have, expired: asking for new", path=path)
    if code == "RequestTimeTooSkewed":
        return StoreUnavailableError(f"{text}. This machine's clock, or the server's, is wrong", path=path)
    if code in _TRY_LATER or reply.timed_out or status is None or status in (408, 425, 429):
        slow = reply.timed_out or status in (429, 503) or code in _SLOW_DOWN
        return StoreUnavailableError(text, path=path, slow_down=slow)
    if code in _EXISTS or status == 412 or (status == 409 and code not in _RACES):
        return ObjectExistsError(text, path=path)
    if code in ("NoSuchBucket", "ContainerNotFound") or (status == 404 and (doing == "put" or path is None)):
        return DestinationError(
            f"{text}. There is no such bucket: create it, or correct the destination and its endpoint_url", path=path
        )
    if status == 404:
        return ObjectMissingError(text, path=path)
    if code in _WRONG_PLACE or status in (301, 302, 307, 308):
        return DestinationError(
            f"{text}. The bucket lives elsewhere: set storage_options={{'region': …}} or endpoint_url", path=path
        )
    if status in (401, 403) or code in _NO_ACCESS:
        return DestinationError(
            f"{text}. The uploader's credentials may not do this: check which ones it finds (environment, profile,"
            " workload identity or UploadOptions.credentials), and their rights to put, get, list, delete and abort"
            " uploads here",
            path=path,
        )
    if status >= 500 and status != 501:
        return StoreUnavailableError(text, path=path, slow_down=status == 503)
    return StoreError(text, path=path)


def parse_body(body: str) -> tuple[str, str]:
    """Code and message of an XML error body; the rest of it may repeat what was signed, and is dropped."""
    code = re.search(r"<Code>([^<]*)</Code>", body)
    message = re.search(r"<Message>([^<]*)</Message>", body)
    return (code[1] if code else "", message[1] if message else "")


_SECRETS = re.compile(
    r"(?P<lead>(?:x-amz-security-token|x-amz-signature|credential|signature|awsaccesskeyid|sig|sv|authorization"
    r"|access_key_id|secret_access_key|secret|token|password|account_key|key_id)['\"]?\s*[=:]\s*(?:b?['\"])?)[^\s&,;\"'<>]+",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


def scrub(text: str) -> str:
    """`text` without what looks like a credential."""
    return _SECRETS.sub(r"\g<lead>***", _USERINFO.sub("***@", text))
