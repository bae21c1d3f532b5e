#!/usr/bin/env bash
# A real Apache Kafka broker (KRaft, one node) for the tests and `make stack`.
#
#   kafka.sh start --dir DIR [--port PORT] [--controller-port PORT] [--owner PID] [--session SECONDS]
#                  [--proxied HOST:PORT]
#       Starts the broker on DIR, formatting it first when it is new, waits until it answers
#       and prints its address. Started again on the same DIR it has its topics, and without
#       --port its old port. With --owner the broker ends soon after that process has ended.
#       --session: how long a broker that is silent keeps its partitions, 9 s as in Kafka.
#       --proxied: a second listener for a proxy that clients reach at HOST:PORT. Whoever comes
#       by it is told HOST:PORT as the broker's address and so stays behind the proxy. Its own
#       port, where the proxy has to go to, is in DIR/proxied.port. Started again it has the same
#       port, and without the option the same HOST:PORT.
#   kafka.sh stop --dir DIR [--kill]
#       Stops it in good order; --kill is the crash (SIGKILL).
#   kafka.sh status --dir DIR
#       Prints the address and exits 0 when it runs, else 1.
#   kafka.sh topic --bootstrap ADDRESS ARGS…
#       Kafka's own topic tool, for people: --list, --describe, --create --topic T --partitions N
#   kafka.sh prepare
#       Makes what lets every later start be fast; scripts/setup.sh calls it. Not a must.
#   kafka.sh classpath
#       Prints the Java class path; exits 1 when the jars or java are missing.
#
# KAFKA_OPTS: more options for the JVM; the last one wins.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

START_DEADLINE_S=60
STOP_DEADLINE_S=30

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" >&2; }

require_broker() {
  have java || die "Kafka needs Java 17 or newer, and there is no java (Debian: default-jre-headless)"
  LIBS=$(kafka_libs)
  [[ -d $LIBS ]] || die "Kafka's jars are missing; scripts/setup.sh fetches them (needs java and mvn)"
}

# The JVM options that make a small broker start fast: no second compiler, little heap.
jvm_options() {
  JVM=(-Xms128m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto
    -XX:-UsePerfData -Djava.awt.headless=true -Dlog4j2.disableJmx=true)
  local archive
  archive=$(dirname "$LIBS")/classes.jsa
  [[ ! -f $archive ]] || JVM+=("-XX:SharedArchiveFile=$archive")
  # shellcheck disable=SC2206 # options are separated by blanks, as in Kafka's own scripts
  JVM+=(${KAFKA_OPTS:-})
}

# The session timeout is how long a broker started again after a crash waits for its former
# self to be given up; and how long one that gets no processor keeps its partitions.
write_config() {
  local listeners=PLAINTEXT://127.0.0.1:$PORT advertised=PLAINTEXT://127.0.0.1:$PORT
  if [[ -n $PROXIED ]]; then
    listeners+=,PROXIED://127.0.0.1:$PROXIED_PORT
    advertised+=,PROXIED://$PROXIED
  fi
  cat >"$DIR/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$CONTROLLER_PORT
listeners=$listeners,CONTROLLER://127.0.0.1:$CONTROLLER_PORT
advertised.listeners=$advertised
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$DIR/data
auto.create.topics.enable=false
message.max.bytes=16777216
replica.fetch.max.bytes=16777216
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.min.isr=1
num.network.threads=2
num.io.threads=4
background.threads=2
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=$((SESSION_S * 1000))
log.cleaner.dedupe.buffer.size=4194304
EOF
}

# What Kafka's own formatter makes is the same for every data folder but for the two ids, so it
# is run once for each version and then copied: this saves each new broker the start of a JVM.
format_storage() {
  [[ ! -f $DIR/data/meta.properties ]] || return 0
  local template scratch
  template=$(dirname "$LIBS")/formatted
  if [[ ! -f $template/meta.properties ]]; then
    scratch=$(mktemp -d "$template.XXXXXX")
    sed "s|^log.dirs=.*|log.dirs=$scratch/data|" "$DIR/server.properties" >"$scratch/server.properties"
    java "${JVM[@]}" -cp "$LIBS/*" kafka.tools.StorageTool format \
      --config "$scratch/server.properties" --cluster-id "$(new_id)" >"$scratch/log" 2>&1 ||
      {
        cat "$scratch/log" >&2
        die "Kafka could not format $scratch"
      }
    [[ -d $template ]] || mv "$scratch/data" "$template"
    rm -rf "$scratch"
  fi
  rm -rf "$DIR/data.new"
  cp -R "$template" "$DIR/data.new"
  sed -e "s|^cluster.id=.*|cluster.id=$(new_id)|" -e "s|^directory.id=.*|directory.id=$(new_id)|" \
    "$template/meta.properties" >"$DIR/data.new/meta.properties"
  mv "$DIR/data.new" "$DIR/data"
}

