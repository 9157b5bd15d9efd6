"""The Merkle tree over the log as the database stores it: the leaves in `log`, nodes of some heights in `nodes`.

Complete blocks are not all hashed again at every signing: a few are, drawn at random each time, so that a change in one
is found sooner or later, and by a verification at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import SystemRandom

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from service.ledger.entries import LogChanged
from service.ledger.merkle import BLOCK, STORED_HEIGHTS, Tree, root_of
from service.ledger.tables import log, nodes

BLOCKS_CHECKED = 4
"""Complete blocks of leaves that are hashed again at each signing, with all that is stored above them."""
NODES_AT_ONCE = 64
"""Stored nodes that are hashed with one tree in memory: of 16,384 leaves."""

Nodes = dict[tuple[int, int], bytes]
"""Hashes of complete subtrees, by height and place."""


def log_size(connection: Connection) -> int:
    """The number of rows of the log, which is the number of leaves."""
    return connection.scalar(select(func.coalesce(func.max(log.c.seq), 0))) or 0


def tree_in(connection: Connection) -> Tree:
    """The tree over the log as it is in the database."""
    return Tree(lambda height, block: _read_block(connection, height, block))


def tree_with(connection: Connection, new: Nodes) -> Tree:
    """The tree over the log, with `new` nodes that are not in the database yet; they follow those that are."""

    def read(height: int, block: int) -> Sequence[bytes]:
        hashes = list(_read_block(connection, height, block))
        while len(hashes) < BLOCK and (following := (height, block * BLOCK + len(hashes))) in new:
            hashes.append(new[following])
        return hashes

    return Tree(read)


def missing_nodes(connection: Connection, size: int) -> Nodes:
    """The complete subtrees of stored heights over the first `size` leaves that are not in the database yet."""
    missing: Nodes = {}
    for height in range(STORED_HEIGHTS, size.bit_length(), STORED_HEIGHTS):
        last = connection.scalar(select(func.max(nodes.c.place)).where(nodes.c.height == height))
        places = range(0 if last is None else last + 1, size >> height)
        for start in places[::NODES_AT_ONCE]:
            tree = tree_with(connection, missing)
            for place in places[start - places.start :][:NODES_AT_ONCE]:
                missing[height, place] = tree.node(height, place)
    return missing


def store_nodes(connection: Connection, new: Nodes) -> None:
    """Stores nodes; those that another host has stored meanwhile stay."""
    if new:
        is_sqlite = connection.dialect.name == "sqlite"
        statement = (insert_sqlite if is_sqlite else insert_postgresql)(nodes).on_conflict_do_nothing()
        rows = [{"height": height, "place": place, "hash": node} for (height, place), node in new.items()]
        connection.execute(statement, rows)


def check_some_blocks(connection: Connection, size: int) -> None:
    """Hashes some complete blocks of the first `size` leaves again, and all nodes above each. Raises LogChanged."""
    blocks = range(size >> STORED_HEIGHTS)
    for block in SystemRandom().sample(blocks, min(BLOCKS_CHECKED, len(blocks))):
        height, place = STORED_HEIGHTS, block
        while place < size >> height:
            below = _read_block(connection, height - STORED_HEIGHTS, place)
            if len(below) != BLOCK or root_of(below) != _read_block(connection, height, place // BLOCK)[place % BLOCK]:
                first, last = (place << height) + 1, place + 1 << height
                raise LogChanged(f"one of the rows {first} to {last} was changed after it was signed")
            height, place = height + STORED_HEIGHTS, place >> STORED_HEIGHTS


def _read_block(connection: Connection, height: int, block: int) -> Sequence[bytes]:
    first = block * BLOCK
    if height == 0:
        leaves = select(log.c.leaf).where(log.c.seq > first, log.c.seq <= first + BLOCK).order_by(log.c.seq)
        return connection.scalars(leaves).all()
    is_in_block = (nodes.c.height == height) & (nodes.c.place >= first) & (nodes.c.place < first + BLOCK)
    return connection.scalars(select(nodes.c.hash).where(is_in_block).order_by(nodes.c.place)).all()
