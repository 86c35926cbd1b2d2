"""Kubernetes as it is: objects read and written, watched and remembered; `..kubernetes` makes a cluster of it."""
