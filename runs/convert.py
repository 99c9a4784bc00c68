"""Write a checkpoint of an older version in today's form: python -m runs.convert OLD.pt NEW.pt"""

import sys
from pathlib import Path

from errors import UserError, printable
from runs.checkpoint import load_checkpoint, save_checkpoint


def main(argv: list[str]) -> int:
    """Return the exit code: 0 done, 2 bad input."""
    if len(argv) != 2:
        print("usage: python -m runs.convert OLD.pt NEW.pt", file=sys.stderr)
        return 2
    try:
        save_checkpoint(Path(argv[1]), load_checkpoint(argv[0]))
    except (UserError, OSError) as error:
        print("convert: error:", printable(error), file=sys.stderr)
        return 2
    print(f"written: {printable(argv[1])}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
