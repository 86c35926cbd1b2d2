"""Where pods run: Kubernetes, or processes on this machine."""
