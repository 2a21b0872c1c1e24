"""``fitplan``, and ``python -m fitplan``: Ctrl-C is answered in one line from the first import on."""

import signal
import sys


def main() -> int:
    """Run the command; the exit code."""
    try:
        from fitplan.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        print("fitplan: error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
