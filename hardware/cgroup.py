"""Find the control groups of this process, which limit its cores and its memory on Linux; imports no torch."""

from contextlib import suppress
from pathlib import Path


def group_folders(controller: str, root: Path = Path("/")) -> list[Path]:
    """Return the folders of this process's groups with a controller (cpu or memory), and of those around them.

    Of versions 1 and 2; none where there are no groups. A folder may be the host's, which a container does not have.
    """
    folders, lines = [], []
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / (controller if controllers else "")
            place = top / path.strip("/")
            around = [place, *place.parents]
            folders += around[: around.index(top) + 1]
    return folders
