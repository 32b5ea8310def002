"""Which files run, or let somebody in, later by themselves."""

from __future__ import annotations

from functools import cache
from typing import Final

from jupyter_agentwatch.detect.expressions import lazy_pattern, needed_texts
from jupyter_agentwatch.detect.listed import listed

__all__ = ["persistence_of"]

_START_UP: Final = listed(
    "bashrc bash_aliases bash_profile bash_login bash_logout profile zshrc zprofile zshenv zlogin kshrc xprofile "
    "xinitrc inputrc"
)
_PERSISTENT: Final = (
    (
        lazy_pattern(r"/\.ssh/(?:authorized_keys2?|rc|environment)$|/etc/ssh/(?:authorized_keys|sshd_config|sshrc)"),
        "authorized_keys",
    ),
    (lazy_pattern(r"/etc/(?:cron\.\w+/|crontab$|anacrontab$)|/var/spool/cron/|/etc/at\.|/var/spool/at"), "cron"),
    (
        lazy_pattern(
            r"(?:/etc|/usr/lib|/lib|/run)/systemd/(?:system|user)/(?:[^/]+\.(?:wants|requires|d)/)?[^/]+\.(?:service|timer|path|socket|conf)$|"
            r"/\.config/systemd/user/|/etc/init\.d/|/etc/rc\.local$|/systemd/(?:system|user)-generators/|"
            r"/usr/lib/systemd/system-(?:sleep|shutdown)/|/etc/(?:inittab|init/)|/\.local/share/systemd/user/"
        ),
        "service",
    ),
    (lazy_pattern(r"/etc/ld\.so\.(?:preload|conf\.d/)"), "preload"),
    (
        lazy_pattern(r"/etc/(?:sudoers(?:\.d/|$)|passwd$|shadow$|pam\.d/|security/)|/etc/(?:polkit-1|doas\.conf)"),
        "account",
    ),
    (
        lazy_pattern(
            "|".join(rf"/\.{name}$" for name in _START_UP)
            + r"|/etc/(?:profile(?:\.d/|$)|bash\.bashrc|zsh/|environment$)|/\.config/fish/config\.fish$"
        ),
        "start-up",
    ),
    (
        lazy_pattern(
            r"/\.config/autostart/|/etc/xdg/autostart/|/etc/update-motd\.d/|/etc/udev/rules\.d/|"
            r"/etc/NetworkManager/dispatcher\.d/|/etc/apt/apt\.conf\.d/"
        ),
        "hook",
    ),
    (
        lazy_pattern(
            r"/\.ipython/profile_\w+/(?:startup/|ipython\w*_config\.)|/\.jupyter/\w*(?:config|custom)|/(?:site|user)customize\.py$|"
            r"/\.local/share/jupyter/kernels/"
        ),
        "notebook",
    ),
    (lazy_pattern(r"/(?:site|dist)-packages/[\w.-]+\.pth$"), "import hook"),
    (lazy_pattern(r"/\.git/hooks/(?!.*\.sample$)[\w-]+$"), "git hook"),
)


@cache
def _hints() -> tuple[str, ...]:
    """Texts of which one stands in every path of which something is said."""
    return needed_texts([pattern.pattern for pattern, _ in _PERSISTENT], ("/etc/", "/systemd/", "/.bash"))


def persistence_of(path: str) -> str:
    """Return what kind of persistence writing to a path would be ("cron", "service", "authorized_keys" …), or "".

    Args:
        path: Absolute path, or one that begins with `~`.
    """
    for hint in _hints():
        if hint in path:
            return next((kind for pattern, kind in _PERSISTENT if pattern.search(path)), "")
    return ""
