"""Figures anybody can measure again: `make bench-NAME` prints a table and writes build/bench/."""
