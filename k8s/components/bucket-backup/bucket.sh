#!/bin/sh
# Copies the bucket to one elsewhere, with rclone. `current` there is the bucket of last night; what was changed or deleted
# since the night before is in old/TIME. Called as:
#   bucket.sh backup     copy, and remove from `old` what is older than KEPT_DAYS
#   bucket.sh drill      copy `current` back beside the bucket's own content, compare the two, and remove the copy
#   bucket.sh restore    copy `current` back over the bucket; what is in the bucket alone stays
set -eu
own=production:$S3_BUCKET
kept=backup:$BACKUP_BUCKET
drill=drill-$(date -u +%Y%m%dT%H%M%SZ)
needs_files() {
    [ -n "$(rclone lsf --recursive --files-only "$1" | head -n 1)" ] || { echo "$1: has no file" >&2; exit 1; }
}
case $1 in
    backup)
        # A store that lost its files must not empty the backup.
        needs_files "$own"
        rclone sync "$own" "$kept/current" --exclude '/drill-*/**' --backup-dir "$kept/old/$(date -u +%Y%m%dT%H%M%SZ)"
        rclone delete "$kept/old" --min-age "${KEPT_DAYS}d"
        rclone size "$kept/current"
        ;;
    drill)
        needs_files "$kept/current"
        trap 'rclone purge "$own/$drill"' EXIT
        rclone copy "$kept/current" "$own/$drill"
        rclone check "$kept/current" "$own/$drill" --download
        ;;
    restore)
        needs_files "$kept/current"
        rclone copy "$kept/current" "$own"
        rclone check "$kept/current" "$own" --one-way
        ;;
    *)
        echo "bucket.sh: should be called with backup, drill or restore" >&2
        exit 2
        ;;
esac
