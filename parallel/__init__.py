"""Blocks on several processes and machines: ranks that torchrun started, and parts that are merged."""
