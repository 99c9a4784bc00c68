"""The command noprop, which `pip install -e .` makes: python main.py in any folder."""

import runpy


def main() -> None:
    """Run main.py as a program; it ends with its exit code."""
    runpy.run_module("main", run_name="__main__", alter_sys=True)
