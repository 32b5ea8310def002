"""Sizes and places of the kernel's structures as we write them: the same on both machines, as the request codes say."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import pytest

from jupyter_agentwatch.sandbox import landlock, notify, unixdiag
from jupyter_agentwatch.sandbox.syscalls import AARCH64, X86_64

if TYPE_CHECKING:
    from types import ModuleType

REQUESTS: Final = {
    # name of the request: the structure, its size in linux/seccomp.h, and the direction (1: write, 2: read)
    "_RECV": ("_NOTIF", 80, 3),
    "_SEND": ("_RESPONSE", 24, 3),
    "_ID_VALID": ("_ID", 8, 1),
    "_ADDFD": ("_ADDFD_REQUEST", 24, 1),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_code_agrees_with_its_structure(name: str) -> None:
    """An ioctl's code holds the structure's size, its group '!' and its direction, as both machines encode them."""
    form, size, direction = REQUESTS[name]
    code = getattr(notify, name)
    assert getattr(notify, form).size == size == code >> 16 & 0x3FFF
    assert (code >> 8 & 0xFF, code >> 30) == (ord("!"), direction)


def test_the_notification_is_laid_out_as_the_kernel_does() -> None:
    """`struct seccomp_notif` (id, pid, flags, seccomp_data) is read field by field from where it is."""
    words = struct.pack("=QII", 7, 8, 9) + struct.pack("=iIQ", -1, 0xC000003E, 10) + struct.pack("=6Q", *range(11, 17))
    assert notify._NOTIF.unpack(words) == (7, 8, 9, -1, 0xC000003E, *range(10, 17))
    assert notify._RESPONSE.unpack(struct.pack("=QqiI", 1, -2, -3, 4)) == (1, -2, -3, 4)


@pytest.mark.parametrize(
    ("module", "form", "size"),
    [
        (unixdiag, "_HEADER", 16),  # struct nlmsghdr
        (unixdiag, "_QUESTION", 24),  # struct unix_diag_req
        (unixdiag, "_ANSWER", 16),  # struct unix_diag_msg
        (unixdiag, "_ATTRIBUTE", 4),  # struct rtattr
        (unixdiag, "_FILE", 8),  # struct unix_diag_vfs
        (notify, "_IOVEC", 16),  # struct iovec of a 64-bit machine
    ],
)
def test_a_structure_has_the_kernels_size(module: ModuleType, form: str, size: int) -> None:
    """No padding of this machine gets into what the kernel reads: all forms have standard sizes."""
    found: struct.Struct = getattr(module, form)
    assert (found.size, found.format[0]) == (size, "=")


def test_what_is_called_by_one_number_has_it_on_both_machines() -> None:
    """Calls that are made by the number of one table have the same in the other; Landlock's follow one another."""
    for name in ("landlock_create_ruleset", "landlock_restrict_self", "pidfd_getfd", "pidfd_send_signal"):
        assert X86_64.numbers[name] == AARCH64.numbers[name]
    assert landlock._CREATE == 444
    assert X86_64.numbers["landlock_restrict_self"] == landlock._CREATE + 2
