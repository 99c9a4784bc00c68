"""Blocks dealt out to the processes ("ranks") that torchrun started: what travels between them, and who still lives.

Three things travel: at every step the summed gradient of W_embed and theta_out, where W_embed is learned; in an
evaluation the class weights that a block gives; after an epoch the parts, to rank 0, which writes them. Never an
activation.
Try: torchrun --nproc-per-node 2 main.py --dataset digits
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
from torch import Tensor, distributed

BEAT_SECONDS = 1.0
SILENT_SECONDS = 20.0  # without a beat a rank counts as dead
NO_TIMEOUT = timedelta(days=30)  # ranks may wait long for each other; who is dead is told by the heartbeat


class Ranks:
    """This process among the `size` ones of a run. Without torchrun it is the only one, and every call is cheap."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, restarts: int = 0):
        self.rank, self.size, self.local_rank, self.restarts = rank, size, local_rank, restarts
        self.owner: dict[int, int] = {}
        self.bytes_reduced = 0
        self._heartbeat: Heartbeat | None = None

    @classmethod
    def from_environment(cls) -> "Ranks":
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
        return cls(*(int(os.environ.get(name, default)) for name, default in zip(names, (0, 1, 0, 0), strict=True)))

    @property
    def first(self) -> bool:
        """The rank that prints, draws and writes."""
        return self.rank == 0

    @property
    def hides_bars(self) -> bool | None:
        """tqdm's `disable`: None, which is a bar where stderr is a terminal, on the first rank only."""
        return None if self.first else True

    def connect(self) -> None:
        """Wait for all ranks; gloo carries what is on a CPU, nccl what is on a GPU that no two ranks share."""
        if self.size == 1:
            return
        backend = choose_backend(torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", self.size)))
        store = _torchrun_store(self.restarts)
        distributed.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=NO_TIMEOUT)
        self._heartbeat = Heartbeat(self.rank, self.size, _torchrun_store(self.restarts))
        self.wait()
        self._heartbeat.start()

    def close(self) -> None:
        """Once all ranks have come here, each may end when it likes."""
        if self.size > 1:
            self.wait()
            self._heartbeat.stop()
            distributed.destroy_process_group()

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            distributed.all_reduce(torch.zeros(1))

    @contextlib.contextmanager
    def one_per_machine_first(self):
        """The first rank of every machine does what is inside before the others, which then find its files."""
        if self.local_rank > 0:
            self.wait()
        yield
        if self.local_rank == 0:
            self.wait()

    def deal(self, blocks: Sequence[int]) -> list[int]:
        """The blocks of this rank: they are dealt out in turn, so that every rank gets one more or one less."""
        self.owner = {t: i % self.size for i, t in enumerate(blocks)}
        return [t for t in blocks if self.owner[t] == self.rank]

    def add_up(self, total: Tensor) -> None:
        """Every rank gets the sum of the ranks' tensors, in place, by one all-reduce."""
        if self.size > 1:
            distributed.all_reduce(total)
            self.bytes_reduced += total.nbytes

    def relay(self, t: int, weights: Tensor) -> None:
        """Fill the class weights of block t (R, B, m) with those of the rank that holds the block."""
        if self.size > 1:
            distributed.broadcast(weights, src=self.owner[t])

    def gather(self, part: dict) -> list[dict] | None:
        """The parts of all ranks in their order, on rank 0; None on the others."""
        if self.size == 1:
            return [part]
        parts = [None] * self.size if self.first else None
        distributed.gather_object(_on_cpu(part), parts, dst=0)
        return parts

    def from_first(self, make: Callable[[], object]) -> object:
        """What make() gives on rank 0, on every rank; it is called there only."""
        if self.size == 1:
            return make()
        box = [make() if self.first else None]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def largest(self, number: int) -> int:
        """Of the ranks' numbers."""
        if self.size == 1:
            return number
        box = torch.tensor([number])
        distributed.all_reduce(box, distributed.ReduceOp.MAX)
        return int(box)

    def all_pause(self, wish: bool) -> bool:
        """Called between two steps: True where all ranks have come to the same step, since one of them wished so.

        Ranks run apart from each other, so a rank that wishes to pause calls the others to the next step that all can
        still reach. Raises RuntimeError where one of them is dead.
        """
        return wish if self._heartbeat is None else self._heartbeat.pause(wish)

    def who_died(self) -> str | None:
        """Names a rank that has stopped answering, once it has been silent for some beats; None if all live."""
        if self._heartbeat is None:
            return None
        _ignore_sigterm()
        end = time.monotonic() + 8 * BEAT_SECONDS
        while time.monotonic() < end:
            time.sleep(BEAT_SECONDS)
            if dead := self._heartbeat.silent(4 * BEAT_SECONDS):
                return self._heartbeat.describe(dead)
        return None

    def tells(self) -> bool:
        """Whether it is for this rank to tell why all end: the first that lives, where none has told of an error."""
        if self._heartbeat is None:
            return self.first
        return self._heartbeat.first_alive() and self._heartbeat.first_to_tell()

    def leave(self, code: int) -> int:
        """The exit code of a failure; a process whose peers may be dead ends here, without waiting for connections."""
        if self._heartbeat is None:
            return code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def report(self, error: str) -> None:
        """One line on stderr, once: of an error that all ranks have, rank 0 tells."""
        if self._heartbeat is not None:
            _ignore_sigterm()
            if not self.first:
                time.sleep(2 * BEAT_SECONDS)
            if not self._heartbeat.first_to_tell():
                return
        elif not self.first:
            return  # before the ranks were connected all have the same flags and errors
        rank = "" if self.first else f"rank {self.rank}: "
        print(f"main.py: error: {rank}{error}", file=sys.stderr)


