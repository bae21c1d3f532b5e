"""Questions to `FeatureService/GetOnlineFeatures` and their answers, for online_load.py.

What gRPC says over a connection is little: a request is a frame of headers, always the same, and one of
data; an answer is headers, data, and headers that end it. That is written and read here by hand, since a
library in Python costs several times what the server does. One question is on its way at a time, as in
online_http.py, so that both interfaces are measured alike.
"""

import socket
import struct

from online_http import RECEIVE_BYTES, TIMEOUT_S, BadAnswer

PATH = "/millstream.v1.FeatureService/GetOnlineFeatures"

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
#: Answers are not held up by windows: one is given of this size, and again when half of it is used.
WINDOW_BYTES = (1 << 31) - 1
FIRST_WINDOW_BYTES = 65_535
PRESENT = 1


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(host: str, port: int) -> bytes:
    """The headers of every request, none of them for the table of the connection."""

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()

    post, http = b"\x83", b"\x86"
    path, authority, content_type = b"\x04", b"\x01", b"\x0f\x10"
    named = path + text(PATH) + authority + text(f"{host}:{port}")
    named += content_type + text("application/grpc")
    return post + http + named + b"\x00" + text("te") + text("trailers")


def varint(value: int) -> bytes:
    """A number as Protocol Buffers write it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(body: dict) -> bytes:
    """The question that a body of Feast's asks, with gRPC's prefix."""
    (entities,) = body["entities"].values()
    fields = [(1, text) for text in entities] + [(2, text) for text in body["features"]]
    out = b"".join(
        bytes([number << 3 | 2]) + varint(len(text)) + text
        for number, text in ((number, text.encode()) for number, text in fields)
    )
    return struct.pack(">BI", 0, len(out)) + out


def request_bytes(host: str, port: int, body: dict) -> tuple[bytes, bytes]:
    """What the two frames of a request hold."""
    return headers(host, port), message(body)


def fields(text: bytes) -> list[tuple[int, int | bytes]]:
    """The fields of a message of Protocol Buffers; a double is eight bytes."""

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = text[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    found, at = [], 0
    while at < len(text):
        key = number()
        if key & 7 == 0:
            found.append((key >> 3, number()))
            continue
        size = {1: 8, 2: None, 5: 4}[key & 7]
        size = number() if size is None else size
        found.append((key >> 3, text[at : at + size]))
        at += size
    return found


def check(body: dict, answer: bytes) -> int:
    """How many features of the answer were present.

    Raises:
        BadAnswer: It does not belong to the request.
    """
    (entities,) = body["entities"].values()
    told = [fields(feature) for number, feature in fields(answer) if number == 1]
    names = [feature[0][1].decode() for feature in told]
    if names != [feature.split(":")[-1] for feature in body["features"]]:
        raise BadAnswer(f"asked for {body['features']}, was told {names}")
    present = 0
    for feature in told:
        values = [dict(fields(value)) for number, value in feature if number == 2]
        if len(values) != len(entities):
            raise BadAnswer(f"{len(entities)} entities, but {len(values)} answers")
        if not all((value.get(2) == PRESENT) == (1 in value) for value in values):
            raise BadAnswer("a value without its status, or the other way round")
        present += sum(1 in value for value in values)
    return present


class Client:
    """One connection with at most one request on its way."""

    def __init__(self, host: str, port: int) -> None:
        """Connects, and waits until the server has said how it wants to be spoken to."""
        self.socket = socket.create_connection((host, port), timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due_s = 0.0
        self.stream = -1
        self.may_send, self.may_receive = FIRST_WINDOW_BYTES, FIRST_WINDOW_BYTES
        self.buffer = bytearray()
        self.parts: list[bytes] = []
        # No table of headers, no pushes, the greatest window for each answer.
        settings = struct.pack(">HIHIHI", 1, 0, 2, 0, 4, WINDOW_BYTES)
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings)
        self.socket.sendall(preface + self.widen())
        self.settled = False
        while not self.settled:
            self.receive()

    def fileno(self) -> int:
        """For `select`."""
        return self.socket.fileno()

    def widen(self) -> bytes:
        """Gives the connection its whole window again."""
        more, self.may_receive = WINDOW_BYTES - self.may_receive, WINDOW_BYTES
        return frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", more))

    def send(self, request: tuple[bytes, bytes], due_s: float) -> None:
        """Sends a request. It is small, and nothing is on its way: it fits into the socket."""
        self.due_s = due_s
        self.parts = []
        self.stream += 2
        head, data = request
        self.may_send -= len(data)
        if self.may_send < 0:
            raise BadAnswer("the server takes no more data on this connection")
        out = frame(HEADERS, END_HEADERS, self.stream, head)
        out += frame(DATA, END_STREAM, self.stream, data)
        if self.may_receive < WINDOW_BYTES // 2:
            out += self.widen()
        self.socket.sendall(out)

    def receive(self) -> bool:
        """Takes what is there; whether the answer is complete."""
        piece = self.socket.recv(RECEIVE_BYTES)
        if not piece:
            raise BadAnswer("the server closed the connection")
        buffer = self.buffer
        buffer += piece
        at, complete = 0, False
        while len(buffer) - at >= 9:
            size = int.from_bytes(buffer[at : at + 3])
            if len(buffer) - at - 9 < size:
                break
            kind, flags, stream = struct.unpack_from(">BBI", buffer, at + 3)
            complete |= self.take(kind, flags, stream, bytes(buffer[at + 9 : at + 9 + size]))
            at += 9 + size
        del buffer[:at]
        return complete

    def take(self, kind: int, flags: int, stream: int, payload: bytes) -> bool:
        """Takes a frame; whether the answer is complete with it."""
        if kind == DATA:
            self.parts.append(payload)
            self.may_receive -= len(payload)
        elif kind == WINDOW_UPDATE and stream == 0:
            self.may_send += int.from_bytes(payload)
        elif kind == SETTINGS and not flags & ACK:
            self.settled = True
            self.socket.sendall(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self.socket.sendall(frame(PING, ACK, 0, payload))
        elif kind in (RST_STREAM, GOAWAY):
            raise BadAnswer(f"the server ends it: {payload[-200:]!r}")
        if not (kind in (DATA, HEADERS) and flags & END_STREAM):
            return False
        # An error has no message: what it says is packed into the headers.
        whole = sum(map(len, self.parts))
        if whole < 5 or int.from_bytes(self.parts[0][1:5]) != whole - 5:
            raise BadAnswer(f"an error, or half an answer: {payload[:200]!r}")
        return True

    def body(self) -> bytes:
        """The message of the answer that was received last."""
        return b"".join(self.parts)[5:]
