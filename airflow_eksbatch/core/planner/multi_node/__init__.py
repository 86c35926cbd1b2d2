"""Multi-node jobs: all of their nodes at once, or none."""
