"""Checkpoints of strangers: files that do more than to hold one, and contents that cannot be. See bad_inputs.py."""

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable

import torch
from box import END, MARKER, Box, Case, Runs, evaluate, png, resume


def model(change: Callable[[dict], object]):
    return lambda box: evaluate(box.changed(change))


def written(pickle: bytes):
    return lambda box: evaluate(box.written(pickle))


def runs(function: Callable, *arguments):
    return lambda box: evaluate(box.saved({"program": "NoProp", "x": Runs(function, *arguments)}))


def touch(box: Box) -> list:
    return evaluate(box.saved({"program": "NoProp", "x": Runs(os.system, f"touch '{box.folder / MARKER}'")}))


def legacy(box: Box) -> list:
    path = box.folder / "stranger.pt"
    torch.save(Runs(os.system, f"touch '{box.folder / MARKER}'"), path, _use_new_zipfile_serialization=False)
    return evaluate(path)


def raw(box: Box) -> list:
    return evaluate(box.file("x.pt", pickle.dumps(Runs(os.system, f"touch '{box.folder / MARKER}'"))))


def compressed(archive: zipfile.ZipFile) -> None:
    archive.writestr("x/data.pkl", bytes(2**28), zipfile.ZIP_DEFLATED)


def twice(archive: zipfile.ZipFile) -> None:
    archive.writestr("x/data.pkl", b"\x80\x02N.")
    archive.filelist.append(archive.filelist[0])


def encrypted(archive: zipfile.ZipFile) -> None:
    archive.writestr("x/data.pkl", b"\x80\x02N.")
    archive.infolist()[0].flag_bits |= 1


def overlapping(archive: zipfile.ZipFile) -> None:
    archive.writestr("x/data.pkl", b"\x80\x02N." + bytes(1000))
    first = archive.infolist()[0]
    for i in range(100):
        other = zipfile.ZipInfo(f"x/data/{i}")
        other.file_size, other.compress_size, other.CRC = first.file_size, first.compress_size, first.CRC
        other.header_offset = first.header_offset
        archive.filelist.append(other)


