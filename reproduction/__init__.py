"""The parts of reproduce.py: the paper's figures, what each needs, and what came out here."""
