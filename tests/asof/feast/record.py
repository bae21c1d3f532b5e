"""Records what Feast's own client and feature server say to each other, as the fixtures of this folder.

Usage: $(benches/feast/venv.sh) tests/asof/feast/record.py [--out DIR]

Runs with Feast's environment and needs a redis-server. For each online store a small repository is
made, filled, and served by `feast serve`. Feast's client (online store `remote`) asks it through a proxy that
writes down both sides with their headers; what no client of Feast would send is sent by hand. A fixture
is a list of exchanges: `what`, `request` and `response` (`headers` as lists of pairs in their order, `body`
as JSON, or `text` where it is none), and, where Feast's client has asked, how often it did (`attempts`) and
what it made of it (`client_says`): its `to_dict` and the statuses by name, or its `error`.
"""

import argparse
import http.client
import json
import os
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[3] / "benches" / "feast"))
from children import feast, feast_server, redis_server

FEATURES = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Bool, Float64, Int64, String

user = Entity(name="user", join_keys=["entity_id"], value_type=ValueType.STRING)
fields = {"score": Float64, "clicks": Int64, "city": String, "vip": Bool}
source = FileSource(
    name="wide", path="wide.parquet",
    timestamp_field="event_timestamp", created_timestamp_column="created_at",
)
stats = FeatureView(
    name="stats", entities=[user], ttl=timedelta(days=365 * 20), source=source,
    schema=[Field(name=name, dtype=dtype) for name, dtype in fields.items()],
)
stale = FeatureView(
    name="stale", entities=[user], ttl=timedelta(days=1), source=source,
    schema=[Field(name="score", dtype=Float64)],
)
at_once = FeatureService(name="at_once", features=[stale], precompute_online=True)
"""
#: Entity, score, clicks, city, vip, event timestamp.
DATA = [
    ("whole", 1.0, 1, "Oslo", True, "2026-01-01T12:00:00Z"),
    ("milli", 0.1, -2, "", False, "2026-01-01T12:00:00.500Z"),
    ("micro", 1e22, 2**53 + 1, 'Zürich "x"', True, "2026-01-01T12:00:00.123456Z"),
    ("tiny", 5e-324, 0, "\u2028", True, "2026-01-01T12:00:00.000001Z"),
    ("minus", -0.0, 0, "x", True, "1999-12-31T23:59:59Z"),
    ("empty", None, None, None, None, "2026-01-01T12:00:00Z"),
    ("nan", float("nan"), 3, "Bonn", True, "2026-01-01T12:00:00Z"),
]
ENTITIES = ["whole", "milli", "micro", "tiny", "minus", "empty", "nan", "nobody", "whole"]


def repository(folder: Path, online_store: str) -> None:
    """Writes a repository with its data."""
    folder.mkdir(parents=True)
    (folder / "feature_store.yaml").write_text(
        "project: recorded\nprovider: local\nregistry: registry.db\n"
        "entity_key_serialization_version: 3\noffline_store:\n  type: duckdb\n"
        f"online_store:\n{online_store}"
    )
    (folder / "features.py").write_text(FEATURES)
    columns = ["entity_id", "score", "clicks", "city", "vip", "event_timestamp"]
    frame = pd.DataFrame(DATA, columns=columns)
    at = pd.to_datetime(frame["event_timestamp"], format="ISO8601").astype("datetime64[us, UTC]")
    frame = frame.assign(
        event_timestamp=at,
        created_at=at,
        clicks=frame["clicks"].astype("Int64"),
        vip=frame["vip"].astype("boolean"),
    )
    frame.to_parquet(folder / "wide.parquet")


@contextmanager
def proxy(upstream: str):
    """Forwards to a server and writes down; its URL, and the list of what was said."""
    said: list[dict] = []

    class Forward(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["content-length"]))
            connection = http.client.HTTPConnection(upstream)
            connection.request("POST", self.path, sent, dict(self.headers))
            answer = connection.getresponse()
            body = answer.read()
            said.append(
                {
                    "request": {
                        "method": "POST",
                        "path": self.path,
                        "headers": [list(pair) for pair in self.headers.items()],
                        **content(sent),
                    },
                    "response": {
                        "status": answer.status,
                        "headers": [list(pair) for pair in answer.getheaders()],
                        **content(body),
                    },
                }
            )
            self.send_response(answer.status)
            self.send_header("content-type", answer.getheader("content-type"))
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", said
    finally:
        server.shutdown()


def content(body: bytes) -> dict:
    """A body as JSON, else as text."""
    try:
        return {"body": json.loads(body)}
    except ValueError:
        return {"text": body.decode()}


class Recorder:
    """Asks, and keeps what was said."""

    def __init__(self, url: str, said: list[dict], folder: Path) -> None:
        """`folder` gets a repository whose online store is the server at `url`."""
        from feast import FeatureStore

        repository(folder, f"  type: remote\n  path: {url}\n")
        feast(folder, "apply", "--skip-source-validation")
        self.store, self.url, self.said = FeatureStore(repo_path=str(folder)), url, said
        self.kept: list[dict] = []

    def client(self, what: str, features: object, entities: list, **options: object) -> None:
        """An exchange by Feast's client."""
        from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

        self.said.clear()
        if isinstance(features, str):
            features = self.store.get_feature_service(features)
        rows = [{"entity_id": entity} for entity in entities]
        error, response = None, None
        try:
            response = self.store.get_online_features(features, rows, **options)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        says: dict = {"error": error}
        if response is not None:
            proto = response.proto
            names = list(proto.metadata.feature_names.val)
            statuses = [[FieldStatus.Name(s) for s in r.statuses] for r in proto.results]
            says = {
                "to_dict": response.to_dict(include_event_timestamps=True),
                "statuses": dict(zip(names, statuses, strict=True)),
            }
        # The client asks again after a 500, as often as its `connection_retries` say.
        self.kept.append(
            {"what": what, **self.said[0], "attempts": len(self.said), "client_says": says}
        )

    def by_hand(self, what: str, body: str, content_type: str = "application/json") -> None:
        """An exchange that Feast's client would not begin."""
        self.said.clear()
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"))
        headers = {"Content-Type": content_type} if content_type else {}
        connection.request("POST", "/get-online-features", body.encode(), headers)
        connection.getresponse().read()
        self.kept.append({"what": what, **self.said[0]})

    def write(self, path: Path) -> None:
        """Writes what was kept, and forgets it."""
        path.write_text(json.dumps(self.kept, ensure_ascii=False, indent=1) + "\n")
        self.kept = []


