"""A stand-in for gcloud that records its calls and simulates TPU workers by folders.

`$FAKE/calls` gets the arguments of every call as one JSON list a line. `$FAKE/state` holds the
state of the queued resource, if there is one. `$FAKE/w0` and `$FAKE/w1` are the home folders of the
workers. `$FAKE/w0.port` holds the port of the first worker's metadata server.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


def main(words: list[str]) -> int:
    fake = Path(os.environ["FAKE"])
    with open(fake / "calls", "a") as calls:
        calls.write(json.dumps(words) + "\n")
    options = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
    verb = " ".join(words[2:4])
    state = fake / "state"
    homes = [fake / f"w{i}" for i in range(2)]
    if verb == "queued-resources create":
        state.write_text("ACTIVE\n")
        for home in homes:
            home.mkdir()
    elif not state.exists():
        print("ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource was not found", file=sys.stderr)
        return 1
    elif verb == "queued-resources describe":
        print(state.read_text(), end="")
    elif verb == "queued-resources delete":
        state.unlink()
        for home in homes:
            shutil.rmtree(home, ignore_errors=True)
    elif verb == "tpu-vm scp":
        to = next(i for i, word in enumerate(words) if word.endswith(":"))
        for home in homes:
            for path in words[4:to]:
                shutil.copy(path, home)
    elif verb == "tpu-vm ssh":
        if not homes[0].exists():
            print("ERROR: connection timed out", file=sys.stderr)
            return 255
        chosen = homes if options["worker"] == "all" else [homes[int(options["worker"])]]
        return max([ssh(home, options["command"]) for home in chosen])
    else:
        raise SystemExit(f"the fake gcloud does not support {verb}")
    return 0


def ssh(home: Path, command: str) -> int:
    hidden = ("JAX", "SLURM", "TPU_", "SKYPILOT")
    env = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    server = f"127.0.0.1:{(home.parent / f'{home.name}.port').read_text()}"
    return subprocess.run(
        ["bash", "-c", command], cwd=home, env={**env, "HOME": str(home), "GCE_METADATA_IP": server}
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
