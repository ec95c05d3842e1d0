"""`python -m demo`: plays the story and exits 0 only if every line of it came true.

On a terminal the server and its status page stay up until Ctrl-C; otherwise it ends by itself.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from demo.cast import Cast, OffScript, free_port
from demo.story import Story


def main() -> int:
    """Play, then stay or go."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--agents", type=int, default=60, help="devices at the start (least 48)")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--keep", action="store_true", help="leave the folder for a look")
    parser.add_argument(
        "--stay", action=argparse.BooleanOptionalAction, default=sys.stdout.isatty()
    )
    options = parser.parse_args()
    if options.agents < 48:
        parser.error("the verdicts need about 18 devices in the first stage: at least 48 in all")
    folder = Path(tempfile.mkdtemp(prefix="fleetdiff-demo-"))
    cast = Cast(folder, free_port(options.port))
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    # Whoever ends the story ends everybody in it.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    story = Story(cast, say, agents=options.agents)
    try:
        story.tell()
        print(_table(story), flush=True)
        say("every line of the story came true")
        if options.stay:
            print(f"\nThe server stays up: {cast.url}   (Ctrl-C ends it)", flush=True)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        print()
    except OffScript as error:
        print(f"\noff script: {error}\nserver log: {cast.log('server')}", file=sys.stderr)
        options.keep = True
        return 1
    finally:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, signal.SIG_IGN)  # a second Ctrl-C must not leave orphans
        cast.stop()
        if options.keep:
            print(f"left for a look: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


def _table(story: Story) -> str:
    head = f"{'':6}{'patch':>9}{'of full':>9}{'sent':>12}{'in full':>12}{'fleet WER':>16}  outcome"
    lines = ["", head, "-" * len(head)]
    for update in story.updates:
        view, health = update.rollout, update.rollout["health"]
        reached = sum(s["confirmed"] + s["rolled_back"] for s in view["stages"])
        full = len(story.names) * update.file.stat().st_size
        rates = f"{health['old_wer_bp'] / 100:.1f} > {health['new_wer_bp'] / 100:.1f} %"
        outcome = f"{view['state']}, {view['stages'][0]['rolled_back'] or reached} devices"
        if view["state"] == "halted":
            outcome += " sent back"
        lines.append(
            f"{update.release:6}{update.patch.stat().st_size:>9,}{update.patch_share:>9.1%}"
            f"{view['bytes_sent']:>12,}{full:>12,}{rates:>16}  {outcome}"
        )
    lines += ["", "whole pool, word error rate by kind of word:"]
    heard = [("r1", story.heard_base), *((u.release, u.heard) for u in story.updates)]
    lines += [f"  {release}  {found.line()}" for release, found in heard if found is not None]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
