"""Rendering of chat templates in a separate process with limits on time and memory."""

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from jaxcredit.utils import plain_text

WORKER = Path(__file__).with_name("chat_template_worker.py")
SECONDS = 1  # of processor time for one conversation
MEMORY = 2**30  # bytes beyond what the process has before it renders
QUIET = {
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_OFFLINE": "1",
    "USE_TORCH": "0",
    "OPENBLAS_NUM_THREADS": "1",
}


def render(template: str, messages: list[dict[str, Any]], file: str, **values: Any) -> str:
    """Prompt text of a conversation, as transformers' apply_chat_template renders it.

    The text includes the generation prompt.

    Args:
        template: the chat template, in Jinja.
        messages: mappings with "role" and "content"; keys whose value is None are left out.
        file: path of the template, for error messages.
        values: further variables of the template, as plain JSON values.

    Raises:
        ValueError: the template fails or exceeds its limits.
    """
    messages = [{key: x for key, x in message.items() if x is not None} for message in messages]
    try:
        request = json.dumps({"template": template, "messages": messages, "values": values})
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the messages or the options of the chat template of {file} are not plain JSON "
            f"values: {error}"
        ) from error
    reply = _worker(os.getpid()).ask(request.encode() + b"\n")
    if "text" in reply:
        return reply["text"]
    line = f", line {reply['line']}" if reply.get("line") else ""
    raise ValueError(
        f"the chat template of {file}{line}: {plain_text.one_line(reply['error'], 300)}. Fix the "
        "messages or the template, or use the "
        "template of another copy of the model"
    )


class Worker:
    """Client of the rendering process, which is started on demand.

    A process that a request ended is replaced at the next request.
    """

    def __init__(self):
        self._lock, self._process = threading.Lock(), None
        atexit.register(self.close)

    def ask(self, request: bytes) -> dict[str, Any]:
        """Reply to a request.

        Returns:
            {"text"}, or {"error", "line"} if the template failed, or {"error"} if the process
            ended.
        """
        with self._lock:
            process = self._process = self._process or subprocess.Popen(
                [sys.executable, "-P", str(WORKER), str(SECONDS), str(MEMORY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | QUIET,
                start_new_session=True,  # no SIGINT by Ctrl-C: this process closes it
            )
            try:
                assert process.stdin and process.stdout
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(request)
                    process.stdin.flush()
                line = process.stdout.readline()
            except BaseException:
                # Interrupted between request and reply: the process would answer the next request
                # with the reply to this one.
                self._end()
                raise
            if line.endswith(b"\n"):
                return json.loads(line)
            code = self._end()
        if code == -getattr(signal, "SIGXCPU", 0):
            return {
                "error": f"it takes more than {SECONDS} s of processor time for one conversation"
            }
        return {
            "error": f"the process that rendered it ended with status {code}: it takes too much "
            "memory or time"
        }

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _end(self) -> int | None:
        """End the process and return its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin and process.stdout
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            code = process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
        return code


@functools.cache
def _worker(pid: int) -> Worker:
    """Worker of process `pid`. A forked process gets its own."""
    return Worker()
