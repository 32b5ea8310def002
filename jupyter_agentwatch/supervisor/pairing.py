"""Finds, among what the gateway's listeners accept, the other end of each caller's socket.

The thread that connects also accepts, so that the loop need not look at the listeners. What it accepts may be another
thread's: then that one's goes on, or finds it here.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from jupyter_agentwatch.sandbox.tcp import TCP_CLOSE, tcp_state

__all__ = ["Name", "Pairing"]

_UNPAIRED_S: Final = 10.0
_MAX_UNPAIRED: Final = 512
_MAX_ACCEPTS: Final = 64
_ACCEPT_AGAIN_S: Final = 0.1

Name = tuple[str, int]
"""An address inside. A port alone would not do: it may be bound once on each of 127.0.0.0/8."""

T = TypeVar("T")


class Pairing(Generic[T]):
    """Pairs what was connected with what was accepted. `pair` may be called from any thread, `close` by the loop's.

    Args:
        loop: The control thread's loop, which accepts what was not there yet.
        found: Told by the loop of what was connected, with the other end.
        lost: Told of what has no other end: it did not come within 10 s, or another one has the same name now.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, found: Callable[[T, socket.socket], None], lost: Callable[[T], None]
    ) -> None:
        self._loop = loop
        self._found = found
        self._lost = lost
        self._expected: dict[Name, T] = {}
        self._accepted: dict[Name, socket.socket] = {}
        self._lock = threading.Lock()  # guards these two and the accepting; held for no call that could wait

    def pair(self, what: T, name: Name, listening: socket.socket) -> list[tuple[T, socket.socket]]:
        """Look for the other end of what is connected from `name`.

        Returns:
            What could be paired now, perhaps others' beside or instead of this; the loop looks for what is left.
        """
        before = None
        with self._lock:
            inside = self._accepted.pop(name, None)
            if inside is not None and tcp_state(inside) == TCP_CLOSE:  # a stranger's, who had the same port before
                inside.close()
                inside = None
            if inside is not None:
                found = [(what, inside)]
            else:
                before = self._expected.pop(name, None)
                self._expected[name] = what
                found = self._accept(listening)
            is_late = self._expected.get(name) is what
        if before is not None:
            self._lost(before)  # its caller has given the address up before we had accepted
        if is_late:
            self._loop.call_soon_threadsafe(self._look_out, what, name, listening)
        return found

    def close(self) -> None:
        """Drop what is not paired."""
        with self._lock:
            for sock in self._accepted.values():
                sock.close()
            for what in self._expected.values():
                self._lost(what)

    def _accept(self, listening: socket.socket) -> list[tuple[T, socket.socket]]:
        """Accept until nothing waits or the last one is paired; call it with the lock held."""
        found: list[tuple[T, socket.socket]] = []
        for _ in range(_MAX_ACCEPTS):
            if not self._expected:
                break
            try:
                sock, peer = listening.accept()
            except OSError:  # nothing waits, or no descriptors or no memory are left
                break
            name = peer[:2]
            what = self._expected.pop(name, None)
            if what is not None:
                found.append((what, sock))
            else:
                if name in self._accepted:
                    self._accepted.pop(name).close()
                elif len(self._accepted) >= _MAX_UNPAIRED:  # the oldest: one of ours is asked for within a moment
                    self._accepted.pop(next(iter(self._accepted))).close()
                self._accepted[name] = sock
                self._loop.call_soon_threadsafe(self._loop.call_later, _UNPAIRED_S, self._forget_accepted, name, sock)
        return found

    def _look_out(self, what: T, name: Name, listening: socket.socket) -> None:
        """Let the loop accept what was not there yet."""
        if self._expected.get(name) is what:
            self._loop.call_later(_UNPAIRED_S, self._forget_expected, name, what)
            self._loop.add_reader(listening, self._look, listening)

    def _look(self, listening: socket.socket) -> None:
        with self._lock:
            found = self._accept(listening)
            goes_on = bool(self._expected)
        for what, sock in found:
            self._found(what, sock)
        if not goes_on:
            self._loop.remove_reader(listening)
        elif not found:  # without descriptors or memory it would stay readable: look away for a while
            self._loop.remove_reader(listening)
            self._loop.call_later(_ACCEPT_AGAIN_S, self._loop.add_reader, listening, self._look, listening)

    def _forget_accepted(self, name: Name, sock: socket.socket) -> None:
        with self._lock:
            if self._accepted.get(name) is sock:
                del self._accepted[name]
                sock.close()

    def _forget_expected(self, name: Name, what: T) -> None:
        with self._lock:
            if self._expected.get(name) is not what:
                return
            del self._expected[name]
        self._lost(what)
