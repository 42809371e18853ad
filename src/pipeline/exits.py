"""Exit codes of a command: 1 with a message if it cannot continue, 130 after Ctrl-C."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.refusals import Refusal


@contextmanager
def exit_with_message(program: str, note: str = "") -> Iterator[None]:
    """Exit with a message instead of a traceback if the block raises Refusal or OSError.

    The exit code is 1 if the input is invalid or the system fails (for example, a full disk or a
    missing permission), and 130 after Ctrl-C. `note` follows the message.
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
