"""Google Cloud Storage on loopback: what gcsfs, tensorstore, google-cloud-storage and Beam speak of its JSON API.

Objects live in memory. `interfere` makes it a bad network: it may answer in the server's place, or take its time.
"""

import base64
import contextlib
import dataclasses
import datetime
import http.client
import http.server
import json
import pathlib
import re
import sys
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Mapping
from typing import Self

_PAGE = 1000


@dataclasses.dataclass(frozen=True)
class Stored:
    """One version of an object."""

    data: bytes
    generation: int
    updated: str
    content_type: str


class Emulator:
    """Serves from a thread while its block lasts.

    Attributes:
      buckets: bucket -> name -> object.
      interfere: called with method and object name (or path) before each request; a number is sent as the status.
      requests: `METHOD name` of every request that came.
    """

    def __init__(self):
        self.buckets: dict[str, dict[str, Stored]] = {}
        self.interfere: Callable[[str, str], int | None] = lambda method, name: None
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = {}
        self._generation = 0
        self._server = _Server(("127.0.0.1", 0), _handler(self))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def server_address(self) -> tuple[str, int]:
        return self._server.server_address

    @property
    def environment(self) -> dict[str, str]:
        """Leads every client here, without credentials and without looking for any."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "FSSPEC_GCS_TOKEN": "anon",
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google itself what kind of bucket this is
        }

    def write(self, bucket: str, name: str, data: bytes, content_type: str = "application/octet-stream") -> Stored:
        with self.lock:
            self._generation += 1
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            stored = Stored(data, self._generation, now, content_type)
            self.buckets[bucket][name] = stored
            return stored

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Bucket:
    """What a test sees of one bucket."""

    def __init__(self, emulator: Emulator, name: str):
        self.emulator, self.name = emulator, name
        self._objects = emulator.buckets.setdefault(name, {})

    def address(self, folder: str) -> str:
        return f"gs://{self.name}/{folder}"

    def write(self, name: str, data: bytes) -> None:
        self.emulator.write(self.name, name, data)

    def remove(self, name: str) -> None:
        with self.emulator.lock:
            del self._objects[name]

    def put_folder(self, directory: pathlib.Path, folder: str) -> str:
        """Uploads a local folder; returns its address."""
        for path in directory.rglob("*"):
            if path.is_file():
                self.write(f"{folder}/{path.relative_to(directory).as_posix()}", path.read_bytes())
        return self.address(folder)

    def files(self, folder: str = "") -> dict[str, bytes]:
        """Contents by name, below the folder."""
        start = f"{folder}/" if folder else ""
        with self.emulator.lock:
            found = sorted(self._objects.items())
        return {name.removeprefix(start): stored.data for name, stored in found if name.startswith(start)}


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients hang up on answers that they no longer need: gcsfs asks for a file and a folder at once."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)


class _Refused(Exception):
    """An answer other than success."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


def _checksum(data: bytes) -> str:
    import google_crc32c  # of the extra `gcs`: the tests of everything else load this file too

    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def _resource(bucket: str, name: str, stored: Stored) -> dict[str, str]:
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "size": str(len(stored.data)),
        "generation": str(stored.generation),
        "metageneration": "1",
        "updated": stored.updated,
        "timeCreated": stored.updated,
        "contentType": stored.content_type,
        "crc32c": _checksum(stored.data),
    }


