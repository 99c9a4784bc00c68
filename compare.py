"""--compare: several methods trained one after the other on the same data, then one table and two figures of them.

Every training is a process of its own, so that its time and peak memory are its own; one that was stopped is continued.
Try: python main.py --compare dt,backprop,ct,fm --dataset digits
"""

import json
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from checkpoint import write_atomic, write_json
from defaults import METHODS
from errors import UserError, reading, require
from flag_types import show
from flags import make_parser
from launch import run_main, tokens
from options import METHOD_FLAGS, as_flag
from plot_style import COLOURS, reliability, with_grid
from plot_training import accuracy_over
from report import markdown_table
from run_files import RunFiles, read_json, read_run
from run_folder import open_run_folder
from visualize import save_figure

WAY_OUT = "delete that folder, and the method is trained again"
ITS_OWN = {"compare", "checkpoint_dir"}
COLUMNS = {
    "method": "{method}",
    "test accuracy (%)": "{test_accuracy_mean:.2f} +- {test_accuracy_sem:.2f}",
    "vote": "{vote:.2f}",
    "mean": "{mean:.2f}",
    "training images (%)": "{train_accuracy_mean:.2f} +- {train_accuracy_sem:.2f}",
    "ECE of mean (%)": "{ece:.1f}",
    "NLL of mean": "{nll:.3f}",
    "epochs": "{epochs}",
    "training (s)": "{seconds:.0f}",
    "images/s": "{images_per_second:,.0f}",
    "peak memory (MB)": "{peak_megabytes:,.0f}",
    "parameters (M)": "{parameters_millions:.2f}",
}


def compare(args: Namespace, given: set[str], folder: Path) -> None:
    """Train every method of args.compare in folder/METHOD, with the given flags; then write what they gave.

    Raises UserError for a flag that no method knows, and for a folder that holds a comparison with other flags.
    """
    flags = {name: getattr(args, name) for name in sorted(given - ITS_OWN)}
    for name in flags:
        if not set(METHOD_FLAGS.get(name, args.compare)) & set(args.compare):
            raise UserError(f"{as_flag(name)} belongs to --method {' or '.join(METHOD_FLAGS[name])}: none is compared")
    with open_run_folder(folder):
        _compare(args, flags, folder)


def _compare(args: Namespace, flags: dict, folder: Path) -> None:
    _same_flags(folder / "flags.json", flags)
    for method in args.compare:
        known = {name: value for name, value in flags.items() if method in METHOD_FLAGS.get(name, args.compare)}
        _train(method, known, folder / method)
    others = _others(args.compare, folder)
    rows = [_row(method, folder / method) for method in [*args.compare, *others]]
    table = _table(rows)
    write_atomic(folder / "compare.md", lambda file: file.write(table.encode()))
    write_json(folder / "compare.json", {"flags": flags, "rows": rows})
    paths = [(row["method"], row["method"], [row["path"]]) for row in rows]
    title = f"{args.dataset}: accuracy over training time, a dot for each epoch"
    accuracy = accuracy_over(paths, title, rows[0]["readout"])
    for name, figure in (("accuracy", accuracy), ("calibration", calibration(rows, args))):
        save_figure(figure, folder / f"compare_{name}.png")
    print(f"\n{table}\nwritten: compare.md, compare.json, compare_accuracy.png, compare_calibration.png in {folder}")


def _same_flags(path: Path, flags: dict) -> None:
    before, now = read_json(path, "delete it", _check_flags), json.loads(json.dumps(flags))
    before = now if before is None else before
    for name in sorted(before | now):
        if before.get(name) != now.get(name):
            old, new = (
                as_flag(name) + f" {show(x[name])}" if name in x else f"no {as_flag(name)}" for x in (before, now)
            )
            raise UserError(
                f"{path.parent} holds a comparison with {old}, this one has {new}: name another folder with "
                "--checkpoint-dir"
            )
    write_json(path, flags)


