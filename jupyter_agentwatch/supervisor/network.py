"""Judges and performs connect, bind, listen and sendto on the caller's behalf, on bytes copied once.

Nothing here answers CONTINUE: what the supervisor has judged is what it does itself, on its own descriptor of the
caller's socket, so a second thread that changes the address or the descriptor meanwhile changes nothing. The sandbox's
own loopback, abstract names and sockets bound inside are free; everything else is the policy's word.

Every descriptor of a caller's socket goes to the `Closer`, also where something was raised.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.events import Basis, Connect, Listen
from jupyter_agentwatch.policy import Decision, NetworkMatcher
from jupyter_agentwatch.sandbox.flow import FlowSpec
from jupyter_agentwatch.sandbox.notify import Listener, Notification, TargetMemory, as_int
from jupyter_agentwatch.sandbox.paths import AT_FDCWD, base_folder
from jupyter_agentwatch.sandbox.sockaddr import (
    MAX_SIZE,
    Address,
    bind_raw,
    is_inside,
    listen_raw,
    parse_address,
)
from jupyter_agentwatch.sandbox.tasks import Task, TaskTable
from jupyter_agentwatch.sandbox.tcp import TCP_CLOSE, TCP_SYN_SENT, tcp_state
from jupyter_agentwatch.supervisor.askers import DNS_PORT, DnsAskers
from jupyter_agentwatch.supervisor.closer import Closer
from jupyter_agentwatch.supervisor.dialer import Dialer
from jupyter_agentwatch.supervisor.gate import Gate
from jupyter_agentwatch.supervisor.inside_connects import InsideConnects
from jupyter_agentwatch.supervisor.model_side import ModelSide
from jupyter_agentwatch.supervisor.reach import Reach
from jupyter_agentwatch.supervisor.record import Recorder
from jupyter_agentwatch.supervisor.sockets import SocketSource
from jupyter_agentwatch.supervisor.unix_sockets import UnixSockets

__all__ = ["NetworkBroker"]

_MAX_DATAGRAM: Final = 65535

# Never MSG_ZEROCOPY: a corked datagram would show the sandbox whatever our memory holds by the time it leaves.
_SEND_FLAGS: Final = socket.MSG_CONFIRM | socket.MSG_DONTROUTE | socket.MSG_MORE | socket.MSG_EOR | socket.MSG_NOSIGNAL

_NAME_CACHE: Final = ("/var/run/nscd/socket", "/run/nscd/socket")
"""The C library looks for this daemon before each name or user; where there is none, that is not worth a record."""

Transport = Literal["tcp", "udp", "unix"]


class NetworkBroker:
    """What a trapped socket call gets. Runs on the notification thread; what may block goes elsewhere.

    Args:
        listener: Where callers wait.
        tasks: Who they are.
        recorder: Where records go.
        gate: Shut where a record has tripped the breaker.
        matcher: The policy's word on destinations.
        names_for: Names that the DNS stub had answered with an address.
        unix: Judges UNIX sockets.
        sockets: Where our descriptors of callers' sockets come from.
        reach: What is inside.
        dialer: Ends allowed connects.
        closer: Closes our descriptors of callers' sockets.
        askers: Told whose socket a query will come from.
        ask: Holds a connect for a person: (what it is, what to do with the answer).
        models: The model proxy, where the policy has one.
    """

    def __init__(  # noqa: PLR0913 -- everything that concerns a socket meets here
        self,
        *,
        listener: Listener,
        tasks: TaskTable,
        recorder: Recorder,
        gate: Gate,
        matcher: NetworkMatcher,
        names_for: Callable[[str], Sequence[str]],
        unix: UnixSockets,
        sockets: SocketSource,
        reach: Reach,
        dialer: Dialer,
        closer: Closer,
        askers: DnsAskers,
        ask: Callable[[str, int, Callable[[bool, str], None]], None],
        models: ModelSide | None,
    ) -> None:
        self._models = models
        self._listener = listener
        self._tasks = tasks
        self._record = recorder.record
        self._gate = gate
        self._matcher = matcher
        self._names_for = names_for
        self._unix = unix
        self._sockets = sockets
        self._reach = reach
        self._dialer = dialer
        self._closer = closer
        self._askers = askers
        self._ask = ask
        self._memory = TargetMemory()
        self._flows = itertools.count(1)
        self._inside = InsideConnects(listener, askers, closer, sockets.connected)

    def close(self) -> None:
        """Let go of connects that still wait."""
        self._inside.close()

    # -- connect -------------------------------------------------------------------------------------------------

    def connect(self, n: Notification) -> None:
        """Judge a connect; perform it, hand it over, or refuse it."""
        task = self._tasks.get(n.tid)
        taken = self._take(n, n.args[1], n.args[2])
        if taken is None:
            return
        sock, raw, address = taken
        try:
            if address is None or (address.family not in {socket.AF_UNSPEC, sock.family}):
                self._refuse(n, sock, errno.EAFNOSUPPORT if address else errno.EINVAL)
            elif address.family == socket.AF_UNSPEC:
                self._inside.perform(n, sock, raw)  # dissolves an association; reaches nothing
            elif address.family == socket.AF_UNIX:
                self._connect_unix(n, task, sock, raw, address)
            elif sock.type != socket.SOCK_STREAM:
                self._connect_datagram(n, task, sock, raw, address)
            elif stub := self._reach.stub_for(sock.family, address):
                self._note(task, "tcp", address, rule="inside")
                self._inside.perform(n, sock, stub, asker=task)
            elif is_inside(address.host) and address.port in self._dialer.own_ports:
                refusal = Decision.refuse("gateway-port")
                self._deny(n, task, sock, ("tcp", address), refusal, errno.ECONNREFUSED)
            elif granted := self._models and self._models.granted(address):
                self._connect_outside(n, task, sock, raw, address, granted)
            elif self._reach.is_inside(address):
                self._connect_inside(n, task, sock, raw, address)
            elif self._reach.is_nobody(address):
                self._note(task, "tcp", address, rule="inside", errno=errno.ECONNREFUSED)
                self._refuse(n, sock, errno.ECONNREFUSED)
            else:
                self._connect_outside(n, task, sock, raw, self._reach.outside(address))
        except BaseException:
            self._closer.close(sock)
            raise

    def _take(self, n: Notification, address_at: int, size: int) -> tuple[socket.socket, bytes, Address | None] | None:
        """Copy the address and the descriptor, once; answer bad ones as the kernel would."""
        length = as_int(size)
        if not 0 <= length <= MAX_SIZE:
            self._listener.finish(n.id, errno.EINVAL)
            return None
        try:
            raw = self._memory.read(n.tid, address_at, length) if length else b""
        except OSError as refusal:
            self._listener.finish(n.id, refusal.errno or errno.EPERM)
            return None
        sock = self._duplicate(n)
        return None if sock is None else (sock, raw, parse_address(raw))

    def _duplicate(self, n: Notification) -> socket.socket | None:
        if self._closer.is_full:
            self._listener.finish(n.id, errno.ENOBUFS)
            return None
        try:
            sock = self._sockets.take(n.tid, as_int(n.args[0]))
        except OSError as refusal:
            self._listener.finish(n.id, refusal.errno or errno.EPERM)
            return None
        if not self._listener.is_valid(n.id):
            self._closer.close(sock)
            return None
        return sock

    def _refuse(self, n: Notification, sock: socket.socket, error: int) -> None:
        self._closer.close(sock)
        self._listener.finish(n.id, error)

    def _connect_inside(self, n: Notification, task: Task, sock: socket.socket, raw: bytes, address: Address) -> None:
        self._note(task, "tcp", address, rule="inside")
        self._gate.check()
        self._inside.perform(n, sock, raw, asker=task if address.port == DNS_PORT else None)

    def _connect_datagram(self, n: Notification, task: Task, sock: socket.socket, raw: bytes, address: Address) -> None:
        if self._reach.is_inside(address):
            self._note(task, "udp", address, rule="inside")
            self._inside.perform(n, sock, raw, asker=task if address.port == DNS_PORT else None)
        elif self._names_for(address.host):
            # The C library orders a name's addresses by a trial connect that sends nothing.
            refusal = Decision.refuse("udp-address-selection")
            self._deny(n, task, sock, ("udp", address), refusal, errno.ENETUNREACH)
        else:
            self._deny(n, task, sock, ("udp", address), Decision.refuse("udp"), errno.EACCES)

    def _connect_outside(
        self,
        n: Notification,
        task: Task,
        sock: socket.socket,
        raw: bytes,
        address: Address,
        granted: Decision | None = None,
    ) -> None:
        state = tcp_state(sock)
        if state != TCP_CLOSE and self._reach.has_namespace:
            self._inside.perform(n, sock, raw)  # in use: the kernel says how (EALREADY, EISCONN), and goes nowhere
            return
        if state != TCP_CLOSE:
            # Said as the kernel would, because by now the call could begin a new connection.
            self._refuse(n, sock, errno.EALREADY if state == TCP_SYN_SENT else errno.EISCONN)
            return
        self._gate.check_leaving()
        names = tuple(self._names_for(address.host))
        decision = granted or self._matcher.decide_connect(address.host, address.port, names)
        if decision.verdict == "deny":
            self._deny(n, task, sock, ("tcp", address), decision, errno.EACCES)
            return
        host = decision.host or (names[0] if names else "")
        spec = FlowSpec(next(self._flows), task.step, task.tgid, address.host, address.port, host, decision, names)
        fields = {"host": host, "rule": decision.rule, "errno": -1, "flow": spec.flow}
        self._note(task, "tcp", address, verdict=decision.verdict, **fields)
        self._gate.check_leaving()
        if decision.verdict == "allow":
            self._dialer.dial(n.id, spec, sock, address)
            return

        def answered(allow: bool, by: str) -> None:
            verdict = "allow" if allow else "deny"
            try:
                self._note(task, "tcp", address, verdict=verdict, **(fields | {"rule": f"{decision.rule}: {by}"}))
            except LogWriteError:
                allow = False
            if allow:
                allowed = Decision("allow", decision.rule, decision.protocol, decision.host)
                again = FlowSpec(spec.flow, spec.step, spec.pid, spec.addr, spec.port, spec.host, allowed, spec.names)
                self._dialer.dial(n.id, again, sock, address)
            else:
                self._refuse(n, sock, errno.EACCES)

        self._ask(f"connect to {host or address.host} port {address.port}", task.step, answered)

    # -- UNIX sockets --------------------------------------------------------------------------------------------

    def _connect_unix(self, n: Notification, task: Task, sock: socket.socket, raw: bytes, address: Address) -> None:
        if not address.path or address.path.startswith(b"\0"):
            # Abstract names belong to the network namespace.
            rule = self._unix.abstract_rule(address, is_inside=self._reach.is_inside_abstract(address.path))
            if rule:
                self._note(task, "unix", address, rule=rule)
                self._inside.perform(n, sock, raw)
            else:
                self._deny(n, task, sock, ("unix", address), Decision.refuse("unix-socket"), errno.EACCES)
            return
        path = os.fsdecode(address.path)
        if not path.startswith("/"):
            path = os.path.join(base_folder(n.tid, AT_FDCWD), path)
        try:
            held = self._unix.open_path(path)
        except OSError as refusal:
            if path not in _NAME_CACHE:
                self._note(task, "unix", address, rule="inside", errno=refusal.errno or errno.ENOENT)
            self._refuse(n, sock, refusal.errno or errno.ENOENT)
            return
        rule = self._unix.rule(held)
        if not rule:
            self._closer.close(held)
            self._deny(n, task, sock, ("unix", address), Decision.refuse("unix-socket"), errno.EACCES)
            return
        self._note(task, "unix", address, rule=rule)
        through = socket.AF_UNIX.to_bytes(2, "little") + f"/proc/self/fd/{held}".encode() + b"\0"
        self._inside.perform(n, sock, through, held)

    # -- bind, listen, sendto ------------------------------------------------------------------------------------

    def bind(self, n: Notification) -> None:
        """Perform a bind: nothing outside can be bound, but every name that is offered is on record."""
        task = self._tasks.get(n.tid)
        taken = self._take(n, n.args[1], n.args[2])
        if taken is None:
            return
        sock, raw, address = taken
        try:
            error = self._bind(n, task, sock, raw, address)
        finally:
            self._closer.close(sock)
        if error >= 0:
            self._listener.finish(n.id, error)

    def _bind(self, n: Notification, task: Task, sock: socket.socket, raw: bytes, address: Address | None) -> int:
        """Return the errno to answer with, -1 where the kernel does it in our place."""
        if sock.family == socket.AF_NETLINK:  # to ask about interfaces (getifaddrs); offers nothing
            return bind_raw(sock.fileno(), raw)
        if address is None:
            return errno.EINVAL
        if sock.family == socket.AF_UNIX and address.path[:1] not in {b"", b"\0"}:
            # The kernel, in the caller's own place: from ours the socket would bear a name that leads nowhere
            # inside, and programs pass on what getsockname says. Mounts decide where a name can be made.
            self._note_listen(task, "bind", sock, address, 0, basis="claimed")
            self._unix.bound(sock)
            self._listener.proceed(n.id)
            return -1
        if sock.type == socket.SOCK_STREAM and int.from_bytes(raw[2:4], "big") in self._dialer.own_ports:
            error = errno.EADDRINUSE  # SO_REUSEPORT would let it take over connections on their way out
        else:
            error = self._reach.bind(sock, raw)
            if error == errno.EADDRINUSE and self._sockets.let_go():
                error = self._reach.bind(sock, raw)
        if sock.type == socket.SOCK_DGRAM and error == 0:
            self._askers.note(sock, task)  # a query by sendmsg is not seen: let it not be a former owner's
        self._note_listen(task, "bind", sock, address, error)
        return error

    def listen(self, n: Notification) -> None:
        """Perform a listen, and put the name on record."""
        task = self._tasks.get(n.tid)
        sock = self._duplicate(n)
        if sock is None:
            return
        try:
            error = 0 if sock.family == socket.AF_UNIX else self._reach.before_listen(sock)
            error = error or listen_raw(sock.fileno(), as_int(n.args[1]))
            if sock.family == socket.AF_UNIX:
                self._unix.bound(sock)
            self._note_listen(task, "listen", sock, None, error)
            if error == 0:
                self._reach.listens(sock)
                self._sockets.connected(sock)
        finally:
            self._closer.close(sock)
        self._listener.finish(n.id, error)

    def sendto(self, n: Notification) -> None:
        """Perform a datagram to an address inside, or a question to the kernel; refuse what would leave."""
        task = self._tasks.get(n.tid)
        taken = self._take(n, n.args[4], n.args[5])
        if taken is None:
            return
        sock, raw, address = taken
        try:
            if sock.family == socket.AF_NETLINK and not any(raw[4:]):
                self._send(n, task, sock, None)
            elif sock.type != socket.SOCK_DGRAM or address is None or address.family != sock.family:
                self._listener.finish(n.id, errno.EISCONN if sock.type == socket.SOCK_STREAM else errno.EINVAL)
            elif not is_inside(address.host):
                self._deny(n, task, sock, ("udp", address), Decision.refuse("udp"), errno.EACCES)
            else:
                self._send(n, task, sock, address)
        finally:
            self._closer.close(sock)

    def _send(self, n: Notification, task: Task, sock: socket.socket, address: Address | None) -> None:
        if n.args[2] > _MAX_DATAGRAM:
            self._listener.finish(n.id, errno.EMSGSIZE)
            return
        try:
            payload = self._memory.read(n.tid, n.args[1], n.args[2]) if n.args[2] else b""
            if not self._listener.is_valid(n.id):
                return
            flags = n.args[3] & _SEND_FLAGS | socket.MSG_DONTWAIT
            if address is None:
                # Without an address the kernel asks for the rights of who opened the socket, not only for ours.
                sent = sock.send(payload, flags)
            else:
                self._note(task, "udp", address, rule="inside")
                if address.port == DNS_PORT:
                    if sock.getsockname()[1] == 0:
                        sock.bind(("", 0))  # as the send would: the stub must know the port before the query
                    self._askers.note(sock, task)
                sent = sock.sendto(payload, flags, _inside(sock, address))
        except OSError as refusal:
            self._listener.finish(n.id, refusal.errno or errno.EIO)
            return
        self._listener.finish(n.id, 0, sent)

    # -- common --------------------------------------------------------------------------------------------------

    def _note(
        self, task: Task, transport: Transport, address: Address, *, verdict: str = "allow", **fields: Any
    ) -> None:
        self._record(
            Connect,
            verdict=verdict,
            step=task.step,
            pid=task.tgid,
            transport=transport,
            addr=address.host,
            port=address.port,
            **fields,
        )

    def _deny(
        self,
        n: Notification,
        task: Task,
        sock: socket.socket,
        where: tuple[Transport, Address],
        decision: Decision,
        error: int,
    ) -> None:
        self._closer.close(sock)
        try:
            self._note(task, *where, verdict="deny", host=decision.host, rule=decision.rule, errno=error)
        finally:
            self._listener.finish(n.id, error)

    def _note_listen(
        self,
        task: Task,
        op: Literal["bind", "listen"],
        sock: socket.socket,
        asked: Address | None,
        error: int,
        basis: Basis = "verified",
    ) -> None:
        transport: Transport = "unix" if sock.family == socket.AF_UNIX else "tcp"
        if transport == "tcp" and sock.type == socket.SOCK_DGRAM:
            transport = "udp"
        host, port = (asked.host, asked.port) if asked is not None else ("", 0)
        if transport != "unix" and not (error and asked is not None):
            name = sock.getsockname()
            host, port = str(name[0]), int(name[1])
        elif asked is None:
            bound = sock.getsockname()
            host = os.fsdecode(bound) if isinstance(bound, bytes) else str(bound)
        self._record(
            Listen,
            verdict="allow" if error == 0 else "deny",
            basis=basis,
            step=task.step,
            pid=task.tgid,
            op=op,
            transport=transport,
            addr=host.replace("\0", "@").encode("utf-8", "backslashreplace").decode(),
            port=port,
            errno=error,
        )


def _inside(sock: socket.socket, address: Address) -> tuple[str, int]:
    mapped = sock.family == socket.AF_INET6 and ":" not in address.host
    return (f"::ffff:{address.host}" if mapped else address.host), address.port
