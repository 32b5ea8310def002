"""Shell text and wrappers are read as far as the text alone tells, and hostile text costs little."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.detect.shellscript import read_script
from jupyter_agentwatch.detect.unwrap import invocations, program_name

TARGET = ("ssh", "-R", "1:a:2", "h")


def words(script: str) -> list[tuple[str, ...]]:
    """Return the words of every command of a script."""
    return [command.words for pipeline in read_script(script) for command in pipeline if command.words]


@pytest.mark.parametrize(
    "script",
    [
        "ssh -R 1:a:2 h",
        "s''s\\h -R '1:a:2' \"h\"",
        "a=ss; b=h; $a$b -R 1:a:2 h",
        "a=ss; a+=h; ${a} -R 1:a:2 h",
        "w=xssh; ${w:1:3} -R 1:a:2 h",
        "${x:-ssh} -R 1:a:2 h",
        "ssh${IFS}-R${IFS}1:a:2${IFS}h",
        "{ssh,-R,1:a:2,h}",
        "$'\\x73\\163h' -R 1:a:2 h",
        "$(echo ssh) -R 1:a:2 h",
        "`printf ssh` -R 1:a:2 h",
        "$(echo c3No | base64 -d) -R 1:a:2 h",
        "$(rev <<< hss) -R 1:a:2 h",
        "$(echo fFU | tr F-V S-Z) -R 1:a:2 h || ssh -R 1:a:2 h",
        "if true; then\n  ssh -R 1:a:2 h\nfi",
        "f() { ssh -R 1:a:2 h; }; f",
        "case $x in a) ssh -R 1:a:2 h;; esac",
        "(cd /x && ssh -R 1:a:2 h) &",
        "for i in ssh; do $i -R 1:a:2 h; done",
        "echo x; # a comment\nssh -R 1:a:2 h >/dev/null 2>&1",
        "ssh \\\n  -R 1:a:2 h",
    ],
)
def test_disguises_that_the_text_alone_undoes(script: str) -> None:
    """Quotes, variables, $IFS, braces, escapes and pure text tools come out as what would run."""
    assert TARGET in words(script)


def test_what_is_only_text_is_no_command() -> None:
    """Comments, quoted arguments, conditions and here-documents are not commands."""
    script = "echo 'ssh -R 1:a:2 h' # ssh -R 1:a:2 h\ncat > f <<EOF\nssh -R 1:a:2 h\nEOF\n[[ ssh -R ]] && ls"
    assert [each[0] for each in words(script)] == ["echo", "cat", "[[", "ls"]


def test_here_documents_and_redirections() -> None:
    """The body of a here-document and every redirection is kept with its command."""
    ((cat,), (ls,)) = read_script("cat <<'E' 2>&1 >> out\nbody $x\nE\nls")
    assert [(r.fd, r.op, r.target, r.body) for r in cat.redirects] == [
        (-1, "<<", "E", "body $x"),
        (2, ">&", "1", ""),
        (-1, ">>", "out", ""),
    ]
    assert ls.words == ("ls",)


@pytest.mark.parametrize(
    ("script", "count"),
    [
        ("for i in {1..254}; do ping 10.0.0.$i; done", 254),
        ("for i in $(seq 1 254); do ping 10.0.0.$i; done", 254),
        ("for ((i=1;i<=254;i++)); do ping 10.0.0.$i; done", 254),
        ("for i in 1 2 3; do ping 10.0.0.$i; done", 3),
        ("for i in $(cat hosts); do ping 10.0.0.$i; done", 0),
    ],
)
def test_loops_say_how_often(script: str, count: int) -> None:
    """A loop's variable keeps its place in a word, and how many values it takes is known where the text tells."""
    (ping,) = (run for run in invocations(["bash", "-c", script]) if run.name == "ping")
    assert ping.argv[1] == "10.0.0.${i}"
    assert ping.repeats(ping.argv[1]) == count


