"""Say in words what differs in the settings of several runs: the legend of a picture that holds them all."""

from runs.reader import RunFiles

# Settings that shape no curve: places, what is tested and shown, when it is saved; a recipe is a name for others.
WITHOUT_EFFECT = {"compare", "evaluate", "predict", "merge", "checkpoint", "checkpoint_dir", "data_dir", "auto_resume"}
WITHOUT_EFFECT |= {"save_every", "save_every_minutes", "tensorboard", "steps_report", "test_every_epoch", "eval_split"}
WITHOUT_EFFECT |= {"eval_batch_size", "eval_runs", "recipe", "versions", "config", "seeds", "export", "output", "top_k"}
# Settings of every method that may be None. Another one is None where the method of a run does not know it.
MAY_BE_NONE = {"image_size", "train_size", "augment", "encoder_width", "encoder_weights", "init_from"}


def differences(runs: list[RunFiles]) -> list[str]:
    """Return for each run its name, and the values of the settings in which the runs differ."""
    configs = [_shown(run) for run in runs]
    names = [name for name in dict.fromkeys(name for config in configs for name in config) if _differs(name, configs)]
    labels = [", ".join(filter(None, (_in_words(name, config, configs) for name in names))) for config in configs]
    return [f"{run.name}: {label}" if label else run.name for run, label in zip(runs, labels, strict=True)]


def _shown(run: RunFiles) -> dict[str, object]:
    """Return the settings that shape a run's curves, its method first, with the device that it was trained on."""
    config = {"method": run.config["method"], **run.config, "dataset": run.dataset}
    versions = config.get("versions")
    if isinstance(versions, dict) and versions.get("device"):
        config["device"] = versions["device"]
    return {name: value for name, value in config.items() if name not in WITHOUT_EFFECT}


def _differs(name: str, configs: list[dict]) -> bool:
    """Return whether runs of one method differ, or of all methods where all know the setting."""
    values = [config.get(name) for config in configs]
    if name in MAY_BE_NONE or None not in values:
        return any(value != values[0] for value in values)
    pairs = ((a, b) for a in configs for b in configs if a["method"] == b["method"])
    return any(a.get(name) != b.get(name) for a, b in pairs)


def _in_words(name: str, config: dict, configs: list[dict]) -> str:
    """Return a setting and its value, nothing where the run's method does not know it."""
    value, words = config.get(name), name.replace("_", " ")
    if value is None:
        known = name in MAY_BE_NONE or any(c.get(name) is not None for c in configs if c["method"] == config["method"])
        return f"no {words}" if known else ""
    if isinstance(value, bool):
        return f"{words} {'on' if value else 'off'}"
    shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return shown if name in ("method", "dataset") else f"{words} {shown}"
