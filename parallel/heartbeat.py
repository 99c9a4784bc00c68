"""Tell who still lives among the processes of a run, and agree on the step at which all of them pause."""

import os
import socket
import sys
import threading
import time

from torch import distributed

BEAT_SECONDS = 1.0
SILENT_SECONDS = 20.0  # without a beat a rank counts as dead


class Heartbeat(threading.Thread):
    """Shows the other ranks that this process lives, and ends it when another has been silent for SILENT_SECONDS.

    The main thread may be waiting for the dead one inside a collective call, which nothing can interrupt; files are
    written so that an end at any instant leaves the previous good ones.
    """

    def __init__(self, rank: int, size: int, store: distributed.Store):
        super().__init__(daemon=True)
        self.rank, self.others, self.store = rank, [other for other in range(size) if other != rank], store
        self.store.set(f"name/{rank}", f"rank {rank} (process {os.getpid()} on {socket.gethostname()})")
        self.store.set(f"beat/{rank}", "0")
        self.seen: dict[int, bytes] = {}
        self.moved: dict[int, float] = {}
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.steps = 0  # that the main thread has done
        self.calls = 0  # to a pause, so far
        self.called = False
        self.meet_at: int | None = None  # the step at which all ranks pause

    def run(self) -> None:
        self.names = {other: self.store.get(f"name/{other}").decode() for other in self.others}
        beats = 0
        while not self.stopping.wait(BEAT_SECONDS):
            beats += 1
            try:
                self.store.set(f"beat/{self.rank}", str(beats))
                self._look()
                self._arrange()
            except RuntimeError:
                if not self.stopping.is_set():
                    self._end("the rendezvous of torchrun (on the machine of rank 0) does not answer")
            if dead := self.silent(SILENT_SECONDS):
                tells = self.first_alive(SILENT_SECONDS) and self.first_to_tell()
                self._end(f"{self.describe(dead)} died" if tells else None)

    def _look(self) -> None:
        for other in self.others:
            beat = self.store.get(f"beat/{other}")
            if beat != self.seen.get(other):
                self.seen[other], self.moved[other] = beat, time.monotonic()

    def _arrange(self) -> None:
        """Hear of a call to pause, tell the first step at which this rank can, and learn that at which all can."""
        if not self.called and self.store.add("calls", 0) > self.calls:
            with self.lock:
                self.calls, self.meet_at, self.called = self.calls + 1, None, True
                self.store.set(f"pause/{self.calls}/{self.rank}", str(self.steps + 1))
        if self.called and self.meet_at is None:
            names = [f"pause/{self.calls}/{rank}" for rank in (self.rank, *self.others)]
            if self.store.check(names):
                self.meet_at = max(int(self.store.get(name)) for name in names)

    def pause(self, wish: bool) -> bool:
        """Do what Ranks.all_pause says."""
        with self.lock:
            self.steps += 1
            if wish and not self.called and self.store.add("calls", 0) == self.calls:
                self.store.add("calls", 1)
            if not self.called:
                return False
        while self.meet_at is None:
            if self.silent(4 * BEAT_SECONDS):
                raise RuntimeError("a rank that is dead cannot pause")
            time.sleep(BEAT_SECONDS / 20)
        if self.steps < self.meet_at:
            return False
        self.called = False
        return True

    def _end(self, why: str | None) -> None:
        if why:
            print(f"main.py: error: {why}; the files saved before are intact", file=sys.stderr, flush=True)
        os._exit(1)

    def stop(self) -> None:
        self.stopping.set()
        self.join()

    def silent(self, seconds: float) -> list[int]:
        """Return the ranks without a beat for so long."""
        now = time.monotonic()
        return [other for other, moved in sorted(self.moved.items()) if now - moved > seconds]

    def describe(self, ranks: list[int]) -> str:
        return " and ".join(self.names[rank] for rank in ranks)

    def first_alive(self, seconds: float = 4 * BEAT_SECONDS) -> bool:
        dead = self.silent(seconds)
        return all(other in dead for other in self.others if other < self.rank)

    def first_to_tell(self) -> bool:
        """Return whether no rank has told the user of an error yet; from now on one has."""
        try:
            return self.store.add("told", 1) == 1
        except RuntimeError:
            return True
