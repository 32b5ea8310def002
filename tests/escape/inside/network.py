"""Reaches for hosts, sockets and settings of the machine that were not granted."""

# ruff: noqa: ANN001, ANN201, ANN202 -- it tries what must not be done
# mypy: ignore-errors

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time

from told import asks, call, ends, got, libc, said, tries, way, world

sys.setswitchinterval(1e-5)  # a race is won by who gets its turn
TCP, UDP, OTHER = world["tcp"], world["udp"], world["other"]
HOSTS = ("127.0.0.1", "127.0.0.2", "0.0.0.0", OTHER or "127.1.1.1", "192.0.0.8", "192.0.2.1")
FASTOPEN = 0x20000000


def connects(family, kind, protocol, address, payload=b"reached"):
    with socket.socket(family, kind, protocol) as made:
        made.settimeout(1)
        made.connect(address)
        made.sendall(payload)


def direct():
    """Every spelling of the machine's own addresses, and one outside."""
    for port in (TCP, world["every"]):
        for host in HOSTS:
            tries(f"{host}:{port}", connects, socket.AF_INET, socket.SOCK_STREAM, 0, (host, port))
            mapped = f"::ffff:{host}"
            tries(f"{mapped}:{port}", connects, socket.AF_INET6, socket.SOCK_STREAM, 0, (mapped, port))
    for host in ("::1", "::", "::127.0.0.1", "fe80::1%lo", "64:ff9b::7f00:1"):
        tries(f"[{host}]", connects, socket.AF_INET6, socket.SOCK_STREAM, 0, (host, world["tcp6"]))
    with socket.socket() as made:
        made.setblocking(False)
        said["non-blocking"] = errno.errorcode.get(made.connect_ex(("127.0.0.1", TCP)), "ok")
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            made.send(b"reached")


def jupyter():
    """The user's own servers, which trust whoever is on this machine, and the supervisor's."""
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(name) as table:
            for line in table.read().splitlines()[1:]:
                fields = line.split()
                if fields[3] != "0A":
                    continue
                port = int(fields[1].rpartition(":")[2], 16)
                if port == world.get("stub"):
                    continue
                tries(f"listener {port}", connects, socket.AF_INET, socket.SOCK_STREAM, 0, ("127.0.0.1", port))


