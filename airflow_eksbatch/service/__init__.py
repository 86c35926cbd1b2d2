"""The process: time, tasks, wiring and back-pressure live here; decisions do not."""
