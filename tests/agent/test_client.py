"""The network at its worst: slow, cut, endless, redirected, busy."""

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from device_agent.client import Client
from device_agent.config import Config
from device_agent.credential import Credential, Identity
from device_agent.errors import Rejected, Unavailable
from tests.agent.conftest import FAST
from tests.agent.loopback import Answer, Asked, problem, ranged, serving
from tests.agent.server_double import CREDENTIAL, digest

DATA = bytes(range(256)) * 1200
SHA256 = digest(DATA)
Serve = Callable[[Callable[[Asked], Answer]], Client]


class Wire:
    """One server that answers as a test says, and the client's configuration for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], Answer] = lambda asked: ranged(DATA, asked)
        self.part = folder / "x.part"
        self.address = ""
        self.blob_hosts: tuple[str, ...] = ()
        self.limits = replace(FAST, silence_s_max=2.0, request_s_max=0.4)

    def client(self) -> Client:
        config = Config(
            server=self.address,
            model="m",
            serial="s",
            hardware="h",
            state_dir=self.folder,
            root=self.folder / "root.json",
            blob_hosts=self.blob_hosts,
            limits=self.limits,
        )
        return Client(config, Identity(Credential("d1", CREDENTIAL), self.folder))

    def fetch(self) -> bytes:
        self.client().fetch(SHA256, len(DATA), self.part)
        return self.part.read_bytes()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(tmp_path)
    with serving(lambda asked: wire.answer(asked), wire.asked) as address:
        wire.address = address
        yield wire


def test_a_download_is_whole(wire: Wire) -> None:
    assert wire.fetch() == DATA
    assert wire.asked[0].headers["authorization"] == f"Bearer {CREDENTIAL}"
    assert wire.asked[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("have", [1, 1000, len(DATA) - 1])
def test_a_download_goes_on_where_it_stopped(wire: Wire, have: int) -> None:
    wire.part.write_bytes(DATA[:have])
    assert wire.fetch() == DATA
    assert wire.asked[0].headers["range"] == f"bytes={have}-"


def test_a_200_with_a_content_range_is_a_part_as_well(wire: Wire) -> None:
    wire.part.write_bytes(DATA[:1000])
    wire.answer = lambda asked: replace(ranged(DATA, asked), status=200)
    assert wire.fetch() == DATA


def test_a_server_without_ranges_sends_all_of_it_again(wire: Wire) -> None:
    wire.part.write_bytes(b"x" * 1000)
    wire.answer = lambda asked: Answer(200, DATA)
    assert wire.fetch() == DATA


def test_a_complete_part_asks_nobody(wire: Wire) -> None:
    wire.part.write_bytes(DATA)
    assert wire.fetch() == DATA
    assert not wire.asked


def test_a_part_that_is_too_long_starts_again(wire: Wire) -> None:
    wire.part.write_bytes(DATA + b"x")
    assert wire.fetch() == DATA


def test_a_wrong_beginning_is_fetched_again_before_anybody_is_blamed(wire: Wire) -> None:
    wire.part.write_bytes(b"\0" * 1000)
    with pytest.raises(Unavailable, match="did not fit"):
        wire.fetch()
    assert not wire.part.exists()
    assert wire.fetch() == DATA


@pytest.mark.attack("M01")
def test_other_bytes_than_the_name_says_are_refused_and_not_kept(wire: Wire) -> None:
    wire.answer = lambda asked: Answer(200, DATA[:-1] + b"\0")
    with pytest.raises(Rejected, match="E_HASH"):
        wire.fetch()
    assert not wire.part.exists()


@pytest.mark.attack("M03")
def test_a_cut_download_is_kept_and_resumed(wire: Wire) -> None:
    wire.answer = lambda asked: Answer(chunks=[DATA[:5000]], declare=len(DATA))
    with pytest.raises(Unavailable, match="cut off after 5000"):
        wire.fetch()
    assert wire.part.read_bytes() == DATA[:5000]
    wire.answer = lambda asked: ranged(DATA, asked)
    assert wire.fetch() == DATA


def test_a_wrong_content_length_is_refused_before_the_body(wire: Wire) -> None:
    wire.answer = lambda asked: Answer(chunks=[b""], declare=len(DATA) + 1)
    with pytest.raises(Rejected, match="E_SIZE"):
        wire.fetch()


@pytest.mark.attack("M02")
def test_a_body_without_end_is_cut_one_byte_after_its_size(wire: Wire) -> None:
    wire.answer = lambda asked: Answer(chunks=(b"x" * 4096 for _ in count()))
    with pytest.raises(Rejected, match="E_SIZE"):
        wire.fetch()
    assert not wire.part.exists()


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ("bytes 5-9/77", Rejected),
        ("bytes */77", Rejected),
        ("lines 1-2/3", Rejected),
        (f"bytes 7-{len(DATA) - 1}/{len(DATA)}", Unavailable),
    ],
)
def test_a_wrong_content_range_is_not_believed(
    wire: Wire, header: str, error: type[Exception]
) -> None:
    wire.part.write_bytes(DATA[:1000])
    wire.answer = lambda asked: Answer(206, DATA[1000:], {"Content-Range": header})
    with pytest.raises(error):
        wire.fetch()


def test_a_range_that_is_refused_starts_again(wire: Wire) -> None:
    wire.part.write_bytes(DATA[:1000])
    wire.answer = lambda asked: Answer(416)
    with pytest.raises(Unavailable):
        wire.fetch()
    assert not wire.part.exists()


@pytest.mark.attack("M44")
def test_a_drip_is_too_slow(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.answer = lambda asked: Answer(chunks=([b"x"] * 100), declare=len(DATA), pause_s=0.02)
    seconds = count()
    monkeypatch.setattr("device_agent.client.clock_s", lambda: next(seconds))
    with pytest.raises(Unavailable, match="too slow"):
        wire.fetch()


@pytest.mark.attack("M44")
def test_a_dripping_answer_meets_the_deadline(wire: Wire) -> None:
    wire.answer = lambda asked: Answer(chunks=([b" "] * 1000), declare=1000, pause_s=0.02)
    with pytest.raises(Unavailable, match="cut off"):
        wire.client().poll("", 1, 0, "")


HEAD = (
    b"HTTP/1.1 304 Not Modified\r\nETag: e\r\nNext-Credential: fdc_1_abcdefgh\r\n"
    b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n"
)


@pytest.mark.attack("M03")
@pytest.mark.parametrize("status", [b"304 Not Modified", b"200 OK", b"404 Not Found"])
@pytest.mark.parametrize("cut", [9, 40, 66, 100, len(HEAD) - 6])
def test_an_answer_whose_head_is_cut_off_is_no_answer(wire: Wire, status: bytes, cut: int) -> None:
    head = HEAD.replace(b"304 Not Modified", status)[:cut]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wire.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = wire.client()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(head)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Unavailable):
            client.poll("", 1, 0, "e")
        thread.join()


def test_a_silent_server_is_unavailable(wire: Wire) -> None:
    wire.limits = replace(wire.limits, silence_s_max=0.1)
    wire.answer = lambda asked: Answer(chunks=[b"x"], declare=1, pause_s=0.5)
    with pytest.raises(OSError):
        wire.client().poll("", 1, 0, "")


def test_nobody_at_the_address_is_transient(wire: Wire) -> None:
    wire.address = "http://127.0.0.1:1"
    with pytest.raises(OSError):
        wire.client().poll("", 1, 0, "")


@pytest.mark.attack("M06")
def test_an_encoding_that_nobody_asked_for_is_refused(wire: Wire) -> None:
    wire.answer = lambda asked: Answer(200, DATA, {"Content-Encoding": "gzip"})
    with pytest.raises(Rejected, match="E_HTTP"):
        wire.fetch()


@pytest.mark.attack("M43")
@pytest.mark.parametrize(
    "location", ["http://127.0.0.2:9/x", "file:///etc/passwd", "//[", "", "ftp://127.0.0.1/x"]
)
def test_a_redirect_to_anywhere_else_is_refused(wire: Wire, location: str) -> None:
    wire.answer = lambda asked: Answer(307, headers={"Location": location})
    with pytest.raises(Rejected, match="E_REDIRECT"):
        wire.fetch()


@pytest.mark.attack("M43")
def test_a_second_redirect_is_not_followed(wire: Wire) -> None:
    wire.blob_hosts = (wire.address.removeprefix("http://"),)
    wire.answer = lambda asked: Answer(307, headers={"Location": f"{wire.address}/again"})
    with pytest.raises(Unavailable, match="307"):
        wire.fetch()
    assert len(wire.asked) == 2


@pytest.mark.attack("M43")
def test_a_redirected_poll_is_not_followed(wire: Wire) -> None:
    wire.answer = lambda asked: Answer(302, headers={"Location": "http://127.0.0.1:1/"})
    with pytest.raises(Unavailable, match="302"):
        wire.client().poll("", 1, 0, "")


@pytest.mark.parametrize("status", [401, 403, 408, 425, 429, 500, 502, 503])
def test_what_may_be_better_later_is_transient(wire: Wire, status: int) -> None:
    wire.answer = lambda asked: problem(status, "x", "Not now", **{"Poll-After": "17"})
    with pytest.raises(Unavailable, match="Not now") as caught:
        wire.client().poll("", 1, 0, "")
    assert (caught.value.status, caught.value.poll_after_s) == (status, 17.0)


@pytest.mark.parametrize(
    ("status", "text", "later"),
    [(503, "120", 120.0), (429, "120", 120.0), (503, "-5", 0.0), (503, "1e9", 0.0)],
)
def test_a_server_that_has_too_much_to_do_may_say_when_to_come_back(
    wire: Wire, status: int, text: str, later: float
) -> None:
    wire.answer = lambda asked: problem(status, "x", "Not now", **{"Retry-After": text})
    with pytest.raises(Unavailable) as caught:
        wire.client().poll("", 1, 0, "")
    assert caught.value.later_s == later


@pytest.mark.parametrize("status", [400, 404, 409, 410, 422])
def test_what_will_not_be_better_is_refused_in_the_servers_words(wire: Wire, status: int) -> None:
    wire.answer = lambda asked: problem(status, "x", "Never\x1b[2J")
    with pytest.raises(Rejected, match=r"Never \[2J"):
        wire.client().post("events", {})


@pytest.mark.parametrize("text", ["", "soon", "-1", "1e9", "nan", "99999999"])
def test_a_poll_after_that_is_no_number_of_seconds_is_ignored(wire: Wire, text: str) -> None:
    wire.answer = lambda asked: Answer(304, headers={"Poll-After": text})
    assert wire.client().poll("", 1, 0, "").poll_after_s is None