def datagrams():
    """UDP and its kin, by every call that takes an address."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, OTHER), (socket.AF_INET6, "::1")):
        for kind, protocol in (
            (socket.SOCK_DGRAM, 0),
            (socket.SOCK_DGRAM, 17),
            (socket.SOCK_DGRAM, 136),
            (socket.SOCK_DGRAM, 1),
        ):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as made:
                where = (host, UDP)
                for act in (
                    lambda m=made, w=where: m.sendto(b"reached", w),
                    lambda m=made, w=where: m.sendmsg([b"reached"], [], 0, w),
                    lambda m=made, w=where: (m.connect(w), m.send(b"reached")),
                    lambda m=made: m.send(b"reached"),
                    lambda m=made: m.sendmsg([b"reached"]),
                ):
                    with contextlib.suppress(OSError):
                        act()


def fastopen():
    """Data with the first packet, without a connect."""
    where = ("127.0.0.1", TCP)
    raw = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(TCP), socket.inet_aton("127.0.0.1"))
    for option in (None, 30, 23, 34):
        with socket.socket() as made:
            made.settimeout(1)
            if option:
                tries(f"option {option}", made.setsockopt, 6, option, 1) if option == 30 else None
            tries("sendto", made.sendto, b"reached", FASTOPEN, where)
            tries("sendmsg", made.sendmsg, [b"reached"], [], FASTOPEN, where)
            tries("sendmsg without the flag", made.sendmsg, [b"reached"], [], 0, where)
            tries("high bits", call, "sendto", made.fileno(), b"reached", 7, FASTOPEN | 1 << 40, raw, 16)
            held = ctypes.create_string_buffer(raw)
            vector = (ctypes.c_ulong * 2)(ctypes.addressof(ctypes.create_string_buffer(b"reached")), 7)
            header = struct.pack("@PI4xPLPLi4xI4x", ctypes.addressof(held), 16, ctypes.addressof(vector), 1, 0, 0, 0, 0)
            tries("sendmmsg", call, "sendmmsg", made.fileno(), header, 1, FASTOPEN)


def kinds():
    """Sockets that are not what the broker knows."""
    named = {
        "mptcp": (2, 1, 262), "mptcp6": (10, 1, 262), "sctp": (2, 1, 132), "sctp seqpacket": (2, 5, 132),
        "dccp": (2, 6, 33), "smc": (43, 1, 0), "smc6": (43, 1, 1), "smc inet": (2, 1, 256), "vsock": (40, 1, 0),
        "vsock datagram": (40, 2, 0), "packet": (17, 3, 0x0300), "packet datagram": (17, 2, 0x0300), "raw": (2, 3, 1),
        "raw6": (10, 3, 58), "raw by sock_packet": (2, 10, 0x0300), "alg": (38, 5, 0), "xdp": (44, 3, 0),
        "tipc": (30, 1, 0), "rds": (21, 5, 0), "bluetooth": (31, 3, 3), "can": (29, 3, 1), "key": (15, 3, 2),
        "kcm": (41, 5, 0), "rxrpc": (33, 2, 2), "nfc": (39, 5, 1), "llc": (26, 1, 0), "qipcrtr": (42, 2, 0),
        "ax25": (3, 5, 0), "ping": (2, 2, 1), "udplite": (2, 2, 136), "unix datagram": (1, 2, 0),
    }  # fmt: skip
    allowed = {"ping", "udplite"} if world["rung"] == "A" else set()
    for name, (family, kind, protocol) in named.items():
        made = None
        for bits in (0, 1 << 32):
            with contextlib.suppress(OSError):
                made = call("socket", family | bits, kind | bits, protocol | bits)
            if made is not None and name not in allowed:
                got.append(f"{name} {bits:x}")
                break
    for protocol in range(1, 23):
        tries(f"netlink {protocol}", call, "socket", 16, 3, protocol)
    tries("datagram pair", call, "socketpair", 1, 2, 0, bytes(8))


def mptcp():
    """Multipath TCP to a server of the machine, which a filter of connects to TCP would not see."""
    tries("connect", connects, socket.AF_INET, socket.SOCK_STREAM, 262, ("127.0.0.1", TCP))
    with socket.socket() as made:
        for name in (b"mptcp", b"smc", b"espintcp"):
            tries(f"ulp {name!r}", made.setsockopt, 6, 31, name) if name != b"smc" else None


def vsock():
    """The machine's hypervisor, and packets."""
    tries("vsock", connects, 40, socket.SOCK_STREAM, 0, (2, 22))
    tries("packet", lambda: socket.socket(17, 3, 3).close())
    tries("smc", lambda: call("socket", 43, 1, 0))


