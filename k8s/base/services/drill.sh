#!/bin/sh
# Restores each dump of a backup into a PostgreSQL of this pod alone, and counts what is there. Production is not touched.
set -eu
pgdata=${PGDATA:-/scratch/pgdata}
initdb --pgdata="$pgdata" --username=postgres --auth=trust --no-sync >/dev/null
pg_ctl --pgdata="$pgdata" --log="$pgdata.log" --silent --wait \
    --options="-c listen_addresses='' -c unix_socket_directories=/scratch -c fsync=off" start >/dev/null
trap 'pg_ctl --pgdata="$pgdata" --silent --mode=immediate stop' EXIT
export PGHOST=/scratch PGUSER=postgres
for dump in /scratch/*.dump; do
    database=$(basename "$dump" .dump)
    createdb "$database"
    pg_restore --no-owner --no-privileges --exit-on-error --dbname="$database" "$dump"
    tables=$(psql --no-psqlrc --tuples-only --no-align --dbname="$database" \
        --command="SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename IN ('runs', 'trials')")
    [ -n "$tables" ] || { echo "$database: has neither runs nor trials" >&2; exit 1; }
    rows=$(psql --no-psqlrc --tuples-only --no-align --dbname="$database" --command="SELECT count(*) FROM $tables")
    echo "$database: restored, $rows $tables"
done
