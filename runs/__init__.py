"""One run on disk: checkpoints, the folder, what is printed and kept, signals that stop it."""
