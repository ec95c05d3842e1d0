"""The devices of the agent's tests, to be attacked."""

from tests.agent.conftest import lab, new_lab, no_fsync, toml

__all__ = ["lab", "new_lab", "no_fsync", "toml"]
