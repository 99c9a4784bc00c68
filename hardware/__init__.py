"""The machine: which device, how exact its arithmetic, how much memory."""
