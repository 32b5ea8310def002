"""Which files run, or let somebody in, later by themselves."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["persistence_of"]

_PERSISTENT: Final = (
    (re.compile(r"/\.ssh/authorized_keys2?$|/etc/ssh/(?:authorized_keys|sshd_config)"), "authorized_keys"),
    (re.compile(r"/etc/(?:cron\.\w+/|crontab$|anacrontab$)|/var/spool/cron/|/etc/at\.|/var/spool/at"), "cron"),
    (
        re.compile(
            r"(?:/etc|/usr/lib|/lib|/run)/systemd/(?:system|user)/[^/]+\.(?:service|timer|path|socket)|"
            r"/\.config/systemd/user/|/etc/init\.d/|/etc/rc\.local$"
        ),
        "service",
    ),
    (re.compile(r"/etc/ld\.so\.(?:preload|conf\.d/)"), "preload"),
    (
        re.compile(r"/etc/(?:sudoers(?:\.d/|$)|passwd$|shadow$|pam\.d/|security/)|/etc/(?:polkit-1|doas\.conf)"),
        "account",
    ),
    (
        re.compile(
            r"/\.(?:bashrc|bash_profile|bash_login|bash_logout|profile|zshrc|zprofile|zshenv|zlogin|kshrc|xprofile|"
            r"xinitrc|inputrc)$|/etc/(?:profile(?:\.d/|$)|bash\.bashrc|zsh/|environment$)|"
            r"/\.config/fish/config\.fish$"
        ),
        "start-up",
    ),
    (
        re.compile(
            r"/\.config/autostart/|/etc/xdg/autostart/|/etc/update-motd\.d/|/etc/udev/rules\.d/|"
            r"/etc/NetworkManager/dispatcher\.d/|/etc/apt/apt\.conf\.d/"
        ),
        "hook",
    ),
    (
        re.compile(
            r"/\.ipython/profile_\w+/startup/|/\.jupyter/\w*(?:config|custom)|/(?:site|user)customize\.py$|"
            r"/\.local/share/jupyter/kernels/"
        ),
        "notebook",
    ),
    (re.compile(r"/\.git/hooks/(?!.*\.sample$)[\w-]+$"), "git hook"),
)


def persistence_of(path: str) -> str:
    """Return what kind of persistence writing to a path would be ("cron", "service", "authorized_keys" …), or "".

    Args:
        path: Absolute path, or one that begins with `~`.
    """
    return next((kind for pattern, kind in _PERSISTENT if pattern.search(path)), "")
