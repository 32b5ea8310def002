"""Which rung a watch stands on: the best that can really be had, as far as the policy lets it be chosen.

A rung is tried by standing a sandbox up on it. Where the first one cannot be had, the next is taken only because the
policy says "required" and means either; why is kept, shown and recorded, so that nobody takes the one for the other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from jupyter_agentwatch.errors import RungError
from jupyter_agentwatch.policy import Policy
from jupyter_agentwatch.sandbox.census import is_proc_ours
from jupyter_agentwatch.sandbox.launch import Starting
from jupyter_agentwatch.sandbox.mounts import HOME, plan_layout
from jupyter_agentwatch.sandbox.places import clean_environment

if TYPE_CHECKING:
    from jupyter_agentwatch.sandbox.cgroup import Leaf
    from jupyter_agentwatch.sandbox.standing import Sandbox

__all__ = ["Ground", "Site", "begin"]

_TMP: Final = "/tmp"  # noqa: S108 -- the sandbox's own


_SHARED_ENVIRONMENT: Final = (
    ("RES_OPTIONS", "use-vc"),  # datagrams are closed, so the C library has to ask for names by TCP
    ("GIT_CONFIG_NOSYSTEM", "1"),  # git ends where it may not read /etc/gitconfig, and goes on where there is none
)


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """What a watch is about to stand on.

    Attributes:
        policy: What may exist, and which rungs will do.
        workspace: Absolute, checked.
        python: Folders of the active Python environment.
        package: Our own package.
        passed: Variables of the owner's environment.
        fresh: Where a fresh home and folder for temporary files are made, where no mount can stand for them.
    """

    policy: Policy
    workspace: Path
    python: tuple[Path, ...]
    package: Path
    passed: dict[str, str]
    fresh: Path


class _OnItsWay(Protocol):
    def belongs_to(self, cgroup: Leaf) -> None: ...

    def finish(self) -> Sandbox: ...


class Ground(msgspec.Struct, kw_only=True):
    """A rung that is being stood on.

    Attributes:
        rung: Its letter.
        starting: The sandbox on its way.
        environment: Environment of every command.
        writable: Real names of what commands may write to, where no mounts hold that.
        notes: Why it is not a better one.
    """

    rung: str
    starting: _OnItsWay
    environment: dict[str, str]
    writable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def finish(self) -> Sandbox:
        """Return the standing sandbox.

        Raises:
            RungError: It does not come to stand; the text says why it was not to be a better one, too.
        """
        try:
            return self.starting.finish()
        except RungError as error:
            if not self.notes:
                raise
            raise RungError("; ".join((*self.notes, str(error)))) from error


def begin(site: Site) -> tuple[Ground, Callable[[RungError], Ground]]:
    """Begin to stand a sandbox up on the best rung that the policy names.

    Returns:
        The ground, and what to do when its sandbox does not come to stand: begin on the next rung, or raise.

    Raises:
        PolicyError: A path or GPU of the policy does not exist, or the rung cannot honour what it asks for.
        RungError: No rung that the policy names can be had.
    """

    def give_up(refusal: RungError) -> Ground:
        raise refusal

    def next_best(refusal: RungError) -> Ground:
        note = f"rung A cannot be had here: {refusal}; what would change that: jupyter agentwatch doctor"
        return _on_landlock(site, "B", note)

    if not is_proc_ours():
        msg = (
            "probe 'own /proc' failed: /proc does not show the processes of this PID namespace; mount it: "
            "mount -t proc proc /proc"
        )
        raise RungError(msg)
    wanted = site.policy.isolation
    if wanted == "required":
        try:
            return _in_namespaces(site), next_best
        except RungError as refusal:
            return next_best(refusal), give_up
    return (_in_namespaces(site) if wanted == "A" else _on_landlock(site, wanted)), give_up


def _in_namespaces(site: Site) -> Ground:
    layout = plan_layout(site.policy, site.workspace, site.python, site.package)
    return Ground(
        rung="A",
        starting=Starting(layout, site.policy.limits, stderr=2),
        environment=clean_environment(site.policy, site.passed, site.python, HOME, _TMP),
    )


def _on_landlock(site: Site, rung: str, *notes: str) -> Ground:
    """Rung B, or C: the same without Landlock."""
    from jupyter_agentwatch.sandbox.grants import plan_grants, writable_places
    from jupyter_agentwatch.sandbox.landlock import NEWEST_ABI, landlock_abi
    from jupyter_agentwatch.sandbox.shared import SharedStarting

    abi = min(NEWEST_ABI, landlock_abi())
    if rung == "B" and abi == 0:
        before = "".join(f"{note}; " for note in notes)
        msg = (
            f"{before}probe 'landlock' failed: the kernel has no Landlock, or it is not switched on (lsm=landlock,…); "
            "what else can be had: jupyter agentwatch doctor"
        )
        raise RungError(msg)
    home, temporary = site.fresh / "home", site.fresh / "tmp"
    for folder in (site.fresh, home, temporary, site.fresh / "shm"):
        folder.mkdir(mode=0o700)
    grants = plan_grants(site.policy, site.workspace, site.python, site.package, (home, temporary))
    environment = clean_environment(site.policy, site.passed, site.python, str(home), str(temporary))
    return Ground(
        rung=rung,
        starting=SharedStarting(grants, site.policy.limits, abi=abi if rung == "B" else 0, stderr=2),
        environment=dict(_SHARED_ENVIRONMENT) | environment,
        writable=writable_places(grants) if rung == "B" else ("/",),
        notes=notes,
    )
