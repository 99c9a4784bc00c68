"""Time other programs in processes of their own: the plain reference, and ranks as torchrun starts them.

main.py has glibc keep freed memory (resources.reuse_freed_memory), a setting of a whole process: a reference in the
program's process would have it too, unlike one that is run by itself.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection


class Peer:
    """Another process with functions; peer["name"]() has it call one and waits. A context manager, which ends it.

    Args:
        make, args: the process calls make(*args), which gives name -> function; both are pickled.
    """

    def __init__(self, make: Callable[..., dict[str, Callable[[], object]]], *args: object):
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(end, make, args))
        self.process.start()
        end.close()

    def __getitem__(self, name: str) -> Callable[[], None]:
        return together([self], name)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_) -> None:
        self.pipe.close()
        self.process.join()


def together(peers: list[Peer], name: str) -> Callable[[], None]:
    """Return a function that has all call theirs at the same time, and waits; OSError or EOFError if one has died."""

    def call() -> None:
        for peer in peers:
            peer.pipe.send(name)
        for peer in peers:
            peer.pipe.recv()

    return call


def _serve(pipe: Connection, make: Callable[..., dict[str, Callable[[], object]]], args: tuple) -> None:
    cases = make(*args)
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        cases[name]()
        pipe.send(None)
