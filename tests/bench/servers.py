"""Servers under test, each a process (or several) of its own: started, awaited, and ended with all they started."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.rounds import KEY, LOAN, ROOT

STARTS_WITHIN = 120.0
PROGRAMS = {
    "worker": b"service.engine.worker.worker",
    "writer": b"service.ledger.writer_process",
    "redis": b"redis-server",
}
"""By what their command lines hold."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where it answers, its process id, and the seconds from spawn to its first good answer."""

    base: str
    pid: int
    seconds_to_ready: float

    def explain(self, model: str = "loan") -> str:
        """Where this service explains with version 1 of a model; the peers answer on `/explain`."""
        return f"{self.base}/v1/models/{model}/versions/1:explain"


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(url: str, body: object) -> Any:
    """The JSON answer to a JSON body."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=60) as reply:
        return json.load(reply)


def get_text(url: str) -> str:
    """The body at `url`."""
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {KEY}"})) as reply:
        return str(reply.read().decode())


def answers(url: str) -> bool:
    """Whether a GET is answered; a peer that only takes POST (405) does answer."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except urllib.error.HTTPError as error:
        return error.code == 405
    except OSError:
        return False


@contextmanager
def running(
    command: Sequence[str], base: str, ready: Callable[[], bool], environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server process from its first good answer on; its whole process group is ended afterwards."""
    with tempfile.TemporaryFile() as log:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "ANSWERABLE_KEY": KEY, **(environment or {})},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            while not ready():
                if process.poll() is not None or time.monotonic() - started > STARTS_WITHIN:
                    raise RuntimeError(f"{' '.join(command)} did not come up")
                time.sleep(0.02)
            yield Server(base, process.pid, time.monotonic() - started)
        except Exception as error:
            log.seek(0)
            error.add_note(f"{' '.join(command)} wrote last:\n{log.read()[-3000:].decode(errors='replace')}")
            raise
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def service(
    models: Path = LOAN.parents[1], workers: int | None = None, ledger: str = "required", queued_points: int = 200_000
) -> Iterator[Server]:
    """This service with keys, metrics and, unless said otherwise, the durable ledger, on a data folder of its own;
    `queued_points` is the work it admits at most, its default here."""
    base = f"http://127.0.0.1:{(port := free_port())}"
    with tempfile.TemporaryDirectory(prefix="bench-data-") as data:
        command = [sys.executable, "-m", "service", "serve", "--port", str(port), "--data", data]
        command += ["--models", str(models), "--ledger", ledger]
        command += ["--workers", str(workers)] if workers else []
        environment = {"ANSWERABLE_MAX_QUEUED_POINTS": str(queued_points)}
        with running(command, base, lambda: answers(f"{base}/v2/health/ready"), environment) as server:
            yield server


@contextmanager
def peer(name: str, *arguments: str) -> Iterator[Server]:
    """One of `tests/bench/peers.py`."""
    base = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "tests.bench.peers", name, str(port), *arguments]
    with running(command, base, lambda: answers(f"{base}/explain")) as server:
        yield server


def torchserve_obstacle() -> str | None:
    """Why TorchServe cannot run here; None where it can be tried."""
    if shutil.which("java") is None:
        return "there is no Java on this machine"
    return None if importlib.util.find_spec("ts") else "torchserve is not installed"


@contextmanager
def torchserve(folder: Path) -> Iterator[Server]:
    """TorchServe with one worker and `torchserve_handler.py` over the model version in `folder`, default settings
    otherwise, on the loopback, without tokens, with everything it writes in a temporary folder."""
    ports = {name: free_port() for name in ("inference", "management", "metrics")}
    base = f"http://127.0.0.1:{ports['inference']}"
    sample = {"instances": [example(folder)]}

    def ready() -> bool:
        try:
            return bool(post(f"{base}/explanations/loan", sample))
        except (OSError, ValueError):
            return False

    with tempfile.TemporaryDirectory(prefix="bench-torchserve-") as temporary:
        files = [folder / "model.onnx", folder / "manifest.yaml", folder / "baselines" / "training.safetensors"]
        handler = Path(__file__).parent / "torchserve_handler.py"
        archiver = [str(Path(sys.executable).parent / "torch-model-archiver")]
        archiver += ["--model-name", "loan", "--version", "1", "--handler", str(handler)]
        archiver += ["--extra-files", ",".join(map(str, files)), "--export-path", temporary]
        subprocess.run(archiver, check=True, capture_output=True)
        config = Path(temporary, "config.properties")
        addresses = [f"{name}_address=http://127.0.0.1:{port}" for name, port in ports.items()]
        config.write_text("\n".join([*addresses, "default_workers_per_model=1", "disable_token_authorization=true"]))
        command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs", "--disable-token-auth"]
        command += ["--model-store", temporary, "--models", "loan=loan.mar", "--ts-config", str(config)]
        folders = dict.fromkeys(("TMPDIR", "TEMP", "LOG_LOCATION", "METRICS_LOCATION"), temporary)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with running(command, base, ready, {**folders, "PATH": path, "PYTHONPATH": str(ROOT)}) as server:
            yield server


def example(folder: Path) -> dict[str, float]:
    """The manifest's example instance."""
    import yaml

    instance: dict[str, float] = yaml.safe_load((folder / "manifest.yaml").read_text())["example"]
    return instance


def memory_of(pid: int) -> dict[str, float]:
    """Resident memory of a process and all below it, in MB by program: proportional set sizes, so that what they share
    counts once."""
    sizes: dict[str, float] = {}
    pending = [pid]
    while pending:
        process = Path("/proc", str(pending.pop()))
        try:
            command = process.joinpath("cmdline").read_bytes()
            rollup = process.joinpath("smaps_rollup").read_text().splitlines()
            children = [path.read_text().split() for path in process.glob("task/*/children")]
        except OSError:
            continue
        kilobytes = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        label = next((label for label, word in PROGRAMS.items() if word in command), "front")
        sizes[label] = sizes.get(label, 0.0) + kilobytes / 1024
        pending += [int(child) for group in children for child in group]
    return sizes


def cpu_seconds_of(pid: int) -> float:
    """What a process and all below it have computed, user and system time."""
    ticks, pending = 0, [pid]
    while pending:
        process = Path("/proc", str(pending.pop()))
        try:
            fields = process.joinpath("stat").read_text().rpartition(")")[2].split()
            children = [path.read_text().split() for path in process.glob("task/*/children")]
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
        pending += [int(child) for group in children for child in group]
    return ticks / os.sysconf("SC_CLK_TCK")


def metric(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of `name` in a `/metrics` text whose labels include `labels`."""
    total = 0.0
    for line in text.splitlines():
        if line.startswith((name + "{", name + " ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total