def _handler(emulator: Emulator) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def answer_json(self, value: object) -> None:
            self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def serve(self) -> None:
            body = self._body()
            address = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(address.query))
            if address.path == "/batch/storage/v1":
                return self._batch(body)
            match = re.fullmatch(r"/(?:(upload|download)/)?storage/v1/b/([^/]+)(/o(?:/(.*))?)?", address.path)
            if match is None:
                return self.answer(404)
            how, bucket, objects, name = match.groups()
            name = urllib.parse.unquote(name or query.get("name", ""))
            emulator.requests.append(f"{self.command} {name}")  # before the answer: its client may count at once
            try:
                status = emulator.interfere(self.command, name or address.path)
                if status is not None:
                    raise _Refused(status)
                if bucket not in emulator.buckets:
                    raise _Refused(404)
                if objects is None:
                    self.answer_json({"kind": "storage#bucket", "name": bucket})
                elif how == "upload":
                    self._upload(bucket, name, query, body)
                elif self.command == "DELETE":
                    with emulator.lock:
                        self._check(bucket, name, query, must_exist=True)
                        del emulator.buckets[bucket][name]
                    self.answer(204)
                elif copy := re.fullmatch(r"(.+)/(rewriteTo|copyTo)/b/[^/]+/o/(.+)", name):
                    source, how, target = copy.groups()
                    stored = emulator.write(bucket, target, self._find(bucket, source).data)
                    resource = _resource(bucket, target, stored)
                    self.answer_json({"done": True, "resource": resource} if how == "rewriteTo" else resource)
                elif self.command == "GET" and not name:
                    self.answer_json(_listing(emulator, bucket, query))
                elif self.command == "GET":
                    self._check(bucket, name, query)
                    stored = self._find(bucket, name)
                    if query.get("generation", str(stored.generation)) != str(stored.generation):
                        raise _Refused(404)  # versions that were replaced are gone
                    if query.get("alt") == "media":
                        self._media(stored)
                    else:
                        self.answer_json(_resource(bucket, name, stored))
                else:
                    raise _Refused(405)
            except _Refused as refusal:
                message = {"error": {"code": refusal.status, "message": f"refused {name}"}}
                self.answer(refusal.status, b"" if refusal.status == 304 else json.dumps(message).encode())

        do_GET = do_POST = do_PUT = do_DELETE = serve

        def _batch(self, body: bytes) -> None:
            """Several requests in one, as Beam copies and deletes: each is sent here on its own."""
            answers = []
            for method, path in re.findall(rb"^([A-Z]+) (\S+) HTTP/1.1\r?$", body, re.MULTILINE):
                address = urllib.parse.urlsplit(path.decode())
                connection = http.client.HTTPConnection(*emulator.server_address)
                with contextlib.closing(connection):
                    connection.request(method.decode(), f"{address.path}?{address.query}")
                    answer = connection.getresponse()
                    head = f"HTTP/1.1 {answer.status} {answer.reason}\r\nContent-Type: application/json\r\n\r\n"
                    answers.append(head.encode() + answer.read())
            parts = [b"--part\r\nContent-Type: application/http\r\n\r\n" + answer + b"\r\n" for answer in answers]
            self.answer(200, b"".join(parts) + b"--part--\r\n", {"Content-Type": "multipart/mixed; boundary=part"})

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _find(self, bucket: str, name: str) -> Stored:
            with emulator.lock:
                stored = emulator.buckets[bucket].get(name)
            if stored is None:
                raise _Refused(404)
            return stored

        def _check(self, bucket: str, name: str, query: Mapping[str, str], *, must_exist: bool = False) -> None:
            """The conditions on the generation; 0 is that of an object which does not exist."""
            with emulator.lock:
                stored = emulator.buckets[bucket].get(name)
            generation = 0 if stored is None else stored.generation
            if query.get("ifGenerationMatch", str(generation)) != str(generation):
                raise _Refused(412)
            if query.get("ifGenerationNotMatch") == str(generation) and stored is not None:
                raise _Refused(304)
            if must_exist and stored is None:
                raise _Refused(404)

        def _media(self, stored: Stored) -> None:
            headers = {
                "Content-Type": stored.content_type,
                "X-Goog-Generation": str(stored.generation),
                "X-Goog-Hash": f"crc32c={_checksum(stored.data)}",
                "Last-Modified": "Thu, 01 Jan 1970 00:00:00 GMT",
            }
            asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if asked is None:
                return self.answer(200, stored.data, headers)
            size = len(stored.data)
            first, last = asked.groups()
            start = int(first) if first else max(size - int(last), 0)
            stop = min(int(last) + 1, size) if first and last else size
            if start >= size:
                raise _Refused(416)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            return self.answer(206, stored.data[start:stop], headers)

        def _upload(self, bucket: str, name: str, query: dict[str, str], body: bytes) -> None:
            if "upload_id" in query:
                return self._continue(query["upload_id"], body)
            kind = query["uploadType"]
            if kind == "resumable":
                name = name or json.loads(body)["name"]
                self._check(bucket, name, query)
                key = uuid.uuid4().hex
                emulator.uploads[key] = (bucket, name, query, bytearray())
                address = f"{emulator.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={key}"
                return self.answer(200, b"", {"Location": address})
            content_type = self.headers.get("Content-Type", "application/octet-stream")
            if kind == "multipart":
                boundary = re.search(r'boundary="?([^";]+)', content_type).group(1).encode()
                head, rest = body.split(b"--" + boundary, 2)[1:]
                name = json.loads(re.split(rb"\r?\n\r?\n", head, maxsplit=1)[1])["name"]
                fields, body = re.split(rb"\r?\n\r?\n", rest, maxsplit=1)
                body = re.sub(rb"\r?\n\Z", b"", body.rpartition(b"--" + boundary)[0])
                content_type = re.search(rb"(?i)content-type: *(\S+)", fields).group(1).decode()
            self._write(bucket, name, query, body, content_type)

        def _continue(self, key: str, body: bytes) -> None:
            bucket, name, query, data = emulator.uploads[key]
            if self.command == "DELETE":
                del emulator.uploads[key]
                return self.answer(499)
            first, total = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", self.headers["Content-Range"]).groups()
            data[int(first) :] = body
            if total == "*" or len(data) < int(total):
                return self.answer(308, b"", {"Range": f"bytes=0-{len(data) - 1}"})
            return self._write(bucket, name, query, bytes(data))

        def _write(self, bucket: str, name: str, query: Mapping[str, str], data: bytes, *content_type: str) -> None:
            """Of writers that expect the same generation, one succeeds."""
            with emulator.lock:
                self._check(bucket, name, query)
                stored = emulator.write(bucket, name, data, *content_type)
            self.answer_json(_resource(bucket, name, stored))

    return Handler


def _listing(emulator: Emulator, bucket: str, query: Mapping[str, str]) -> dict[str, object]:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    with emulator.lock:
        found = sorted((name, s) for name, s in emulator.buckets[bucket].items() if name.startswith(prefix))
    items, prefixes = [], set()
    for name, stored in found:
        rest = name[len(prefix) :]
        if delimiter and delimiter in rest:
            prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
        elif query.get("startOffset", "") <= name and (name < query.get("endOffset", "\U0010ffff")):
            items.append(_resource(bucket, name, stored))
    start = int(query.get("pageToken", 0))
    size = min(int(query.get("maxResults", _PAGE)), _PAGE)
    out: dict[str, object] = {"kind": "storage#objects", "items": items[start : start + size]}
    if prefixes and not start:
        out["prefixes"] = sorted(prefixes)
    if start + size < len(items):
        out["nextPageToken"] = str(start + size)
    return out
