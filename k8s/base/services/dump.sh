#!/bin/sh
# Dumps each of DATABASES as its owner, who has the same name; the password of NAME is in NAME_PASSWORD, in capitals. A
# server that is restarting is waited for; a dump that fails fails the backup.
set -eu
for database in $DATABASES; do
    PGPASSWORD=$(printenv "$(echo "$database" | tr '[:lower:]' '[:upper:]')_PASSWORD") ||
        { echo "the Secret has no password of $database" >&2; exit 1; }
    export PGPASSWORD
    tries=0
    until pg_isready --quiet --username="$database"; do
        tries=$((tries + 1))
        [ "$tries" -lt 30 ] || { echo "PostgreSQL at $PGHOST does not answer" >&2; exit 1; }
        sleep 2
    done
    pg_dump --format=custom --no-password --username="$database" --dbname="$database" --file="/dump/$database.dump"
    echo "$database: $(wc -c <"/dump/$database.dump") bytes"
done
