"""The program of a child process: imports its module, and runs that module's `main` on the inherited socket.

`python -m service.processes.child MODULE SOCKET`.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys

from service.logs import VARIABLE, configure
from service.processes import tuning


def main() -> None:
    """Ends when the module's `main` does, and on no signal for the service."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):  # a whole group may get them: it is the front that ends it
        signal.signal(signal_number, signal.SIG_IGN)
    module, number = sys.argv[1:]
    tuning.begin_imports()
    program = importlib.import_module(module)
    tuning.end_imports()
    configure(os.environ.get(VARIABLE, "text"))
    with socket.socket(fileno=int(number)) as connection:
        program.main(connection)


if __name__ == "__main__":
    main()
