"""The networks and the mathematics of NoProp; nothing here knows of files, flags or progress bars."""
