"""The stopwatch of the benchmarks: it sees the program that it runs, and only that."""

import sys

import numpy as np
import pytest

from benchmarks import process

BARE = [sys.executable, "-I", "-S", "-c"]


def test_memory_of_whoever_measures_is_not_counted() -> None:
    held = np.ones(20_000_000)
    _, peak = process.run([*BARE, ""])
    assert peak < held.nbytes / 4


def test_memory_and_time_of_the_program_are_counted() -> None:
    _, idle = process.run([*BARE, ""])
    busy = "import time; held = bytearray(b'x') * (50 << 20)\nwhile time.process_time() < 0.3: pass"
    cpu_s, peak = process.run([*BARE, busy])
    assert 0.3 <= cpu_s < 1
    assert peak - idle > 45 << 20


@pytest.mark.parametrize("command", [[*BARE, "import sys; sys.exit('no luck')"], ["no-such-peer"]])
def test_a_program_that_fails_has_no_figures(command: list[str]) -> None:
    with pytest.raises(RuntimeError, match=r"no luck|no-such-peer"):
        process.run(command)
