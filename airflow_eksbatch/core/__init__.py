"""Every decision of the scheduler: no clock, no I/O, no chance."""
