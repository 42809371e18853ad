"""How a command ends: with 1 and one message where it cannot go on, with 130 after Ctrl-C."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.refusals import Refusal


@contextmanager
def ending(program: str, note: str = "") -> Iterator[None]:
    """End the process with a message, without a traceback, when the block is stopped.

    By the input or the machine (a full disk, a missing permission): exit code 1. By Ctrl-C: 130.
    `note` goes after the message.
    """
    try:
        yield
    except (Refusal, OSError) as error:
        print(f"{program}: error: {error}{note}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        hint = str(interrupt) or "run the same command again"
        print(f"{program}: interrupted; {hint}{note}", file=sys.stderr)
        sys.exit(130)
