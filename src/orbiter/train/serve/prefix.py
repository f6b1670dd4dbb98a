"""A cache of the keys and values of token prefixes, so that no prompt runs twice.

The store is a tree of tokens: prompts that begin alike share their nodes, whichever turn, sibling,
branch or task they belong to. Each node owns one row of a pool of keys and values, so a lookup
costs one dictionary access a token and memory holds every distinct prefix once. When the pool is
full, the least recently used prefixes are evicted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

FIRST_TOKENS = 1024
"""The initial capacity of the pool in tokens; it doubles up to the limit."""
FREED_SHARE = 0.25
"""Share of the pool that one eviction frees, so that evictions are rare."""


class PrefixStore:
    """A token tree over a pool [tokens, kv_heads, D] of keys and of values for each layer."""

    def __init__(self, like: Tensor, layers: int, *, limit_bytes: int) -> None:
        """Create an empty store; `like` [*, kv_heads, *, D] gives shape, type and device."""
        _, heads, _, width = like.shape
        self._layers = layers
        # Keys and values, in all layers.
        self._token_bytes = 2 * layers * heads * width * like.element_size()
        self.limit = limit_bytes // self._token_bytes
        """The maximum number of tokens in the pool."""
        empty = like.new_empty(0, heads, width)
        self._k, self._v = [empty] * layers, [empty] * layers
        # A child is found by (parent, token). Node 0 is the root, which owns no keys or values.
        self._child: dict[tuple[int, int], int] = {}
        self._edge: list[tuple[int, int]] = [(0, 0)]
        self._depth: list[int] = [0]
        self._used: list[int] = [0]
        self._free: list[int] = []
        self._clock = 0

    @property
    def tokens(self) -> int:
        """Tokens whose keys and values are kept."""
        return len(self._child)

    @property
    def bytes(self) -> int:
        """Memory that the pool takes."""
        return len(self._k[0]) * self._token_bytes

    def match(self, token_ids: Sequence[int]) -> list[int]:
        """Return the nodes of the longest known prefix, one a token."""
        path: list[int] = []
        at = 0
        for token_id in token_ids:
            following = self._child.get((at, token_id))
            if following is None:
                break
            path.append(at := following)
        # A clock that counts lookups, which orders the use of nodes without asking the time.
        self._clock += 1
        for node in path:
            self._used[node] = self._clock
        return path

    def known(self, token_ids: Sequence[int]) -> int:
        """Count the tokens of the longest known prefix, without marking it as used."""
        at = 0
        for index, token_id in enumerate(token_ids):
            following = self._child.get((at, token_id))
            if following is None:
                return index
            at = following
        return len(token_ids)

    def read(self, layer: int, path: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values of these nodes, each [kv_heads, tokens, D]."""
        return (
            self._k[layer].index_select(0, path).transpose(0, 1),
            self._v[layer].index_select(0, path).transpose(0, 1),
        )

    def add(
        self,
        token_ids: Sequence[int],
        k: Sequence[Float[Tensor, "kv_heads room D"]],
        v: Sequence[Float[Tensor, "kv_heads room D"]],
    ) -> None:
        """Store the new part of a row; `k` and `v` hold the whole row, from its first token on."""
        known = self.match(token_ids)
        # A row longer than the whole pool is stored as far as it fits.
        new = min(len(token_ids), self.limit) - len(known)
        if new <= 0:
            return
        # `match` has marked the known nodes as just used, so making room cannot evict them.
        self._make_room(new)
        first = len(known)
        at, nodes = (known[-1] if known else 0), []
        for token_id in token_ids[first : first + new]:
            at = self._append(at, token_id)
            nodes.append(at)
        # A node's number is also its row in the pool.
        rows = torch.tensor(nodes, device=self._k[0].device)
        for layer in range(self._layers):
            self._k[layer][rows] = k[layer][:, first : first + new].transpose(0, 1)
            self._v[layer][rows] = v[layer][:, first : first + new].transpose(0, 1)

    def _append(self, parent: int, token_id: int) -> int:
        edge = (parent, token_id)
        if self._free:
            node = self._free.pop()
            self._edge[node] = edge
            self._depth[node], self._used[node] = self._depth[parent] + 1, self._clock
        else:
            node = len(self._edge)
            self._edge.append(edge)
            self._depth.append(self._depth[parent] + 1)
            self._used.append(self._clock)
        self._child[edge] = node
        return node

    def _make_room(self, new: int) -> None:
        """Grow the pool for new tokens, or evict old prefixes if it may not grow."""
        # One more for the root, whose row in the pool is never used.
        wanted = len(self._child) + new + 1
        if wanted > self.limit + 1:
            # More than is needed now, so that the next rows do not evict again.
            self._evict(max(wanted - self.limit - 1, int(self.limit * FREED_SHARE)))
        size = len(self._k[0])
        # Freed nodes are used again before the pool grows.
        # Only new nodes beyond the free list need new rows.
        highest = max(len(self._edge), len(self._edge) + new - len(self._free))
        if highest <= size:
            return
        larger = min(max(FIRST_TOKENS, 2 * size, highest), max(self.limit + 1, highest))
        for pool in (self._k, self._v):
            for layer, old in enumerate(pool):
                # Doubling keeps the number of copies small, as for a list.
                grown = old.new_empty(larger, *old.shape[1:])
                grown[:size] = old
                pool[layer] = grown

    def _evict(self, count: int) -> None:
        """Evict the least recently used nodes; the path in use has the newest mark and stays."""
        # The current path carries the newest mark, so it is not in this list.
        nodes = [n for n in self._child.values() if self._used[n] < self._clock]
        # A node is never used later than its parent; deepest first keeps every prefix whole.
        nodes.sort(key=lambda n: (self._used[n], -self._depth[n]))
        for node in nodes[:count]:
            del self._child[self._edge[node]]
            self._free.append(node)
