"""An in-memory bucket server with the part of Google's storage protocol (JSON API v1) that gcsfs
and TensorStore use, including generations.
"""

import base64
import contextlib
import json
import re
import threading
import zlib
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Server(ThreadingHTTPServer):
    """HTTP server of the given buckets on a free port of localhost."""

    daemon_threads = True

    def __init__(self, *buckets: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.generation, self.begun = threading.Lock(), 0, {}
        self.objects: dict[str, dict[str, tuple[int, bytes]]] = {
            bucket: {} for bucket in buckets
        }  # name to (generation, content)

    def handle_error(self, *_):
        """Ignore errors of clients that closed the connection."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def store(self, bucket: str, name: str, body: bytes, if_generation: int | None) -> dict:
        with self.lock:
            self._expect(bucket, name, if_generation)
            self.generation += 1
            self.objects[bucket][name] = self.generation, body
            return self.about(bucket, name)

    def delete(self, bucket: str, name: str, if_generation: int | None) -> None:
        with self.lock:
            self._expect(bucket, name, if_generation)
            self._found(bucket, name)
            del self.objects[bucket][name]

    def about(self, bucket: str, name: str) -> dict:
        generation, body = self._found(bucket, name)
        crc = base64.b64encode(
            zlib.crc32(body).to_bytes(4, "big")
        ).decode()  # the clients do not verify it
        metadata = {
            "name": name,
            "bucket": bucket,
            "size": str(len(body)),
            "generation": str(generation),
            "metageneration": "1",
            "crc32c": crc,
        }
        return {
            **metadata,
            "kind": "storage#object",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }

    def listing(
        self, bucket: str, prefix: str = "", delimiter: str = "", start: str = "", end: str = ""
    ) -> dict:
        with self.lock:
            if bucket not in self.objects:
                raise Refused(404, "The specified bucket does not exist.")
            items, prefixes = [], set()
            for name in sorted(self.objects[bucket]):
                if not name.startswith(prefix) or name < start or (end and name >= end):
                    continue
                inner, found, _ = (
                    name.removeprefix(prefix).partition(delimiter) if delimiter else (name, "", "")
                )
                if found:
                    prefixes.add(prefix + inner + delimiter)
                else:
                    items.append(self.about(bucket, name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def _expect(self, bucket: str, name: str, if_generation: int | None) -> None:
        if (
            if_generation is not None
            and self.objects.get(bucket, {}).get(name, (0, b""))[0] != if_generation
        ):
            raise Refused(412, "conditionNotMet")

    def _found(self, bucket: str, name: str) -> tuple[int, bytes]:
        try:
            return self.objects[bucket][name]
        except KeyError:
            raise Refused(404, f"No such object: {bucket}/{name}") from None


class Refused(Exception):
    pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each answer waits for a delayed acknowledgment
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self._send(*self._reply(self.command, self.path, body))
        except Refused as refused:
            code, message = refused.args
            self._send(code, json.dumps({"error": {"code": code, "message": message}}).encode(), {})

    def _send(self, code: int, body: bytes, headers: dict):
        self.send_response(code)
        for name, value in {
            "Content-Type": "application/json",
            **headers,
            "Content-Length": len(body),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(body)

    def _reply(self, method: str, path: str, body: bytes) -> tuple[int, bytes, dict]:
        at = urlsplit(path)
        if at.path.startswith("/batch/"):
            return self._batch(body)
        query = {k: v[0] for k, v in parse_qs(at.query, keep_blank_values=True).items()}
        match = re.fullmatch(
            r"(?:/(upload|download))?/(?:resumable/)?storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", at.path
        )
        if not match:
            raise Refused(404, f"{path}: not supported")
        service, bucket, name = match.group(1), match.group(2), unquote(match.group(3) or "")
        generation = int(query["ifGenerationMatch"]) if "ifGenerationMatch" in query else None
        if service == "upload":
            return self._upload(bucket, query, body, generation)
        if method == "DELETE":
            self.server.delete(bucket, name, generation)
            return 204, b"", {}
        if not name:
            bounds = [
                query.get(key, "") for key in ("prefix", "delimiter", "startOffset", "endOffset")
            ]
            return 200, json.dumps(self.server.listing(bucket, *bounds)).encode(), {}
        if service == "download" or query.get("alt") == "media":
            return self._content(bucket, name, query)
        return 200, json.dumps(self.server.about(bucket, name)).encode(), {}

    def _content(self, bucket: str, name: str, query: dict) -> tuple[int, bytes, dict]:
        generation, body = self.server._found(bucket, name)
        if query.get("ifGenerationNotMatch") == str(generation):
            return 304, b"", {}
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            raise Refused(412, "conditionNotMet")
        headers = {"Content-Type": "application/octet-stream", "x-goog-generation": generation}
        if span := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
            first, last = span.groups()
            begin = int(first) if first else max(0, len(body) - int(last))
            end = min(int(last), len(body) - 1) if first and last else len(body) - 1
            if begin >= len(body):
                raise Refused(416, "out of range")
            return (
                206,
                body[begin : end + 1],
                {**headers, "Content-Range": f"bytes {begin}-{end}/{len(body)}"},
            )
        return 200, body, headers

    def _upload(
        self, bucket: str, query: dict, body: bytes, generation: int | None
    ) -> tuple[int, bytes, dict]:
        if bucket not in self.server.objects:
            raise Refused(404, "The specified bucket does not exist.")
        kind = query.get("uploadType")
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            about, content = BytesParser().parsebytes(head + body).get_payload()
            name, body = json.loads(about.get_payload())["name"], content.get_payload(decode=True)
        elif kind == "resumable" and "upload_id" not in query:
            ticket = str(len(self.server.begun))
            self.server.begun[ticket] = query.get("name") or json.loads(body)["name"], bytearray()
            return (
                200,
                b"{}",
                {
                    "Location": f"{self.server.url}{urlsplit(self.path).path}"
                    f"?uploadType=resumable&upload_id={ticket}"
                },
            )
        elif kind == "resumable":
            name, parts = self.server.begun[query["upload_id"]]
            parts += body
            if self.headers.get("Content-Range", "").endswith("/*"):
                return 308, b"", {"Range": f"bytes=0-{len(parts) - 1}"}
            body = bytes(parts)
        else:
            name = query["name"]
        return 200, json.dumps(self.server.store(bucket, name, body, generation)).encode(), {}

    def _batch(self, body: bytes) -> tuple[int, bytes, dict]:
        """A multipart request of several requests, each answered in one part."""
        message = BytesParser().parsebytes(
            f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body
        )
        answers = []
        for part in message.get_payload():
            method, path, _ = part.get_payload().strip().splitlines()[0].split(" ")
            try:
                code, text, _ = self._reply(method, path, b"")
            except Refused as refused:
                code, text = refused.args[0], b"{}"
            response = (
                f"HTTP/1.1 {code} status\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(text)}\r\n\r\n".encode()
                + text
            )
            answers.append(
                b"--answer\r\nContent-Type: application/http\r\nContent-ID: <response-x>\r\n\r\n"
                + response
                + b"\r\n"
            )
        return (
            200,
            b"".join(answers) + b"--answer--\r\n",
            {"Content-Type": "multipart/mixed; boundary=answer"},
        )
