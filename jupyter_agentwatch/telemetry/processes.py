"""What each process of the sandbox uses, read from /proc in one pass.

Not psutil: it costs 73 µs for a process (CPU, memory, threads, state, IO; 7 % of a core for 100 processes at 10 Hz),
where one read of a /proc file that is kept open costs 3 µs (measured on 2 virtual CPUs, Linux 6.18). The kept file also
belongs to one process for good: after that process has ended it gives ESRCH, also when its number was given away again.
The same goes for its IO counters: 3 µs where opening them each time takes 9.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable
from typing import Final

from jupyter_agentwatch.events import from_bytes
from jupyter_agentwatch.telemetry.model import ProcessSample, Resources

__all__ = ["ProcessTable"]

_TICK_S: Final = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE: Final = resource.getpagesize()
_WINDOW_NS: Final = 500_000_000
_STAT_BYTES: Final = 1024  # the kernel writes less than 400, whatever the name
_IO_BYTES: Final = 512
_MAX_KEPT: Final = 320
_MAX_IO_KEPT: Final = 192
"""Processes of which the second file is kept open, too: 512 descriptors in all, of those that the supervisor has."""

_IDLE_NS: Final = 2_000_000_000
_IDLE_EVERY_NS: Final = 400_000_000
_ASLEEP_NS: Final = 10_000_000_000
_ASLEEP_EVERY_NS: Final = 1_000_000_000
_ASLEEP_IO: Final = 4


class _Rate:
    """CPU time per time over the last 0.5 to 1 s: a clock tick alone would be a step of 10 % at 10 Hz."""

    __slots__ = ("_mark", "_mark_ns", "_old", "_old_ns")

    def __init__(self, t_ns: int, value: int) -> None:
        self._old_ns = self._mark_ns = t_ns
        self._old = self._mark = value

    def percent(self, t_ns: int, value: int) -> float:
        if t_ns - self._mark_ns >= _WINDOW_NS:
            self._old_ns, self._old = self._mark_ns, self._mark
            self._mark_ns, self._mark = t_ns, value
        if value <= self._old or t_ns <= self._old_ns:
            return 0.0
        return round((value - self._old) * _TICK_S * 1e11 / (t_ns - self._old_ns), 1)


class _Process:
    """One living process: its open file, and what was read last."""

    __slots__ = (
        "changed_ns",
        "cpu_ticks",
        "due_ns",
        "fd",
        "io_fd",
        "io_ns",
        "io_raw",
        "last",
        "name",
        "pid",
        "ppid",
        "rate",
        "raw",
        "read_bytes",
        "rss_bytes",
        "start_ticks",
        "state",
        "threads",
        "total_ticks",
        "write_bytes",
    )

    def __init__(self, pid: int, raw: bytes, fd: int, t_ns: int) -> None:
        self.pid = pid
        self.fd = fd
        self.io_fd = -1
        self.raw = self.io_raw = b""
        self.read_bytes: int | None = None
        self.write_bytes: int | None = None
        self.cpu_ticks = self.changed_ns = self.io_ns = 0
        self.due_ns = 0
        """When it is to be read again; until then `last` holds. 0: at each sample."""
        self.last: ProcessSample | None = None
        self.take(raw, t_ns)
        self.rate = _Rate(t_ns, self.cpu_ticks)

    def take(self, raw: bytes, t_ns: int) -> None:
        if raw == self.raw:  # an idle process: the same text costs a comparison, no parsing
            idle_ns = t_ns - self.changed_ns
            if idle_ns >= _IDLE_NS:
                self.due_ns = t_ns + (_IDLE_EVERY_NS if idle_ns < _ASLEEP_NS else _ASLEEP_EVERY_NS)
            return
        self.changed_ns, self.due_ns, self.last = t_ns, 0, None
        # The name is the process's own choice and may hold parentheses and newlines; what follows the last one may not.
        end = raw.rindex(b")")
        fields = raw[end + 2 :].split(b" ", 22)
        own = int(fields[11]) + int(fields[12])
        self.cpu_ticks, self.total_ticks = own, own + int(fields[13]) + int(fields[14])
        self.state = fields[0].decode("ascii", "replace")
        self.ppid, self.threads = int(fields[1]), int(fields[17])
        self.start_ticks, self.rss_bytes = int(fields[19]), int(fields[21]) * _PAGE
        self.name = from_bytes(raw[raw.index(b"(") + 1 : end])
        self.raw = raw

    def wants_io(self, t_ns: int, every_ns: int) -> bool:
        # What has not used a clock tick for ten seconds can have done little: it is asked more rarely, not left out.
        asleep = t_ns - self.changed_ns >= _ASLEEP_NS
        return t_ns - self.io_ns >= (_ASLEEP_IO * every_ns if asleep else every_ns)

    def take_io(self, t_ns: int, *, keep: bool = False) -> None:
        self.io_ns = t_ns
        try:
            raw = self._io(keep=keep)
            if raw != self.io_raw:
                fields = dict(line.split(b": ", 1) for line in raw.splitlines())
                self.read_bytes, self.write_bytes = int(fields[b"read_bytes"]), int(fields[b"write_bytes"])
                self.io_raw, self.last = raw, None
        except (OSError, KeyError, ValueError):
            return  # ended, or a kernel without IO accounting: what was known stays

    def _io(self, *, keep: bool) -> bytes:
        if self.io_fd >= 0:
            return os.pread(self.io_fd, _IO_BYTES, 0)
        path = f"/proc/{self.pid}/io"
        if not keep:
            return _read(path, _IO_BYTES)
        self.io_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self.io_fd, _IO_BYTES, 0)

    def sample(self, t_ns: int) -> ProcessSample:
        percent = self.rate.percent(t_ns, self.cpu_ticks)
        if self.last is not None and self.last.cpu_percent == percent:
            return self.last
        self.last = ProcessSample(
            pid=self.pid,
            start_ticks=self.start_ticks,
            ppid=self.ppid,
            name=self.name,
            state=self.state,
            cpu_s=self.cpu_ticks * _TICK_S,
            cpu_percent=percent,
            rss_bytes=self.rss_bytes,
            threads=self.threads,
            read_bytes=self.read_bytes,
            write_bytes=self.write_bytes,
        )
        return self.last

    def close(self) -> None:
        for fd in (self.fd, self.io_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.io_fd = -1


class ProcessTable:
    """Samples the members of a sandbox. One thread at a time.

    A process of which nothing has changed for 2 s is read again after 0.4 s, one of which nothing has for 10 s after
    1 s, all others at each sample.

    The CPU time of all includes processes that ended between two samples, because the kernel adds it to whoever waited
    for them; for that, init must be among the members.

    Args:
        pids: Gives the members' process ids as this process sees them.
        io_every_s: Seconds between two readings of a process's IO counters, which cost more than all the rest. Those
            of a new process are read at once.
        max_processes: Processes that one sample holds at most; the rest is counted in `unread`.
    """

    def __init__(
        self, pids: Callable[[], Iterable[int]], *, io_every_s: float = 1.0, max_processes: int = 4096
    ) -> None:
        self._pids = pids
        self._io_every_ns = round(io_every_s * 1e9)
        self._max = max_processes
        self._known: dict[int, _Process] = {}
        self._rate: _Rate | None = None
        self._ended_io = [0, 0]
        self._unread = 0

    def sample(self, t_mono_ns: int) -> Resources:
        """Read every member once.

        Args:
            t_mono_ns: Monotonic clock, nanoseconds.
        """
        pids = set(self._pids())
        for pid in self._known.keys() - pids:
            self._forget(pid)
        chosen = pids if len(pids) <= self._max else sorted(pids)[: self._max]
        self._unread = len(pids) - len(chosen)
        return self._take(chosen, t_mono_ns)

    def close(self) -> None:
        """Close every file."""
        for pid in list(self._known):
            self._forget(pid)

    def _read(self, pid: int, t_ns: int) -> _Process | None:
        process = self._known.get(pid)
        if process is not None:
            try:
                kept = process.fd >= 0
                raw = os.pread(process.fd, _STAT_BYTES, 0) if kept else _read(f"/proc/{pid}/stat", _STAT_BYTES)
                before = process.start_ticks
                process.take(raw, t_ns)
            except (OSError, ValueError, IndexError):
                self._forget(pid)
            else:
                if process.start_ticks == before:
                    if process.wants_io(t_ns, self._io_every_ns):
                        process.take_io(t_ns)
                    return process
                self._forget(pid)
        return self._open(pid, t_ns)

    def _open(self, pid: int, t_ns: int) -> _Process | None:
        try:
            fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError:
            self._unread += 1
            return None
        try:
            process = _Process(pid, os.pread(fd, _STAT_BYTES, 0), fd, t_ns)
        except (OSError, ValueError, IndexError):
            os.close(fd)
            return None
        if len(self._known) >= _MAX_KEPT:
            process.close()
        process.take_io(t_ns, keep=len(self._known) < _MAX_IO_KEPT)
        self._known[pid] = process
        return process

    def _forget(self, pid: int) -> None:
        process = self._known.pop(pid)
        process.close()
        self._ended_io[0] += process.read_bytes or 0
        self._ended_io[1] += process.write_bytes or 0

    def _take(self, pids: Iterable[int], t_ns: int) -> Resources:
        # One plain loop, and no call for a process that is not due: of a hundred, most sleep.
        known = self._known
        samples: list[ProcessSample] = []
        ticks = rss_bytes = threads = 0
        read_bytes, write_bytes = self._ended_io
        for pid in pids:
            process = known.get(pid)
            if process is None or process.due_ns <= t_ns:
                process = self._read(pid, t_ns)
                if process is None:
                    continue
                sample = process.sample(t_ns)
            else:
                sample = process.last or process.sample(t_ns)
            samples.append(sample)
            ticks += process.total_ticks
            rss_bytes += process.rss_bytes
            threads += process.threads
            read_bytes += process.read_bytes or 0
            write_bytes += process.write_bytes or 0
        if self._rate is None:
            self._rate = _Rate(t_ns, ticks)
        return Resources(
            t_mono_ns=t_ns,
            processes=samples,
            unread=self._unread,
            cpu_s=ticks * _TICK_S,
            cpu_percent=self._rate.percent(t_ns, ticks),
            rss_bytes=rss_bytes,
            threads=threads,
            read_bytes=read_bytes,
            write_bytes=write_bytes,
        )


def _read(path: str, size: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)
