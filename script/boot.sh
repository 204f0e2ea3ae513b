# shellcheck shell=sh
# What the scripts share that boot a system in a container, with systemd as its first process and without a network.
# The script that sources this file has sourced environment.sh and set `suite`, `cache` and `seconds_at_most`.
: "${suite:?}" "${cache:?}" "${seconds_at_most:?}"

require_suite() {
    case $suite in
        bookworm | trixie | noble) ;;
        *) return 1 ;;
    esac
    can_boot || die "booting a container takes root, namespaces and a cgroup v2 that can be written"
}

# Sets where packages of the suite come from: Debian's from where this host gets them.
find_archive() {
    components=main keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    if [ "$suite" != noble ]; then
        archive=$(debian_archive) || die "apt knows no archive of Debian packages here; on Debian, run apt-get update"
        return
    fi
    archive=http://archive.ubuntu.com/ubuntu
    components=main,universe
    keyring=${UBUNTU_KEYRING:-/usr/share/keyrings/ubuntu-archive-keyring.gpg}
    [ -r "$keyring" ] || die "the keys of Ubuntu's archive are not in $keyring; name them in UBUNTU_KEYRING"
}

# Makes $cache/NAME.tar: make_system NAME PACKAGES MMDEBSTRAP-OPTIONS... In namespaces of its own, because it starts
# programs of the suite and mounts /proc for them.
make_system() {
    made=$1 packages=$2
    shift 2
    find_archive
    mkdir -p "$cache"
    unshare --mount --pid --fork --kill-child --mount-proc \
        mmdebstrap --quiet --mode=root --variant=apt --include="$packages" "$@" \
        --components="$components" --keyring="$keyring" --format=tar "$suite" "$cache/$made.new" "$archive" </dev/null >&2 ||
        die "mmdebstrap could not make a system of $suite, see above"
    mv "$cache/$made.new" "$cache/$made.tar"
}

require_boot_programs() {
    require_programs <<'PROGRAMS'
mmdebstrap mmdebstrap
systemd-nspawn systemd-container
unshare util-linux
PROGRAMS
}

# Prints the directories of cgroups that systemd-nspawn makes its own in: of cgroup v2, and of v1 where it is in use.
hierarchies() {
    awk '$3 == "cgroup2" || ($3 == "cgroup" && $4 ~ /name=systemd/) { print $2 }' /proc/mounts
}

# Runs a command in cgroups of its own, and removes those with all that it has made in them. The command gets the signals
# that would end this script.
in_own_cgroups() {
    (
        for hierarchy in $(hierarchies); do
            mkdir "$hierarchy/$name"
            # $$ would be the number of the script and not of this subshell.
            sh -c 'echo $PPID' >"$hierarchy/$name/cgroup.procs"
        done
        exec "$@"
    ) &
    container=$!
    trap 'kill "$container"' HUP INT TERM
    status=0
    wait "$container" || status=$?
    trap - HUP INT TERM
    for hierarchy in $(hierarchies); do
        remove_cgroups "$hierarchy/$name"
    done
    return "$status"
}

# What was killed a moment ago may still be there.
remove_cgroups() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        if find "$1" -depth -type d -exec rmdir {} + 2>/dev/null; then
            return
        fi
        sleep 0.5
    done
    say "$1 could not be removed"
}

# Unpacks $cache/NAME.tar into the new directory `system` below the new directory `run`, which goes with the script:
# unpack_system NAME
unpack_system() {
    name=ephmon-$$
    run=$(mktemp -d "$cache/run.XXXXXX")
    trap 'rm -rf "$run"; rmdir "/run/systemd/nspawn/propagate/$name" 2>/dev/null || true' EXIT
    chmod 755 "$run"
    system=$run/system
    mkdir "$system"
    tar --extract --file="$cache/$1.tar" --directory="$system" --numeric-owner
    mkdir "$system/results"
}

# Lets the system start a unit when it boots: start_at_boot FILE
start_at_boot() {
    install -m 644 "$1" "$system/etc/systemd/system/"
    mkdir -p "$system/etc/systemd/system/multi-user.target.wants"
    ln -s "../${1##*/}" "$system/etc/systemd/system/multi-user.target.wants/"
}

# Boots the system and waits until it has switched itself off: boot NSPAWN-OPTIONS... Whatever happens, all that runs in
# it ends with the command, because it is all in one pid namespace.
boot() {
    in_own_cgroups timeout --signal=KILL "$seconds_at_most" \
        unshare --mount --pid --fork --kill-child --mount-proc \
        env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 \
        systemd-nspawn --quiet --boot --register=no --keep-unit --machine="$name" --directory="$system" \
        --private-network --capability=all --console=pipe "$@" </dev/null >"$run/console" 2>&1 ||
        say "systemd-nspawn ended with status $?; 137: it was stopped after $seconds_at_most seconds"
}

# Prints what the unit in the system said, or what the console did when it never started, and tells whether it succeeded.
print_results() {
    cat "$system/results/output" 2>/dev/null || cat "$run/console"
    grep -qx 0 "$system/results/status" 2>/dev/null
}
