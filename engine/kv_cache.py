"""Blocks of the KV cache: free, held by requests, or free with a prefix that can be reused.

Models the memory of one serving replica. Keys and values are stored in blocks of a fixed number of tokens; a request
holds a table of block numbers. A full block of a prompt is found by the hash of everything up to its end, so requests
with the same beginning share it (reference counts). A free block keeps its content until it is needed: the least
recently used goes first. No torch here: the simulator counts the same blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence


class BlockPool:
    """A fixed number of blocks, each free, held by one or more requests, or free with its content remembered."""

    __slots__ = ("_blank", "_block_of_hash", "_hash_of_block", "_holders", "_remembered", "num_blocks")

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))  # a stack: low numbers are handed out first
        self._holders = [0] * num_blocks
        self._remembered: OrderedDict[int, None] = OrderedDict()  # free, oldest first
        self._block_of_hash: dict[Hashable, int] = {}
        self._hash_of_block: dict[int, Hashable] = {}

    @property
    def free_blocks(self) -> int:
        """Free blocks, those with remembered content included."""
        return len(self._blank) + len(self._remembered)

    def find_prefix(self, hashes: Sequence[Hashable], most_blocks: int) -> list[int]:
        """The longest run of blocks whose contents match `hashes` from the first one on; holds none of them."""
        found: list[int] = []
        for content in hashes[:most_blocks]:
            block = self._block_of_hash.get(content)
            if block is None:
                break
            found.append(block)
        return found

    def free_among(self, blocks: Iterable[int]) -> int:
        """How many of these blocks are free (holding them makes that many fewer free)."""
        return sum(1 for block in blocks if not self._holders[block])

    def hold(self, blocks: Iterable[int]) -> None:
        """Hold blocks from `find_prefix`, together with the requests that hold them already."""
        for block in blocks:
            if not self._holders[block]:
                del self._remembered[block]
            self._holders[block] += 1

    def take(self, count: int) -> list[int]:
        """Hold `count` blocks without content; if too few are blank, remembered contents are dropped, oldest first.

        Raises:
            ValueError: fewer are free (the caller checks `free_blocks` first).
        """
        if count > self.free_blocks:
            raise ValueError(f"asked for {count} blocks, {self.free_blocks} are free")
        taken = []
        for _ in range(count):
            if self._blank:
                block = self._blank.pop()
            else:
                block, _ = self._remembered.popitem(last=False)
                del self._block_of_hash[self._hash_of_block.pop(block)]
            self._holders[block] = 1
            taken.append(block)
        return taken

    def remember(self, block: int, content: Hashable) -> None:
        """Record the content of a held block, unless another block is known to have the same content."""
        if content not in self._block_of_hash and block not in self._hash_of_block:
            self._block_of_hash[content] = block
            self._hash_of_block[block] = content

    def release(self, table: Sequence[int]) -> None:
        """Release a request's blocks. The end of a prefix is dropped before its beginning."""
        for block in reversed(table):
            self._holders[block] -= 1
            if not self._holders[block]:
                if block in self._hash_of_block:
                    self._remembered[block] = None
                else:
                    self._blank.append(block)
