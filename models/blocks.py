"""Read and write lists of blocks as people write them (3,5-7), and their names in a state (blocks.0 is block 1)."""

from collections.abc import Iterable, Sequence

from torch import Tensor

MAX_BLOCK = 10**6  # a higher one is a slip, and a long list


def parse_blocks(text: str) -> list[int]:
    """Return the blocks of a list: '3,5-7' -> [3, 5, 6, 7]. Raises ValueError."""
    blocks = set()
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        low, high = int(first), int(last or first)
        if not 1 <= low <= high <= MAX_BLOCK:
            raise ValueError(f"no blocks: {piece}")
        blocks.update(range(low, high + 1))
    return sorted(blocks)


def format_blocks(blocks: Iterable[int]) -> str:
    """Return blocks as a list: [3, 5, 6, 7] -> '3,5-7'."""
    runs: list[list[int]] = []
    for t in sorted(blocks):
        if runs and runs[-1][-1] == t - 1:
            runs[-1].append(t)
        else:
            runs.append([t])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def block_of(name: str) -> int | None:
    """Return the block t = 1..T that a name in a state belongs to, None for what is shared."""
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else None


def without_block(name: str) -> str:
    """Return a name in a state without its block: 'blocks.3.fuse.6.bias' -> 'blocks.*.fuse.6.bias'."""
    return name if block_of(name) is None else ".".join(["blocks.*", *name.split(".")[2:]])


def blocks_in(state: dict[str, Tensor]) -> list[int]:
    """Return the blocks t that a state holds."""
    return sorted({block_of(name) for name in state} - {None})


def select_blocks(state: dict[str, Tensor], blocks: Iterable[int]) -> dict[str, Tensor]:
    """Return what these blocks need of a state: their own and what is shared."""
    wanted = {None, *blocks}
    return {name: value for name, value in state.items() if block_of(name) in wanted}


def split_by_block(values: Sequence, state: dict[str, Tensor]) -> tuple[dict, list]:
    """Return the value of each block that a state holds, and those of what is shared: a list has them in this order."""
    held = blocks_in(state)
    return dict(zip(held, values, strict=False)), list(values[len(held) :])
