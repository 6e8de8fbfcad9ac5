from dlblocks.registry import Block

BLOCKS: tuple[Block, ...] = ()
