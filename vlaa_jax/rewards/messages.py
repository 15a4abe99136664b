"""Messages between the math pool and its workers: a JSON object after its length (4 bytes, big endian)."""

import json
import os
from typing import Any


def send(descriptor: int, message: dict[str, Any]) -> None:
    """Writes one message."""
    body = json.dumps(message).encode()
    data = len(body).to_bytes(4, "big") + body
    while data:
        data = data[os.write(descriptor, data) :]


def receive(descriptor: int) -> dict[str, Any] | None:
    """Reads one message; None at the end of the stream."""
    header = _read_exactly(descriptor, 4)
    body = header and _read_exactly(descriptor, int.from_bytes(header, "big"))
    return json.loads(body) if body else None


def _read_exactly(descriptor: int, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        part = os.read(descriptor, count - len(data))
        if not part:
            return None
        data += part
    return data
