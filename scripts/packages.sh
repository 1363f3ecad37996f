#!/usr/bin/env bash
# Installs Debian packages whose command is missing: packages.sh COMMAND:PACKAGE… PACKAGE…
# A bare PACKAGE is installed when dpkg does not have it. Does nothing, and asks for nothing, where all is there.
set -euo pipefail

missing=()
for entry in "$@"; do
    command=${entry%%:*} package=${entry##*:}
    if [[ $entry == *:* ]]; then
        command -v "$command" >/dev/null || missing+=("$package")
    elif command -v dpkg-query >/dev/null; then
        dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    fi
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

as_root=()
[[ $EUID -eq 0 ]] || as_root=(sudo)
if ! command -v apt-get >/dev/null; then
    echo "please install: ${missing[*]}" >&2
    exit 1
fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
