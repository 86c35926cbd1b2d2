"""Remembers the world, in SQLite or PostgreSQL."""
