#!/bin/sh
# Runs the headless tests of comms and control messages against kernels of several versions: `.ci/kernels.sh [VERSION…]`.
# Each version gets an environment of its own under build/kernels, made with .venv's Python (or $PYTHON); a summary stands
# at the end.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 6.31.0 7.3.0 7.4.0
tests="tests/test_dashboard_kernel.py tests/test_magics.py"
summary="" failed=0
for version in "$@"; do
    home=build/kernels/$version
    if [ ! -e "$home/.ready" ]; then
        printf 'kernels: making %s (a few minutes the first time)\n' "$home" >&2
        rm -rf "$home"
        "${PYTHON:-.venv/bin/python}" -m venv "$home"
        "$home/bin/python" -m pip install --quiet --disable-pip-version-check \
            --editable ".[demo]" "ipykernel==$version" "hypothesis>=6.100" "pytest>=9.0" "pytest-asyncio>=1.1"
        touch "$home/.ready"
    fi
    # The tests' kernels are those of the Python that runs the tests.
    # shellcheck disable=SC2086 # several words on purpose
    if "$home/bin/python" -m pytest -q $tests; then state=passes; else state=FAILS failed=1; fi
    summary="$summary
ipykernel $version: $state"
done
printf 'kernels:%s\n' "$summary"
exit "$failed"
