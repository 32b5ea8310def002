"""Many processes that connect to many places: `python graph.py PROCESSES ENDPOINTS CHANGES`.

Each process tries its own share of the endpoints and the share of the next, so that there are twice as many connections
as endpoints; none is allowed. Prints "built", then tries ten further connections a second.
"""

import os
import socket
import sys
import time


def try_to_connect(number: int) -> None:
    """Connect to the place with a number, which is refused."""
    with socket.socket() as sock:
        sock.connect_ex((f"198.18.{number % 250}.{1 + number // 250}", 443))


if __name__ == "__main__":
    processes, endpoints, changes = map(int, sys.argv[1:])
    each = endpoints // processes
    for process in range(processes):
        pid = os.fork()
        if pid == 0:
            for number in range(2 * each):
                try_to_connect((process * each + number) % endpoints)
            os._exit(0)
        os.waitpid(pid, 0)
    sys.stdout.write("built\n")
    sys.stdout.flush()
    for number in range(changes):
        time.sleep(0.1)
        try_to_connect(number % endpoints)
