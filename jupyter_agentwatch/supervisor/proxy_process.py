"""Starts the model proxy so that it is nobody's descendant that belongs to the sandbox.

On a rung without a PID namespace, whatever stems from the supervisor is frozen and killed as the sandbox's own. So this
has to come before the supervisor takes up orphans, and the proxy's parent ends at once.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from jupyter_agentwatch.errors import RungError
from jupyter_agentwatch.wire.model_messages import ProxySetup, ProxyUpstream

if TYPE_CHECKING:
    from jupyter_agentwatch.policy import Models

__all__ = ["ProxyProcess", "start_proxy"]

_MODULE: Final = "jupyter_agentwatch.proxy"
_PASSED: Final = ("PATH", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR")


@dataclass(frozen=True, slots=True)
class ProxyProcess:
    """A proxy that was started.

    Attributes:
        control: The supervisor's end of the socket between them; when it is closed, the proxy ends.
        token: What programs inside have to show.
    """

    control: socket.socket
    token: str


def start_proxy(watch: str, models: Models, keys: Sequence[str]) -> ProxyProcess:
    """Start a proxy. To be called while this process has one thread.

    Args:
        watch: Id of the watch: the command line shows whose proxy it is.
        models: What may be asked of whom, checked.
        keys: The key of each upstream, in the policy's order.

    Raises:
        RungError: It could not be started.
    """
    token = f"aw-{secrets.token_urlsafe(24)}"
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    setup = msgspec.json.encode(_setup(models, keys, theirs.fileno(), token))
    # As this process was started itself: from the package's own folder, past the current one.
    argv = [sys.executable, *sys.orig_argv[1 : sys.orig_argv.index("-m")], "-m", _MODULE, watch]
    environ = {name: os.environ[name] for name in _PASSED if name in os.environ}
    try:
        reading, writing = os.pipe()
        parent = os.fork()
        if parent == 0:
            _become(argv, environ, reading, theirs.fileno())
        os.close(reading)
        theirs.close()
        os.waitpid(parent, 0)
        with open(writing, "wb") as stream:
            stream.write(setup)
    except OSError as error:
        msg = f"the model proxy could not be started: {error}"
        raise RungError(msg) from error
    return ProxyProcess(control, token)


def _become(argv: list[str], environ: dict[str, str], reading: int, control: int) -> None:
    """Fork once more, so that the new process is an orphan, and become the proxy. Never returns."""
    try:
        if os.fork() == 0:
            os.setsid()
            os.chdir("/")
            os.dup2(reading, 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.set_inheritable(control, True)
            os.execve(argv[0], argv, environ)  # noqa: S606 -- a shell is what this must not be
    finally:
        os._exit(0)


def _setup(models: Models, keys: Sequence[str], control: int, token: str) -> ProxySetup:
    return ProxySetup(
        control=control,
        token=token,
        upstreams=[
            ProxyUpstream(shape=each.shape, url=each.url, key=key, models=[model.name for model in each.models])
            for each, key in zip(models.upstreams, keys, strict=True)
        ],
        request_bytes=models.request_bytes,
        response_bytes=models.response_bytes,
        answer_s=models.answer_s,
        hosted_tools=models.hosted_tools,
    )
