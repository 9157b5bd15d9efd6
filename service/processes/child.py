"""The program of a child process: imports its module, and runs that module's `main` on the inherited socket.

`python -m service.processes.child MODULE SOCKET`. What is imported stays, so nothing is collected meanwhile: a
worker's imports took a fifth longer.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import sys

from service.logs import VARIABLE, configure


def main() -> None:
    """Ends when the module's `main` does, and on no signal for the service."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):  # a whole group may get them: it is the front that ends it
        signal.signal(signal_number, signal.SIG_IGN)
    module, number = sys.argv[1:]
    gc.disable()
    program = importlib.import_module(module)
    gc.freeze()
    gc.enable()
    configure(os.environ.get(VARIABLE, "text"))
    with socket.socket(fileno=int(number)) as connection:
        program.main(connection)


if __name__ == "__main__":
    main()
