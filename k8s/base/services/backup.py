"""Upload the dumps to the bucket under backups/TIME/, and remove all but the newest 14 backups."""

import os
from datetime import UTC, datetime
from pathlib import Path

import boto3

KEPT = 14
DUMPS = Path("/dump")


def main() -> None:
    """Upload the new backup, then remove old ones: a backup that fails removes nothing."""
    bucket = boto3.resource("s3").Bucket(os.environ["S3_BUCKET"])
    folder = f"backups/{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for dump in sorted(DUMPS.glob("*.dump")):
        bucket.upload_file(str(dump), f"{folder}/{dump.name}")
        print(f"s3://{bucket.name}/{folder}/{dump.name}: {dump.stat().st_size} bytes")
    keys = [entry.key for entry in bucket.objects.filter(Prefix="backups/")]
    folders = sorted({key.rpartition("/")[0] for key in keys})
    for key in keys:
        if key.rpartition("/")[0] in folders[:-KEPT]:
            bucket.Object(key).delete()
            print(f"s3://{bucket.name}/{key}: removed")


if __name__ == "__main__":
    main()
