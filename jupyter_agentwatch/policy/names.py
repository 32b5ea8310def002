"""One normal form of host names and addresses, so that a rule and a call can be compared as plain text and numbers.

Pure, and the only place that knows which addresses are not public: it must never look a name up.
"""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from jupyter_agentwatch.events import printable

__all__ = [
    "HOST_LOOPBACK",
    "LOOPBACK_NAME",
    "Address",
    "AddressRange",
    "host_pattern",
    "is_own",
    "is_public",
    "normal_address",
    "normal_name",
    "parse_range",
]

HOST_LOOPBACK = "192.0.0.8"
"""What the DNS stub answers for `host.loopback`: the IPv4 dummy address of RFC 7600, which no network routes."""

LOOPBACK_NAME = "host.loopback"
"""The name for the loopback address of the machine that runs the supervisor."""

Address = IPv4Address | IPv6Address
"""An address without scope, never an IPv4-mapped one."""

AddressRange = IPv4Network | IPv6Network
"""What a rule's `cidr` gives; a single address is a range of one."""

_MAX_NAME = 253
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}")
# getaddrinfo takes such names for IPv4 addresses ("127.1", "0x7f000001", "2130706433").
_NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")

# Written out rather than taken from `ipaddress.is_global`, whose answer changes with the version of Python.
# Source: the IANA registries of special-purpose addresses.
_INNER_V4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_GLOBAL_V6 = IPv6Network("2000::/3")
_INNER_V6 = tuple(IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
_NAT64 = IPv6Network("64:ff9b::/96")

_OWN_V4 = (IPv4Network("127.0.0.0/8"), IPv4Network("0.0.0.0/8"))
_OWN_V6 = IPv6Network("::/127")


def normal_name(name: str) -> str | None:
    """Return a queried name in lower case without its final dot, or None where it is not a host name.

    Args:
        name: Hostile text, as the DNS stub decoded it.

    Returns:
        None for what is empty, too long (253 in all, 63 a label), not made of letters, digits, hyphens, underscores
        and single dots, or would be taken for an address.
    """
    if len(name) > _MAX_NAME + 1 or not name.isascii():
        return None
    lowered = name.lower().removesuffix(".")
    if len(lowered) > _MAX_NAME or _NAME.fullmatch(lowered) is None or _NUMERIC_END.fullmatch(lowered):
        return None
    return lowered


def host_pattern(text: str) -> str:
    """Return a rule's host as lower-case ASCII without its final dot; a leading "*." stays.

    Raises:
        ValueError: Not a name that a rule may give; the text is the reason.
    """
    wildcard = text.startswith("*.")
    name = _ascii_name(text[2:] if wildcard else text)
    if name == "localhost" or name.endswith(".localhost"):
        msg = f"localhost is the sandbox's own and always free; the machine's own loopback is {LOOPBACK_NAME}"
        raise ValueError(msg)
    if wildcard and (name == "loopback" or name.endswith(".loopback")):
        msg = f"{LOOPBACK_NAME} cannot be combined with a wildcard"
        raise ValueError(msg)
    if name.endswith(".loopback") and name != LOOPBACK_NAME:
        msg = f"the only name below .loopback is {LOOPBACK_NAME}"
        raise ValueError(msg)
    pattern = f"*.{name}" if wildcard else name
    if len(pattern) > _MAX_NAME:
        msg = f"a name has at most {_MAX_NAME} characters"
        raise ValueError(msg)
    return pattern


def _ascii_name(text: str) -> str:
    if not text:
        msg = "a host name is missing"
        raise ValueError(msg)
    if normal_address(text.removeprefix("[").removesuffix("]")) is not None:
        msg = "this is an address: give it as cidr"
        raise ValueError(msg)
    if "*" in text:
        msg = 'a wildcard may only stand in front, as "*."; a range of addresses is given as cidr'
        raise ValueError(msg)
    if len(text) > _MAX_NAME + 1:
        msg = f"a name has at most {_MAX_NAME} characters"
        raise ValueError(msg)
    encoded = text if text.isascii() else _idna(text)
    name = normal_name(encoded)
    if name is None:
        raise ValueError(_name_fault(encoded))
    return name


def _idna(text: str) -> str:
    # The standard library's codec maps some letters to others (ß to ss), which would name somebody else's host:
    # only what comes back unchanged is taken.
    wanted = unicodedata.normalize("NFC", text.lower())
    encoded = back = ""
    with suppress(UnicodeError):
        encoded = wanted.encode("idna").decode("ascii")
        back = encoded.encode("ascii").decode("idna")
    if back != wanted:
        msg = "this name has no unambiguous ASCII form: write the form that begins with xn--"
        raise ValueError(msg)
    return encoded


def _name_fault(text: str) -> str:
    labels = text.lower().removesuffix(".").split(".")
    for label in labels:
        if not label:
            return "two dots in a row, or a dot in front"
        if len(label) > 63:
            return f"the part {printable(label, 20)} has more than 63 characters"
        if re.fullmatch(r"[a-z0-9_-]+", label) is None:
            return (
                f'"{printable(label, 63)}" has characters that a host name cannot have (no scheme, port or path here)'
            )
        if label[0] == "-" or label[-1] == "-":
            return f'"{label}" begins or ends with a hyphen'
    if sum(map(len, labels)) + len(labels) - 1 > _MAX_NAME:
        return f"a name has at most {_MAX_NAME} characters in its ASCII form"
    return "this would be taken for an address: give it as cidr, in full"


def normal_address(text: str) -> Address | None:
    """Return an address literal without its scope, IPv4-mapped IPv6 as IPv4; None where it is none."""
    bare = text.partition("%")[0] if ":" in text else text
    try:
        address = ip_address(bare)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def parse_range(text: str) -> AddressRange:
    """Return the range that a rule's `cidr` gives.

    Raises:
        ValueError: Not an address or range that a rule may give; the text is the reason.
    """
    address_text, slash, prefix = text.partition("/")
    if slash and not (prefix.isascii() and prefix.isdigit()):
        msg = 'the part after "/" is the number of leading bits, as in 10.0.0.0/8'
        raise ValueError(msg)
    if "%" in text:
        msg = "an address is given without its scope (%…)"
        raise ValueError(msg)
    try:
        network = ip_network(text, strict=False)
        address = ip_address(address_text)
    except ValueError:
        msg = "not an address (192.0.2.7, 2001:db8::1) or a range (10.0.0.0/8); a name is given as host"
        raise ValueError(msg) from None
    if address != network.network_address:
        msg = f"the address has bits set beyond its first {network.prefixlen}: the range is {network}"
        raise ValueError(msg)
    _refuse_useless(network)
    return network


def _refuse_useless(network: AddressRange) -> None:
    if isinstance(network, IPv6Network) and network.subnet_of(IPv6Network("::ffff:0:0/96")):
        msg = "calls to IPv4-mapped addresses are judged as IPv4: give the IPv4 address or range"
        raise ValueError(msg)
    if network == IPv4Network(HOST_LOOPBACK):
        msg = f"{HOST_LOOPBACK} stands for {LOOPBACK_NAME}: give that as host"
        raise ValueError(msg)
    own = network.subnet_of(_OWN_V6) if isinstance(network, IPv6Network) else any(map(network.subnet_of, _OWN_V4))
    if own:
        msg = f"loopback is the sandbox's own and always free; the machine's own is given as host: {LOOPBACK_NAME}"
        raise ValueError(msg)


def is_own(address: Address) -> bool:
    """Say whether an address is loopback or unspecified: the sandbox's own, never a destination outside."""
    if isinstance(address, IPv4Address):
        return any(address in network for network in _OWN_V4)
    return address in _OWN_V6


def is_public(address: Address) -> bool:
    """Say whether an address is a public unicast one: what a name may resolve to without `private_answers`.

    Loopback, private, shared, link-local, multicast, documentation and reserved ranges are not public, nor are the
    tunnels 6to4 and Teredo, which can carry any of them; a NAT64 address is judged by the IPv4 address in it.
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _INNER_V4)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _GLOBAL_V6 and not any(address in network for network in _INNER_V6)
