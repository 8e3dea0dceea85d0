#!/usr/bin/env bash
# Gets a Debian machine ready for the lab, and says in plain words what is missing where it cannot.
#
#   tests/lab/setup.sh                 install what is missing
#   tests/lab/setup.sh --check         install nothing, only say what is missing
#   tests/lab/setup.sh --conformance   as well what the upstream e2e suite needs
#
# It may run any number of times: with all in place it takes a second. Go programs and images are not its job: the lab
# builds those itself, into the cache folder of the user.

set -euo pipefail
cd "$(dirname "$0")/../.."

install=yes
conformance=no
for argument in "$@"; do
    case $argument in
    --check) install=no ;;
    --conformance) conformance=yes ;;
    *)
        echo "usage: tests/lab/setup.sh [--check] [--conformance]" >&2
        exit 2
        ;;
    esac
done

problems=()
say() { echo "setup: $*"; }
problem() { problems+=("$*"); }

# finish ends with all that is wrong, so that nobody has to come back once for each.
finish() {
    if [ ${#problems[@]} -gt 0 ]; then
        echo "setup: this machine cannot run the lab yet:" >&2
        printf '  - %s\n' "${problems[@]}" >&2
        exit 1
    fi
}

# at_least FOUND NEEDED compares dotted versions.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

## The machine: nothing that a package could mend.

if [ "$(uname -s)" != Linux ]; then
    problem "the lab is made of Linux namespaces; this is $(uname -s)"
    finish
fi
if [ "$(id -u)" -ne 0 ]; then
    problem "run it as root (sudo -E make …): namespaces, mounts and cgroups are made for real"
    finish
fi
case $(uname -m) in
x86_64 | aarch64) ;;
*) problem "this machine is $(uname -m); amd64 and arm64 are supported" ;;
esac

## Debian packages: each where one of its files, or the command it brings, is not there.

packages=()
need_command() { command -v "$1" >/dev/null 2>&1 || packages+=("$2"); }
need_command gcc build-essential
need_command make build-essential
need_command pkg-config pkg-config
pkg-config --exists libseccomp 2>/dev/null || packages+=(libseccomp-dev)
need_command ip iproute2
need_command nft nftables
need_command conntrack conntrack
need_command ping iputils-ping
# The one of Habets: that of iputils-arping has other options.
[[ $(arping --help 2>&1 || true) == *Habets* ]] || packages+=(arping)
need_command ndisc6 ndisc6
need_command tcpdump tcpdump
need_command socat socat
need_command curl curl
need_command jq jq
need_command mount mount
need_command nsenter util-linux
[ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)
[ $conformance = no ] || need_command debootstrap debootstrap

if [ ${#packages[@]} -gt 0 ]; then
    mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
    if ! command -v apt-get >/dev/null 2>&1; then
        problem "not a Debian machine; install what these packages bring: ${packages[*]}"
    elif [ $install = no ]; then
        problem "missing packages: apt-get install ${packages[*]}"
    else
        say "installing ${packages[*]}"
        log=$(mktemp)
        if ! { apt-get update && DEBIAN_FRONTEND=noninteractive \
            apt-get install --yes --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
            tail -n 15 "$log" >&2
            problem "apt-get could not install ${packages[*]} (its last lines are above)"
        fi
        rm -f "$log"
    fi
fi

## What the kernel lets us do. Everything is tried inside namespaces of its own and is gone with them.

try() { "$@" >/dev/null 2>&1; }
if ! try unshare --net --mount --pid --uts --ipc --fork true; then
    problem "namespaces cannot be made (unshare fails): in a container, it must be a privileged one"
else
    try unshare --net sh -c 'ip link add steelyard-0 type bridge && ip link add steelyard-1 type veth peer name steelyard-2' ||
        problem "bridges or veth pairs cannot be made: the kernel modules bridge and veth are needed"
    # What a service proxy uses: NAT and sets with intervals.
    try unshare --net nft 'add table ip steelyard; add set ip steelyard ranges { type ipv4_addr; flags interval; };
        add chain ip steelyard nat { type nat hook postrouting priority srcnat; };
        add rule ip steelyard nat ip saddr @ranges masquerade' ||
        problem "nftables with NAT does not work here: the kernel modules nf_tables, nft_chain_nat and nft_masq are needed"
    [ -e /proc/sys/net/ipv6 ] || problem "the kernel runs without IPv6; the lab is dual-stack"
fi
grep -qw overlay /proc/filesystems || try modprobe overlay ||
    problem "the kernel has no overlay file system, which containers stand on"

cgroup_root=/sys/fs/cgroup
[ "$(stat -f -c %T "$cgroup_root" 2>/dev/null)" = cgroup2fs ] || cgroup_root=/sys/fs/cgroup/memory
if try mkdir "$cgroup_root/steelyard-setup-$$"; then
    rmdir "$cgroup_root/steelyard-setup-$$"
else
    problem "cgroups cannot be made in $cgroup_root: is it mounted, and writable?"
fi

## Go and Rust, which Debian's packages are too old for.

PATH=$PATH:/usr/local/go/bin:${HOME:-/root}/.cargo/bin
needed_go=$(sed -n 's/^go //p' tests/lab/programs/*/go.mod | sort -V | tail -n 1)
how_go="unpack go$needed_go or newer from https://go.dev/dl into /usr/local"
if ! command -v go >/dev/null 2>&1; then
    problem "Go is missing: $how_go"
else
    # Asked in the module that needs most, where Go itself may switch to a newer release (GOTOOLCHAIN).
    module=$(dirname "$(grep -lx "go $needed_go" tests/lab/programs/*/go.mod | head -n 1)")
    found=$(cd "$module" && go version 2>/dev/null | sed -n 's/^go version go\([0-9.]*\).*/\1/p') || found=
    at_least "${found:-0}" "$needed_go" || problem "Go is too old (${found:-unknown}, $needed_go is needed): $how_go"
fi
needed_rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
how_rust="install Rust $needed_rust or newer with https://rustup.rs"
if ! command -v cargo >/dev/null 2>&1; then
    problem "Rust is missing: $how_rust"
else
    found=$(cargo --version 2>/dev/null | sed -n 's/^cargo \([0-9.]*\).*/\1/p') || found=
    at_least "${found:-0}" "$needed_rust" || problem "Rust is too old (${found:-unknown}, $needed_rust is needed): $how_rust"
fi

## Space: the Go and Rust builds with their caches.

cache=${STEELYARD_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}}
while [ ! -d "$cache" ]; do cache=$(dirname "$cache"); done
free=$(df --output=avail --block-size=1G "$cache" | tail -n 1 | tr -d ' ')
[ "$free" -ge 15 ] || say "only $free GiB are free below $cache; a first build of all takes up to 15, its caches included"

finish
say "this machine has all that the lab needs"
