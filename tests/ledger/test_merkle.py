"""The tree against the definitions of RFC 9162, written out, and against its published vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.ledger import merkle
from service.ledger.merkle import BLOCK, STORED_HEIGHTS, GrowingTree, Tree, is_consistent, is_included, leaf_hash

# The reference vectors of RFC 6962 and 9162 (Certificate Transparency's own test data): eight leaves, the roots of the
# trees over the first 0 to 8 of them, inclusion paths as (leaf from 1, size, path), consistency as (old, new, proof).
LEAVES = [bytes.fromhex(one) for one in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
LEAVES.append(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
PATHS = [
    (1, 1, []),
    (
        1,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (3, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        2,
        5,
        [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]
CONSISTENCIES = [
    (1, 1, []),
    (
        1,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]


# RFC 9162, 2.1.1 to 2.1.4, in its own words and recursion.
def slow_root(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + slow_root(leaves[:k]) + slow_root(leaves[k:])).digest()


def slow_path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*slow_path(m, leaves[:k]), slow_root(leaves[k:])]
    return [*slow_path(m - k, leaves[k:]), slow_root(leaves[:k])]


def slow_proof(m: int, leaves: Sequence[bytes], is_whole: bool = True) -> list[bytes]:
    if m == len(leaves):
        return [] if is_whole else [slow_root(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*slow_proof(m, leaves[:k], is_whole), slow_root(leaves[k:])]
    return [*slow_proof(m - k, leaves[k:], False), slow_root(leaves[:k])]


def split(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def tree_over(leaves: Sequence[bytes], stored: int = 0) -> Tree:
    """A tree whose nodes over the first `stored` leaves are kept, of the heights that are."""
    levels = {0: [leaf_hash(leaf) for leaf in leaves]}
    grown = GrowingTree()
    for leaf in levels[0][:stored]:
        for height, place, found in grown.add(leaf):
            if height % STORED_HEIGHTS == 0:
                assert len(levels.setdefault(height, [])) == place
                levels[height].append(found)
    return Tree(lambda height, block: levels.get(height, [])[block * BLOCK : (block + 1) * BLOCK])


@pytest.mark.parametrize("size", range(9))
def test_published_roots(size: int) -> None:
    assert tree_over(LEAVES).root(size).hex() == ROOTS[size] == slow_root(LEAVES[:size]).hex()


@pytest.mark.parametrize(("leaf", "size", "path"), PATHS)
def test_published_inclusion_paths(leaf: int, size: int, path: list[str]) -> None:
    assert [one.hex() for one in tree_over(LEAVES).inclusion(leaf - 1, size)] == path
    hashes = [bytes.fromhex(one) for one in path]
    assert is_included(leaf_hash(LEAVES[leaf - 1]), leaf - 1, size, hashes, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("old", "new", "proof"), CONSISTENCIES)
def test_published_consistency_proofs(old: int, new: int, proof: list[str]) -> None:
    assert [one.hex() for one in tree_over(LEAVES).consistency(old, new)] == proof
    old_root, new_root = (bytes.fromhex(ROOTS[size]) for size in (old, new))
    assert is_consistent(old, new, old_root, new_root, [bytes.fromhex(one) for one in proof])


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 1100), data=st.data())
def test_any_tree_is_that_of_the_definition(size: int, data: st.DataObject) -> None:
    leaves = [str(i).encode() for i in range(size)]
    tree = tree_over(leaves, stored=data.draw(st.integers(0, size), label="stored"))
    index = data.draw(st.integers(0, size - 1), label="index")
    old = data.draw(st.integers(1, size), label="old")
    root, old_root = slow_root(leaves), slow_root(leaves[:old])

    assert tree.root(size) == root
    assert tree.root(old) == old_root
    path, proof = tree.inclusion(index, size), tree.consistency(old, size)
    assert path == slow_path(index, leaves)
    assert proof == slow_proof(old, leaves)
    assert len(path) <= (size - 1).bit_length()
    assert is_included(leaf_hash(leaves[index]), index, size, path, root)
    assert is_consistent(old, size, old_root, root, proof)

    grown = GrowingTree()
    for leaf in leaves:
        for _ in grown.add(leaf_hash(leaf)):
            pass
    assert grown.root() == root


@settings(deadline=None, max_examples=150)
@given(size=st.integers(1, 70), data=st.data())
def test_what_is_not_so_has_no_proof(size: int, data: st.DataObject) -> None:
    """A flipped bit anywhere, another place, another size, a hash too many or too few."""
    leaves = [str(i).encode() for i in range(size)]
    tree, root = tree_over(leaves), slow_root(leaves)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    path, proof = tree.inclusion(index, size), tree.consistency(old, size)
    leaf, old_root = leaf_hash(leaves[index]), slow_root(leaves[:old])

    def flipped(value: bytes) -> bytes:
        bit = data.draw(st.integers(0, 255))
        return bytes(byte ^ (1 << bit % 8 if at == bit // 8 else 0) for at, byte in enumerate(value))

    def spoilt(hashes: list[bytes]) -> list[bytes]:
        at = data.draw(st.integers(0, len(hashes)))
        if at == len(hashes):
            return [*hashes, root]
        return data.draw(
            st.sampled_from([hashes[:at] + hashes[at + 1 :], [*hashes[:at], flipped(hashes[at]), *hashes[at + 1 :]]])
        )

    assert not is_included(flipped(leaf), index, size, path, root)
    assert not is_included(leaf, index, size, path, flipped(root))
    assert not is_included(leaf, index, size, spoilt(path), root)
    assert not any(is_included(leaf, other, size, path, root) for other in range(-1, size + 2) if other != index)
    assert not is_consistent(old, size, old_root, flipped(root), proof)
    assert not is_consistent(old, size, flipped(old_root), root, proof)
    assert not is_consistent(old, size, old_root, root, spoilt(proof))
    for other in {0, old - 1, old + 1} - {old}:
        assert not is_consistent(other, size, old_root, root, proof)


def test_what_is_not_there() -> None:
    tree = tree_over(LEAVES)
    assert tree.root(0) == merkle.EMPTY_ROOT
    for wrong in (lambda: tree.root(9), lambda: tree.inclusion(8, 8), lambda: tree.inclusion(-1, 8)):
        with pytest.raises(IndexError):
            wrong()
    for old, new in ((0, 8), (9, 8), (3, 9)):
        with pytest.raises(IndexError):
            tree.consistency(old, new)


def test_a_proof_at_a_million_leaves_reads_three_blocks() -> None:
    size = 1_000_000
    read: list[tuple[int, int]] = []

    def known(height: int, block: int) -> list[bytes]:
        read.append((height, block))
        there = max(0, min(BLOCK, (size >> height) - block * BLOCK))
        return [hashlib.sha256(f"{height} {block} {i}".encode()).digest() for i in range(there)]

    assert len(Tree(known).inclusion(123_456, size)) == 20
    # The last, incomplete subtree begins at another block of each height.
    assert len(read) <= 6
    assert len(Tree(known).consistency(123_456, size)) <= 21
