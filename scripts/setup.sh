#!/usr/bin/env bash
# Gets a machine ready to build, run and test Millstream. Safe to run at any time: it looks
# first, installs only what is missing and asks no network when nothing is.
#
#   scripts/setup.sh           what `make demo` and `make test` need
#   scripts/setup.sh --chaos   also what faults are done with: Java and Maven for a real Kafka,
#                              strace, libfaketime
#   scripts/setup.sh --ci      that, and kcat, Prometheus and shellcheck, so that every suite runs
#                              (the same as CI=true)
#   scripts/setup.sh --node    only what is needed to build and run a node (container images)
#
# MILLSTREAM_PYTHON   the interpreter to embed, instead of the one found here
# XDG_CACHE_HOME      where DuckDB's library and Kafka's jars are kept (default ~/.cache)
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RUST_MIN=1.90
DUCKDB_VERSION=1.5.5
DUCKDB_PACKAGE_VERSION=1.5.5-r.5

CI_MODE=no CHAOS=no NODE_ONLY=no
[[ ${CI:-} != true ]] || CI_MODE=yes
for arg in "$@"; do
  case $arg in
    --ci) CI_MODE=yes ;;
    --chaos) CHAOS=yes ;;
    --node) NODE_ONLY=yes ;;
    -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" && exit ;;
    *) die "unknown option $arg; see scripts/setup.sh --help" ;;
  esac
done

SCRATCH=$(mktemp -d)
ADDED_POLICY=no
cleanup() {
  [[ $ADDED_POLICY == no ]] || as_root rm -f /usr/sbin/policy-rc.d
  rm -rf "$SCRATCH"
}
trap cleanup EXIT

report() { printf '  %-12s %s\n' "$1" "$2" >&2; }

# Runs a command with its output in a file, which is shown only when the command fails.
quietly() {
  "$@" >"$SCRATCH/log" 2>&1 || {
    tail -n 30 "$SCRATCH/log" >&2
    return 1
  }
}

as_root() {
  if [[ $EUID == 0 ]]; then
    "$@"
  elif [[ -t 0 ]]; then
    sudo "$@"
  else
    sudo -n "$@"
  fi
}

# --- Debian packages -------------------------------------------------------------------------

# Names on stdout the packages for what is not there. It looks for the thing, not for the
# package, so that other systems and hand-made installations are fine too.
missing_packages() {
  have cc || echo gcc libc6-dev
  have c++ || echo g++
  have make || echo make
  have cmake || echo cmake
  have ps || echo procps
  [[ -e /etc/ssl/certs/ca-certificates.crt || ! -e /etc/debian_version ]] || echo ca-certificates
  if have pkg-config; then
    pkg-config --exists openssl || echo libssl-dev
    pkg-config --exists zlib || echo zlib1g-dev
    pkg-config --exists libcurl || echo libcurl4-openssl-dev
  else
    echo pkg-config libssl-dev zlib1g-dev libcurl4-openssl-dev
  fi
  [[ -n $PYTHON ]] || echo python3 python3-dev python3-venv
  [[ -f $DUCKDB_DIR/$DUCKDB_FILE ]] || have npm || echo npm
  [[ $NODE_ONLY == no ]] || return 0
  have redis-server || echo redis-server
  [[ $CI_MODE == no && $CHAOS == no ]] || missing_for_chaos
  [[ $CI_MODE == yes ]] || return 0
  have kcat || echo kcat
  { have promtool && have prometheus; } || echo prometheus
  have shellcheck || echo shellcheck
}

# What faults are done with; part of --ci, as tests do them too.
missing_for_chaos() {
  have java || echo default-jre-headless
  have mvn || echo maven
  have strace || echo strace
  compgen -G '/usr/lib*/faketime/libfaketimeMT.so.1' >/dev/null ||
    compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || echo libfaketime
}