def _check_flags(flags: dict) -> None:
    require(type(flags) is dict and flags.keys() <= make_parser().defaults.keys(), "it holds no flags")


def _train(method: str, flags: dict, run: Path) -> None:
    """Run main.py, unless the run is complete. Raises UserError where it fails, which has told why by then."""
    if _is_done(method, run):
        print(f"{method}: done already in {run}", flush=True)
        return
    last = run / "last.pt"
    continued = ["--checkpoint", str(last)] if last.exists() else []
    print(f"\n{method}:", flush=True)
    fixed = ["--method", method, "--checkpoint-dir", str(run), "--test-every-epoch"]
    code = run_main([*fixed, *tokens(flags), *continued])
    if code:
        raise UserError(f"--method {method} ended with code {code}; the same command goes on from there")


def _others(methods: list[str], folder: Path) -> list[str]:
    """Methods that an earlier comparison in the folder finished; tells which they are, and which are left out."""
    found = [method for method in METHODS if method not in methods and (folder / method).exists()]
    done = []
    for method in found:
        with suppress(UserError):
            done += [method] if _is_done(method, folder / method) else []
    left_out = [method for method in found if method not in done]
    if done:
        print(f"\nwith what the folder holds of {', '.join(done)}")
    if left_out:
        print(f"\nleft out, since not finished or last tested otherwise: {', '.join(left_out)}; name them too")
    return done


def _is_done(method: str, run: Path) -> bool:
    """Whether the run is trained, and was last tested with its own settings, not by --evaluate with others."""
    if not (run / "results.json").exists():
        return False
    files = _read(method, run)
    with _reading(method, run):
        return files.is_trained and files.is_tested


def _read(method: str, run: Path) -> RunFiles:
    try:
        return read_run(run)
    except UserError as error:
        raise UserError(f"what --method {method} left is damaged: {error}; or {WAY_OUT}") from error


def _reading(method: str, run: Path):
    return reading(f"what --method {method} left in {run}", WAY_OUT)


def _row(method: str, run: Path) -> dict:
    """What the table and the figures show of a run. Raises UserError where its files are damaged."""
    files = _read(method, run)
    with _reading(method, run):
        row = _summary(method, files)
        _table([row])
        require(np.asarray(row["bins"], dtype=float).shape[:-1] == (3,), "its calibration is odd")
    return row


def _summary(method: str, files: RunFiles) -> dict:
    results, history = files.results, files.history
    seconds, best = [row["seconds"] for row in history], history[files.best_epoch - 1]
    return {
        "method": method,
        **{name: results[name] for name in ("test_accuracy_mean", "test_accuracy_sem", "readout")},
        "train_accuracy_mean": best["train_accuracy"],
        "train_accuracy_sem": best["train_accuracy_sem"],
        **{name: results["accuracy_by_readout"][name]["mean"] for name in ("vote", "mean")},
        **results["calibration"]["mean"],
        "epochs": len(history),
        "seconds": sum(seconds),
        "images_per_second": sum(row["images_per_second"] * row["seconds"] for row in history) / sum(seconds),
        "peak_megabytes": max(row["peak_memory_bytes"] or 0 for row in history) / 1e6,
        "parameters_millions": results["parameters"] / 1e6,
        "path": files.accuracy_path,
    }


def _table(rows: list[dict]) -> str:
    return markdown_table(COLUMNS, [[cell.format(**row) for cell in COLUMNS.values()] for row in rows])


def calibration(rows: list[dict], args: Namespace) -> Figure:
    """Accuracy by confidence of the runs' mean probability."""
    figure = Figure(figsize=(6.5, 6.5), layout="constrained")
    axes = figure.subplots()
    signs = zip(rows, COLOURS, "os^vDP", strict=False)
    reliability(axes, [(row["method"], row["bins"], colour, sign) for row, colour, sign in signs])
    axes.set_title(f"{args.dataset}: calibration of the runs' mean probability, test images")
    return with_grid(figure, axes)