# A random id in Kafka's form: 16 bytes, base64 for URLs, never starting with a dash.
new_id() {
  local id
  while :; do
    id=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=')
    [[ $id == -* ]] || break
  done
  printf '%s\n' "$id"
}

# Sends the broker an ApiVersions request and waits for the first byte of the reply: the
# highest of its length, a zero, which is what `read` is told to stop at.
answers() {
  exec 3<>"/dev/tcp/127.0.0.1/$PORT" || return 1
  printf '\0\0\0\012\0\022\0\0\0\0\0\001\377\377' >&3
  IFS= read -r -t 2 -d '' -u 3 _
  local status=$?
  exec 3>&-
  return "$status"
} 2>/dev/null

running() {
  PID=$(cat "$DIR/broker.pid" 2>/dev/null) && process_is "$PID" "$DIR/server.properties"
}

address() { sed -n 's|^advertised.listeners=PLAINTEXT://\([^,]*\).*|\1|p' "$DIR/server.properties"; }

# What clients behind the proxy are told; nothing where there is no second listener.
proxied_address() {
  sed -n 's|^advertised.listeners=.*,PROXIED://||p' "$DIR/server.properties" 2>/dev/null || true
}

# The port of the listener that the proxy goes to, the same for ever.
choose_proxied_port() {
  PROXIED=${PROXIED:-$(proxied_address)}
  [[ -n $PROXIED ]] || return 0
  PROXIED_PORT=$(cat "$DIR/proxied.port" 2>/dev/null) || PROXIED_PORT=$(free_port)
  while [[ $PROXIED_PORT == "$PORT" ]]; do PROXIED_PORT=$(free_port); done
  ! port_taken "$PROXIED_PORT" || die "port $PROXIED_PORT is taken by another program"
  printf '%s\n' "$PROXIED_PORT" >"$DIR/proxied.port"
}

start() {
  require_broker
  mkdir -p "$DIR"
  DIR=$(cd "$DIR" && pwd)
  if running; then
    [[ -z $PORT || $PORT == 0 || $(address) == "127.0.0.1:$PORT" ]] ||
      die "the broker in $DIR already runs, on $(address)"
    [[ -z $PROXIED || $(proxied_address) == "$PROXIED" ]] ||
      die "the broker in $DIR already runs, without a listener for a proxy at $PROXIED"
    address
    return
  fi
  if [[ -z $PORT || $PORT == 0 ]]; then
    PORT=$(address 2>/dev/null | sed 's/.*://') || true
    PORT=${PORT:-$(free_port)}
  fi
  ! port_taken "$PORT" || die "port $PORT is taken by another program"
  choose_proxied_port
  CONTROLLER_PORT=${CONTROLLER_PORT:-$(free_port)}
  jvm_options
  write_config
  format_storage
  rm -f "$DIR/server.log"

  # In a session of its own and with no file of ours open: it outlives this script, and whoever
  # reads our output is not kept waiting.
  local launch=()
  ! have setsid || launch=(setsid)
  "${launch[@]}" java "${JVM[@]}" "-Dkafka.logs.dir=$DIR" \
    "-Dlog4j2.configurationFile=$ROOT/scripts/kafka/log4j2.properties" \
    -cp "$LIBS/*" kafka.Kafka "$DIR/server.properties" >"$DIR/stdout.log" 2>&1 </dev/null &
  PID=$!
  disown
  printf '%s\n' "$PID" >"$DIR/broker.pid"

  local deadline=$((SECONDS + START_DEADLINE_S))
  until grep -qs 'Kafka Server started' "$DIR/server.log" && answers; do
    alive "$PID" || start_failed "Kafka ended while starting"
    ((SECONDS < deadline)) || start_failed "Kafka did not answer within $START_DEADLINE_S s"
    sleep 0.05
  done
  [[ -z $OWNER ]] || end_with_owner
  address
}

