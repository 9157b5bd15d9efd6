"""Small Hugging Face folders as the package itself saves them: untrained networks, and a tokenizer trained on a few
sentences."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from service.artefacts.huggingface.library import transformers
from service.lifecycle.adding.added_inputs import Ask
from service.lifecycle.adding.adding import AddOptions
from service.lifecycle.adding.huggingface import prepare_folder

LENGTH = 24
TEXTS = (
    "The committee approved the proposal after a short debate.",
    "Nobody likes waiting in a queue for hours without being told why.",
    "What a wonderful film; the actors were brilliant and the music moved me.",
    "This product broke after two days, and the seller refused to answer my letters.",
)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BERT_LIKE = {**SMALL, "max_position_embeddings": LENGTH}
ROBERTA_LIKE = {**SMALL, "max_position_embeddings": LENGTH + 2}
"""Their places begin behind that of the padding, which is token 1."""
CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    "bert": BERT_LIKE,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": LENGTH},
    "roberta": ROBERTA_LIKE,
    "deberta-v2": {
        **BERT_LIKE,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    "electra": {**BERT_LIKE, "embedding_size": 16},
    "mpnet": ROBERTA_LIKE,
    "modernbert": {**BERT_LIKE, "global_attn_every_n_layers": 2, "local_attention": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH},
}
CAUSAL = {"gpt2"}
OF_ROBERTA = {"roberta", "mpnet"}


@cache
def trained_tokenizer(kind: str) -> Tokenizer:
    """WordPiece as BERT has it, or byte pairs as RoBERTa and GPT-2 have them; of the latter without special tokens."""
    if kind in OF_ROBERTA | CAUSAL:
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if kind in OF_ROBERTA else ["<|endoftext|>"]
        parsed = Tokenizer(models.BPE())
        parsed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer: Any = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        if kind in OF_ROBERTA:
            parsed.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
        else:
            parsed.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        parsed = Tokenizer(models.WordPiece({}, unk_token="[UNK]"))
        parsed.normalizer = normalizers.BertNormalizer()
        parsed.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        parsed.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        parsed.model = models.WordPiece(_word_pieces(parsed, special, 150), unk_token="[UNK]")
        parsed.add_special_tokens(special)
        return parsed
    parsed.train_from_iterator(TEXTS, trainer)
    return parsed


def _word_pieces(parsed: Tokenizer, special: list[str], size: int) -> dict[str, int]:
    """All characters, short words and the most frequent pairs: `WordPieceTrainer` decides otherwise in every run."""
    normalised = [parsed.normalizer.normalize_str(text) for text in TEXTS]
    words = [word for text in normalised for word, _ in parsed.pre_tokenizer.pre_tokenize_str(text)]
    characters = sorted({character for word in words for character in word})
    pairs = Counter(f"{'##' if at else ''}{word[at : at + 2]}" for word in words for at in range(len(word) - 1))
    frequent = sorted(pairs, key=lambda pair: (-pairs[pair], pair))
    short = sorted({word for word in words if len(word) < 8 and not word.endswith("ing")})
    pieces = dict.fromkeys([*special, *characters, *(f"##{one}" for one in characters), *short, *frequent])
    return {piece: number for number, piece in enumerate(list(pieces)[:size])}


def special_tokens(kind: str) -> dict[str, str]:
    """By their names in tokenizer_config.json."""
    if kind in CAUSAL:
        return {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    if kind in OF_ROBERTA:
        names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
        return {**names, "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return {**names, "unk_token": "[UNK]", "mask_token": "[MASK]"}


def save_folder(
    folder: Path, kind: str, *, shards: str | None = None, is_encoder: bool = False, **settings: Any
) -> Any:
    """Saves a network of this `model_type` and its tokenizer as save_pretrained does; returns the network.

    It is a classifier, or an encoder that answers an embedding for each token. `settings` are further ones of its
    configuration; `shards` is the largest size of a file of weights.
    """
    package = transformers()
    parsed, special = trained_tokenizer(kind), special_tokens(kind)
    ids = {f"{name}_id": parsed.token_to_id(token) for name, token in special.items() if name not in {"unk_token"}}
    ids.pop("mask_token_id", None)
    configuration = package.AutoConfig.for_model(
        kind, **{"vocab_size": parsed.get_vocab_size(), **CONFIGURATIONS[kind], **ids, **settings}
    )
    torch.manual_seed(0)
    networks = package.AutoModel if is_encoder else package.AutoModelForSequenceClassification
    network = networks.from_config(configuration, attn_implementation="eager").eval()
    with torch.no_grad():  # drawn so small, all logits would be the same
        for name, weights in network.named_parameters():
            if weights.dim() == 2:
                weights.normal_(std=0.5 if "embeddings" in name or "wte" in name else 0.3)
    network.save_pretrained(folder, **({} if shards is None else {"max_shard_size": shards}))
    saved = package.PreTrainedTokenizerFast(tokenizer_object=parsed, model_max_length=LENGTH, **special)
    saved.save_pretrained(folder)
    return network


def added(
    source: Path, models: Path, answers: dict[str, str] | None = None, ask: Ask | None = None, **options: Any
) -> Path:
    """The version that is made of a folder; a question that begins as one of the `answers` gets that."""

    def answered(question: str, usual: str) -> str:
        return next((answer for words, answer in (answers or {}).items() if question.startswith(words)), usual)

    prepared = prepare_folder(AddOptions(source, **options), lambda name: (name, "1"), ask or answered)
    version = models / prepared.name / prepared.version
    version.mkdir(parents=True)
    prepared.write(version)
    return version


class _Answering(nn.Module):
    """A network of the package as exporters take it: tensors in, one `output` out."""

    def __init__(self, network: Any, output: str) -> None:
        super().__init__()
        self.network = network
        self._output = output

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        arguments = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        answered: Tensor = self.network(input_ids=input_ids, **arguments)[self._output]
        return answered


def export_beside(network: Any, output: str, folder: Path) -> None:
    """Exports a network that answers this `output`, of types of tokens too, into its folder, where optimum puts it."""
    names = ["input_ids", "attention_mask", "token_type_ids"]
    given = tuple(torch.ones(2, LENGTH, dtype=torch.int64) for _ in names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Answering(network, output),
            given,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("rows")},) * len(names),
            input_names=names,
            output_names=[output],
            opset_version=20,
            verbose=False,
        )
    assert program is not None
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(program.model_proto.SerializeToString())
