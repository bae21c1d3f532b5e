"""Questions to `POST /get-online-features` and their answers, for online_load.py; and a trivial server."""

import json
import multiprocessing
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

PATH = "/get-online-features"
#: A request that has no answer by then has failed, and ends the measurement.
TIMEOUT_S = 30.0
RECEIVE_BYTES = 1 << 18


class BadAnswer(RuntimeError):
    """The server did not answer as it must."""


class Client:
    """One connection, kept alive, with at most one request on its way."""

    def __init__(self, host: str, port: int) -> None:
        """Connects."""
        self.socket = socket.create_connection((host, port), timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due_s = 0.0
        self.reset()

    def fileno(self) -> int:
        """For `select`."""
        return self.socket.fileno()

    def reset(self) -> None:
        """Forgets the last answer."""
        self.parts: list[bytes] = []
        self.missing: int | None = None
        self.chunked = False

    def send(self, request: bytes, due_s: float) -> None:
        """Sends a request. It is small, and nothing is on its way: it fits into the socket."""
        self.due_s = due_s
        self.reset()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Takes what is there; whether the answer is complete."""
        piece = self.socket.recv(RECEIVE_BYTES)
        if not piece:
            raise BadAnswer("the server closed the connection")
        self.parts.append(piece)
        if self.missing is None and not self.chunked:
            return self.head()
        if self.chunked:
            return self.tail().endswith(b"\r\n0\r\n\r\n")
        self.missing -= len(piece)
        return self.missing == 0

    def head(self) -> bool:
        """Reads the head once it is there; whether the answer is complete with it."""
        got = b"".join(self.parts)
        self.parts = [got]
        end = got.find(b"\r\n\r\n")
        if end < 0:
            return False
        if got[9:12] != b"200":
            raise BadAnswer(got[:500].decode(errors="replace"))
        head = got[:end].lower()
        at = head.find(b"\r\ncontent-length:")
        if at < 0:
            self.chunked = b"\r\ntransfer-encoding: chunked" in head
            if not self.chunked:
                raise BadAnswer("an answer of unknown length")
            return self.tail().endswith(b"\r\n0\r\n\r\n")
        line_end = head.find(b"\r\n", at + 2)
        length = int(head[at + 17 : line_end if line_end > 0 else None])
        self.missing = length - (len(got) - end - 4)
        return self.missing == 0

    def tail(self) -> bytes:
        """The last bytes so far."""
        return b"".join(self.parts[-8:])[-16:]

    def body(self) -> bytes:
        """The body of the answer that was received last."""
        body = b"".join(self.parts).split(b"\r\n\r\n", 1)[1]
        if not self.chunked:
            return body
        whole = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            whole += body[: int(size, 16)]
            body = body[int(size, 16) + 2 :]
        return whole


def request_bytes(host: str, port: int, body: dict) -> bytes:
    """The request as it goes over the wire."""
    text = json.dumps(body, separators=(",", ":")).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}:{port}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    return head.encode() + text


def check(body: dict, answer: bytes) -> int:
    """How many features of the answer were present.

    Raises:
        BadAnswer: It does not belong to the request.
    """
    said = json.loads(answer)
    names, results = said["metadata"]["feature_names"], said["results"]
    ((join_key, entities),) = body["entities"].items()
    wanted = {join_key, *(feature.split(":")[-1] for feature in body["features"])}
    if set(names) != wanted or len(names) != len(wanted) or len(results) != len(names):
        raise BadAnswer(f"asked for {sorted(wanted)}, was told {names}")
    present = 0
    for name, result in zip(names, results, strict=True):
        if not len(result["values"]) == len(result["statuses"]) == len(entities):
            raise BadAnswer(f"{len(entities)} entities, but not as many answers of {name}")
        if name == join_key and result["values"] != entities:
            raise BadAnswer("the entities came back in another order")
        present += name != join_key and sum(value is not None for value in result["values"])
    return present


def canned(body: dict) -> bytes:
    """An answer of the usual size."""
    ((join_key, entities),) = body["entities"].items()
    names = [feature.split(":")[-1] for feature in body["features"]]
    column = {
        "values": [123456789.125] * len(entities),
        "statuses": ["PRESENT"] * len(entities),
        "event_timestamps": ["2026-03-31T00:24:38.572255Z"] * len(entities),
    }
    said = {
        "results": [{**column, "values": entities}, *([column] * len(names))],
        "metadata": {"feature_names": [join_key, *names]},
    }
    text = json.dumps(said, separators=(",", ":")).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(text) + text


def answer_at_once(listener: socket.socket) -> None:
    """Answers every request with what was the answer to the first of its length and entities."""
    answers: dict[bytes, bytes] = {}
    poll, clients = select.epoll(), {}
    poll.register(listener, select.EPOLLIN)
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()] = client
                poll.register(client, select.EPOLLIN)
                continue
            request = clients[number].recv(RECEIVE_BYTES)
            if not request:
                poll.unregister(number)
                clients.pop(number).close()
                continue
            if request not in answers:
                answers[request] = canned(json.loads(request.split(b"\r\n\r\n", 1)[1]))
            clients[number].sendall(answers[request])


@contextmanager
def trivial_server() -> Iterator[str]:
    """A server in a process of its own that does nothing; its URL."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        server = multiprocessing.Process(target=answer_at_once, args=(listener,), daemon=True)
        server.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.terminate()
