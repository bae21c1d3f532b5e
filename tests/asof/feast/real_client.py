"""Reads a server's `POST /get-online-features`, or a recorded reply, with Feast's own client.

Usage: $(benches/feast/venv.sh) real_client.py (--url URL | --replies FILE)
           [--view stats --features score,… --join-key entity_id --entities a,b,…]

Runs with Feast's environment. With --url the client (`RemoteOnlineStore`) asks that server, both ways:
`get_online_features`, which a user's `FeatureStore.get_online_features` comes to, and `online_read`. With
--replies a fixture of this folder is read by the same code, each exchange. Prints one JSON object a
reply: `to_dict`, `statuses`, and for a URL `online_read` (entity → timestamp and the values it kept).
"""

import argparse
import json
import sys
from pathlib import Path

from feast import Entity, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.infra.online_stores.remote import RemoteOnlineStore
from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type
from feast.types import Float64


def told(response: OnlineResponse) -> dict:
    """What a user of the client sees."""
    names = response.proto.metadata.feature_names.val
    statuses = [[FieldStatus.Name(s) for s in r.statuses] for r in response.proto.results]
    return {"to_dict": response.to_dict(), "statuses": dict(zip(names, statuses, strict=True))}


def ask(args: argparse.Namespace) -> dict:
    """Asks a server both ways."""
    config = RepoConfig(
        project="client",
        provider="local",
        registry="unused.db",
        online_store={"type": "remote", "path": args.url},
        entity_key_serialization_version=3,
    )
    store = RemoteOnlineStore()
    features = [f"{args.view}:{name}" for name in args.features]
    response = store.get_online_features(
        config, features, {args.join_key: args.entities}, None, "client"
    )
    view = FeatureView(
        name=args.view,
        entities=[Entity(name="e", join_keys=[args.join_key], value_type=ValueType.STRING)],
        schema=[Field(name=name, dtype=Float64) for name in args.features],
        source=FileSource(path="unused.parquet", timestamp_field="event_timestamp"),
    )
    keys = [
        EntityKey(join_keys=[args.join_key], entity_values=[Value(string_val=entity)])
        for entity in args.entities
    ]
    rows = store.online_read(config, view, keys, args.features)
    read = [
        [at and at.isoformat(), {n: feast_value_type_to_python_type(v) for n, v in row.items()}]
        for at, row in rows
    ]
    return {**told(response), "online_read": read}


def main() -> int:
    """Prints what the client makes of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url")
    where.add_argument("--replies", type=Path)
    parser.add_argument("--view", default="stats")
    parser.add_argument("--features", type=lambda text: text.split(","), default=["score"])
    parser.add_argument("--join-key", default="entity_id")
    parser.add_argument("--entities", type=lambda text: text.split(","), default=["whole"])
    args = parser.parse_args()
    if args.url:
        print(json.dumps(ask(args), ensure_ascii=False))
        return 0
    for exchange in json.loads(args.replies.read_text()):
        if exchange["response"]["status"] == 200:
            reply = exchange["response"]["body"]
            response = RemoteOnlineStore()._build_online_response_from_json(reply)
            print(json.dumps({"what": exchange["what"], **told(response)}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
