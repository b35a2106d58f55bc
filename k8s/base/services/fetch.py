"""Fetch the newest backup of the databases from the bucket, for a drill."""

import os
import sys
from pathlib import Path

import boto3

TARGET = Path("/scratch")


def main() -> int:
    """Return 0 if there is a backup; 1 if there is none."""
    bucket = boto3.resource("s3").Bucket(os.environ["S3_BUCKET"])
    keys = [entry.key for entry in bucket.objects.filter(Prefix="backups/")]
    newest = max((key.rpartition("/")[0] for key in keys), default=None)
    if newest is None:
        print(f"s3://{bucket.name}/backups: there is no backup", file=sys.stderr)
        return 1
    for key in keys:
        folder, _, name = key.rpartition("/")
        if folder == newest:
            bucket.download_file(key, str(TARGET / name))
            print(f"s3://{bucket.name}/{key}: fetched")
    return 0


if __name__ == "__main__":
    sys.exit(main())