install_packages() {
  local packages=("$@")
  if ! have apt-get; then
    die "this system has no apt-get. Install what these Debian packages hold, then try again: ${packages[*]}"
  fi
  if [[ $EUID != 0 ]] && ! { have sudo && { [[ -t 0 ]] || sudo -n true 2>/dev/null; }; }; then
    die "these packages are missing and this user may not install them. Run as root: apt-get install ${packages[*]}"
  fi
  report installing "Debian packages (may take some minutes): ${packages[*]}"
  # Debian starts a package's service when it is installed. The node runs a redis-server of its
  # own, and `make stack` a Prometheus, so these services must neither start now nor with the machine.
  local services=() package
  for package in "${packages[@]}"; do
    case $package in redis-server | prometheus) services+=("$package.service") ;; esac
  done
  if ((${#services[@]} > 0)) && [[ ! -e /usr/sbin/policy-rc.d ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$SCRATCH/policy-rc.d"
    ADDED_POLICY=yes
    as_root install -m 755 "$SCRATCH/policy-rc.d" /usr/sbin/policy-rc.d
  fi
  quietly as_root apt-get update -q || say "  warning: apt-get update failed; trying with the lists that are here"
  quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}" ||
    die "apt-get could not install: ${packages[*]}"
  if ((${#services[@]} > 0)) && [[ -d /run/systemd/system ]]; then
    as_root systemctl disable --quiet "${services[@]}" 2>/dev/null || true
  fi
  hash -r
}

# --- Rust ------------------------------------------------------------------------------------

check_rust() {
  have cargo || die "there is no cargo on PATH. Install Rust $RUST_MIN or newer, as https://rustup.rs says, then try again"
  local version major minor
  version=$(cargo --version | cut -d' ' -f2)
  IFS=. read -r major minor _ <<<"$version"
  ((major > 1 || minor >= ${RUST_MIN#*.})) ||
    die "Rust $version is too old, $RUST_MIN or newer is needed. With rustup: rustup update stable"
  report ok "Rust $version"
}

# --- Python ----------------------------------------------------------------------------------

# Prints the interpreter behind $1 when it can be embedded: it has a shared libpython, its
# headers, and what makes virtual environments.
embeddable() {
  "$1" - 2>/dev/null <<'EOF'
import os, sys, sysconfig
import ensurepip, venv
var = sysconfig.get_config_var
shared = var("Py_ENABLE_SHARED") or var("PYTHONFRAMEWORK")
library = os.path.join(var("PYTHONFRAMEWORKPREFIX") or var("LIBDIR") or "", var("LDLIBRARY") or "")
header = os.path.join(sysconfig.get_path("include"), "Python.h")
if sys.version_info < (3, 11) or not shared or not all(map(os.path.isfile, (library, header))):
    sys.exit(1)
print(getattr(sys, "_base_executable", "") or sys.executable)
EOF
}

# The interpreter to embed, or nothing. The system's own comes first: it changes least.
find_python() {
  local candidate
  if [[ -n ${MILLSTREAM_PYTHON:-} ]]; then
    embeddable "$MILLSTREAM_PYTHON" ||
      die "MILLSTREAM_PYTHON=$MILLSTREAM_PYTHON cannot be embedded: it must be Python 3.11 or newer with a shared libpython, headers and venv"
    return
  fi
  for candidate in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
    embeddable "$candidate" && return
  done
  return 0
}

make_venv() {
  local venv=$ROOT/.venv requirements=(-r "$ROOT/py_transforms/requirements.txt") stamp
  [[ $NODE_ONLY == yes ]] || requirements+=(-r "$ROOT/requirements-dev.txt")
  [[ ! -f $ROOT/python/pyproject.toml ]] || requirements+=(-e "$ROOT/python")
  stamp=$(
    printf '%s\n' "$PYTHON" "${requirements[@]}"
    "$PYTHON" --version
    cat "$ROOT/py_transforms/requirements.txt" "$ROOT/requirements-dev.txt" "$ROOT/python/pyproject.toml" 2>/dev/null || true
  )
  if [[ $(cat "$venv/.setup-stamp" 2>/dev/null) == "$stamp" && -x $venv/bin/python ]]; then
    report ok ".venv, made from $PYTHON"
    return
  fi
  report installing ".venv from $PYTHON, with polars, pyarrow and the tools for tests (a minute or two)"
  if [[ $(sed -n 's/^executable = //p' "$venv/pyvenv.cfg" 2>/dev/null) != "$(realpath "$PYTHON")" ]]; then
    rm -rf "$venv"
  fi
  quietly "$PYTHON" -m venv "$venv" || die "could not make $venv"
  quietly "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off "${requirements[@]}" ||
    die "pip could not install the Python packages"
  printf '%s\n' "$stamp" >"$venv/.setup-stamp"
}

# --- DuckDB ----------------------------------------------------------------------------------

# Prints the name of the npm package's platform and the sha512 of the archive: DuckDB publishes
# its shared library for JavaScript there. The sums pin what is linked into the program.
duckdb_platform() {
  case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) echo linux-x64 kCyq6BXhn6QXfwF8yVdVKriSSHP+rfVWcJ56cG8qZzlOZpxyvT5WGm6jMshxg4ditLlOsHsIN/D47RYrcjXuHQ== ;;
    Linux-aarch64) echo linux-arm64 CafH2AIvXtpwDynG3KB/4uEOHRGlFoB7auCRMIwH3BKNIobsANV5LSpDJ3tfyRCFIsK6e8AT1eseWVnu2Dv3cw== ;;
    Darwin-arm64) echo darwin-arm64 WJdeLTFy4pRg60rkbp9smtlP1iIQ8ErtIJkxS+2LQtM1ZZMSByyW+3WPpNoKe7IwPtVl2fLlPw7tDmQW4Z974g== ;;
    Darwin-x86_64) echo darwin-x64 rN0KjX13MwVQ5V5ufykolty/tf4SaafOpGWcUA1Cegf98jPeRdsJsEE1IMXn8n3u6WvMSZEVJmHJ3ma4Hr7Vzg== ;;
    *) return 1 ;;
  esac
}

fetch_duckdb() {
  local platform sum archive
  read -r platform sum < <(duckdb_platform) || return 1
  have npm || return 1
  report installing "DuckDB $DUCKDB_VERSION's library (25 MB) into $DUCKDB_DIR"
  mkdir -p "$SCRATCH/duckdb"
  (cd "$SCRATCH/duckdb" && quietly npm pack --loglevel error "@duckdb/node-bindings-$platform@$DUCKDB_PACKAGE_VERSION") || return 1
  archive=$(echo "$SCRATCH"/duckdb/*.tgz)
  "$PYTHON" - "$archive" "$sum" <<'EOF' || die "the archive of DuckDB's library is not the expected one (its sha512 differs)"
import base64, hashlib, sys
found = base64.b64encode(hashlib.sha512(open(sys.argv[1], "rb").read()).digest()).decode()
sys.exit(found != sys.argv[2])
EOF
  mkdir -p "$CACHE"
  local unpacked
  unpacked=$(mktemp -d "$CACHE/duckdb.XXXXXX")
  chmod 755 "$unpacked"
  tar -xzf "$archive" -C "$unpacked" --strip-components=1
  rm -rf "$DUCKDB_DIR"
  mv "$unpacked" "$DUCKDB_DIR"
}

prepare_duckdb() {
  if [[ -f $DUCKDB_DIR/$DUCKDB_FILE ]] || fetch_duckdb; then
    report ok "DuckDB $DUCKDB_VERSION, linked from $DUCKDB_DIR"
    DUCKDB_BUNDLED=no
  else
    report slow "DuckDB's library could not be fetched with npm: it will be compiled in (feature \`bundled\`)."
    report '' "That takes half an hour or more, once. To avoid it, make npm work and run this again."
    DUCKDB_BUNDLED=yes
  fi
}

# --- what cargo is told ----------------------------------------------------------------------

# Writes stdin to $1 only when that changes it: a new time stamp would mean a new build.
write_if_changed() {
  cat >"$SCRATCH/new"
  cmp -s "$SCRATCH/new" "$1" && return
  mkdir -p "$(dirname "$1")"
  cp "$SCRATCH/new" "$1"
}

write_cargo_config() {
  {
    echo '# Written by scripts/setup.sh for this machine; not in git.'
    echo '[env]'
    [[ $DUCKDB_BUNDLED == yes ]] || printf 'DUCKDB_LIB_DIR = "%s"\n' "$DUCKDB_DIR"
    printf 'PYO3_PYTHON = "%s"\n' "$PYTHON"
  } | write_if_changed "$ROOT/.cargo/config.toml"
  # The options that every cargo command of the Makefile gets.
  if [[ $DUCKDB_BUNDLED == yes ]]; then
    echo '--features bundled' | write_if_changed "$ROOT/.cargo/features"
    report ok "cargo's settings; outside of make, build with: cargo build --release --features bundled"
  else
    rm -f "$ROOT/.cargo/features"
    report ok "cargo's settings (.cargo/config.toml)"
  fi
}

# --- Kafka -----------------------------------------------------------------------------------

fetch_kafka() {
  local home jars
  home=$(dirname "$(kafka_libs)")
  mkdir -p "$CACHE"
  jars=$(mktemp -d "$CACHE/kafka.XXXXXX")
  chmod 755 "$jars"
  cp "$ROOT/scripts/kafka/pom.xml" "$jars/pom.xml"
  quietly mvn -B -q -f "$jars/pom.xml" dependency:copy-dependencies \
    -DincludeScope=runtime "-DoutputDirectory=$jars/libs" || {
    rm -rf "$jars"
    return 1
  }
  rm -rf "$home"
  mv "$jars" "$home"
  quietly "$ROOT/scripts/kafka.sh" prepare || say "  warning: Kafka's first start failed (above); tests on a real broker may too"
}

prepare_kafka() {
  local home version
  home=$(dirname "$(kafka_libs)")
  version=$(kafka_version)
  if [[ -d $home/libs ]] && cmp -s "$ROOT/scripts/kafka/pom.xml" "$home/pom.xml" && have java; then
    report ok "Kafka $version for tests and the stack"
  elif have java && have mvn; then
    report installing "Kafka $version's jars (55 MB) into $home"
    if fetch_kafka; then
      report ok "Kafka $version for tests and the stack"
    elif [[ $CI_MODE == yes ]]; then
      die "Maven could not fetch Kafka's jars, and in CI every suite must run"
    else
      report skipped "Kafka: Maven could not fetch its jars. Tests on a real broker will not run"
    fi
  else
    report skipped "Kafka: needs java and mvn (Debian: default-jre-headless maven). Tests on a real broker will not run"
  fi
}

# --- in order --------------------------------------------------------------------------------

DUCKDB_DIR=$CACHE/duckdb-$DUCKDB_VERSION
DUCKDB_FILE=libduckdb.so
[[ $(uname -s) != Darwin ]] || DUCKDB_FILE=libduckdb.dylib

# Two at once (two terminals, two checkouts with one cache) take turns.
mkdir -p "$CACHE"
if have flock; then
  exec 9>"$CACHE/setup.lock"
  flock -n 9 || {
    say "waiting for another scripts/setup.sh to end"
    flock 9
  }
fi

say "set-up:"
check_rust
PYTHON=$(find_python)
read -r -a PACKAGES <<<"$(missing_packages | tr '\n' ' ')"
# Without npm there is still a way, if a long one, so npm alone does not stop a user who may
# not install it.
if [[ ${PACKAGES[*]} == npm ]]; then
  (install_packages npm) || true
elif ((${#PACKAGES[@]} > 0)); then
  install_packages "${PACKAGES[@]}"
fi
if [[ $NODE_ONLY == yes ]]; then
  report ok "build tools and libraries"
else
  report ok "build tools, libraries, redis-server"
fi
if [[ -z $PYTHON ]]; then
  PYTHON=$(find_python)
  [[ -n $PYTHON ]] || die "no Python 3.11 or newer with a shared libpython and headers was found. On Debian 12 and later python3-dev has them; or name one in MILLSTREAM_PYTHON"
fi
prepare_duckdb
write_cargo_config
make_venv
[[ $NODE_ONLY == yes ]] || prepare_kafka
