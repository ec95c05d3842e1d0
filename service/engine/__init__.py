"""Rollouts: how they begin, what they may do, and the beat that moves or stops them."""
