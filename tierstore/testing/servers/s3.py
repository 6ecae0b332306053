"""The address of an S3 server, and a second path to what it holds."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from tierstore.errors import ConfigError
from tierstore.testing.servers.process import ServerProcess


@dataclass(frozen=True, slots=True)
class S3Server:
    """An S3 server that answers.

    Attributes:
        endpoint: its URL, for example "http://127.0.0.1:9000".
        access_key: of a user who may do everything.
        secret_key: never shown in `repr`.
        region: what requests are signed for.
        process: the server's process when it was started here, else None.
    """

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"
    process: ServerProcess | None = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, url: str) -> S3Server:
        """Return the server at "http://user:secret@host:port".

        Raises:
            ConfigError: a part is missing. The message never holds the secret.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not (parts.hostname and parts.port):
            raise ConfigError("TIERSTORE_TEST_S3 is not of the form http://user:secret@host:port")
        if not (parts.username and parts.password):
            raise ConfigError(f"TIERSTORE_TEST_S3 names no user and secret for {parts.hostname}")
        return cls(
            f"{parts.scheme}://{parts.hostname}:{parts.port}", parts.username, parts.password
        )

    @property
    def address(self) -> str:
        """The host and port, for example "127.0.0.1:9000"."""
        return urlsplit(self.endpoint).netloc

    def environment(self) -> dict[str, str]:
        """Return the variables that point boto3, and so tierstore, at this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
        }

    def url(self, bucket: str, prefix: str = "") -> str:
        """Return the tier URL of a prefix, with the endpoint and without credentials."""
        path = f"{bucket}/{prefix}".rstrip("/")
        return f"s3://{path}?endpoint_url={quote(self.endpoint, safe=':/')}"

    def client(self) -> Any:
        """Return a boto3 client that shares nothing with tierstore's own code."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"max_attempts": 2},
                connect_timeout=5,
                read_timeout=30,
            ),
        )

    def new_bucket(self) -> str:
        """Create an empty bucket and return its name."""
        name = f"tierstore-{secrets.token_hex(6)}"
        client = self.client()
        client.create_bucket(Bucket=name)
        client.close()
        return name

    def remove_bucket(self, name: str) -> None:
        """Delete a bucket with its objects and unfinished uploads."""
        client = self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            if keys := [{"Key": entry["Key"]} for entry in page.get("Contents", ())]:
                client.delete_objects(Bucket=name, Delete={"Objects": keys, "Quiet": True})
        for upload in client.list_multipart_uploads(Bucket=name).get("Uploads", ()):
            client.abort_multipart_upload(
                Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        client.delete_bucket(Bucket=name)
        client.close()
