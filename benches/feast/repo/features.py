"""One entity, and two views of floats: `user_5` and `user_50`, each over a file of make_data.py.

`FEAST_BENCH_DIR` is the folder with `5/wide.parquet` and `50/wide.parquet`; a view whose file is missing
is left out. `FEAST_BENCH_TTL_S` is the maximum age in seconds (0, the default: none).
"""

import os
from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

DATA = Path(os.environ["FEAST_BENCH_DIR"])
TTL = timedelta(seconds=int(os.environ.get("FEAST_BENCH_TTL_S", "0")))

user = Entity(name="user", join_keys=["entity_id"], value_type=ValueType.STRING)


def view(features: int) -> FeatureView:
    """The view with that many features."""
    source = FileSource(
        name=f"wide_{features}",
        path=str(DATA / str(features) / "wide.parquet"),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_at",
    )
    return FeatureView(
        name=f"user_{features}",
        entities=[user],
        ttl=TTL,
        schema=[Field(name=f"f{n}", dtype=Float64) for n in range(features)],
        source=source,
    )


# Feast finds objects by the names of the module.
for _features in (5, 50):
    if (DATA / str(_features) / "wide.parquet").exists():
        globals()[f"user_{_features}"] = view(_features)