start_failed() {
  kill -9 "$PID" 2>/dev/null || true
  rm -f "$DIR/broker.pid"
  tail -n 30 "$DIR/stdout.log" "$DIR/server.log" >&2 2>/dev/null || true
  die "$1; the whole log is $DIR/server.log"
}

# A test that is killed cannot stop its broker; this small watcher does.
end_with_owner() {
  (
    while alive "$OWNER" && alive "$PID"; do sleep 0.5; done
    end_process "$PID" 5
  ) >/dev/null 2>&1 </dev/null &
  disown
}

stop() {
  [[ -d $DIR ]] || return 0
  DIR=$(cd "$DIR" && pwd)
  if running; then
    if [[ $KILL == yes ]]; then
      kill -9 "$PID"
      while alive "$PID"; do sleep 0.02; done
    else
      end_process "$PID" "$STOP_DEADLINE_S"
    fi
    # Its last threads hold the port a moment longer than the process can be seen.
    local port deadline=$((SECONDS + 5))
    for port in $(address | sed 's/.*://') $(cat "$DIR/proxied.port" 2>/dev/null); do
      while port_taken "$port" && ((SECONDS < deadline)); do sleep 0.02; done
    done
  fi
  rm -f "$DIR/broker.pid"
}

# A broker is run once, and the JVM writes down the classes it loaded (class data sharing): later
# starts read that file instead of 90 jars and take about half as long.
prepare() {
  require_broker
  local archive scratch
  archive=$(dirname "$LIBS")/classes.jsa
  [[ ! -f $archive ]] || return 0
  scratch=$(mktemp -d "$(dirname "$LIBS")/prepare.XXXXXX")
  KAFKA_OPTS="${KAFKA_OPTS:-} -XX:ArchiveClassesAtExit=$scratch/classes.jsa"
  DIR=$scratch/broker
  start >/dev/null
  stop
  [[ ! -f $scratch/classes.jsa ]] || mv "$scratch/classes.jsa" "$archive"
  rm -rf "$scratch"
}

COMMAND=${1:-help}
shift || true
DIR='' PORT='' CONTROLLER_PORT='' OWNER='' PROXIED='' PROXIED_PORT='' KILL=no SESSION_S=9 BOOTSTRAP=127.0.0.1:9092 REST=()
while (($# > 0)); do
  case $1 in
    --dir | --port | --controller-port | --owner | --session | --proxied | --bootstrap)
      (($# > 1)) || die "$1 needs a value"
      case $1 in
        --dir) DIR=$2 ;;
        --port) PORT=$2 ;;
        --controller-port) CONTROLLER_PORT=$2 ;;
        --owner) OWNER=$2 ;;
        --session) SESSION_S=$2 ;;
        --proxied) PROXIED=$2 ;;
        --bootstrap) BOOTSTRAP=$2 ;;
      esac
      shift 2
      ;;
    --kill) KILL=yes && shift ;;
    *) REST+=("$1") && shift ;;
  esac
done
[[ $COMMAND == topic || ${#REST[@]} == 0 ]] || die "unknown argument ${REST[0]}; see scripts/kafka.sh help"
case $COMMAND in
  start | stop | status) [[ -n $DIR ]] || die "$COMMAND needs --dir DIR" ;;
esac
[[ -z $PROXIED || $PROXIED =~ ^[^:,/]+:[0-9]+$ ]] || die "--proxied takes HOST:PORT, not $PROXIED"

case $COMMAND in
  start) start ;;
  stop) stop ;;
  status)
    [[ -d $DIR ]] || exit 1
    DIR=$(cd "$DIR" && pwd)
    running && address
    ;;
  topic)
    require_broker
    exec java -XX:TieredStopAtLevel=1 -cp "$LIBS/*" org.apache.kafka.tools.TopicCommand \
      --bootstrap-server "$BOOTSTRAP" "${REST[@]}"
    ;;
  prepare) prepare ;;
  classpath)
    require_broker
    printf '%s/*\n' "$LIBS"
    ;;
  help | -h | --help) usage ;;
  *)
    usage
    exit 2
    ;;
esac
