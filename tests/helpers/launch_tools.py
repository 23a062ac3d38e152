"""Tools for tests that start jobs: a free port, an environment without scheduler variables, a
metadata server, and waiting.
"""

import http.server
import os
import socket
import subprocess
import threading
import time

import pytest
from paths import ROOT


def free_port() -> int:
    """A TCP port of localhost that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


LAUNCH = ROOT / "launch"
PREFIXES = ("JAX", "XLA", "SLURM", "SKYPILOT", "TPU_", "MEGASCALE", "LIBTPU")


def program(path, text):
    """Write an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def clean(path=None, **more):
    """The environment without the variables that launch scripts read, with the folder `path` first
    on PATH.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(PREFIXES)}
    return {**env, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"], **more}


def until(condition, seconds=90):
    """Wait until `condition()` is true and return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not true after {seconds} s"
        time.sleep(0.05)
    return value


def sh(*words, env=None, **more):
    """Run a command without scheduler variables and return the completed process."""
    return subprocess.run(
        [str(w) for w in words],
        env=env or clean(),
        capture_output=True,
        text=True,
        timeout=120,
        **more,
    )


@pytest.fixture
def metadata():
    """Function (worker, endpoints) -> port that starts the metadata server of a TPU VM."""
    servers = []

    def serve(worker, endpoints):
        attributes = {"agent-worker-number": str(worker), "worker-network-endpoints": endpoints}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                assert self.headers["Metadata-Flavor"] == "Google"
                self.send_response(200)
                self.end_headers()
                self.wfile.write(
                    attributes[
                        self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
                    ].encode()
                )

            def log_message(self, *_):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return servers[-1].server_port

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
