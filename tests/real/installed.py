"""What a test needs that pip does not install: in CI it is there, elsewhere the reason is plain."""

import os
import shutil
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Fail in CI, where nothing is skipped that could be installed; skip elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; in CI nothing is skipped", pytrace=False)
    pytest.skip(reason)


def command(package: str, *names: str) -> str:
    """Return the path of the first of these commands that is installed."""
    found = next((path for name in names if (path := shutil.which(name))), None)
    return found or missing(f"no {names[0]}: apt-get install {package}")