def netlink():
    """Changing the machine's network."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    made.settimeout(1)
    link = struct.pack("=BxHiII", 0, 0, 1, 0, 1)  # lo: down
    address = struct.pack("=BBBBi", 2, 32, 0, 0, 1) + struct.pack("=HH4s", 8, 2, socket.inet_aton("203.0.113.7"))
    route = struct.pack("=8BI", 2, 0, 0, 0, 254, 3, 0, 1, 0) + struct.pack("=HHi", 8, 4, 1)
    for name, kind, body in (
        ("link down", 16, link),
        ("address", 20, address),
        ("route", 24, route),
        ("neighbour", 28, bytes(12)),
        ("rule", 32, bytes(12)),
    ):
        wire = struct.pack("=IHHII", 16 + len(body), kind, 5 | 0x400, 7, 0) + body
        ways = (
            ("send", lambda w=wire: made.send(w)),
            ("sendto", lambda w=wire: made.sendto(w, (0, 0))),
            ("sendmsg", lambda w=wire: made.sendmsg([w], [], 0, (0, 0))),
            ("write", lambda w=wire: os.write(made.fileno(), w)),
        )
        for way_in, act in ways:
            try:
                act()
                answer = made.recv(4096)
            except OSError:
                continue
            (kind_back,) = struct.unpack_from("=H", answer, 4)
            (code,) = struct.unpack_from("=i", answer, 16)
            said[f"{name} {way_in}"] = errno.errorcode.get(-code, str(code))
            if kind_back != 2 or code == 0:
                got.append(f"{name} by {way_in}")
    tries("to another", made.sendmsg, [bytes(16)], [], 0, (world["pids"]["victim"], 0))
    tries("to a group", made.sendmsg, [bytes(16)], [], 0, (0, 1))


def interface():
    """The same by ioctl."""
    with socket.socket() as made:
        name = struct.pack("=16s", b"lo")
        address = struct.pack("=H2s4s8x", 2, b"", socket.inet_aton("203.0.113.7"))
        requests = {
            "down": (0x8914, name + struct.pack("=H14x", 0)), "address": (0x8916, name + address),
            "mtu": (0x8922, name + struct.pack("=i12x", 100)), "rename": (0x8923, name + b"escaped".ljust(16, b"\0")),
            "route": (0x890B, bytes(120)), "arp": (0x8955, bytes(68)), "bridge": (0x89A0, b"escaped\0"),
            "tunnel": (0x89F1, name + bytes(16)), "vlan": (0x8983, bytes(128)), "hardware": (0x8924, name + bytes(16)),
            "netns": (0x894C, bytes(8)), "file of a unix socket": (0x89E0, bytes(8)),
        }  # fmt: skip
        for what, (request, data) in requests.items():
            tries(what, fcntl.ioctl, made.fileno(), request, data.ljust(128, b"\0"))


def options():
    """Options that change how a socket meets others."""
    with socket.socket() as made:
        for name, level, option, value in (
            ("repair", 6, 19, 1), ("transparent", 0, 19, 1), ("mark", 1, 36, 1), ("priority", 1, 12, 7),
            ("debug", 1, 1, 1), ("force buffer", 1, 32, 1 << 20), ("header", 0, 3, 1),
        ):  # fmt: skip
            tries(name, made.setsockopt, level, option, value)
        made.setsockopt(1, 25, b"lo\0") if world["rung"] == "A" else None
        tries("connect afterwards", made.connect, ("127.0.0.1", TCP))


def unix():
    """UNIX sockets of the host: in the workspace, outside, abstract, and the supervisor's own."""
    for name in (world["docker"], world["unix"], "docker.sock", "/proc/self/cwd/docker.sock", "/var/run/docker.sock"):
        tries(name, connects, socket.AF_UNIX, socket.SOCK_STREAM, 0, name)
        tries(f"{name} seqpacket", connects, socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, name)
    tries("control", connects, socket.AF_UNIX, socket.SOCK_STREAM, 0, world["control"])
    for name in (world["abstract"], "/tmp/.X11-unix/X0", "/org/freedesktop/systemd1"):
        tries(f"@{name}", connects, socket.AF_UNIX, socket.SOCK_STREAM, 0, "\0" + name)
        tries(f"@{name} as bytes", connects, socket.AF_UNIX, socket.SOCK_STREAM, 0, b"\0" + name.encode())
    for folder in (
        f"/proc/{world['pids']['victim']}/cwd/outside.sock",
        f"/proc/{world['pids']['victim']}/root{world['unix']}",
    ):
        tries(folder, connects, socket.AF_UNIX, socket.SOCK_STREAM, 0, folder)
    os.symlink(world["unix"], "to-unix") if not os.path.lexists("to-unix") else None
    tries("by a link", connects, socket.AF_UNIX, socket.SOCK_STREAM, 0, "to-unix")
    # An abstract name belongs to one socket of each type: have it by another one, and then connect to the host's.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as own:
        for listens in (False, True):
            with contextlib.suppress(OSError):
                own.listen() if listens else own.bind("\0" + world["abstract"])
            tries(f"the name of one's own type {listens}", connects, 1, socket.SOCK_STREAM, 0, "\0" + world["abstract"])
    # A name with a line break in it looks like a row of the kernel's table.
    with socket.socket(socket.AF_UNIX) as own, socket.socket(socket.AF_UNIX) as other, contextlib.suppress(OSError):
        own.bind("\0" + world["abstract"] + "-later")
        inode = os.fstat(own.fileno()).st_ino
        own.close()
        if asks(serve="\0" + world["abstract"] + "-later"):
            row = f"0: 00000002 00000000 00010000 0001 01 {inode} @{world['abstract']}-later"
            other.bind("\0x\n" + row)
            other.listen()
            tries("a row of one's own", connects, 1, socket.SOCK_STREAM, 0, "\0" + world["abstract"] + "-later")
            tries("the same", connects, 1, socket.SOCK_STREAM, 0, "\0" + world["abstract"] + "-later")
    # Of a socket of one's own, take the name and give it to the host's.
    with socket.socket(socket.AF_UNIX) as own:
        with contextlib.suppress(OSError):
            own.bind("own.sock")
            own.listen()
            os.rename("docker.sock", "moved.sock")
            os.rename("own.sock", "docker.sock")
            os.rename("moved.sock", "own.sock")
        tries("after a swap", connects, socket.AF_UNIX, socket.SOCK_STREAM, 0, "own.sock")
    with contextlib.suppress(OSError):
        os.rename("docker.sock", "gone.sock")
        os.rename("own.sock", "docker.sock")
    with contextlib.suppress(OSError):
        os.link("docker.sock", "second.sock")
    tries("by a second name", connects, socket.AF_UNIX, socket.SOCK_STREAM, 0, "second.sock")


