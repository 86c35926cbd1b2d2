"""What all I/O stands on: the clock, pauses, and facts for whoever watches."""
