"""How the weights are updated: every block alone, with its own optimizer (Algorithm 1 of the paper), or as a whole.

An update of block t sees a batch, draws its own noise and changes block t only; the shared parameters theta_out and
W_embed have an optimizer of their own. Try: python main.py --dataset digits
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from epochs import Step, Training
from offload import BlockOffload
from optimizers import SharedGradient, Updater
from parts import join_parts, optimizers_by_block, select_blocks
from progress import Progress


def update_order(order: str, num_blocks: int, num_batches: int, generator: torch.Generator) -> Iterator[Step]:
    """The updates of an epoch as (batch, blocks); after each the shared parameters take one step.

    `interleaved`: every batch goes to all blocks. `sequential` (Algorithm 1): every block goes through all batches.
    `random`: as sequential, but the block of the next update is drawn. Every block sees every batch, in order.
    """
    blocks = list(range(1, num_blocks + 1))
    if order == "interleaved":
        yield from ((i, blocks) for i in range(num_batches))
    elif order == "sequential":
        yield from ((i, [t]) for t in blocks for i in range(num_batches))
    else:
        seen = [0] * num_blocks
        for k in torch.randperm(num_blocks * num_batches, generator=generator).tolist():
            t = k % num_blocks
            yield seen[t], [t + 1]
            seen[t] += 1


class Trainer(Training):
    """Trains the blocks that a NoPropNetDT holds.

    theta_out learns from every block's noise. With a fixed W_embed that needs no other block: the class loss of a block
    that is trained elsewhere is replayed from its noise stream, so theta_out is the same wherever it is trained. With a
    learned W_embed the ranks sum their gradients.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        model, args = self.model, self.args
        shared_steps = self.num_batches * (1 if args.block_order == "interleaved" else args.num_blocks)
        self.by_block = {t: self.updater(model.block(t).parameters(), self.num_batches) for t in model.held}
        self.shared = self.updater(model.shared_parameters(), shared_steps)
        self.shared_gradient = SharedGradient(model.shared_parameters())
        if args.offload_blocks:
            BlockOffload(model, self.by_block, self.streams.device)
        self.learns_W_embed = model.W_embed.requires_grad
        self.learns_theta_out = model.theta_out.weight.requires_grad

    @property
    def updaters(self) -> list[Updater]:
        return [*self.by_block.values(), self.shared]

    @property
    def trained_parts(self) -> list[int]:
        return self.model.held

    @property
    def rows(self) -> int:
        return self.model.num_blocks

    def steps(self, order: torch.Generator) -> list[Step]:
        return list(update_order(self.args.block_order, self.model.num_blocks, self.num_batches, order))

    def train_step(self, i: int, parts: list[int], indices: Tensor, progress: Progress) -> None:
        held = set(self.model.held)
        x, y = self.batch(indices, i, images=not held.isdisjoint(parts))
        for t in parts:
            if t in held:
                progress.losses[t - 1, i] = self.update_block(t, x, y)
                progress.step()
            else:
                self.replay_block(t, y)
        if self.learns_W_embed:
            self.ranks.add_up(self.shared_gradient.total)
        self.shared_gradient.give()
        self.shared.step()

    def update_block(self, t: int, x: Tensor, y: Tensor) -> Tensor:
        """One step of block t's own optimizer; the shared parameters only gather their gradient. Returns (3,)."""
        noise, drop = self.streams.get("noise", t), self.streams.get("dropout", t)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.args.amp):
            terms = self.model.loss(t, x, y, noise, drop)
        sum(terms).backward()
        self.shared_gradient.take()
        self.by_block[t].step()
        return torch.stack(terms).detach()

    def replay_block(self, t: int, y: Tensor) -> None:
        """What block t, which is trained elsewhere, adds to the gradient of theta_out, where W_embed is fixed."""
        if self.learns_theta_out and not self.learns_W_embed:
            with torch.autocast(y.device.type, torch.bfloat16, enabled=self.args.amp):
                class_nll = self.model.class_loss(t, y, self.streams.get("noise", t))
            class_nll.backward()
            self.shared_gradient.take()

    def whole_state(self) -> dict | None:
        """A checkpoint is one file: rank 0 joins the parts of all ranks on its CPU."""
        parts = self.ranks.gather(self.state_dict())
        return join_parts(parts, seconds=max) if parts else None

    def load_optimizers(self, state: dict) -> None:
        """Of a checkpoint, which may hold more blocks than this process."""
        by_block, shared = optimizers_by_block(state)
        for t, updater in self.by_block.items():
            updater.load_state_dict(by_block[t])
        self.shared.load_state_dict(shared)

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if self.best["model"] is not None:
            self.best["model"] = select_blocks(self.best["model"], self.model.held)


class WholeTrainer(Training):
    """Trains a network as a whole, all its parameters with one optimizer: every method but dt."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.updaters = [self.updater(self.model.parameters(), self.num_batches)]

    @property
    def trained_parts(self) -> list[int]:
        return [1]

    def train_step(self, i: int, parts: list[int], indices: Tensor, progress: Progress) -> None:
        x, y = self.batch(indices, i)
        progress.losses[0, i] = self.update(x, y)
        progress.step()

    def update(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of the optimizer; returns the terms of the loss."""
        noise, drop = self.streams.get("noise"), self.streams.get("dropout")
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.args.amp):
            terms = self.model.loss(x, y, noise, drop)
        sum(terms).backward()
        self.updaters[0].step()
        return torch.stack(terms).detach()
