"""Stream `flights`: one scheduled flight becomes delay features of its aircraft and its carrier.

| feature             | value                                | known at                             |
|---------------------|--------------------------------------|--------------------------------------|
| `dep_delay_minutes` | actual minus scheduled departure     | the actual departure                 |
| `arr_delay_minutes` | actual minus scheduled arrival       | the actual arrival                   |
| `cancelled`         | 1 when the flight never left, else 0 | the actual or the scheduled departure |

Each is written twice: for the aircraft (entity: its tail number) and, named `carrier_…`, for
the carrier (entity: `carrier:UA`). A flight that has no such delay has no such row: a cancelled
one has only `cancelled`, one that was diverted has no `arr_delay_minutes`. No flight is filtered.

Every value is stamped with the moment at which it became known, so that a training set read
as of a departure never sees the delay of that flight's arrival.
"""

import polars as pl

_DEPARTED_AT = pl.col("scheduled_at") + pl.duration(minutes="dep_delay")

#: Feature name → (value, when it became known); a row is made where that moment is not NULL.
_FEATURES = {
    "cancelled": (
        pl.col("dep_delay").is_null().cast(pl.Float64),
        pl.coalesce(_DEPARTED_AT, "scheduled_at"),
    ),
    "dep_delay_minutes": (pl.col("dep_delay").cast(pl.Float64), _DEPARTED_AT),
    "arr_delay_minutes": (
        pl.col("arr_delay").cast(pl.Float64),
        pl.when(pl.col("arr_delay").is_not_null()).then("arrived_at"),
    ),
}
#: Prefix of the feature name → the entity.
_ENTITIES = {
    "": pl.col("tailnum"),
    "carrier_": pl.concat_str(pl.lit("carrier:"), "carrier"),
}


def transform(batch: pl.DataFrame) -> pl.DataFrame:
    """Two to six rows out for each flight, sorted by `_row`.

    Args:
        batch: `_row`, `tailnum`, `carrier`, `scheduled_at` (UTC), and what may be NULL:
            `arrived_at` (UTC), `dep_delay` and `arr_delay` (minutes; negative is early).

    Returns:
        `_row`, `entity_id`, `feature_name`, `value`, `event_timestamp`.
    """
    parts = [
        batch.select(
            "_row",
            entity_id=entity,
            feature_name=pl.lit(prefix + name),
            value=value,
            event_timestamp=known_at,
        ).filter(pl.col("event_timestamp").is_not_null())
        for prefix, entity in _ENTITIES.items()
        for name, (value, known_at) in _FEATURES.items()
    ]
    return pl.concat(parts).sort("_row", maintain_order=True)
