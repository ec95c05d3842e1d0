"""Fuzzes the kernel for some time, guided by coverage; needs atheris (`make fuzz` brings it).

python -m tests.fuzz SECONDS            both targets, one after the other
python -m tests.fuzz TARGET ARGUMENT…   one of them, with arguments of libFuzzer

What it finds new goes to build/fuzz; what ends it, to build/fuzz/found-….
"""

import subprocess
import sys
from pathlib import Path

SHARES = {"read": 0.25, "apply": 0.75}  # of the time
SEEDS = Path(__file__).parent / "corpus"


def main(arguments: list[str]) -> int:
    """Runs every target in a process of its own: libFuzzer ends the one it runs in."""
    if arguments[0] in SHARES:
        fuzz(*arguments)
    for target, share in SHARES.items():
        room = Path("build/fuzz") / target
        room.mkdir(parents=True, exist_ok=True)
        limits = [f"-max_total_time={max(int(share * float(arguments[0])), 1)}", "-timeout=20"]
        limits += ["-rss_limit_mb=1500", "-max_len=3000", "-print_final_stats=1", "-verbosity=1"]
        found = [f"-artifact_prefix=build/fuzz/found-{target}-", str(room), str(SEEDS / target)]
        run = [sys.executable, "-m", "tests.fuzz", target, *limits, *found]
        if ended := subprocess.run(run, check=False).returncode:
            return ended
    return 0


def fuzz(target: str, *arguments: str) -> None:
    """Hands a target to libFuzzer, which does not come back."""
    import atheris

    with atheris.instrument_imports(include=["neural_diff"]):
        import neural_diff.decode_numpy  # noqa: F401 - otherwise first loaded when it is needed
        from tests.fuzz import targets
    called = getattr(targets, target)
    atheris.Setup([target, *arguments], lambda data: called(data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
