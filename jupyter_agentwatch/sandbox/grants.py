"""What exists on a machine without namespaces: the allow list of places, as rights for Landlock.

Landlock adds rights to a folder and to all beneath it, and can take none away below. So nothing can be hidden, or kept
read-only, inside a place that may be written: a policy that asks for it is refused here, and not honoured by half.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.policy import Policy
from jupyter_agentwatch.sandbox.landlock import READ, WRITE
from jupyter_agentwatch.sandbox.places import ETC, SYSTEM, Mode, gpu_nodes, plan_places

__all__ = ["plan_grants", "writable_places"]

_ETC_TOO: Final = ("passwd", "group", "hosts", "hostname", "nsswitch.conf", "resolv.conf")
"""On rung A these are made up; here they are the machine's own."""

_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/tty")
_RANDOM: Final = ("/dev/random", "/dev/urandom")


def plan_grants(
    policy: Policy, workspace: Path, python: tuple[Path, ...], package: Path, fresh: tuple[Path, ...]
) -> list[tuple[str, int]]:
    """Return files and folders, each with the rights that commands have there and beneath.

    Args:
        policy: What may exist.
        workspace: Absolute, checked.
        python: Folders of the active Python environment.
        package: Our own package.
        fresh: The watch's own home and folder for temporary files.

    Raises:
        PolicyError: A path of the policy does not exist, or the policy asks for what Landlock cannot give.
    """
    places = plan_places(policy, workspace, python, package)
    _refuse_what_cannot_be_taken_away(places)
    grants = [(name, READ) for name in SYSTEM]
    # Of other processes, programs then see what `ps` shows; Landlock keeps their memory, environment and files closed.
    grants += [("/proc", READ), *((f"/etc/{name}", READ) for name in (*ETC, *_ETC_TOO))]
    grants += [(name, WRITE) for name in _DEVICES] + [(name, READ) for name in _RANDOM]
    grants += [(str(path), WRITE if mode == "rw" else READ) for path, mode in places.items() if mode in {"ro", "rw"}]
    grants += [(str(path), WRITE) for path in fresh]
    driver, gpus = gpu_nodes(policy)
    return grants + [(node, WRITE) for node in (*driver, *gpus)]


def writable_places(grants: list[tuple[str, int]]) -> tuple[str, ...]:
    """Return the places, devices aside, that may be written."""
    return tuple(name for name, rights in grants if rights == WRITE and not name.startswith("/dev/"))


def _refuse_what_cannot_be_taken_away(places: dict[Path, Mode]) -> None:
    known = dict.fromkeys((Path(name) for name in SYSTEM), "ro") | places
    for path, mode in places.items():
        outer = next((folder for folder in path.parents if folder in known), None)
        above = "" if outer is None else known[outer]
        if mode == "hide" and above in {"ro", "rw"}:
            msg = (
                f"filesystem.hide: {path} lies inside {outer}, and rung B cannot hide what lies inside a granted "
                "folder; grant what is beside it one by one, or use rung A"
            )
            raise PolicyError(msg)
        if mode == "ro" and above == "rw":
            msg = (
                f"{path} must stay read-only, but lies inside {outer}, which may be written, and rung B cannot take "
                "rights away below; choose another workspace, or use rung A"
            )
            raise PolicyError(msg)
