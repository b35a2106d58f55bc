"""Create the bucket if it is not there; wait a bounded time for a store that is starting."""

import os
import sys
import time
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

SECONDS = 240


def create(client: Any, bucket: str, region: str) -> str:
    """Create the bucket if it is not there; return in words what was done."""
    try:
        client.head_bucket(Bucket=bucket)
        return "is there"
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket", "NotFound"):
            raise
    placed = (
        {}
        if region == "us-east-1"
        else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    )
    try:
        client.create_bucket(Bucket=bucket, **placed)
    except client.exceptions.BucketAlreadyOwnedByYou:
        return "is there"
    return "created"


def main() -> int:
    """Return 0 once the bucket is there; 1 if the store refuses, or does not answer in time."""
    bucket, region = os.environ["S3_BUCKET"], os.environ["AWS_DEFAULT_REGION"]
    client = boto3.client(
        "s3", config=Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 1})
    )
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            print(f"bucket {bucket}: {create(client, bucket, region)}")
            return 0
        except (BotoCoreError, ClientError) as error:
            response = getattr(error, "response", {})
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            print(f"bucket {bucket}: {error}", file=sys.stderr, flush=True)
            if status < 500 or time.monotonic() > deadline:
                return 1
            time.sleep(3)


if __name__ == "__main__":
    sys.exit(main())
