"""Secrets in addresses are neither stored nor shown."""

from __future__ import annotations

import pytest

from trainables.credentials import shown, without_password


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
