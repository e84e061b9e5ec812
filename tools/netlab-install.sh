#!/usr/bin/env bash
# Makes this machine able to run the network lab of the end-to-end tests
# (e2e/netlab): installs what is missing of its programs (Debian, root), then
# tries what a lab needs of the kernel. Exit code 0: labs run here; otherwise
# the last line says why not.
set -euo pipefail

if [ "$(id -u)" -ne 0 ]; then
	echo "netlab: namespaces and mounts need root" >&2
	exit 1
fi

packages=()
need() { command -v "$1" >/dev/null || packages+=("$2"); }
need ip iproute2
need nft nftables
need mkfs.ext4 e2fsprogs
need mount mount
need losetup mount
need nsenter util-linux
if [ "${#packages[@]}" -gt 0 ]; then
	if ! command -v apt-get >/dev/null; then
		echo "netlab: install ${packages[*]} (names of Debian's packages; there is no apt-get here)" >&2
		exit 1
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get install -y --no-install-recommends "${packages[@]}" ||
		{ apt-get update && apt-get install -y --no-install-recommends "${packages[@]}"; }
fi

ns=kbnetlab-try-$$
dir=$(mktemp -d)
trap 'umount "$dir/m" 2>/dev/null || true; ip netns del "$ns" 2>/dev/null || true; rm -rf "$dir"' EXIT
fail() { echo "netlab: $1" >&2; exit 1; }

ip netns add "$ns" || fail "the kernel or a container denies network namespaces"
ip -n "$ns" link add br0 type bridge || fail "the kernel has no bridges"
ip -n "$ns" link add p1 type veth peer name eth0 || fail "the kernel has no veth"
nsenter --net="/run/netns/$ns" nft -f - <<'RULES' || fail "the kernel has no nftables for bridges"
table bridge try {
	chain forward {
		type filter hook forward priority 0; policy accept;
		numgen random mod 100 < 20 drop
	}
}
RULES
truncate -s 32M "$dir/i"
mkdir "$dir/m"
mkfs.ext4 -q -F "$dir/i" && mount -t ext4 -o loop "$dir/i" "$dir/m" || fail "no ext4 on a loop device here"
echo "netlab: this machine can run labs"