def again():
    """A socket that had a peer, taken apart and connected to another."""
    apart = struct.pack("=H14x", 0)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        for end in ("caller", "accepted"):
            caller = socket.create_connection(listening.getsockname())
            accepted, _ = listening.accept()
            made = caller if end == "caller" else accepted
            made.settimeout(1)
            with contextlib.suppress(OSError):
                made.shutdown(2)
            libc.connect(made.fileno(), apart, 16)
            tries(f"{end} again", made.connect, ("127.0.0.1", TCP))
            tries(f"{end} data", made.sendmsg, [b"reached"], [], 0, ("127.0.0.1", TCP))
            caller.close()
            accepted.close()
        libc.connect(listening.fileno(), apart, 16)
        tries("listener", listening.connect, ("127.0.0.1", TCP))
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    name = b"\0" + world["abstract"].encode()
    tries("pair connected again", one.connect, name)
    other.close()


def everywhere():
    """A server that others on the network could reach."""
    if not OTHER:
        return "this machine has no address but loopback's"
    for family, host in (
        (2, "0.0.0.0"),
        (2, OTHER),
        (10, "::"),
        (10, f"::ffff:{OTHER}"),
        (10, "::ffff:0.0.0.0"),
        (2, ""),
    ):
        for listens in (True, False):
            with contextlib.suppress(OSError), socket.socket(family) as made:
                if host and listens:
                    made.bind((host, 0))
                made.listen()
                port = made.getsockname()[1]
                if asks(connect=[OTHER, port]):
                    got.append(f"reached at {OTHER} after a bind to {host!r}")
    return ""


def hijack():
    """Ports and names that servers of the user have."""
    for name, level, option in (("none", 1, 9), ("address", 1, 2), ("port", 1, 15), ("both", 1, 2), ("device", 1, 25)):
        for host in ("127.0.0.1", "0.0.0.0", "::1", "::"):
            port = world["shared"]
            with contextlib.suppress(OSError), socket.socket(10 if ":" in host else 2) as made:
                with contextlib.suppress(OSError):
                    made.setsockopt(level, option, b"lo\0" if option == 25 else 1)
                    if name == "both":
                        made.setsockopt(1, 15, 1)
                made.bind((host, port))
                made.listen()
                made.settimeout(0.2)
                for _ in range(8):
                    asks(connect=["127.0.0.1", port])
                with contextlib.suppress(OSError):
                    made.accept()
                    got.append(f"took a connection of {host}:{port} with {name}")


