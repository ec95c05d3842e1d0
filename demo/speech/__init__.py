"""A small streaming speech recogniser, its training, its updates and its canary pool."""