@pytest.mark.parametrize(
    "argv",
    [
        ["bash", "-lc", "ssh -R 1:a:2 h"],
        ["sh", "-c", "exec ssh -R 1:a:2 h"],
        ["bash", "-c", "$0 $@", "ssh", "-R", "1:a:2", "h"],
        ["nohup", "nice", "-n", "19", "setsid", "ssh", "-R", "1:a:2", "h"],
        ["env", "-i", "A=1", "timeout", "-k", "5", "60", "ssh", "-R", "1:a:2", "h"],
        ["env", "-S", "ssh -R 1:a:2 h"],
        ["sudo", "-u", "x", "ionice", "-c", "3", "taskset", "0xf", "ssh", "-R", "1:a:2", "h"],
        ["stdbuf", "-oL", "chrt", "-i", "0", "ssh", "-R", "1:a:2", "h"],
        ["xargs", "-n1", "-P4", "ssh", "-R", "1:a:2", "h"],
        ["find", ".", "-name", "x", "-exec", "ssh", "-R", "1:a:2", "h", ";"],
        ["su", "x", "-c", "ssh -R 1:a:2 h"],
        ["script", "-qc", "ssh -R 1:a:2 h", "/dev/null"],
        ["flock", "/tmp/l", "ssh", "-R", "1:a:2", "h"],
        ["watch", "-n", "5", "ssh -R 1:a:2 h"],
        ["tmux", "new-session", "-d", "-s", "x", "ssh -R 1:a:2 h"],
        ["screen", "-dmS", "x", "ssh", "-R", "1:a:2", "h"],
        ["parallel", "ssh -R {} h", ":::", "1:a:2"],
        ["docker", "run", "--rm", "-u", "1000", "image:1", "ssh", "-R", "1:a:2", "h"],
        ["busybox", "ssh", "-R", "1:a:2", "h"],
        ["/lib64/ld-linux-x86-64.so.2", "--library-path", "/x", "ssh", "-R", "1:a:2", "h"],
        ["conda", "run", "-n", "base", "ssh", "-R", "1:a:2", "h"],
        ["python3", "-c", "import os; os.system('ssh -R 1:a:2 h')"],
        ["python3", "-c", "import subprocess; subprocess.run(['ssh', '-R', '1:a:2', 'h'])"],
        ["perl", "-e", "system('ssh -R 1:a:2 h')"],
        ["bash", "-c", "echo c3NoIC1SIDE6YToyIGg= | base64 -d | sh"],
        ["bash", "-c", "printf 'ssh -R 1:a:2 h' | bash -s"],
        ["bash", "-c", "bash <<X\nssh -R 1:a:2 h\nX"],
        ["bash", "-c", 'eval "ssh -R 1:a:2 h"'],
        ["bash", "-c", "echo 1:a:2 h | xargs ssh -R"],
    ],
    ids=lambda argv: " ".join(argv)[:48],
)
def test_wrappers_come_off(argv: list[str]) -> None:
    """What starts something else is taken off until the program that would run is in sight."""
    assert TARGET in [run.argv for run in invocations(argv)]


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("/usr/bin/python3.11", "python"),
        ("./xmrig-6.21.0", "xmrig"),
        ("chisel_1.9.1_linux_amd64", "chisel"),
        ("cloudflared-linux-amd64", "cloudflared"),
        ("pagekite.py", "pagekite"),
        ("T-Rex", "t-rex"),
        ("-bash", "bash"),
        ("/lib/ld-musl-x86_64.so.1", "ld.so"),
        ("ld", "ld"),
        ("7z", "7z"),
    ],
)
def test_names_of_programs(word: str, name: str) -> None:
    """Folder, version, platform and suffix do not belong to a program's name."""
    assert program_name(word) == name


def test_the_path_of_an_exec_decides_and_not_its_first_argument() -> None:
    """`argv[0]` is the caller's free choice; what a multi-call binary is called by is not."""
    assert [run.name for run in invocations(["ls", "-R", "1:a:2", "h"], path="/usr/bin/ssh")] == ["ssh"]
    assert [run.name for run in invocations(["nc", "a", "1"], path="/bin/busybox")] == ["nc"]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab$(){}`'\"\\;|&<>\n =#,.-1[]*!~", max_size=60))
def test_no_script_raises(script: str) -> None:
    """Any text is read to its end without an error."""
    for pipeline in read_script(script):
        assert all(isinstance(command.words, tuple) for command in pipeline)
    invocations(["bash", "-c", script])


@pytest.mark.parametrize(
    "unit",
    [
        "a=$a$a;",
        "$(",
        "`",
        "((",
        "{a,b}",
        "ssh|",
        "$(echo a)",
        "<<A\n",
        "for i in 1 2;do ",
        "find -exec ",
        "bash -c '",
        "{1..9}",
    ],
)
def test_hostile_scripts_are_bounded(unit: str) -> None:
    """Nothing that a script repeats makes more than a bounded number of commands, words or characters of it."""
    found = invocations(["bash", "-c", unit * (60_000 // len(unit))])
    assert len(found) <= 520
    assert sum(len(word) for run in found for word in run.argv) < 4_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ls -l a b; ./run.sh", [["ls", "-l", "a", "b"], ["./run.sh"]]),
        ("ls\t-l  a # and b", [["ls", "-l", "a"]]),
        ("a b 2>c d", [["a", "b", "d"]]),
        ("f() { ls -l; }; f x", [["ls", "-l"], ["f", "x"]]),
        ("if true; then echo a b; fi", [["true"], ["echo", "a", "b"]]),
        ("A=1 B=2 ls -l", [["ls", "-l"]]),
        ("a b&c d", [["a", "b"], ["c", "d"]]),
        ('a b"c d" e', [["a", "bc d", "e"]]),
        ("a\x85b c", [["a", "b", "c"]]),
    ],
)
def test_plain_words_are_read_as_all_others(text: str, expected: list[list[str]]) -> None:
    """Names and arguments without anything to expand are taken many at a time, and end where the shell ends them."""
    assert list(map(list, words(text))) == expected
