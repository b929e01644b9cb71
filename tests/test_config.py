from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest

from ray_sink.config import DictMode, Limits, SaveFormat, UploadOptions, WriterOptions, refuse_secrets
from ray_sink.errors import ConfigError

Group = WriterOptions | UploadOptions | Limits


@pytest.mark.parametrize("group", [WriterOptions(), UploadOptions(), Limits()], ids=lambda group: type(group).__name__)
def test_the_defaults_are_good_and_travel(group: Group) -> None:
    assert pickle.loads(pickle.dumps(group)) == group


def test_options_cannot_be_changed_afterwards() -> None:
    with pytest.raises(FrozenInstanceError):
        WriterOptions().threads = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (WriterOptions, {"per_node": 0}),
        (WriterOptions, {"per_node": 1.5}),
        (WriterOptions, {"threads": 0}),
        (WriterOptions, {"threads": "4"}),
        (WriterOptions, {"threads": 2.5}),
        (WriterOptions, {"threads": True}),
        (WriterOptions, {"num_cpus": -1}),
        (WriterOptions, {"num_cpus": math.nan}),
        (WriterOptions, {"memory_bytes": -1}),
        (WriterOptions, {"resources": "gpu"}),
        (WriterOptions, {"label_selector": ["a"]}),
        (UploadOptions, {"label_selector": ["a"]}),
        (WriterOptions, {"temp_dir": "relative/tmp"}),
        (UploadOptions, {"engine": "boto3"}),
        (UploadOptions, {"uploaders": 0}),
        (UploadOptions, {"uploaders": 1.5}),
        (UploadOptions, {"concurrency": 0}),
        (UploadOptions, {"buffer_bytes": 1000}),
        (UploadOptions, {"multipart_above_bytes": 1000}),
        (UploadOptions, {"credentials": "module.function"}),
        (UploadOptions, {"credentials": "AKIAABCDEF:secret/key+"}),
        (UploadOptions, {"storage_options": "region=x"}),
        (Limits, {"object_store_bytes": 1}),
        (Limits, {"inflight_outputs": 0}),
        (Limits, {"inflight_outputs": 10.5}),
        (Limits, {"temp_bytes": 0}),
        (Limits, {"staging_bytes": None}),
        (Limits, {"device_bytes": 0}),
        (Limits, {"drain_s": -1}),
        (Limits, {"drain_s": math.nan}),
        (Limits, {"takeover_s": 0}),
        (Limits, {"storage_wait_s": 0}),
        (Limits, {"storage_wait_s": math.nan}),
    ],
    ids=lambda part: str(part) if isinstance(part, dict) else part.__name__,
)
def test_a_wrong_option_is_named(make: Callable[..., Group], wrong: dict[str, object]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=rf"{make.__name__}\.{name}"):
        make(**wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"key": "x"},
        {"secret": "x"},
        {"SECRET": "x"},
        {"token": "x"},
        {"password": "x"},
        {"aws_secret_access_key": "x"},
        {"aws_access_key_id": "x"},
        {"AWS_SESSION_TOKEN": "x"},
        {"sas_token": "x"},
        {"account_key": "x"},
        {"connection_string": "x"},
        {"client_secret": "x"},
        {"client_kwargs": {"aws_secret_access_key": "x"}},
        {"a": {"b": {"private_key": "x"}}},
        {"servers": [{"password": "x"}]},
        {"servers": ({"password": "x"},)},
        {"endpoint_url": "https://user:x@host"},
        {"proxies": ["https://user:x@host"]},
    ],
    ids=str,
)
def test_a_secret_is_refused_at_any_depth_and_not_repeated(options: dict[str, object]) -> None:
    for check in (refuse_secrets, lambda options: UploadOptions(storage_options=options)):
        with pytest.raises(ConfigError, match="storage_options") as caught:
            check(options)
        assert "'x'" not in str(caught.value)
        assert ":x@" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint_url": "http://localhost:8333", "region": "eu-west-1", "ca_bundle": "/etc/ssl/ca.pem"},
        {"profile": "research", "sse_kms_key_id": "arn:aws:kms:eu-west-1:1:key/2", "storage_class": "STANDARD_IA"},
        {"client_kwargs": {"verify": False}, "hosts": ["a", "b"]},
    ],
    ids=str,
)
def test_what_is_no_secret_is_let_through(options: dict[str, object]) -> None:
    assert UploadOptions(storage_options=options).storage_options == options


def test_names_are_those_of_journals_and_manifests() -> None:
    assert [*SaveFormat] == ["pytorch_pt", "numpy_npz", "numpy_npy", "safetensors"]
    assert [*DictMode] == ["single", "split"]
