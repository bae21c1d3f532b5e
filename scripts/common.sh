# shellcheck shell=bash
# Shared by the scripts in this folder: where things are kept, and a few small helpers.
# Sourced, never run. Messages go to stderr, so that stdout stays for data.

# The next two are used by the scripts that source this file.
# shellcheck disable=SC2034
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/millstream"

say() { printf '%s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# The Kafka version is written in one place, the pom.
kafka_version() {
  sed -n 's|.*<kafka.version>\(.*\)</kafka.version>.*|\1|p' "$ROOT/scripts/kafka/pom.xml"
}

kafka_libs() { printf '%s/kafka-%s/libs\n' "$CACHE" "$(kafka_version)"; }

# Whether something listens on 127.0.0.1:$1.
port_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# The first free port at or above $1.
free_port_from() {
  local port=$1
  while port_taken "$port"; do port=$((port + 1)); done
  printf '%s\n' "$port"
}

# A free port below the range the system hands out for outgoing connections.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    port_taken "$port" || break
  done
  printf '%s\n' "$port"
}

# Whether process $1 lives. One that has ended but was not yet collected by its parent (a zombie,
# which in a container may stay for ever) does not.
alive() {
  local state
  [[ $1 =~ ^[0-9]+$ ]] && state=$(ps -o stat= -p "$1" 2>/dev/null) && [[ $state != Z* ]]
}

# Whether process $1 lives and its command line holds $2. A number alone is not enough:
# after a crash another process may have got it.
process_is() {
  alive "$1" && [[ $(ps -ww -o args= -p "$1" 2>/dev/null) == *"$2"* ]]
}

# Ends process $1: asks first, and kills it when it has not gone after $2 seconds.
end_process() {
  local pid=$1 deadline=$((SECONDS + $2))
  kill "$pid" 2>/dev/null || return 0
  while alive "$pid"; do
    if ((SECONDS > deadline)); then
      kill -9 "$pid" 2>/dev/null || true
      return 0
    fi
    sleep 0.05
  done
}
