"""Where nodes come from: EC2, or simulated instances on this machine."""
