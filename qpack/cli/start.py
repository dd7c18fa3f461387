"""Where the command `qpack` starts. Imports take a second where nothing is cached, and the user can end them, too."""

from __future__ import annotations

import signal


def main() -> None:
    """Import the command line and run it. Until it heeds SIGINT itself, that ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from qpack.cli import app

    app.main()


if __name__ == "__main__":
    main()
