#!/usr/bin/env bash
# The services around a node, on this machine and on loopback only: Kafka, Redis and, where it
# is installed, Prometheus. Data and logs are in .millstream/stack.
#
#   stack.sh [start]   starts what does not run yet and prints the addresses
#   stack.sh status    what runs where; exits 1 unless Kafka and Redis run
#   stack.sh stop      stops it all; the data stays
#   stack.sh clean     stops it all and deletes the data
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

STACK=$ROOT/.millstream/stack
report() { printf '  %-12s %s\n' "$1" "$2" >&2; }

# Whether service $1 (its pid and port are in files of its folder) runs, as a process whose
# command line holds $2. Sets PORT.
runs() {
  PORT=$(cat "$STACK/$1/port" 2>/dev/null) || return 1
  process_is "$(cat "$STACK/$1/pid" 2>/dev/null)" "$2"
}
redis_runs() { runs redis redis-server; }
prometheus_runs() { runs prometheus "$STACK/prometheus"; }

# The port service $1 had before when it is free, else the first free one from $2 on: clients
# that were told the old address go on working.
port_for() {
  local port
  port=$(cat "$STACK/$1/port" 2>/dev/null) || port=$2
  ! port_taken "$port" || port=$(free_port_from "$2")
  mkdir -p "$STACK/$1"
  printf '%s\n' "$port" | tee "$STACK/$1/port"
}

start_kafka() {
  # No fast-start compiler settings here: this broker lives long.
  KAFKA=$("$ROOT/scripts/kafka.sh" status --dir "$STACK/kafka") ||
    KAFKA=$(KAFKA_OPTS="-XX:TieredStopAtLevel=4 ${KAFKA_OPTS:-}" \
      "$ROOT/scripts/kafka.sh" start --dir "$STACK/kafka" --port "$(port_for kafka 9092)")
  report kafka "$KAFKA"
}

start_redis() {
  if ! redis_runs; then
    have redis-server || die "redis-server is not installed; scripts/setup.sh installs it"
    PORT=$(port_for redis 6379)
    redis-server --daemonize yes --bind 127.0.0.1 --port "$PORT" --dir "$STACK/redis" \
      --pidfile "$STACK/redis/pid" --logfile "$STACK/redis/log" \
      --appendonly yes --save '' --maxmemory-policy noeviction >/dev/null
    # It writes the pid file by itself, a moment after the command has returned.
    local deadline=$((SECONDS + 60))
    # The port is open before the data of an earlier run is loaded; only PONG says ready.
    until redis_runs && [[ $(redis-cli -p "$PORT" ping 2>/dev/null) == PONG ]]; do
      ((SECONDS < deadline)) || die "redis-server did not start; see $STACK/redis/log"
      sleep 0.05
    done
  fi
  REDIS=redis://127.0.0.1:$PORT
  report redis "$REDIS"
}

start_prometheus() {
  if ! have prometheus; then
    report prometheus "not installed (Debian: prometheus); the node's own numbers are on /metrics"
    return
  fi
  if ! prometheus_runs; then
    PORT=$(port_for prometheus 9090)
    local launch=()
    ! have setsid || launch=(setsid)
    "${launch[@]}" prometheus "--config.file=$ROOT/docker/prometheus.yml" \
      "--storage.tsdb.path=$STACK/prometheus/data" "--web.listen-address=127.0.0.1:$PORT" \
      >"$STACK/prometheus/log" 2>&1 </dev/null &
    printf '%s\n' $! >"$STACK/prometheus/pid"
    disown
    local deadline=$((SECONDS + 20))
    until port_taken "$PORT"; do
      if ! prometheus_runs || ((SECONDS >= deadline)); then
        tail -n 5 "$STACK/prometheus/log" >&2
        die "prometheus did not start; see $STACK/prometheus/log"
      fi
      sleep 0.05
    done
  fi
  report prometheus "http://127.0.0.1:$PORT"
}

start() {
  mkdir -p "$STACK"
  say "stack:"
  start_kafka
  start_redis
  start_prometheus
  cat >"$STACK/env" <<EOF
MILLSTREAM__KAFKA__BROKERS=$KAFKA
MILLSTREAM__REDIS__URL=$REDIS
EOF
  say "a node uses it with these in its environment (kept in .millstream/stack/env):"
  cat "$STACK/env"
}

status() {
  local ok=0 address
  if address=$("$ROOT/scripts/kafka.sh" status --dir "$STACK/kafka"); then
    report kafka "$address"
  else
    report kafka "not running"
    ok=1
  fi
  if redis_runs; then report redis "redis://127.0.0.1:$PORT"; else
    report redis "not running"
    ok=1
  fi
  if prometheus_runs; then report prometheus "http://127.0.0.1:$PORT"; else report prometheus "not running"; fi
  return "$ok"
}

stop() {
  say "stopping the stack"
  ! prometheus_runs || end_process "$(cat "$STACK/prometheus/pid")" 10
  ! redis_runs || end_process "$(cat "$STACK/redis/pid")" 10
  "$ROOT/scripts/kafka.sh" stop --dir "$STACK/kafka"
  rm -f "$STACK/env" "$STACK"/{prometheus,redis}/pid
}

case ${1:-start} in
  start) start ;;
  status) status ;;
  stop) stop ;;
  clean)
    stop
    rm -rf "$STACK"
    ;;
  *)
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
