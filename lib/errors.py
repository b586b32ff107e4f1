"""The one exception for bad input, and the wrapper that turns it into a clear line and exit code 2."""

from __future__ import annotations

import functools
import sys


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what, where, what was expected, what to do."""


def script(main):
    """Wrap a script's `main(argv=None)`: an InputError prints as one line on stderr and exits with code 2."""

    @functools.wraps(main)
    def wrapper(argv=None):
        try:
            return main(argv)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted; checkpoints and files already written are kept", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapper
