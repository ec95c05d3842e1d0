"""The whole story, told by the real programs: `make demo`."""
