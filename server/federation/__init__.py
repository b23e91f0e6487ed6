"""The coordinator's machine: who may join, what runs, and the processes that do it."""
