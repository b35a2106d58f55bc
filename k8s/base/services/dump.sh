#!/bin/sh
# Dumps each database as its owner. A server that is restarting is waited for; a dump that fails fails the backup.
set -eu
for database in mlflow optuna; do
    case $database in
        mlflow) PGPASSWORD=$MLFLOW_PASSWORD ;;
        optuna) PGPASSWORD=$OPTUNA_PASSWORD ;;
    esac
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
