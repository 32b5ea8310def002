"""System call numbers of the machines that we run on, from the kernel's unistd headers.

A name that a machine does not have (aarch64 has no `open`) is simply absent from its table.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

import msgspec

__all__ = ["AARCH64", "MACHINES", "X86_64", "Machine"]


class Machine(msgspec.Struct, frozen=True):
    """One architecture: its audit constant (`linux/audit.h`) and its call numbers."""

    name: str
    audit_arch: int
    numbers: MappingProxyType[str, int]


# name, x86_64, aarch64 (-1: that machine has no such call)
_TABLE: Final = """
_sysctl 156 -1|accept 43 202|accept4 288 242|acct 163 89|add_key 248 217|adjtimex 159 171|bind 49 200|bpf 321 280
capset 126 91|chmod 90 -1|chroot 161 51|clock_adjtime 305 266|clock_settime 227 112|clone 56 220|clone3 435 435
connect 42 203|creat 85 -1|delete_module 176 106|execve 59 221|execveat 322 281|fanotify_init 300 262
fanotify_mark 301 263
fchmod 91 52|fchmodat 268 53|fchmodat2 452 452|finit_module 313 273|fork 57 -1
fsconfig 431 431|fsmount 432 432|fsopen 430 430|fspick 433 433|init_module 175 105
io_uring_enter 426 426|io_uring_register 427 427|io_uring_setup 425 425|ioctl 16 29|ioperm 173 -1|iopl 172 -1
kcmp 312 272|kexec_file_load 320 294|kexec_load 246 104|keyctl 250 219|landlock_create_ruleset 444 444|link 86 -1
linkat 265 37|listen 50 201|lookup_dcookie 212 18|mkdir 83 -1|mkdirat 258 34|mknod 133 -1|mknodat 259 33
modify_ldt 154 -1|mount 165 40|mount_setattr 442 442|move_mount 429 429|move_pages 279 239|name_to_handle_at 303 264
nfsservctl 180 42|open 2 -1|open_by_handle_at 304 265|open_tree 428 428|open_tree_attr 467 467|openat 257 56
openat2 437 437|perf_event_open 298 241|personality 135 92|pidfd_getfd 438 438|pivot_root 155 41|prctl 157 167
process_madvise 440 440|process_vm_readv 310 270|process_vm_writev 311 271|ptrace 101 117|quotactl 179 60
quotactl_fd 443 443|reboot 169 142|remap_file_pages 216 234|rename 82 -1|renameat 264 38|renameat2 316 276
request_key 249 218|rmdir 84 -1|seccomp 317 277|sendmmsg 307 269|sendmsg 46 211|sendto 44 206|set_tid_address 218 96
setdomainname 171 162|sethostname 170 161|setns 308 268|setsid 112 157|setsockopt 54 208|settimeofday 164 170
socket 41 198|socketpair 53 199|swapoff 168 225|swapon 167 224|symlink 88 -1|symlinkat 266 36|syslog 103 116
sysfs 139 -1|truncate 76 45|umount2 166 39|unlink 87 -1|unlinkat 263 35|unshare 272 97|uselib 134 -1
userfaultfd 323 282|ustat 136 -1|vfork 58 -1|vhangup 153 58|vmsplice 278 75|landlock_restrict_self 446 446
prlimit64 302 261|sched_getaffinity 204 123|sched_setaffinity 203 122|sched_setattr 314 274
sched_setparam 142 118|sched_setscheduler 144 119
kill 62 129|tkill 200 130|tgkill 234 131|rt_sigqueueinfo 129 138|rt_tgsigqueueinfo 297 240|pidfd_send_signal 424 424
fcntl 72 25|setpriority 141 140|ioprio_set 251 30|migrate_pages 256 238|process_mrelease 448 448
chown 92 -1|fchown 93 55|lchown 94 -1|fchownat 260 54|utime 132 -1|utimes 235 -1|futimesat 261 -1|utimensat 280 88
setxattr 188 5|lsetxattr 189 6|fsetxattr 190 7|setxattrat 463 463|removexattr 197 14|lremovexattr 198 15
fremovexattr 199 16|removexattrat 466 466|file_setattr 469 469|mmap 9 222|mq_open 240 180|mq_unlink 241 181
shmget 29 194|shmat 30 196|shmctl 31 195|semget 64 190|semop 65 193|semtimedop 220 192|semctl 66 191
inotify_init 253 -1|inotify_init1 294 26|msgget 68 186|msgsnd 69 189|msgrcv 70 188|msgctl 71 187
"""


def _column(index: int) -> MappingProxyType[str, int]:
    rows = (entry.split() for line in _TABLE.split("\n") for entry in line.split("|") if entry)
    return MappingProxyType({row[0]: int(row[index]) for row in rows if int(row[index]) >= 0})


X86_64: Final = Machine("x86_64", 0xC000003E, _column(1))
"""64-bit PC."""

AARCH64: Final = Machine("aarch64", 0xC00000B7, _column(2))
"""64-bit Arm."""

MACHINES: Final = MappingProxyType({machine.name: machine for machine in (X86_64, AARCH64)})
"""By the name that `uname -m` prints."""
