"""Secrets in addresses are neither stored nor shown."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trainables.core.credentials import SECRETS, shown, take_secrets, with_secrets, without_password


@pytest.mark.parametrize(
    ("uri", "stored"),
    [
        ("postgresql://ada:hush%40@host:1/db?a=b", "postgresql://ada@host:1/db?a=b"),
        ("postgresql+psycopg://ada:hu@sh@host/db?mail=x@y", None),
        ("postgresql://ada:hu?sh@host/db", "postgresql://ada@host/db"),
        ("postgresql://ada:hu#s/h@host/db", "postgresql://ada@host/db"),
        ("postgresql://ada@host/db?password=hush&a=b", "postgresql://ada@host/db?a=b"),
        ("postgresql://ada@host/db?a=b&sslpassword=hush&c=d", "postgresql://ada@host/db?a=b&c=d"),
        ("http://ada:hu@sh@host:5000/mlflow", "http://ada@host:5000/mlflow"),
        ("mysql://host/db?passwd=hush", "mysql://host/db"),
        ("s3://KEY:hush@bucket/p?scheme=http", "s3://bucket/p?scheme=http"),
        ("s3://KEY:hu/sh@bucket/p", "s3://bucket/p"),
        ("s3://bucket/p?access_key=hush&secret_key=hush", "s3://bucket/p"),
        ("s3://bucket/p?a=b&session_token=hush", "s3://bucket/p?a=b"),
    ],
)
def test_secrets_are_taken_out(uri: str, stored: str | None) -> None:
    stored = stored or "postgresql+psycopg://ada@host/db?mail=x@y"
    assert without_password(uri) == stored
    line = shown(f"'{uri}': it does not answer")
    assert "***" in line
    for secret in ("hush", "hu@sh", "hu?sh", "hu/sh", "s/h@"):
        assert secret not in line
    assert shown(line) == line


@pytest.mark.parametrize(
    "address",
    [
        "journal",
        "/data/what?",
        "/data/a:b@c",
        "sqlite:////data/a:b@c/mlflow.db",
        "postgresql://host:5432/db?mail=a@b",
        "http://host:5000/x",
        "s3://bucket/ada@home?region=eu",
    ],
)
def test_what_holds_no_secret_is_left_alone(address: str) -> None:
    assert without_password(address) == shown(address) == address


@pytest.fixture
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRETS, "{}")


@pytest.mark.parametrize(
    ("uri", "opened"),
    [
        ("s3://KEY:hush@bucket/p?scheme=http", "s3://KEY:hush@bucket/p?scheme=http"),
        ("s3://KEY:hu/s+h@bucket/p", "s3://KEY:hu%2Fs%2Bh@bucket/p"),
        ("s3://KEY:hu%2Fsh@bucket", "s3://KEY:hu%2Fsh@bucket"),
        ("postgresql://ada:hu@sh@host:1/db?a=b", "postgresql://ada:hu%40sh@host:1/db?a=b"),
        ("mysql://host/db?passwd=hush&a=b", "mysql://host/db?a=b&passwd=hush"),
        ("abfs://:hush@me.blob.core.windows.net/c", "abfs://:hush@me.blob.core.windows.net/c"),
        ("s3://bucket/p?a=b", "s3://bucket/p?a=b"),
        ("/data/a:b@c", "/data/a:b@c"),
    ],
)
@pytest.mark.usefixtures("no_secrets")
def test_secrets_stay_in_the_environment(uri: str, opened: str) -> None:
    clean = take_secrets(uri)
    assert clean == without_password(uri)
    assert with_secrets(clean) == opened
    assert take_secrets(clean) == clean
    assert with_secrets(opened) == opened


@pytest.mark.usefixtures("no_secrets")
def test_secrets_are_found_by_host() -> None:
    take_secrets("s3://A:hush@one/p?region=eu")
    take_secrets("s3://B:hush@two/p")
    assert with_secrets("s3://one/p/trials/7?region=eu") == "s3://A:hush@one/p/trials/7?region=eu"
    assert with_secrets("s3://two/q") == "s3://B:hush@two/q"
    assert with_secrets("s3://three/p") == "s3://three/p"
    take_secrets("s3://C:other@two/p")
    assert with_secrets("s3://two/q") == "s3://C:other@two/q"


@pytest.mark.usefixtures("no_secrets")
def test_another_process_inherits_the_secrets() -> None:
    clean = take_secrets("s3://KEY:hush@bucket/p")
    code = f"from trainables.core.credentials import with_secrets; print(with_secrets('{clean}'))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "s3://KEY:hush@bucket/p"
