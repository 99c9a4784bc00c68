"""Lines of the epochs: errors of blocks, the rate where it changes, the best epoch, the whole time."""

from types import SimpleNamespace

import pytest

from runs.callbacks import PrintEpochs, describe_seconds


def printed(capsys, rates, weights, accuracies=(50.0, 40.0, 60.0)):
    """Return the lines that three epochs print; blocks 1 to 3 have errors of 0.3, 0.2 and 0.1 in each."""
    callback, history, best = PrintEpochs(0.001, weights), [], 0
    for epoch, (rate, accuracy) in enumerate(zip(rates, accuracies, strict=True), 1):
        if accuracy is None or accuracy > max([0.0, *(row["val_accuracy"] for row in history if accuracy)]):
            best = epoch
        row = {"epoch": epoch, "loss": [1.0, 2.0, 30.0], "loss_denoise": [0.3, 2.0, 100.0], "learning_rate": rate}
        history.append(row | {"train_accuracy": 50, "val_accuracy": accuracy, "seconds": 40, "images_per_second": 7})
        model = SimpleNamespace(loss_terms=("denoise",))
        how = {"history": history, "model": model, "best": {"epoch": best}}
        trainer = SimpleNamespace(epoch=epoch, epochs=3, stopped_early=False, **how)
        callback.begin_epoch(trainer)
        callback.after_epoch(trainer, None)
    callback.end(trainer)
    return capsys.readouterr().out.splitlines()


def test_the_error_of_a_block_is_shown_without_its_weight_in_the_loss_and_explained_once(capsys):
    legend, *epochs, _ = printed(capsys, [0.001] * 3, {1: 1.0, 2: 10.0, 3: 1000.0})
    assert legend.endswith("in blocks 1, 2, 3") and len(epochs) == 3
    assert all("  loss 11.0000  error 0.3 0.2 0.1  train" in line for line in epochs)
    lines = printed(capsys, [0.001] * 3, {})
    assert len(lines) == 4 and "error" not in "".join(lines)


@pytest.mark.parametrize("held, shown", [([1], [1]), ([3, 7], [3, 7]), (range(1, 11), [1, 5, 10])])
def test_errors_are_those_of_the_first_the_middle_and_the_last_block(held, shown):
    assert PrintEpochs(0.1, dict.fromkeys(held, 1.0)).shown == shown


@pytest.mark.parametrize("rates, told", [((1, 1, 1), ""), ((1, 0.5, 0.5), "2"), ((0.1, 0.5, 1), "123")])
def test_the_learning_rate_is_told_where_it_differs_from_the_one_told_last(capsys, rates, told):
    lines = printed(capsys, [0.001 * rate for rate in rates], {})[:3]
    assert "".join(str(i) for i, line in enumerate(lines, 1) if "  lr " in line) == told


def test_the_best_epoch_so_far_is_marked_and_the_whole_time_told(capsys):
    *lines, last = printed(capsys, [0.001] * 3, {})
    assert [line.endswith("  best so far") for line in lines] == [True, False, True]
    assert last.startswith("trained for 2.0 min")
    assert "best" not in "".join(printed(capsys, [0.001] * 3, {}, [None] * 3))  # the last one counts


def test_seconds_in_words():
    assert [describe_seconds(s) for s in (0.42, 46, 150, 12_000)] == ["0.4 s", "46 s", "2.5 min", "3.3 h"]