def spoiled(box: Box) -> list:
    data = bytearray(box.model.read_bytes())
    data[len(data) // 2] ^= 1
    return evaluate(box.file("x.pt", bytes(data)))


def retold(old: bytes, new: bytes):
    """A tensor of ten numbers, of which the pickle says something else."""

    def make(box: Box) -> list:
        with zipfile.ZipFile(box.saved({"x": torch.zeros(10)})) as archive:
            pickle, numbers = archive.read("stranger/data.pkl"), archive.read("stranger/data/0")
        assert old in pickle
        return evaluate(box.written(pickle.replace(old, new), {"data/0": numbers}))

    return make


def many_members(box: Box) -> list:
    """Say of 40 million bytes of zeros that they are a list of a million members."""
    size, many = 40 * 10**6, 10**6
    record = (b"PK\6\6", 44, 45, 45, 0, 0, many, many, size, 0)
    end = END.pack(*record, b"PK\6\7", 0, size, 1, b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 0, 0)
    return evaluate(box.file("x.pt", bytes(size) + end))


def two_folders(archive: zipfile.ZipFile) -> None:
    archive.writestr("x/data.pkl", b"\x80\x02N.")
    archive.writestr("y/data.pkl", b"\x80\x02N.")


FILES = {
    "missing checkpoint": Case(lambda b: evaluate(b.folder / "none.pt"), "none.pt"),
    "folder without a model": Case(lambda b: evaluate(b.file("other/notes.txt").parent), "best_model.pt"),
    "folder of several runs": Case(lambda b: evaluate(b.file("seed-0/best_model.pt").parents[1]), "seed-0/best_model"),
    "empty checkpoint": Case(lambda b: evaluate(b.file("x.pt")), "not a zip file"),
    "text as checkpoint": Case(lambda b: resume(b.file("text.pt", "hello " * 100)), "text.pt"),
    "image as checkpoint": Case(lambda b: evaluate(b.file("x.png", png(8, 8) * 3)), "x.png"),
    "truncated checkpoint": Case(lambda b: evaluate(b.file("x.pt", b.model.read_bytes()[:5000])), "not a zip file"),
    "one bit flipped in a weight": Case(spoiled, "not what was written"),
    "checkpoint of another program": Case(lambda b: evaluate(b.saved({"state_dict": {}})), "not a checkpoint"),
    "a tensor as checkpoint": Case(lambda b: evaluate(b.saved(torch.zeros(3))), "not a checkpoint"),
    "newer format": Case(lambda b: evaluate(b.changed(lambda c: c.update(format=99))), "format 99"),
    "format that is a tensor": Case(model(lambda c: c.update(format=torch.zeros(3))), "format"),
    "runs a command": Case(touch, "calls something"),
    "runs a command, old format of torch": Case(legacy, "not a zip file"),
    "runs a command, mere pickle": Case(raw, "x.pt"),
    "evaluates Python": Case(runs(eval, "1 + 1"), "calls something"),
    "zip bomb": Case(lambda b: evaluate(b.zipped(compressed)), "compressed"),
    "two members of one name": Case(lambda b: evaluate(b.zipped(twice)), "damaged"),
    "encrypted member": Case(lambda b: evaluate(b.zipped(encrypted)), "encrypted"),
    "a million members": Case(many_members, "damaged"),
    "members in two folders": Case(lambda b: evaluate(b.zipped(two_folders)), "damaged"),
    "overlapping members": Case(lambda b: evaluate(b.zipped(overlapping)), "larger than the file"),
    "no pickle in it": Case(lambda b: evaluate(b.zipped(lambda a: a.writestr("x/y", b"z"))), "damaged"),
    "endless pickle": Case(written(b"\x80\x02N"), "damaged"),
    # damaged, or with torch 2.6 no checkpoint
    "larger tensor than its bytes": Case(retold(b"K\n", b"J\0\0\0\x40"), "stranger.pt is"),
    "tensor that begins before its bytes": Case(retold(b"QK\0", b"QJ\xff\xff\xff\xff"), "storage offset"),
    "something more": Case(model(lambda c: c.update(x=torch.zeros(3))), "'x'"),
}


def config(**settings):
    return lambda box: evaluate(box.changed(lambda c: c["config"].update(settings)))


def info(**values):
    return lambda box: evaluate(box.changed(lambda c: c["info"].update(values)))


def weights(name: object, value: object):
    return lambda box: evaluate(box.changed(lambda c: c["model"].update({name: value})))


def spoil(name: str, value: float):
    return lambda box: evaluate(box.changed(lambda c: c["model"][name].view(-1)[:1].fill_(value)))


def last(change: Callable[[dict], object]):
    return lambda box: resume(box.changed(change, last=True))


def part_of_an_epoch(**values) -> dict:
    order = torch.Generator().get_state()
    return {"order": order, "losses": torch.zeros(1, 1, 3), "learning_rate": 0.1, "done": 1, "seconds": 1.0, **values}


def optimizer(change: Callable[[dict], object]):
    return last(lambda c: change(c["optimizers"][0]["optimizer"]))


def nested(box: Box) -> list:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "in prototype stage"
        value = torch.nested.nested_tensor([torch.zeros(10)])
        return weights("theta_out.bias", value)(box)


def share_memory(state: dict, name: str) -> None:
    """Make all elements of a tensor one, so that what writes to it in place writes beyond its memory."""
    state[name] = torch.zeros([1] * state[name].dim()).expand(state[name].shape)


MANY = {f"blocks.{i}.x": torch.zeros(1) for i in range(2000)}


CONTENTS = {
    "no settings": Case(model(lambda c: c.pop("config")), "config"),
    "settings that are a list": Case(model(lambda c: c.update(config=[1, 2])), "settings"),
    "unknown setting": Case(config(wavelets=True), "does not know"),
    "setting of a wrong type": Case(config(eta="much"), "--eta"),
    "whole number with a fraction": Case(config(num_blocks=3.0), "--num-blocks"),
    "number that is True": Case(config(epochs=True), "--epochs"),
    "setting out of range": Case(config(val_fraction=5.0), "--val-fraction"),
    "learning rate nan": Case(config(lr=float("nan")), "--lr"),
    "unknown method": Case(config(method="magic"), "--method"),
    "another method": Case(config(method="backprop"), "its network"),
    "setting that is None": Case(config(dataset=None), "--dataset"),
    "setting that is another flag": Case(config(predict=["--help"]), "--predict"),
    "a billion inference runs": Case(config(eval_runs=10**9), "--eval-runs"),
    "a billion steps": Case(config(steps=[10**12]), "--steps"),
    "more blocks than in the file": Case(config(num_blocks=9999), "its network"),
    "two thousand empty blocks": Case(
        model(lambda c: (c["model"].update(MANY), c["config"].update(num_blocks=2000))), "its network"
    ),
    "block with an odd name": Case(weights("blocks.x.y", torch.zeros(1)), "damaged"),
    "absurd embedding": Case(config(embedding_type="learned", embedding_dim=10**9), "its network"),
    "one class": Case(info(classes=["a"]), "two classes"),
    "a class that is a number": Case(info(classes=list(range(10))), "classes"),
    "more classes than weights": Case(info(classes=[str(i) for i in range(11)]), "its W_embed"),
    "absurd image": Case(info(image_shape=(1, 10**9, 10**9)), "damaged"),
    "image too small": Case(info(image_shape=(1, 1, 1)), "images are odd"),
    "image of other data": Case(info(image_shape=(1, 9, 9)), "its network"),
    "deviation 0": Case(info(std=[0.0]), "std"),
    "mean that is bytes": Case(info(mean=b"x"), "mean"),
    "mean that is a huge whole number": Case(info(mean=[10**30]), "mean"),
    "mean that is nan": Case(info(mean=[float("nan")]), "mean"),
    "more about the images": Case(info(colour="blue"), "odd"),
    "missing weights": Case(model(lambda c: c["model"].pop("theta_out.bias")), "theta_out.bias"),
    "more weights": Case(weights("more", torch.zeros(3)), "do not ask for"),
    "weights of a wrong shape": Case(weights("theta_out.weight", torch.zeros(10, 11)), "10x11"),
    "weights of a wrong type": Case(weights("theta_out.bias", torch.zeros(10).double()), "float64"),
    "weights that are a word": Case(weights("theta_out.bias", "zero"), "no tensor"),
    "weights that are sparse": Case(weights("theta_out.bias", torch.zeros(10).to_sparse()), "odd kind"),
    "weights without memory": Case(weights("theta_out.bias", torch.zeros(10, device="meta")), "odd kind"),
    "weights of several sizes": Case(nested, "odd kind"),
    "a number as name of weights": Case(weights(5, torch.zeros(3)), "names of its weights"),
    "weights nan": Case(spoil("blocks.1.fuse.0.weight", float("nan")), "blocks.1.fuse.0.weight"),
    "weights infinite": Case(spoil("theta_out.bias", float("inf")), "theta_out.bias"),
    "noise levels that do not rise": Case(model(lambda c: c["model"]["alpha_bar"].fill_(0.5)), "rise"),
    "epoch that is a word": Case(model(lambda c: c.update(epoch="two")), "epoch"),
    "seconds that are none": Case(model(lambda c: c.update(train_seconds=None)), "train_seconds"),
    "accuracy over 100 %": Case(model(lambda c: c.update(val_accuracy=1e9)), "val_accuracy"),
    "first embeddings of a wrong shape": Case(model(lambda c: c.update(W_embed_start=torch.zeros(2))), "W_embed_start"),
    "history of other epochs": Case(last(lambda c: c["history"].pop()), "other epochs"),
    "history that is a word": Case(last(lambda c: c.update(history="long ago")), "history"),
    "history without a loss": Case(last(lambda c: c["history"][1].pop("loss")), "loss"),
    "history with nan": Case(last(lambda c: c["history"][1]["loss_kl"].__setitem__(0, float("nan"))), "loss_kl"),
    "best weights of a wrong shape": Case(
        last(lambda c: c["best"].update(model={**c["model"], "theta_out.bias": torch.zeros(3)})), "theta_out.bias"
    ),
    "best epoch to come": Case(last(lambda c: c["best"].update(epoch=7)), "best epoch"),
    "optimizer too few": Case(last(lambda c: c["optimizers"].pop()), "4 optimizers"),
    "moments of a wrong shape": Case(optimizer(lambda o: o["state"][0].update(exp_avg=torch.zeros(2))), "parameter 0"),
    "moments that share their memory": Case(optimizer(lambda o: share_memory(o["state"][0], "exp_avg")), "odd kind"),
    "moments that are lazily negated": Case(
        optimizer(lambda o: o["state"][0].update(exp_avg=torch._neg_view(o["state"][0]["exp_avg"]))), "odd kind"
    ),
    "moments nan": Case(optimizer(lambda o: o["state"][3]["exp_avg"].fill_(float("nan"))), "parameter 3"),
    "negative moments": Case(optimizer(lambda o: o["state"][1]["exp_avg_sq"].fill_(-1)), "negative"),
    "moments of a missing parameter": Case(optimizer(lambda o: o["state"].update({99: o["state"][0]})), "99"),
    "learning rate of an optimizer": Case(optimizer(lambda o: o["param_groups"][0].update(lr="fast")), "'fast'"),
    "learning rate infinite": Case(optimizer(lambda o: o["param_groups"][0].update(lr=float("inf"))), "finite"),
    "another scheduler": Case(last(lambda c: c["optimizers"][0].update(plateau={"best": 1})), "learning-rate schedule"),
    "random state cut off": Case(
        last(lambda c: c["streams"]["states"].update({"noise/1": ("cpu", torch.zeros(9, dtype=torch.uint8))})),
        "damaged",
    ),
    "random state without a number": Case(
        last(lambda c: c["streams"]["states"].update({"noise": c["streams"]["states"]["noise/1"]})), "damaged"
    ),
    "random states of no device": Case(last(lambda c: c["streams"].update(device="tpu")), "device tpu"),
    "part of an epoch that is a word": Case(last(lambda c: c.update(partial="half")), "damaged"),
    "part of an epoch in a wrong order": Case(
        last(lambda c: c.update(partial=part_of_an_epoch(order="abc"))), "damaged"
    ),
    "part of an epoch of other images": Case(last(lambda c: c.update(partial=part_of_an_epoch())), "number of images"),
    "history without seconds": Case(last(lambda c: c["history"][0].pop("seconds")), "seconds"),
    "embeddings of a stranger": Case(
        lambda b: b.train("--embedding-from", b.changed(lambda c: c["model"].update(W_embed=torch.eye(3)))), "W_embed"
    ),
    "part of a stranger": Case(
        lambda b: ["--merge", b.changed(lambda c: c["config"].update(seed="x")), "--checkpoint-dir", b.folder], "--seed"
    ),
}
