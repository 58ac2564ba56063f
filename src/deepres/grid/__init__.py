"""Models x recipes x seeds, each a run directory: on this machine, or on a Ray cluster."""
