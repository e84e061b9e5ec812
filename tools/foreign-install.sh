#!/usr/bin/env bash
# Installs the programs of others that the end-to-end tests run (e2e/foreign_test.go):
# nginx and redis-server, as Debian has them (root). Debian's own services of them are kept
# from running. Exit code 0: they are there; otherwise the last line says why not.
set -euo pipefail

fail() { echo "foreign: $1" >&2; exit 1; }

packages=()
[ -x /usr/sbin/nginx ] || packages+=(nginx-light)
[ -x /usr/bin/redis-server ] || packages+=(redis-server)
if [ "${#packages[@]}" -gt 0 ]; then
	[ "$(id -u)" -eq 0 ] || fail "to install ${packages[*]} needs root"
	command -v apt-get >/dev/null || fail "install ${packages[*]} (names of Debian's packages; there is no apt-get here)"
	policy=/usr/sbin/policy-rc.d # what says 101 here keeps a package from starting its service
	if [ ! -e "$policy" ]; then
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
		trap 'rm -f "$policy"' EXIT
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get install -y --no-install-recommends "${packages[@]}" ||
		{ apt-get update && apt-get install -y --no-install-recommends "${packages[@]}"; }
	if [ -d /run/systemd/system ]; then # nor at the next boot
		systemctl disable --now nginx redis-server 2>/dev/null || true
	fi
fi
/usr/sbin/nginx -v 2>/dev/null || fail "nginx does not run"
/usr/bin/redis-server --version >/dev/null || fail "redis-server does not run"
echo "foreign: this machine has nginx and redis-server"
