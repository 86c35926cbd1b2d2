"""Turns what happened into what is kept and what must be done."""
