"""The Merkle tree over the log (RFC 9162, 2.1): roots, inclusion proofs, consistency proofs, and their verification.

A leaf is SHA-256(0x00 || record), an interior node SHA-256(0x01 || left || right). The subtree of height h at place p
spans the leaves p * 2^h up to (p + 1) * 2^h. Of the complete ones, those of every `STORED_HEIGHTS`-th height are kept
in the database, and the others are computed from them: a proof at a million leaves reads three blocks of at most 256
hashes, and the tree takes four thousand rows, not a million.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

STORED_HEIGHTS = 8
"""Heights 8, 16, 24 ... are stored; height 0 are the leaves themselves."""

BLOCK = 1 << STORED_HEIGHTS

ReadBlock = Callable[[int, int], Sequence[bytes]]
"""Takes a stored height (or 0) and the number of a block; returns the known hashes of its `BLOCK` subtrees, from the
first on."""

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(record: bytes) -> bytes:
    """The hash of a leaf: SHA-256(0x00 || record), 32 bytes (RFC 9162, 2.1.1)."""
    return hashlib.sha256(b"\0" + record).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two neighbouring subtrees: SHA-256(0x01 || left || right), 32 bytes."""
    return hashlib.sha256(b"\1" + left + right).digest()


def largest_power_below(size: int) -> int:
    """The largest power of two smaller than `size`, which is at least 2."""
    return 1 << (size - 1).bit_length() - 1


class Tree:
    """The tree over leaves that are read when they are needed. It keeps in memory what it has read and computed."""

    def __init__(self, read: ReadBlock) -> None:
        self._read = read
        self._blocks: dict[tuple[int, int], Sequence[bytes]] = {}
        self._nodes: dict[tuple[int, int], bytes] = {}

    def root(self, size: int) -> bytes:
        """The hash of the tree over the first `size` leaves. Raises IndexError when there are fewer."""
        return self._subtree(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """PATH(index, D[size]) of RFC 9162, 2.1.3.1: at most log2(size), rounded up, hashes; index counts from 0."""
        if not 0 <= index < size:
            raise IndexError(f"there is no leaf {index} among {size}")
        path = []
        first = 0
        while size > 1:
            half = largest_power_below(size)
            if index - first < half:
                path.append(self._subtree(first + half, size - half))
                size = half
            else:
                path.append(self._subtree(first, half))
                first, size = first + half, size - half
        return path[::-1]

    def consistency(self, old: int, new: int) -> list[bytes]:
        """PROOF(old, D[new]) of RFC 9162, 2.1.4.1: that the first `old` leaves are the same in both trees."""
        if not 0 < old <= new:
            raise IndexError(f"a tree of {new} leaves cannot begin with a tree of {old}")
        proof = []
        first, size, is_whole = 0, new, True
        while old != size:
            half = largest_power_below(size)
            if old <= half:
                proof.append(self._subtree(first + half, size - half))
                size = half
            else:
                proof.append(self._subtree(first, half))
                first, old, size, is_whole = first + half, old - half, size - half, False
        if not is_whole:
            proof.append(self._subtree(first, size))
        return proof[::-1]

    def node(self, height: int, place: int) -> bytes:
        """The hash of one complete subtree. Raises IndexError when the leaves do not reach so far."""
        if height % STORED_HEIGHTS == 0:
            stored = self._block(height, place // BLOCK)
            if place % BLOCK < len(stored):
                return stored[place % BLOCK]
            if height == 0:
                raise IndexError(f"there is no leaf {place}")
        node = self._nodes.get((height, place))
        if node is None:
            node = self._nodes[height, place] = root_of(self._stored_below(height, place))
        return node

    def _stored_below(self, height: int, place: int) -> Sequence[bytes]:
        """The hashes of the nearest stored height below, from which the node is hashed: all in one block."""
        below = (height - 1) // STORED_HEIGHTS * STORED_HEIGHTS
        count = 1 << height - below
        first = place * count
        known = self._block(below, first // BLOCK)[first % BLOCK :][:count]
        if len(known) == count:
            return known
        return [self.node(below, first + number) for number in range(count)]

    def _block(self, height: int, number: int) -> Sequence[bytes]:
        block = self._blocks.get((height, number))
        if block is None:
            block = self._blocks[height, number] = self._read(height, number)
        return block

    def _subtree(self, first: int, size: int) -> bytes:
        """The hash over `size` leaves from `first`, where a subtree of that size can begin."""
        height = size.bit_length() - 1
        if size == 1 << height:
            return self.node(height, first >> height)
        half = largest_power_below(size)
        return node_hash(self._subtree(first, half), self._subtree(first + half, size - half))


def root_of(hashes: Sequence[bytes]) -> bytes:
    """The root over the hashes of equal subtrees; their number is a power of two."""
    while len(hashes) > 1:
        hashes = [node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=True)]
    return hashes[0]


class GrowingTree:
    """The root over leaves added one at a time, in memory that grows with the logarithm of their number."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []  # of the complete subtrees, the largest first

    def add(self, leaf: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Adds a leaf; yields the subtrees that it completes, as (height, place, hash), from height 1 up."""
        height, place = 0, self.size
        while place & 1:
            leaf = node_hash(self._peaks.pop(), leaf)
            height, place = height + 1, place >> 1
            yield height, place, leaf
        self._peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The hash of the tree over the leaves so far."""
        if not self._peaks:
            return EMPTY_ROOT
        *rest, root = self._peaks
        for peak in reversed(rest):
            root = node_hash(peak, root)
        return root


def is_included(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether the path proves that `leaf` stands at `index` (from 0) in the tree of that root (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    place, last, computed = index, size - 1, leaf
    for other in path:
        if last == 0:
            return False
        if place & 1 or place == last:
            computed = node_hash(other, computed)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            computed = node_hash(computed, other)
        place, last = place >> 1, last >> 1
    return last == 0 and computed == root


def is_consistent(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows that the newer tree begins with all of the older one (RFC 9162, 2.1.4.2)."""
    if not 0 < old <= new:
        return False
    if old == new:
        return not proof and old_root == new_root
    hashes = list(proof)
    if old & (old - 1) == 0:
        hashes.insert(0, old_root)
    if not hashes:
        return False
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    of_old = of_new = hashes[0]
    for other in hashes[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            of_old, of_new = node_hash(other, of_old), node_hash(other, of_new)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            of_new = node_hash(of_new, other)
        place, last = place >> 1, last >> 1
    return last == 0 and of_old == old_root and of_new == new_root
