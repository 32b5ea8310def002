"""Which local paths hold what should not leave: keys, tokens, accounts, and whatever a home folder hides."""

from __future__ import annotations

import re
from typing import Final

from jupyter_agentwatch.detect.expressions import lazy_pattern

__all__ = ["is_archive", "is_sensitive", "is_sweeping"]

_SENSITIVE: Final = lazy_pattern(
    r"(?:^|/|@|=)(?:\.ssh|\.aws|\.gnupg|\.kube|\.docker|\.azure|\.config/(?:gcloud|gh|rclone|op)|\.netrc|"
    r"\.git-credentials|"
    r"\.npmrc|\.pypirc|\.pgpass|\.my\.cnf|\.vault-token|\.terraform\.d|\.bash_history|\.zsh_history|\.python_history|"
    r"\.env(?:\.(?!example|sample|template|dist)\w+)?|\.htpasswd|\.mozilla|\.thunderbird|\.electrum|\.bitcoin|"
    r"\.ethereum|\.monero|"
    r"\.password-store|\.huggingface|\.jupyter|\.local/share/(?:jupyter/runtime|keyrings)|"
    r"\.cache/huggingface/token)(?:/|$)|"
    r"(?:^|[/@=])etc/(?:passwd|shadow|gshadow|sudoers|ssh|kubernetes|ssl/private|krb5\.keytab|security)\b|"
    r"(?:^|/|@)(?:id_(?:rsa|dsa|ecdsa|ed25519)|credentials(?:\.json|\.csv)?|service[-_]account\S*\.json|"
    r"secrets?(?:\.\w+)?|"
    r"wallet\.dat|keystore|kubeconfig|passwords?(?:\.\w+)?|\S*token(?:s)?(?:\.txt|\.json)|shadow)$|"
    r"\.(?:pem|key|p12|pfx|kdbx|jks|keytab|ppk|ovpn)$|"
    r"(?:^|@)/proc/(?:\d+|self|\*)/environ|/var/run/secrets|/run/secrets|(?:^|/)root/\.|/\.git/config$"
)
_SWEEPING: Final = lazy_pattern(
    r"/(?:\*)?|/(?:etc|root|home|var|opt|srv|data|mnt|usr)/?\*?|~/?\*?|~\w*/\.\*?|\$\{HOME\}/?|/home/[\w.-]+/?|"
    r"~/\.\S+|/home/[\w.-]+/\.\S+"
)
_ARCHIVE: Final = lazy_pattern(
    r"\.(?:tar|tgz|tbz2?|txz|tar\.\w{2,4}|zip|7z|rar|gz|bz2|xz|zst|gpg|enc|age|sql|dump|db|sqlite3?|bak|ckpt|"
    r"safetensors|pt|pth)$",
    re.IGNORECASE,
)


def is_sensitive(path: str) -> bool:
    """Return whether a path, as a command names it, is a place of secrets. A public key (`.pub`) is none.

    Args:
        path: A word of a command line; `~` and `$HOME` stand for the home folder.
    """
    return not path.endswith(".pub") and _SENSITIVE.search(path) is not None


def is_sweeping(path: str) -> bool:
    """Return whether a path takes in a whole home folder, the root or a folder of the system."""
    return _SWEEPING.fullmatch(path) is not None


def is_archive(path: str) -> bool:
    """Return whether a path is named like an archive, a dump or a trained model."""
    return _ARCHIVE.search(path) is not None
