"""Converters of ONNX Runtime's attention, which its optimiser makes of a network's products and softmax.

softmax(Q K^T / sqrt(d) + mask) V (Vaswani et al., 2017), for each head.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional

from service.artefacts.onnx.conversion import Function, Node, converts
from service.artefacts.onnx.converters import MICROSOFT

MASKED = -10000.0
"""What ONNX Runtime adds to the score of a token that is masked, where a node does not say it."""


def _has(node: Node, at: int) -> bool:
    return at < len(node.proto.input) and bool(node.proto.input[at])


def _refuse(node: Node, inputs: dict[int, str], options: dict[str, str]) -> None:
    for at, what in inputs.items():
        if _has(node, at):
            raise node.error(f"is not converted with {what}")
    for name, what in options.items():
        if node.option(name, 0):
            raise node.error(f"is not converted with {what}")


def _attended(node: Node, mask_rank: int, has_bias: bool, width: int) -> Function:
    """From queries [rows, length, width], keys and values, and perhaps a mask and a bias, to the values' mixture."""
    heads, masked = node.option("num_heads"), node.option("mask_filter_value", MASKED)
    scale = node.option("scale", 0.0) or 1 / sqrt(width / heads)
    ahead = None
    if node.option("unidirectional", 0):
        length = node.sizes(1)[0]
        ahead = torch.triu(torch.ones(length, length), 1) * masked

    def in_heads(tensor: Tensor) -> Tensor:
        return torch.unflatten(tensor, -1, (heads, -1)).transpose(1, 2)

    def attended(query: Tensor, key: Tensor, value: Tensor, *others: Tensor) -> Tensor:
        query, key, value = in_heads(query), in_heads(key), in_heads(value)
        scores = torch.matmul(query, key.transpose(-1, -2)) * scale
        if mask_rank:
            mask = others[0].to(scores.dtype)
            mask = mask[:, None, None, :] if mask_rank == 2 else mask[:, None]
            scores = scores + (1 - mask) * masked
        if has_bias:
            scores = scores + others[-1]
        if ahead is not None:
            scores = scores + ahead
        return torch.matmul(torch.softmax(scores, -1), value).transpose(1, 2).flatten(2)

    return attended


def _mask_rank(node: Node, at: int) -> int:
    """A mask is [rows, keys] or [rows, queries, keys]."""
    if not _has(node, at):
        return 0
    rank = len(node.shape(at))
    if rank not in (2, 3):
        raise node.error("is only converted with a mask of 0 and 1 for each token, or each pair of tokens")
    return rank


@converts("Attention", domain=MICROSOFT, tensors=(0, 3, 5))
def _attention(node: Node) -> Function:
    _refuse(node, {4: "what was computed before (past)"}, {"do_rotary": "rotary embeddings inside"})
    weights, bias = node.needed(1).t().contiguous(), node.tensor(2)
    sizes = node.option("qkv_hidden_sizes") or [len(weights) // 3] * 3
    attended = _attended(node, _mask_rank(node, 3), _has(node, 5), sizes[0])

    def attention(tensor: Tensor, *others: Tensor) -> Tensor:
        query, key, value = torch.split(functional.linear(tensor, weights, bias), sizes, -1)
        result: Tensor = attended(query, key, value, *others)
        return result

    return attention


@converts("MultiHeadAttention", domain=MICROSOFT, tensors=(0, 1, 2, 4, 5))
def _multi_head(node: Node) -> Function:
    _refuse(node, {6: "what was computed before (past)", 7: "what was computed before (past)"}, {})
    if not (_has(node, 1) and _has(node, 2)) or len(node.shape(1)) != 3:
        raise node.error("is only converted with queries, keys and values apart, [rows, length, size] each")
    bias = node.tensor(3)
    biases = None if bias is None else torch.split(bias, [node.sizes(2, at)[0] for at in (0, 1, 2)])
    attended = _attended(node, _mask_rank(node, 4), _has(node, 5), node.sizes(2)[0])

    def attention(query: Tensor, key: Tensor, value: Tensor, *others: Tensor) -> Tensor:
        parts = (query, key, value)
        if biases is not None:
            parts = (query + biases[0], key + biases[1], value + biases[2])
        result: Tensor = attended(*parts, *others)
        return result

    return attention


@converts("RotaryEmbedding", domain=MICROSOFT, tensors=2)
def _rotary(node: Node) -> Function:
    """Pairs of elements turned by an angle for each place (Su et al., 2021)."""
    _refuse(node, {}, {"is_packed_batching": "texts packed in one row"})
    cosines, sines = node.needed(2), node.needed(3)
    width, scale, is_flat = 2 * cosines.shape[1], node.option("scale", 1.0), len(node.shape()) == 3
    is_interleaved, heads = bool(node.option("interleaved", 0)), node.option("num_heads", 0)
    starts_anywhere = node.shape(1) != (1,)
    if is_flat and not heads and node.option("rotary_embedding_dim", 0):
        raise node.error("lacks num_heads")

    def turned(tensor: Tensor, places: Tensor) -> Tensor:
        sizes = (heads, -1) if heads else (-1, width)
        split = torch.unflatten(tensor, -1, sizes).transpose(1, 2) if is_flat else tensor
        if not starts_anywhere:
            places = places + torch.arange(split.shape[2])[None]
        cosine, sine = cosines[places].unsqueeze(1), sines[places].unsqueeze(1)
        part, rest = split[..., :width], split[..., width:]
        if is_interleaved:
            first, second = part[..., 0::2], part[..., 1::2]
        else:
            first, second = part[..., : width // 2], part[..., width // 2 :]
        pair = [(first * cosine - second * sine) * scale, (first * sine + second * cosine) * scale]
        mixed = torch.stack(pair, -1).flatten(-2) if is_interleaved else torch.cat(pair, -1)
        whole = torch.cat([mixed, rest], -1)
        return whole.transpose(1, 2).flatten(2) if is_flat else whole

    return turned
