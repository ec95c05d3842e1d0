"""A thread that works ahead: it does what it is given in order, while who gave it goes on.

The executor of the standard library does the same, but brings logging, which takes a tenth of the
memory that an application has.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any

Begin = Callable[[Callable[[], Any]], Callable[[], Any]]
"""Has something done; gives what waits for it, and returns or raises what that did."""


@contextmanager
def worker() -> Iterator[Begin]:
    """Runs a thread until the end of the block, and until it has done what it was given."""
    jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def begin(do: Callable[[], Any]) -> Callable[[], Any]:
        done: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

        def job() -> None:
            try:
                done.put((do(), None))
            except BaseException as error:
                done.put((None, error))

        def wait() -> Any:
            found, error = done.get()
            if error:
                raise error
            return found

        jobs.put(job)
        return wait

    thread = Thread(target=lambda: [job() for job in iter(jobs.get, None)])
    thread.start()
    try:
        yield begin
    finally:
        jobs.put(None)
        thread.join()
