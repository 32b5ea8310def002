"""Begins many connects at once: `parallel HOST PORT N` prints seconds: the longest connect call, and loop turn.

`begun` is printed when all are in progress; each peer must greet with a line.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time


class Longest:
    """Remembers the longest of what it is told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def see(self, seconds: float) -> None:
        """Take one."""
        self.seconds = max(self.seconds, seconds)


async def _watch_turns(longest: Longest) -> None:
    before = time.perf_counter()
    while True:
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest.see(now - before)
        before = now


def _begin(address: tuple[str, int], longest: Longest) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    begun = time.perf_counter()
    sock.connect_ex(address)
    longest.see(time.perf_counter() - begun)
    return sock


async def _greeted(sock: socket.socket) -> bool:
    reader, writer = await asyncio.open_connection(sock=sock)
    line = await reader.readline()
    writer.close()
    return bool(line)


async def _one(address: tuple[str, int], longest: Longest) -> bool:
    sock = _begin(address, longest)
    writable = asyncio.Event()
    asyncio.get_running_loop().add_writer(sock, writable.set)
    await writable.wait()
    asyncio.get_running_loop().remove_writer(sock)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 and await _greeted(sock)


async def _all(address: tuple[str, int], count: int) -> tuple[int, float, float]:
    calls, turns = Longest(), Longest()
    watching = asyncio.create_task(_watch_turns(turns))
    await asyncio.sleep(0.01)
    work = []
    for _ in range(count):  # one in each turn, as a server's or crawler's loop does
        work.append(asyncio.create_task(_one(address, calls)))
        await asyncio.sleep(0)
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    greeted = sum(await asyncio.gather(*work))
    watching.cancel()
    return greeted, calls.seconds, turns.seconds


if __name__ == "__main__":
    _, host, port, amount = sys.argv[1:]
    sys.stdout.write(json.dumps(asyncio.run(_all((host, int(port)), int(amount)))) + "\n")
