"""Tables in Markdown."""

from collections.abc import Iterable


def markdown_table(columns: Iterable[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    head = list(columns)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))
