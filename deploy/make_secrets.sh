#!/usr/bin/env bash
# Makes the secrets that docker-compose.yml mounts, once; what is there already stays.
# Containers read them as users of their own, so the files are readable and their folder is not.
set -euo pipefail
folder="$(dirname "$0")/secrets"
mkdir -p "$folder"
chmod 700 "$folder"
random() { head -c 32 /dev/urandom | base64 | tr -d '+/=\n'; }
keep() { [ -s "$folder/$1" ] || printf '%s' "$2" >"$folder/$1"; chmod 644 "$folder/$1"; }
keep answerable_key "ak_$(random)"
keep metrics_key "ak_$(random)"
keep postgres_password "$(random)"
keep grafana_password "$(random)"
keep database_url "postgresql://answerable:$(cat "$folder/postgres_password")@postgresql/answerable"
echo "the secrets are in $folder"
