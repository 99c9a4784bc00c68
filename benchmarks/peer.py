"""The plain reference in a process of its own, as whoever uses it runs it: with the settings of torch and glibc.

main.py has glibc keep freed memory (resources.reuse_freed_memory). That is for a whole process, so a reference in
the program's process would be faster than it is by itself.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection


class Peer:
    """Functions that another process holds; a context manager. peer["name"] is a function that has it call one.

    Args:
        make, args: make(*args) -> name: function; both are pickled.
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
    """A function that has all of them call theirs at the same time, and waits for all."""

    def call() -> None:
        for peer in peers:
            peer.pipe.send(name)
        for peer in peers:
            peer.pipe.recv()  # EOFError where the process has ended with an error

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
