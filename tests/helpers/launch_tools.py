"""What tests that start jobs share: a port, an environment without a scheduler, a metadata server,
and patience.
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
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


LAUNCH = ROOT / "launch"
OURS = ("JAX", "XLA", "SLURM", "SKYPILOT", "TPU_", "MEGASCALE", "LIBTPU")


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def clean(path=None, **more):
    """The environment without anything that a launch script reads, and `path` first on PATH."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
    return {**env, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"], **more}


def until(true, seconds=90):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def sh(*words, env=None, **more):
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
    """Start metadata servers of TPU VMs; gives a function (worker, endpoints) -> port."""
    servers = []

    def serve(worker, endpoints):
        facts = {"agent-worker-number": str(worker), "worker-network-endpoints": endpoints}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                assert self.headers["Metadata-Flavor"] == "Google"
                self.send_response(200)
                self.end_headers()
                self.wfile.write(
                    facts[
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
