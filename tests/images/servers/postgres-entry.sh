#!/bin/sh
# What the official image does before it starts the server, as far as compose.yaml uses it.
set -eu
if [ "$1" = postgres ]; then
    if [ ! -s "$PGDATA/PG_VERSION" ]; then
        mkdir -p "$PGDATA"
        printf %s "$POSTGRES_PASSWORD" > /tmp/password
        # shellcheck disable=SC2086
        initdb -U "$POSTGRES_USER" --pwfile=/tmp/password $POSTGRES_INITDB_ARGS > /dev/null
        rm /tmp/password
        echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    fi
    set -- "$@" -c listen_addresses='*' -c unix_socket_directories=/tmp
fi
exec "$@"