def odd():
    """Calls whose arguments do not fit together: each must get an errno from a monitor that does not fail."""
    kinds_of = ((1, 1, 0), (1, 5, 0), (2, 1, 0), (10, 1, 0), (16, 3, 0), (2, 2, 0), (10, 2, 0))
    families = (0, 1, 2, 10, 16, 17, 255, 65535)
    rests = (b"", bytes(2), bytes(14), bytes(26), b"\xff" * 26, b"a" * 108, b"a" * 126, b"\0" + b"\xff\n " * 30)
    names = [bytes(size) for size in (0, 1, 2, 16, 28, 110, 128)]
    names += [struct.pack("=H", family) + rest for family in families for rest in rests]
    for kind in kinds_of:
        for name in names:
            with contextlib.suppress(OSError), socket.socket(*kind) as made:
                for number in ("bind", "connect"):
                    with contextlib.suppress(OSError):
                        call(number, made.fileno(), name, len(name))
                with contextlib.suppress(OSError):
                    call("sendto", made.fileno(), b"x", 1, 0x40, name, len(name))
                with contextlib.suppress(OSError):
                    made.listen()
    for fd in (-1, 0, 1, 9999, 1 << 31, os.open("/dev/null", os.O_RDONLY), os.memfd_create("x")):
        for number in ("bind", "connect"):
            for length in (0, 16, 129, -1, 1 << 31):
                for at in (0, 1, (1 << 64) - 4096, b"\2\0" + bytes(14)):
                    with contextlib.suppress(OSError, OverflowError):
                        call(number, fd, at if isinstance(at, bytes) else ctypes.c_void_p(at), length)
        with contextlib.suppress(OSError):
            call("listen", fd, -1)


def squat():
    """A name or port that a server of the user has not taken yet."""
    with contextlib.suppress(OSError), socket.socket() as made:
        made.bind(("127.0.0.1", world["free"]))
        made.listen()
        if asks(connect=["127.0.0.1", world["free"]]):
            got.append("a port of loopback that is free")
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as made:
        made.bind("\0" + world["abstract"] + "-free")
        made.listen()
        if asks(unix="\0" + world["abstract"] + "-free"):
            got.append("an abstract name that is free")


def race(way_in):
    """An address, or the socket behind a descriptor, that changes under connect."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    at = ctypes.addressof(ctypes.c_char.from_buffer(page))
    good, bad = socket.htons(world["allowed"]), socket.htons(TCP)
    page[:16] = struct.pack("=HH", socket.AF_INET, good) + socket.inet_aton("192.0.0.8") + bytes(8)
    flipper = os.fork()
    if flipper == 0:
        source = ctypes.create_string_buffer(struct.pack("=HH", good, bad), 4)
        one, other, copy = ctypes.addressof(source), ctypes.addressof(source) + 2, ctypes.memmove
        while True:
            copy(at + 2, other, 2)
            copy(at + 2, one, 2)
    over = threading.Event()
    fixed = os.open("/dev/null", os.O_RDONLY)

    def swap():
        while not over.is_set():
            for family in (socket.AF_INET, socket.AF_UNIX, socket.AF_INET6):
                with contextlib.suppress(OSError), socket.socket(family) as other:
                    os.dup2(other.fileno(), fixed)

    if way_in == "descriptor":
        threading.Thread(target=swap, daemon=True).start()
    done = 0
    linger = struct.pack("=ii", 1, 0)
    for _ in range(world["tries"]):
        with contextlib.suppress(OSError), socket.socket() as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            libc.connect(fixed if way_in == "descriptor" else made.fileno(), ctypes.c_void_p(at), 16)
            done += 1
    over.set()
    os.kill(flipper, signal.SIGKILL)
    os.waitpid(flipper, 0)
    return done


def bind_race():
    """A bind to a path, which the kernel performs, that turns into one of a port for everybody meanwhile."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    at = ctypes.addressof(ctypes.c_char.from_buffer(page))
    path = (struct.pack("=H", 1) + b"race.sock\0").ljust(16, b"\0")
    port = struct.pack("=HH4s8x", 2, 0, bytes(4))
    page[:16] = path
    flipper = os.fork()
    if flipper == 0:
        source = ctypes.create_string_buffer(path + port, 32)
        one, other, copy = ctypes.addressof(source), ctypes.addressof(source) + 16, ctypes.memmove
        while True:
            copy(at, other, 16)
            copy(at, one, 16)
    over = threading.Event()
    fixed = os.open("/dev/null", os.O_RDONLY)
    inet, unix_one = [], []

    def swap():
        while not over.is_set():
            with contextlib.suppress(OSError, IndexError):
                os.dup2(unix_one[-1].fileno(), fixed)
                os.dup2(inet[-1].fileno(), fixed)

    threading.Thread(target=swap, daemon=True).start()
    done = everywhere_bound = 0
    for _ in range(world["tries"]):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as one, socket.socket() as two:
            unix_one[:], inet[:] = [one], [two]
            os.dup2(one.fileno(), fixed)
            libc.bind(fixed, ctypes.c_void_p(at), 16)
            done += 1
            with contextlib.suppress(OSError):
                os.unlink("race.sock")
            if two.getsockname()[1] and two.getsockname()[0] == "0.0.0.0":
                everywhere_bound += 1
                two.listen()
                if asks(connect=[OTHER, two.getsockname()[1]]):
                    got.append("listens everywhere")
                    break
    over.set()
    os.kill(flipper, signal.SIGKILL)
    os.waitpid(flipper, 0)
    said["bound everywhere, not listening"] = str(everywhere_bound)
    return done


