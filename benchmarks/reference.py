"""A plain reference, the way published implementations of NoProp-DT are written: what the program is measured by.

NCHW tensors, ReLU before pooling, torch's dropout, AdamW as it comes, images turned into tensors one by one by a
DataLoader with workers, one pass over the data for every block, image features computed again at every inference run.
The mathematics of a block's step is that of the program (eq. 8).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from hardware.memory import reuse_freed_memory

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


class PlainBlock(nn.Module):
    """u_hat_theta_t(z, x) of figure 6 for images (3, 32, 32)."""

    def __init__(self, embedding_dim: int, num_classes: int):
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(128 * 8 * 8, 256),
            nn.BatchNorm1d(256),
        )
        self.embed = nn.Sequential(nn.Linear(embedding_dim, 256), nn.BatchNorm1d(256), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256), nn.BatchNorm1d(256)
        )
        self.fuse = nn.Sequential(
            nn.Linear(512, 256),
            nn.BatchNorm1d(256),
            nn.ReLU(),
            nn.Linear(256, 128),
            nn.BatchNorm1d(128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )

    def forward(self, z: Tensor, x: Tensor, W_embed: Tensor) -> Tensor:
        h = self.embed(z)
        logits = self.fuse(torch.cat([self.image(x), h + self.residual(h)], dim=1))
        return logits.softmax(dim=1) @ W_embed


class PlainNoProp:
    """T plain blocks with one-hot embeddings, an optimizer for each and one for theta_out."""

    def __init__(self, alpha_bar: Tensor, num_classes: int, eta: float = 0.1):
        self.alpha_bar, self.T, self.eta = alpha_bar.float(), len(alpha_bar) - 1, eta
        self.W_embed = torch.eye(num_classes)
        self.blocks = [PlainBlock(num_classes, num_classes) for _ in range(self.T)]
        self.theta_out = nn.Linear(num_classes, num_classes)
        self.optimizers = [torch.optim.AdamW(b.parameters(), lr=0.001, weight_decay=0.001) for b in self.blocks]
        self.out_optimizer = torch.optim.AdamW(self.theta_out.parameters(), lr=0.001, weight_decay=0.001)

    def noised(self, t: int, u_y: Tensor) -> Tensor:
        return self.alpha_bar[t].sqrt() * u_y + (1 - self.alpha_bar[t]).sqrt() * torch.randn_like(u_y)

    def snr(self, t: int) -> Tensor:
        return self.alpha_bar[t] / (1 - self.alpha_bar[t])

    def step(self, t: int, x: Tensor, y: Tensor) -> float:
        """One update of block t; returns its loss, as progress bars of published loops do."""
        u_y = self.W_embed[y]
        class_nll = F.cross_entropy(self.theta_out(self.noised(self.T, u_y)), y)
        u_hat = self.blocks[t - 1](self.noised(t - 1, u_y), x, self.W_embed)
        square = (u_hat - u_y).square().sum(dim=1).mean()
        a_0, d = self.alpha_bar[0], u_y.shape[1]
        kl = (a_0 * u_y.square().sum(dim=1).mean() - d * a_0 - d * torch.log1p(-a_0)) / 2
        loss = class_nll + kl + self.T / 2 * self.eta * (self.snr(t) - self.snr(t - 1)) * square
        self.optimizers[t - 1].zero_grad()
        self.out_optimizer.zero_grad()
        loss.backward()
        self.optimizers[t - 1].step()
        self.out_optimizer.step()
        return loss.item()

    def epoch(self, loader: DataLoader) -> None:
        """Algorithm 1: block after block, each with a pass over the data."""
        for t in range(1, self.T + 1):
            for x, y in loader:
                self.step(t, x, y)

    @torch.no_grad()
    def predict(self, x: Tensor, runs: int) -> Tensor:
        """p(y | z_T) of every run (R, B, m); nothing is shared between runs."""
        for block in self.blocks:
            block.eval()
        results = []
        for _ in range(runs):
            z = torch.randn(len(x), self.W_embed.shape[1])
            for t in range(1, self.T + 1):
                low, high = self.alpha_bar[t - 1], self.alpha_bar[t]
                alpha = low / high
                u_hat = self.blocks[t - 1](z, x, self.W_embed)
                z = (high.sqrt() * (1 - alpha) * u_hat + alpha.sqrt() * (1 - high) * z) / (1 - low)
                z = z + math.sqrt((1 - high) * (1 - alpha) / (1 - low)) * torch.randn_like(z)
            results.append(self.theta_out(z).softmax(dim=1))
        for block in self.blocks:
            block.train()
        return torch.stack(results)


class PlainImages(Dataset):
    """Images that are turned into tensors one by one: images (N, 32, 32, 3) uint8, labels (N,)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


def plain_loader(images: np.ndarray, labels: np.ndarray, batch_size: int, workers: int = 2) -> DataLoader:
    return DataLoader(
        PlainImages(images, labels), batch_size, shuffle=True, num_workers=workers, persistent_workers=True
    )


def plain_cases(
    alpha_bar: list[float], images: np.ndarray, labels: np.ndarray, batch_size: int, classes: int, keeps_memory: bool
) -> dict[str, Callable[[], object]]:
    """Return what is timed, on the CPU: a step of block 1, an epoch, the data alone, inference with 1 and with 5 runs.

    keeps_memory: with the program's setting of glibc, in a process that is the reference's alone.
    """
    if keeps_memory:
        reuse_freed_memory()
    torch.manual_seed(0)
    plain, loader = PlainNoProp(torch.tensor(alpha_bar), classes), plain_loader(images, labels, batch_size)
    all_x, all_y = (torch.stack(part) for part in zip(*((x, torch.tensor(y)) for x, y in loader.dataset), strict=True))
    x, y = all_x[:batch_size], all_y[:batch_size]

    def data() -> None:
        for _ in loader:
            pass

    return {
        "step": lambda: plain.step(1, x, y),
        "epoch": lambda: plain.epoch(loader),
        "data": data,
        "predict 1": lambda: plain.predict(all_x, 1),
        "predict 5": lambda: plain.predict(all_x, 5),
    }
