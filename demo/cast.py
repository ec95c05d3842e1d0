"""Who plays: a server, a fleet of agents, a release manager at the command line.

Real processes on this machine, in one folder that is thrown away. Any of them can be killed and
started again in the middle of the story; `tests/fleet` does.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SPEECH = HERE / "speech"
BASE = SPEECH / "base.safetensors"
MODEL = "asr-en-edge"
START_S_MAX = 60


class OffScript(Exception):
    """Something happened that the story does not tell."""


@dataclass
class Cast:
    """Everything that runs, and where it lives."""

    folder: Path
    port: int
    tick_s: float = 0.5
    poll_s: int = 2
    agents_per_process: int = 16
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    commands: dict[str, tuple[list[str], dict[str, str]]] = field(default_factory=dict)
    token: str = ""

    @property
    def url(self) -> str:
        """Where the server is."""
        return f"http://127.0.0.1:{self.port}"

    def fleetdiff(self, *words: str | Path, expect: int = 0) -> Any:
        """Run the release manager's command line; returns its JSON answer."""
        environ = os.environ | {
            "FLEETDIFF_SERVER": self.url,
            "FLEETDIFF_TOKEN": self.token,
            "FLEETDIFF_KEYS": str(self.folder / "keys"),
        }
        command = [sys.executable, "-m", "release_manager", *map(str, words), "--json"]
        done = subprocess.run(
            command, env=environ, cwd=HERE.parent, capture_output=True, text=True, check=False
        )
        if done.returncode != expect:
            raise OffScript(f"fleetdiff {' '.join(map(str, words))}: {done.stderr.strip()}")
        return json.loads(done.stdout) if done.stdout.strip() else {}

    def get(self, path: str) -> Any:
        """Ask the REST API what anybody with the token may ask."""
        request = urllib.request.Request(self.url + path)
        request.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)

    def make_token(self) -> None:
        """Make the first API token, on the server's own command line."""
        command = [sys.executable, "-m", "service", "token", "--name", "release-manager"]
        done = subprocess.run(
            [*command, "--data", self.folder / "server"], capture_output=True, text=True, check=True
        )
        self.token = done.stdout.strip()

    def start_server(self) -> None:
        """Start the server with SQLite and a folder, and wait until it answers."""
        command = [sys.executable, "-m", "service", "serve", "--data", self.folder / "server"]
        command += ["--port", str(self.port), "--status-page", "open"]
        command += ["--online-keys", self.folder / "keys" / "online", "--log-level", "WARNING"]
        command += ["--tick-s", str(self.tick_s), "--poll-after-s", str(self.poll_s)]
        self._start("server", command, os.environ | {"FLEETDIFF_POLL_SOON_S": "1"})
        self.await_server()

    def await_server(self) -> None:
        """Wait until the server answers."""
        deadline = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/healthz", timeout=2).close()
                return
            except OSError:
                if self.processes["server"].poll() is not None:
                    break
                time.sleep(0.1)
        raise OffScript(f"the server did not start: {self.log('server')}")

    def write_devices(self, names: list[str], server: str = "") -> None:
        """Write the configuration of devices; they enroll when they first start."""
        for name in names:
            folder = self.folder / "devices" / name
            folder.mkdir(parents=True, exist_ok=True)
            recogniser = [sys.executable, str(SPEECH / "recogniser.py")]
            (folder / "agent.toml").write_text(
                f'server = "{server or self.url}"\n'
                f'model = "{MODEL}"\n'
                f'serial = "{name}"\n'
                'hardware = "speaker"\n'
                'state_dir = "state"\n'
                f'root = "{self.folder / "keys" / "root.json"}"\n'
                f"recogniser = {json.dumps(recogniser)}\n"
                "dev_root = true\n\n"
                "[limits]\nstart_spread_s = 2\nretry_s = 0.5\nretry_s_max = 4\n"
            )

    def start_devices(self, names: list[str], enrollment_token: str) -> list[str]:
        """Start the agents of these devices, several to a process; returns the processes."""
        environ = os.environ | {
            "FLEETDIFF_ENROLLMENT_TOKEN": enrollment_token,
            "FLEETDIFF_FACTORY_MODEL": str(BASE),
            "OPENBLAS_NUM_THREADS": "1",  # two cores, many devices
        }
        started = []
        for first in range(0, len(names), self.agents_per_process):
            group = names[first : first + self.agents_per_process]
            configs = [self.folder / "devices" / name / "agent.toml" for name in group]
            process = f"agents-{group[0]}"
            self._start(process, [sys.executable, "-m", "demo.fleet", *configs], environ)
            started.append(process)
        return started

    def active_file(self, name: str) -> Path:
        """Return the model file that a device runs."""
        return self.folder / "devices" / name / "state" / "current" / "model"

    def cut_power(self, process: str) -> None:
        """Kill a process where it stands, with SIGKILL."""
        self.processes[process].kill()
        self.processes[process].wait()

    def restart(self, process: str) -> None:
        """Start a process again, as it was started before."""
        self._start(process, *self.commands[process])

    def stop(self) -> None:
        """Ask every process to end, and see to it."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log(self, process: str) -> str:
        """Return the end of what a process said."""
        return (self.folder / f"{process}.log").read_text(errors="replace")[-2000:]

    def _start(self, name: str, command: list[Any], environ: dict[str, str]) -> None:
        words = list(map(str, command))
        self.commands[name] = (words, environ)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                words,
                env=environ,
                cwd=HERE.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the story only
            )


def free_port(wanted: int) -> int:
    """Return the wanted port if nobody listens there, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OffScript("there is no free port on 127.0.0.1")
