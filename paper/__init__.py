"""The tables and figures of the paper, as published and as they came out here: python -m paper table1."""
