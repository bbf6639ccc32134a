"""Servers of other people's making that tests need, started for real."""

from __future__ import annotations

import os
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3

from tests.chaos.world import Server

S3_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "me",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_REGION": "us-east-1",
}


class S3(Server):
    """An object store that speaks S3; it forgets everything when it is killed."""

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self.address = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str | Path]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.address, timeout=5):
                return True
        except OSError:
            return False

    def location(self, path: str) -> str:
        """The URI of a folder in the bucket."""
        return f"s3://bucket/{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def make_bucket(self) -> None:
        """As an administrator does it once."""
        client = boto3.client("s3", endpoint_url=self.address, region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        client.close()


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """A running server with an empty bucket, and its credentials in the environment."""
    before = {name: os.environ.get(name) for name in S3_CREDENTIALS}
    os.environ.update(S3_CREDENTIALS)
    server = S3(folder / "s3.log")
    try:
        server.wait()
        server.make_bucket()
        yield server
    finally:
        server.kill()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
