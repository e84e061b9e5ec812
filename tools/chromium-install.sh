#!/usr/bin/env bash
# Installs the browser that the test of the chat's page drives (examples/chat), as Debian has
# it (root). Exit code 0: it is there; otherwise the last line says why not.
set -euo pipefail

fail() { echo "chromium: $1" >&2; exit 1; }

if ! command -v chromium >/dev/null; then
	[ "$(id -u)" -eq 0 ] || fail "to install chromium needs root"
	command -v apt-get >/dev/null || fail "install chromium (the name of Debian's package; there is no apt-get here)"
	export DEBIAN_FRONTEND=noninteractive
	apt-get install -y --no-install-recommends chromium ||
		{ apt-get update && apt-get install -y --no-install-recommends chromium; }
fi
chromium --version 2>/dev/null || fail "it does not run"
