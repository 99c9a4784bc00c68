from pathlib import Path
def draw_run(run): return []
