"""A fake supervisor as a process of its own, as `Watch(supervisor=fake_supervisor())` starts it."""

from __future__ import annotations

import argparse
import gc
import sys

import msgspec

from jupyter_agentwatch.testing.fake import FakeSupervisor
from jupyter_agentwatch.wire.framing import FrameDecoder
from jupyter_agentwatch.wire.messages import Kill, Launch

__all__ = ["main"]


def main() -> int:
    """Be a fake supervisor as `Watch` starts one: a launch frame on standard input, a report on standard output."""
    gc.enable()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", default="")
    parser.add_argument("--die", default="")
    parser.add_argument("--deaf", action="store_true")
    options = parser.parse_args()
    launch = next(FrameDecoder(msgspec.msgpack.Decoder(Launch)).feed(sys.stdin.buffer.read()))
    if options.die:
        sys.stderr.write(options.die)
        return 3
    if options.report:
        sys.stdout.write(options.report + "\n")
        return 125
    fake = FakeSupervisor(
        launch.socket,
        watch=launch.watch,
        workspace=launch.workspace,
        log=launch.log,
        output_bytes=launch.policy.limits.output_bytes,
        answers={Kill: lambda _: None} if options.deaf else None,
    )
    fake.start()
    sys.stdout.write('{"ready":true}\n')
    sys.stdout.flush()
    fake.done.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
