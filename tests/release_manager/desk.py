"""A release manager at a terminal."""

import json
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Targets

from release_manager.__main__ import main
from tests.release_manager.fake_server import FakeServer
from trust.accept import accept_family
from trust.roles import Family, read_family


class Desk:
    """A release manager at a terminal: runs commands and keeps what they print."""

    def __init__(self, server: FakeServer, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.server, self.keys, self._capsys = server, keys, capsys
        self.out = self.err = self.everything = ""

    def run(self, *words: str | Path) -> int:
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        self.out, self.err = self._capsys.readouterr()
        self.everything += self.out + self.err
        return code

    def json(self, *words: str | Path) -> Any:
        code = self.run(*words, "--json")
        assert code == 0, self.err
        return json.loads(self.out)


def family_of(desk: Desk) -> Family:
    body = desk.server.documents[f"{desk.server.newest['family-asr']}.family-asr.json"]
    signed = Metadata[Targets].from_bytes(body).signed
    accept_family("asr", signed, None)
    return read_family("asr", signed)
