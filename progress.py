"""What is seen of an epoch: its bar while it runs, its line and its row of the history when it is over."""

from collections.abc import Callable

from torch import Tensor
from tqdm import tqdm

CHECK_EVERY = 50  # updates between two looks at the loss, each of which waits for the device


class Progress:
    """Told of every update: moves the bar, and from time to time looks at the losses, which waits for the device."""

    def __init__(self, bar: tqdm, losses: Tensor, check: Callable[[Tensor], None], done: int = 0):
        self.bar, self.losses, self.check, self.done = bar, losses, check, done

    def step(self) -> None:
        self.done += 1
        self.bar.update()
        if self.done % CHECK_EVERY == 0:
            self.check(self.losses)
            self.bar.set_postfix_str(f"loss {self.losses.sum().item() / self.done:.3f}")


def summarise_losses(losses: Tensor, parts: list[int], terms: tuple[str, ...]) -> dict:
    """(rows, batches, terms) -> the mean loss of every part over the epoch, and of each of its terms; else None."""
    mean = losses.double().mean(dim=1).cpu()  # (rows, terms)
    columns = {"loss": mean.sum(dim=1), **{f"loss_{name}": mean[:, i] for i, name in enumerate(terms)}}
    return {
        name: [value if t in parts else None for t, value in enumerate(column.tolist(), 1)]
        for name, column in columns.items()
    }


def describe(row: dict, epochs: int) -> str:
    """One line for a row of the history."""
    losses = [loss for loss in row["loss"] if loss is not None]
    shown = (("train", row["train_accuracy"]), ("val", row["val_accuracy"]))
    accuracies = "".join(f"  {name} {value:.2f} %" for name, value in shown if value is not None)
    return (
        f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}  loss {sum(losses) / len(losses):.4f}{accuracies}"
        f"  lr {row['learning_rate']:.2g} at start  {row['seconds']:.1f} s  {row['images_per_second']:,.0f} images/s"
    )
