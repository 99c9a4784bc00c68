"""The processes ("ranks") that torchrun started: what travels between them, and who still lives.

Blocks that learn alone are dealt out. Three things travel: at every step the summed gradient of W_embed and theta_out,
where W_embed is learned; in an evaluation the class weights that a block gives; for a save the parts, to rank 0, which
writes them. Where a network is trained as a whole every rank has all of it and a part of each batch, and the gradients
of all weights travel. Never an activation.
Try: torchrun --nproc-per-node 2 main.py --dataset digits
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from models.shares import Part
from parallel.heartbeat import BEAT_SECONDS, Heartbeat
from parallel.merge import join_parts
from runs.process import OneProcess

NO_TIMEOUT = timedelta(days=30)  # ranks may wait long for each other; who is dead is told by the heartbeat


class Ranks(OneProcess):
    """This process among the `size` ones of a run; see OneProcess for what the calls are for."""

    def __init__(self, rank: int, size: int, local_rank: int = 0, restarts: int = 0):
        self.rank, self.size, self.local_rank, self.restarts = rank, size, local_rank, restarts
        self.owner: dict[int, int] = {}
        self._heartbeat: Heartbeat | None = None

    @classmethod
    def from_environment(cls) -> "Ranks":
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
        return cls(*(int(os.environ.get(name, default)) for name, default in zip(names, (0, 1, 0, 0), strict=True)))

    def connect(self) -> None:
        """Wait for all ranks; gloo carries what is on a CPU, nccl what is on a GPU that no two ranks share."""
        backend = choose_backend(torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", self.size)))
        store = _torchrun_store(self.restarts)
        distributed.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=NO_TIMEOUT)
        self._heartbeat = Heartbeat(self.rank, self.size, _torchrun_store(self.restarts))
        self.wait()
        self._heartbeat.start()

    def close(self) -> None:
        self.wait()
        self._heartbeat.stop()
        distributed.destroy_process_group()

    def wait(self) -> None:
        """Wait until all ranks are here."""
        distributed.all_reduce(torch.zeros(1))

    @contextlib.contextmanager
    def one_per_machine_first(self):
        if self.local_rank > 0:
            self.wait()
        yield
        if self.local_rank == 0:
            self.wait()

    def deal(self, blocks: Sequence[int]) -> list[int]:
        """Return the blocks of this rank: they are dealt out in turn, so that every rank gets one more or one less."""
        self.owner = {t: i % self.size for i, t in enumerate(blocks)}
        return [t for t in blocks if self.owner[t] == self.rank]

    def add_up(self, total: Tensor) -> None:
        """Give every rank the sum of the ranks' tensors, in place, by one all-reduce."""
        distributed.all_reduce(total)
        self.bytes_reduced += total.nbytes

    def relay(self, t: int, weights: Tensor) -> None:
        """Fill the class weights of block t (R, B, m) with those of the rank that holds the block."""
        distributed.broadcast(weights, src=self.owner[t])

    def part_of(self, images: int) -> Part | None:
        """Return this rank's part of a batch; parts differ by one image at most.

        Batch norm needs two images, so of a batch with fewer for each rank every rank takes all.
        """
        if images < 2 * self.size:
            return None
        first, end = (rank * images // self.size for rank in (self.rank, self.rank + 1))
        return Part(first, end, images)

    def average_gradients(self, network: nn.Module) -> nn.Module:
        network = DistributedDataParallel(network)
        network.register_comm_hook(self, _counting_all_reduce)
        return network

    def average(self, values: Tensor) -> Tensor:
        distributed.all_reduce(values)
        return values / self.size

    def gather_checkpoint(self, state: dict) -> dict | None:
        """Join the parts of all ranks on the CPU of rank 0; returns None on the others.

        Where no blocks are dealt out all have the same state, and that of rank 0 is the checkpoint.
        """
        if not self.owner:
            return _on_cpu(state) if self.first else None
        parts = [None] * self.size if self.first else None
        distributed.gather_object(_on_cpu(state), parts, dst=0)
        return join_parts(parts, seconds=max) if parts else None

    def from_first(self, make: Callable[[], object]) -> object:
        box = [make() if self.first else None]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def largest(self, number: int) -> int:
        box = torch.tensor([number])
        distributed.all_reduce(box, distributed.ReduceOp.MAX)
        return int(box)

    def all_pause(self, wish: bool) -> bool:
        """Return whether all ranks have come to the same step, since one of them wished so. Called between two steps.

        Ranks run apart from each other, so a rank that wishes to pause calls the others to the next step that all can
        still reach. Raises RuntimeError where one of them is dead.
        """
        return wish if self._heartbeat is None else self._heartbeat.pause(wish)

    def who_died(self) -> str | None:
        """Return the name of a rank that has stopped answering, once it has been silent for some beats, else None."""
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
        """Return whether it is for this rank to tell why all end: the first that lives, where none has told yet."""
        if self._heartbeat is None:
            return self.first
        return self._heartbeat.first_alive() and self._heartbeat.first_to_tell()

    def leave(self, code: int) -> int:
        """End this process here, without taking down connections and torch's threads: its peers may be gone."""
        if self._heartbeat is None:
            return code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def report(self, error: str) -> None:
        """Print one line on stderr, once: of an error that all ranks have, rank 0 tells."""
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


def _counting_all_reduce(ranks: Ranks, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket of gradients as DistributedDataParallel does by itself, and count its bytes."""
    ranks.bytes_reduced += bucket.buffer().nbytes
    return allreduce_hook(None, bucket)


def choose_backend(devices: int, ranks: int) -> str:
    """Return torch.distributed's backends for so many GPUs and ranks of one machine."""
    if devices == 0:
        return "gloo"
    return "cpu:gloo,cuda:nccl" if ranks <= devices else "cpu:gloo,cuda:gloo"


def _torchrun_store(restarts: int) -> distributed.Store:
    """Open a new connection to the key-value store of this run.

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
    """Go on for a while: torchrun stops all ranks once one has failed, but this one still has something to say."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _on_cpu(content: object) -> object:
    """Return nested dicts, lists and tuples with their tensors on the CPU."""
    if isinstance(content, Tensor):
        return content.cpu()
    if isinstance(content, dict):
        return {key: _on_cpu(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(_on_cpu(value) for value in content)
    return content
