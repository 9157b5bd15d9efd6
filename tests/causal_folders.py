"""Small causal language models as transformers saves them: untrained networks, with the tokenizers of
`tests.huggingface_folders`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders

from service.artefacts.huggingface.library import transformers
from tests.huggingface_folders import trained_tokenizer

LENGTH = 40
OF_LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH},
    "llama": {**OF_LLAMA, "num_key_value_heads": 2, "max_position_embeddings": LENGTH},
    "qwen2": {**OF_LLAMA, "num_key_value_heads": 2, "max_position_embeddings": LENGTH},
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "pad_token_id": 1,
            "word_embed_proj_dim": 32, "max_position_embeddings": LENGTH},
    "gemma2": {**OF_LLAMA, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": LENGTH},
}  # fmt: skip
END = "<|endoftext|>"


def save_causal_folder(folder: Path, kind: str, **settings: Any) -> Any:
    """Saves a network of this `model_type` and its tokenizer as save_pretrained does; returns the network."""
    package, parsed = transformers(), Tokenizer.from_str(trained_tokenizer("gpt2").to_str())
    parsed.decoder = decoders.ByteLevel()
    end = parsed.token_to_id(END)
    own = {"vocab_size": parsed.get_vocab_size(), "bos_token_id": end, "eos_token_id": end}
    configuration = package.AutoConfig.for_model(kind, **{**own, **CONFIGURATIONS[kind], **settings})
    torch.manual_seed(0)
    network = package.AutoModelForCausalLM.from_config(configuration, attn_implementation="eager").eval()
    with torch.no_grad():  # drawn so small, all tokens would be as likely
        for name, weights in network.named_parameters():
            if weights.dim() == 2:
                weights.normal_(std=0.5 if "embed" in name or "wte" in name else 0.3)
    network.save_pretrained(folder)
    saved = package.PreTrainedTokenizerFast(
        tokenizer_object=parsed, model_max_length=LENGTH, eos_token=END, bos_token=END
    )
    saved.save_pretrained(folder)
    return network