def query(name, kind=1, number=7):
    labels = b"".join(bytes([len(label)]) + label for label in name)
    wire = struct.pack(">6H", number, 256, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", kind, 1)
    with socket.create_connection(("127.0.0.1", 53), 5) as stub:
        stub.sendall(struct.pack(">H", len(wire)) + wire)
        size = stub.recv(2, socket.MSG_WAITALL)
        answer = stub.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL) if size else b""
    return (answer[3] & 15, answer) if len(answer) > 3 else (-1, b"")


def tunnel():
    """Data in the labels of names; the witness's name server must hear none of it."""
    for index in range(200):
        label = b"%056x" % index
        for name in ([label, b"tunnel", b"example"], [label, b"allowed", b"example", b"tunnel", b"example"]):
            with contextlib.suppress(OSError):
                query(name, 16 if index % 2 else 1)
    for name in ("data.tunnel.example", "x" * 60 + ".tunnel.example"):
        with contextlib.suppress(OSError, UnicodeError):
            socket.getaddrinfo(name, 80)


def nul():
    """Names whose text ends somewhere else than the name."""
    for name in (
        [b"good.allowed.example\0", b"tunnel", b"example"], [b"tunnel\0", b"example\0", b"allowed", b"example"],
        [b"x\0.allowed.example"], [b"tunnel.example\0"], [b"a.tunnel", b"example"],
        [b"tunnel.example.", b"allowed", b"example"],
        [b"good\n.allowed", b"example"], [b"%00tunnel", b"example"], [b"tunnel", b"example\0.allowed.example"],
    ):  # fmt: skip
        with contextlib.suppress(OSError):
            said[repr(name)] = str(query(name)[0])
    for text in ("good.allowed.example\0.tunnel.example", "tunnel.example\0.allowed.example"):
        with contextlib.suppress(OSError, UnicodeError, ValueError):
            socket.getaddrinfo(text, 80)


def rebinding():
    """An allowed name whose owner answers with an address of this machine, or of a network behind it."""
    for name in ("rebind.allowed.example", "rebind-own.allowed.example", "rebind-mapped.allowed.example"):
        for _ in range(3):
            with contextlib.suppress(OSError):
                for family, kind, protocol, _name, address in socket.getaddrinfo(name, TCP, type=socket.SOCK_STREAM):
                    said[name] = address[0]
                    tries(f"connect {address[0]}", connects, family, kind, protocol, address)
    for host in ("127.0.0.1", OTHER):
        tries(f"connect {host}", connects, 2, 1, 0, (host, TCP))


ACTS = {
    "direct": direct, "listeners": jupyter, "datagrams": datagrams, "fastopen": fastopen, "kinds": kinds,
    "mptcp": mptcp,
    "vsock": vsock, "netlink": netlink, "interface": interface, "options": options, "unix": unix, "again": again,
    "everywhere": everywhere, "hijack": hijack, "odd": odd, "squat": squat, "bind-race": bind_race,
    "tunnel": tunnel, "nul": nul,
    "rebinding": rebinding, "address-race": lambda: race("address"), "descriptor-race": lambda: race("descriptor"),
}  # fmt: skip
result = ACTS[way]()
ends(na=result if isinstance(result, str) else "", tries=result if isinstance(result, int) else 0)