def choose_backend(devices: int, ranks: int) -> str:
    """Return torch.distributed's backends for so many GPUs and ranks of one machine."""
    if devices == 0:
        return "gloo"
    return "cpu:gloo,cuda:nccl" if ranks <= devices else "cpu:gloo,cuda:gloo"


def _torchrun_store(restarts: int) -> distributed.Store:
    """A new connection to the key-value store of this run.

    With one machine torchrun keeps the store over its restarts, so keys get the restart's number; with several the
    restarts are not counted alike on all of them, and torchrun opens a new store for each (--rdzv-backend c10d).
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serve = not by_agent and os.environ["RANK"] == "0"
    store = distributed.TCPStore(address, port, is_master=serve, timeout=timedelta(minutes=5), multi_tenant=True)
    one_machine = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return distributed.PrefixStore(f"noprop/{restarts if one_machine else 0}", store)


def _ignore_sigterm() -> None:
    """torchrun stops all ranks once one has failed, but this one still has something to say."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _on_cpu(content: object) -> object:
    """Nested dicts, lists and tuples with their tensors on the CPU."""
    if isinstance(content, Tensor):
        return content.cpu()
    if isinstance(content, dict):
        return {key: _on_cpu(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(_on_cpu(value) for value in content)
    return content


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
        """See Ranks.all_pause."""
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
        """The ranks without a beat for so long."""
        now = time.monotonic()
        return [other for other, moved in sorted(self.moved.items()) if now - moved > seconds]

    def describe(self, ranks: list[int]) -> str:
        return " and ".join(self.names[rank] for rank in ranks)

    def first_alive(self, seconds: float = 4 * BEAT_SECONDS) -> bool:
        dead = self.silent(seconds)
        return all(other in dead for other in self.others if other < self.rank)

    def first_to_tell(self) -> bool:
        """Whether no rank has told the user of an error yet; from now on one has."""
        try:
            return self.store.add("told", 1) == 1
        except RuntimeError:
            return True


ALONE = Ranks()
