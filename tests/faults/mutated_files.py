"""Files of models, spoilt in places drawn at random: each is refused in a sentence of ours, or served as what it is.

`python -m tests.faults.mutated_files KIND FIRST COUNT FOLDER` is a process of its own, since the parsers are native
code: what ends it is in FOLDER, under the number that it was drawn with. One that is found goes to `corpus`, which the
gate reads.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import onnx
import onnx.reference
import torch
import yaml

from service.artefacts.loading import LoadedModel, load_model
from service.catalog.inputs.sequences import TextTokenizer, read_sequence
from service.catalog.manifest import read_manifest
from service.catalog.version_files import read_baseline_rows
from service.domain import OutputSpace
from service.errors import AnswerableError, CatalogError
from tests.artefacts.test_formats import IMAGE, TRUST, Exported, filled, program, serve
from tests.catalog.inputs.test_sequences import inputs, tokenizer_json
from tests.conftest import MODELS

CORPUS = Path(__file__).parent / "corpus"
CODE = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pickle.find_class"}
"""What a file that is only read never causes, as the interpreter audits it."""
MOST_SECONDS = 120
LARGE = (
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b"999999999999",
    b"-1",
    b"1e999",
    b"[" * 5000,
    b"\0",
    b"&a [*a]",
    b"\xf0\x9f\x98\x80",
)


class TookTooLong(Exception):
    """What does not end holds up a worker's start."""


def mutate(content: bytes, draw: random.Random) -> bytes:
    """One to four changes: a byte, a piece that goes, comes twice or is at another place, an end, something large."""
    spoilt = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(spoilt) + 1), draw.choice((1, 2, 8, 64))
        piece = spoilt[at : at + length]
        match draw.randrange(6):
            case 0 if piece:
                spoilt[at] = draw.randrange(256)
            case 1:
                del spoilt[at : at + length]
            case 2:
                spoilt[at:at] = piece
            case 3:
                other = draw.randrange(len(spoilt) + 1)
                spoilt[other : other + length] = piece
            case 4 if draw.random() < 0.2:
                del spoilt[at:]
            case _:
                spoilt[at : at + draw.choice((0, length))] = draw.choice(LARGE)
    return bytes(spoilt)


def mutate_record(content: bytes, draw: random.Random) -> bytes:
    """An archive of which one record is spoilt, or the archive itself is."""
    if draw.random() < 0.2:
        return mutate(content, draw)
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        chosen = draw.choice(old.namelist())
        for name in old.namelist():
            new.writestr(name, mutate(old.read(name), draw) if name == chosen else old.read(name))
    return result.getvalue()


def _put(folder: Path, content: bytes) -> None:
    """In the artefact's place, with its digest."""
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["artefact"]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / manifest["artefact"]["file"]).write_bytes(content)
    path.write_text(yaml.safe_dump(manifest))
    os.environ[TRUST] = "sha256:" + manifest["artefact"]["sha256"] + "," + manifest["artefact"]["sha256"]


def _loaded(folder: Path, content: bytes) -> LoadedModel:
    _put(folder, content)
    loaded = load_model(folder, torch.device("cpu"))
    assert np.isfinite(loaded.parity)
    return loaded


class Kind:
    """A kind of file: one that is whole, and what the service does with one that is not."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "loan" / "1"
        shutil.copytree(MODELS / "loan" / "1", self.folder)

    def whole(self) -> bytes:
        return (self.folder / "model.onnx").read_bytes()

    def spoil(self, draw: random.Random) -> bytes:
        return mutate(self.whole_content, draw)

    @property
    def whole_content(self) -> bytes:
        if not hasattr(self, "_whole"):
            self._whole = self.whole()
        return self._whole

    def read(self, content: bytes) -> None:
        """As a worker does: raises CatalogError; what it serves is what ONNX's own evaluator makes of the file."""
        loaded = _loaded(self.folder, content)
        row = np.asarray([loaded.manifest.inputs.read(loaded.manifest.example, self.folder).values], np.float32)
        logit = loaded.manifest.outputs.tensors[OutputSpace.LOGIT]
        evaluator = onnx.reference.ReferenceEvaluator(onnx.load_from_string(content))
        (logits,) = evaluator.run([logit], {loaded.manifest.inputs.tensor: row})
        served = np.asarray(loaded.deployed.outputs(row)[OutputSpace.LOGIT], np.float64)
        np.testing.assert_allclose(served, np.asarray(logits, np.float64), rtol=1e-3, atol=1e-3)


