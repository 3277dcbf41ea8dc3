# A durable PostgreSQL of a benchmark's own, on a socket only. Sourced by the scripts here.

# Makes a folder, $work, and starts a server in it whose socket is there too; says so to psql.
start_postgres() { # NAME
  pg=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1 || true)
  [ -n "$pg" ] || pg=$(dirname "$(command -v initdb)")
  work=$(mktemp -d "${TMPDIR:-/tmp}/harmonia-ci-$1.XXXXXX")
  as=()
  # It refuses to be root.
  if [ "$(id -u)" = 0 ]; then
    chown postgres "$work"
    as=(runuser -u postgres --)
  fi
  (cd / && "${as[@]}" "$pg/initdb" -D "$work/data" -U postgres -A trust --locale=C -E UTF8 >/dev/null)
  cat >>"$work/data/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$work'
shared_buffers = 512MB
max_wal_size = 4GB
CONF
  (cd / && "${as[@]}" "$pg/pg_ctl" -D "$work/data" -l "$work/data/log" -w start >/dev/null)
  export PGHOST="$work" PGUSER=postgres
  postmaster=$(head -1 "$work/data/postmaster.pid")
}

# Stops the server and removes the folder, however far starting came.
stop_postgres() {
  [ -n "${work:-}" ] || return 0
  (cd / && "${as[@]}" "$pg/pg_ctl" -D "$work/data" -m immediate stop >/dev/null 2>&1) || true
  rm -rf "$work"
}
