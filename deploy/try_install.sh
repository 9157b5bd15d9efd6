#!/usr/bin/env bash
# Runs the commands of the Dockerfile's cpu target in a clean Debian root, without Docker: what it installs starts,
# answers as a user without rights, passes the health check, and holds neither a compiler nor pip.
#
#     sudo deploy/try_install.sh [FOLDER]      needs debootstrap; takes minutes and 3 GB; FOLDER is removed at the end
#
# TRY_BINDS lists folders and files of this machine that pip needs (its configuration, wheels), read-only.
# TORCH_INDEX is the build argument of that name.
set -euo pipefail
cd "$(dirname "$0")/.."
root="$(realpath -m "${1:-/tmp/answerable-root}")"
venv=/opt/answerable
[ ! -e "$root" ] || { echo "$root is there already" >&2; exit 2; }

service=
unmount() { for place in "${mounted[@]}"; do umount "$place" || true; done; }
mounted=()
trap '[ -z "$service" ] || kill "$service" 2>/dev/null || true; unmount; rm -rf --one-file-system "$root"' EXIT
bind() { # FROM: at the same place in the root
  if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$root$(dirname "$1")" && touch "$root$1"; fi
  mount --bind -o ro "$1" "$root$1" && mounted=("$root$1" "${mounted[@]}")
}
inside() { chroot "$root" env -i HOME=/root LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin "$@"; }

# The stand-in for the image python:3.11-slim-bookworm: Debian bookworm with its Python 3.11, and below with a pip that no
# package of Debian owns.
debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,python-is-python3,ca-certificates \
  bookworm "$root" >"$root.log" 2>&1 || { tail -5 "$root.log" >&2; exit 1; }
rm -f "$root.log"
mount -t proc proc "$root/proc" && mounted=("$root/proc" "${mounted[@]}")
cp /etc/resolv.conf "$root/etc/resolv.conf"
for path in ${TRY_BINDS:-}; do bind "$path"; done
mkdir -p "$root/dev/shm" && chmod 1777 "$root/dev/shm"
rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
inside pip install --quiet --root-user-action ignore --no-index --find-links /usr/share/python-wheels --ignore-installed \
  pip setuptools </dev/null  # the wheels that venv brings
inside apt-get purge -y -qq python3-pip python3-setuptools python3-wheel >/dev/null 2>&1

# What .dockerignore lets through.
mkdir -p "$root/build/deploy"
cp -r pyproject.toml README.md LICENSE service "$root/build/"
cp deploy/constraints.txt "$root/build/deploy/"
cp -r models "$root/models"
find "$root/build" "$root/models" -name __pycache__ -prune -exec rm -rf {} +

# stage NAME: the RUN commands of one stage of the Dockerfile, a line each.
stage() {
  awk -v stage="$1" '
    $1 == "FROM" { inside = ($NF == stage) }
    inside && /^RUN / { running = 1; command = "" }
    running { line = $0; sub(/^RUN /, "", line); sub(/--mount=[^ ]+ /, "", line); more = sub(/\\$/, "", line)
              command = command line; if (!more) { print command; running = 0 } }' Dockerfile
}
for name in build build-cpu; do
  while IFS= read -r command; do
    echo "[$name] $command"
    inside TORCH_INDEX="${TORCH_INDEX-$(sed -n 's/^ARG TORCH_INDEX=//p' Dockerfile)}" \
      sh -ec "cd /build; $command" </dev/null
  done < <(stage "$name")
done

# The final stage holds the virtual environment and the models, and none of what built them.
while IFS= read -r command; do
  case "$command" in
    mkdir*) inside setpriv --reuid 10001 --regid 10001 --clear-groups sh -ec "cd /var/lib/answerable; $command" ;;
    *) echo "[run] $command"; inside sh -ec "$command" ;;
  esac
done < <(stage run)
rm -rf "$root/build" "$root/root/.cache"
for tool in pip pip3 gcc cc make; do
  if inside sh -c "command -v $tool || command -v $venv/bin/$tool"; then echo "$tool is in the final stage" >&2; exit 1; fi
done
for python in python $venv/bin/python; do
  if inside "$python" -c 'import pip' 2>/dev/null; then echo "$python has pip" >&2; exit 1; fi
done
for package in torch service; do
  inside $venv/bin/python -c "from importlib.util import find_spec; from pathlib import Path
assert Path(find_spec('$package').cached).exists(), '$package is compiled by every process anew'"
done
echo "installed: $(du -sm "$root$venv" | cut -f1) MB"

user=(chroot "$root" setpriv --reuid 10001 --regid 10001 --clear-groups env -i LANG=C.UTF-8 PATH=$venv/bin:/usr/bin:/bin)
"${user[@]}" HOME=/var/lib/answerable ANSWERABLE_DATA=/var/lib/answerable/data ANSWERABLE_MODELS=/models \
  ANSWERABLE_KEY=tried-in-a-clean-root ANSWERABLE_HOST=127.0.0.1 ANSWERABLE_PORT="${PORT:-18080}" answerable serve &
service=$!
for _ in $(seq 120); do
  if "${user[@]}" python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:${PORT:-18080}/v2/health/ready')" 2>/dev/null; then
    ready=yes; break
  fi
  sleep 1
done
[ "${ready:-}" = yes ] || { echo "it did not become ready" >&2; exit 1; }
"${user[@]}" python - <<CHECK
import json, urllib.request
address = "http://127.0.0.1:${PORT:-18080}"
assert urllib.request.urlopen(address + "/v2/health/live", timeout=2).status == 200
key = {"Authorization": "Bearer tried", "Content-Type": "application/json"}
ask = lambda path, body=None: json.load(urllib.request.urlopen(urllib.request.Request(address + path, body, key)))
for model in ask("/v1/models")["models"]:
    body = json.dumps({"instances": [ask(f"/v1/models/{model}")["example"]]}).encode()
    (explanation,) = ask(f"/v1/models/{model}:explain", body)["explanations"]
    assert explanation["converged"], explanation
    print(model, explanation["model"]["version"], explanation["method"], explanation["completeness_error"])
CHECK
kill -TERM "$service"
wait "$service"
service=
echo "the service ended with 0"
