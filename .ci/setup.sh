#!/bin/sh
# All set-up behind the Makefile's targets: `.ci/setup.sh demo|test|bench` makes .venv and installs what is missing.
# Writes to the checkout, to pip's cache and, with root or passwordless sudo only, through the system's package manager.
set -eu
cd "$(dirname "$0")/.."
purpose=${1:?"usage: .ci/setup.sh demo|test|bench"}

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || die "PYTHON=$PYTHON is not a Python of version 3.11 or later"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    die "no Python of version 3.11 or later on PATH; install one, or say PYTHON=/path/to/python"
}

# Echoes the prefix that makes us root, and fails where nothing does.
as_root() {
    if [ "$(id -u)" = 0 ]; then echo env; elif have sudo && sudo -n true 2>/dev/null; then echo "sudo -n env"; else return 1; fi
}

manager() {
    for candidate in apt-get dnf pacman apk; do
        if have "$candidate"; then echo "$candidate"; return; fi
    done
    return 1
}

# The command that installs packages, for running it (after a prefix) and for telling a person.
install_command() {
    case $1 in
        apt-get) echo "DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends" ;;
        dnf) echo "dnf install -y" ;;
        pacman) echo "pacman -S --noconfirm --needed" ;;
        apk) echo "apk add" ;;
    esac
}

# install PACKAGE…: with the system's package manager; says what to type, and fails, where that may not be done.
install() {
    tool=$(manager) || { say "please install: $*"; return 1; }
    command=$(install_command "$tool")
    root=$(as_root) || { say "not root, and no passwordless sudo; please run as root: $command $*"; return 1; }
    say "installing $* with $tool"
    if [ "$tool" = apt-get ]; then
        # shellcheck disable=SC2086 # the prefix is several words on purpose
        $root apt-get update -qq || say "apt-get update failed; trying with the lists that are there"
    fi
    # shellcheck disable=SC2086
    $root $command "$@" >&2 || { say "that failed; please run as root: $command $*"; return 1; }
}

# need PROGRAM PACKAGE WHY: a program that we can go on without, with a loss that is stated.
need() {
    have "$1" || install "$2" && have "$1" || say "without $1: $3"
}

ssh_package() {
    case $(manager || true) in dnf) echo openssh-clients ;; pacman) echo openssh ;; *) echo openssh-client ;; esac
}

sshd_package() {
    case $(manager || true) in pacman | apk) echo openssh ;; *) echo openssh-server ;; esac
}

venv_works() {
    new_enough .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1
}

make_venv() {
    venv_works && return
    python=$(find_python)
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
        install "$version-venv" || install python3-venv || die "$python cannot make virtual environments (no ensurepip)"
    fi
    say "making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv || die "$python -m venv .venv failed"
}

install_package() {
    say "installing the package and its dependencies (a few minutes the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$1]" \
        || die "pip failed; see above. It uses this machine's own pip configuration"
    [ -d jupyter_agentwatch/notebook/static ] \
        || say "the browser's part was not built, so there is no dashboard and no kill button; why: .venv/bin/python -m pip install -v --editable ."
}

install_bubblewrap() {
    have bwrap || install bubblewrap && have bwrap \
        || say "without bubblewrap there is no rung A; .venv/bin/jupyter agentwatch doctor says what else this machine can give"
}

make_venv
install_bubblewrap
case $purpose in
    demo) install_package demo ;;
    test | bench)
        install_package test
        need curl curl "the tests with a real curl cannot run"
        need git git "the tests with a real git cannot run"
        need ssh "$(ssh_package)" "the tests with a real ssh cannot run"
        need /usr/sbin/sshd "$(sshd_package)" "the tests with a real ssh cannot run"
        need wget wget "the tests with a real wget cannot run"
        need gcc gcc "the tests with a GPU library of their own making cannot run"
        need chromium chromium "the tests in a real browser cannot run"
        ;;
    *) die "unknown purpose $purpose: demo, test or bench" ;;
esac
if [ "$purpose" = bench ]; then
    need strace strace "there is no strace to compare with"
    need npm npm "sandbox-runtime cannot be compared with"
    need rg ripgrep "sandbox-runtime cannot be compared with"
    need socat socat "sandbox-runtime cannot be compared with"
fi
