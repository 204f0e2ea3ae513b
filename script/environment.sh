# shellcheck shell=sh
# What the scripts here share: finds Python, makes virtual environments, installs Debian packages.
# The script that sources this file has set `root` to the checkout.
: "${root:?}"

say() {
    printf 'ephmon: %s\n' "$*" >&2
}

die() {
    say "$*"
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# --- Python ---------------------------------------------------------------------------------------------------------

is_python_3_11_or_newer() {
    have "$1" && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Sets `python` to the first interpreter that is new enough, or to the one that PYTHON in the environment names.
find_python() {
    for python in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if is_python_3_11_or_newer "$python"; then
            return
        elif [ -n "${PYTHON:-}" ]; then
            die "PYTHON names $PYTHON, which is no Python 3.11 or newer"
        fi
    done
    if ! have python3 && may_install; then
        install_packages python3 python3-venv
        python=python3
        if is_python_3_11_or_newer "$python"; then
            return
        fi
    fi
    die "Python 3.11 or newer is needed, and $(python3 --version 2>/dev/null || echo 'no python3') was found;" \
        "install one, or name it: PYTHON=/opt/python3.12/bin/python3 $0"
}

# Debian keeps what `python3 -m venv` needs in packages of its own.
require_venv_module() {
    if "$1" -c 'import ensurepip, venv' 2>/dev/null; then
        return
    fi
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if may_install; then
        install_packages "$package"
    else
        die "the venv module of $1 is missing; on Debian and Ubuntu: apt-get install $package"
    fi
}

# Makes or renews a virtual environment: prepare DIRECTORY PYTHON STAMP PIP-ARGUMENTS...
# Nothing is done when it stands, belongs to this checkout and interpreter, and was last prepared with the same stamp.
prepare() {
    directory=$1 interpreter=$2 stamp=$3
    shift 3
    base="$root $("$interpreter" -c 'import sys; print(sys.base_prefix, *sys.version_info[:2])')"
    if [ "$(cat "$directory/ephmon-base" 2>/dev/null)" != "$base" ] || ! "$directory/bin/python" -c '' 2>/dev/null; then
        require_venv_module "$interpreter"
        say "making $directory"
        "$interpreter" -m venv --clear "$directory"
        printf '%s\n' "$base" >"$directory/ephmon-base"
    fi
    if [ "$(cat "$directory/ephmon-stamp" 2>/dev/null)" != "$stamp" ]; then
        say "installing into $directory"
        pip_install "$directory" "$@"
        printf '%s\n' "$stamp" >"$directory/ephmon-stamp"
    fi
}

pip_install() {
    directory=$1
    shift
    "$directory/bin/python" -m pip install --quiet --no-input --disable-pip-version-check "$@" </dev/null ||
        die "pip could not install into $directory, see above; without PyPI, name a mirror in PIP_INDEX_URL"
}

# Two scripts that start at once must not both make the environment, or what else FILE stands for: lock [FILE]
# The lock goes with the shell's descriptor 9.
lock() {
    exec 9<"${1:-$root/pyproject.toml}"
    if have flock; then
        flock 9
    fi
}

unlock() {
    exec 9<&-
}

# Tells whether a system can be booted in a container: by root, in namespaces, with cgroups of its own.
can_boot() {
    [ "$(id -u)" -eq 0 ] && unshare --mount --pid --fork --mount-proc true 2>/dev/null &&
        awk '$3 == "cgroup2" && $4 ~ /^rw/ { found = 1 } END { exit !found }' /proc/mounts
}

# --- Debian packages ------------------------------------------------------------------------------------------------

may_install() {
    [ "$(id -u)" -eq 0 ] && have apt-get
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 --yes --no-install-recommends "$@" </dev/null >&2
}

# Installs packages, and lets none of them start a service, now or at the next boot.
install_packages() {
    say "installing with apt-get: $*"
    if ! apt_get --simulate install "$@" >/dev/null 2>&1; then
        apt_get update
    fi
    forbid_services "$@"
    apt_get install "$@" || { apt_get update && apt_get install "$@"; } || die "apt-get could not install $*"
    allow_services
    for package in "$@"; do
        if [ -e "/etc/init.d/$package" ]; then
            update-rc.d "$package" disable >&2
        fi
    done
}

policy=/usr/sbin/policy-rc.d

# invoke-rc.d asks this file whether a service may be started (101: it may not). It refuses only as long as this
# script lives, so that it is harmless where it is left behind.
forbid_services() {
    if [ ! -e "$policy" ]; then
        trap allow_services EXIT
        trap 'exit 129' HUP
        trap 'exit 130' INT
        trap 'exit 143' TERM
        printf '#!/bin/sh\n# Made by ephmon for one installation.\n[ -d /proc/%s ] && exit 101\nexit 0\n' $$ >"$policy"
        chmod 755 "$policy"
    elif [ ! -x "$policy" ] || policy_permits; then
        die "$policy lets packages start their services; install these by hand: $*"
    fi
}

policy_permits() {
    status=0
    "$policy" ephmon start >/dev/null 2>&1 </dev/null || status=$?
    [ "$status" -ne 101 ]
}

allow_services() {
    if grep -qs '^# Made by ephmon for one installation' "$policy"; then
        rm -f "$policy"
    fi
    trap - EXIT HUP INT TERM
}

# Installs the programs that are not here, or dies and names their packages. Standard input has one program and the
# package that it comes in on each line.
require_programs() {
    missing=$(while read -r program package; do have "$program" || echo "$package"; done | sort -u)
    if [ -z "$missing" ]; then
        return
    fi
    # shellcheck disable=SC2086 # a list of words
    set -- $missing
    if may_install; then
        install_packages "$@"
    else
        die "$0 needs programs that are not here; on Debian and Ubuntu: apt-get install --no-install-recommends $*"
    fi
}

# Prints where this host's apt gets Debian's packages from, and fails if that cannot be told.
debian_archive() {
    known_archive || { may_install && apt_get update && known_archive; }
}

# Before apt has read the lists of an archive it does not know whose they are.
known_archive() {
    # shellcheck disable=SC2016 # apt's variables
    apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        sed -n '/^Debian Debian /{s///;p;q;}' | grep .
}