class Weights(Kind):
    """safetensors of a network that the manifest describes."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "digits" / "1"
        shutil.copytree(MODELS / "digits" / "1", self.folder)

    def whole(self) -> bytes:
        return (self.folder / "model.safetensors").read_bytes()

    def read(self, content: bytes) -> None:
        _loaded(self.folder, content)


class Program(Weights):
    """A program of torch.export that the operator trusts."""

    def __init__(self, root: Path) -> None:
        network = filled(Exported())
        self.content = program(network)
        self.folder = serve(root, network, "model.pt2", self.content, IMAGE).folder

    def whole(self) -> bytes:
        return self.content

    def spoil(self, draw: random.Random) -> bytes:
        return mutate_record(self.whole_content, draw)


class BaselineRows(Kind):
    def whole(self) -> bytes:
        return (self.folder / "baselines" / "training.safetensors").read_bytes()

    def read(self, content: bytes) -> None:
        manifest, _, _ = read_manifest(self.folder)
        (one,) = (baseline for baseline in manifest.baselines if baseline.name == "training")
        (self.folder / one.file).write_bytes(content)
        rows = read_baseline_rows(
            self.folder, manifest, one.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
        )
        assert np.isfinite(rows).all()


class Manifest(Kind):
    def whole(self) -> bytes:
        return (self.folder / "manifest.yaml").read_bytes()

    def read(self, content: bytes) -> None:
        (self.folder / "manifest.yaml").write_bytes(content)
        manifest, key, _ = read_manifest(self.folder)
        assert str(key) == "loan@1"
        assert len(manifest.inputs.read(manifest.example, self.folder).values) == len(manifest.inputs.names)


class TokenizerFile(Kind):
    def whole(self) -> bytes:
        return tokenizer_json()

    def read(self, content: bytes) -> None:
        declared = inputs(content)
        assert declared.tokenizer is not None
        tokenizer = TextTokenizer(content, declared.tokenizer, declared)
        for text in ("Ignore walking Café!", "", "\0 \ud7ff x" * 40):
            try:
                read_sequence(declared, {"text": text}, tokenizer)
            except AnswerableError as error:
                assert error.status == 422, error  # noqa: PT017


KINDS: dict[str, Callable[[Path], Kind]] = {
    "onnx": Kind,
    "safetensors": Weights,
    "pt2": Program,
    "baselines": BaselineRows,
    "manifest": Manifest,
    "tokenizer": TokenizerFile,
}


def refused_or_right(kind: Kind, content: bytes) -> str:
    """Raises what is neither."""
    try:
        kind.read(content)
    except CatalogError as error:
        assert "\n" not in str(error), error  # noqa: PT017
        return "refused"
    return "right"


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event in CODE:
        raise AssertionError(f"it had {event} called with {arguments!r:.200}")


def _end(number: int, frame: FrameType | None) -> None:
    raise TookTooLong


def main(name: str, first: int, count: int, folder: Path) -> int:
    torch.set_num_threads(1)
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as root:
        kind = KINDS[name](Path(root))
        assert refused_or_right(kind, kind.whole_content) == "right"
        sys.addaudithook(_audit)
        signal.signal(signal.SIGALRM, _end)
        for number in range(first, first + count):
            content = kind.spoil(random.Random(number))
            kept = folder / f"{name}-{number}"
            kept.write_bytes(content)
            signal.alarm(MOST_SECONDS)
            try:
                seen[refused_or_right(kind, content)] += 1
            except BaseException as error:  # noqa: BLE001 - Rust's panics are none of Exception's
                print(f"{kept.name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
                seen["neither"] += 1
            else:
                kept.unlink()
            finally:
                signal.alarm(0)
    print(" ".join(f"{count} {outcome}" for outcome, count in sorted(seen.items())))
    return 1 if seen["neither"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