def ordinary(recorder: Recorder) -> None:
    """Values of all kinds."""
    stats = ["stats:score", "stats:clicks", "stats:city", "stats:vip"]
    recorder.client("values, a NULL, an entity that is not there, one asked twice", stats, ENTITIES)
    recorder.client("a value that is older than the ttl of its view", ["stale:score"], ENTITIES[:2])
    recorder.client(
        "full names", [*stats[:2], "stale:score"], ENTITIES[:1], full_feature_names=True
    )


def refused(recorder: Recorder) -> None:
    """Requests that are errors."""
    one = '"entities":{"entity_id":["whole"]}'
    score = '"features":["stats:score"]'
    recorder.client("a view that is not there", ["nope:score"], ENTITIES[:1])
    recorder.client("a feature that is not there", ["stats:nope"], ENTITIES[:1])
    recorder.client("a feature without its view", ["score"], ENTITIES[:1])
    recorder.client("one name of two views", ["stats:score", "stale:score"], ENTITIES[:1])
    recorder.client("a NULL entity", ["stats:score"], ["whole", None])
    recorder.by_hand("a service that is not there", f'{{"feature_service":"nope",{one}}}')
    recorder.by_hand("no features", f'{{"features":[],{one}}}')
    recorder.by_hand("no entities", f'{{{score},"entities":{{"entity_id":[]}}}}')
    recorder.by_hand("the key `entities` is missing", f"{{{score}}}")
    recorder.by_hand("not JSON", f"{{{score},{one}")
    recorder.by_hand("no content type", f"{{{score},{one}}}", "")
    recorder.by_hand("a key that is not known is ignored", f'{{{score},{one},"more":1}}')
    recorder.by_hand("a number for a string", f'{{{score},"entities":{{"entity_id":[1]}}}}')


def main() -> int:
    """Records everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    os.environ["FEAST_USAGE"] = "False"
    with tempfile.TemporaryDirectory(prefix="feast-record.") as name, ExitStack() as outer:
        work = Path(name)
        redis = outer.enter_context(redis_server(work))
        stores = {
            "redis": f'  type: redis\n  connection_string: "{redis},db=0"\n',
            "sqlite": "  type: sqlite\n  path: online.db\n",
        }
        for kind, text in stores.items():
            served = work / kind
            repository(served, text)
            feast(served, "apply")
            feast(served, "materialize", "1990-01-01T00:00:00", "2040-01-01T00:00:00")
            with ExitStack() as stack:
                upstream = stack.enter_context(feast_server(served, work / f"{kind}.log"))
                url, said = stack.enter_context(proxy(upstream))
                recorder = Recorder(url, said, work / f"{kind}-client")
                ordinary(recorder)
                recorder.write(args.out / f"{kind}.json")
                if kind == "redis":
                    for what, full in (("by short names", False), ("by full names", True)):
                        recorder.client(
                            f"a service whose vectors are made beforehand, {what}",
                            "at_once",
                            ENTITIES[:2],
                            full_feature_names=full,
                        )
                    recorder.client(
                        "the same, of an entity that is not there", "at_once", ["nobody"]
                    )
                    recorder.write(args.out / "precomputed.json")
                    refused(recorder)
                    recorder.write(args.out / "errors.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
