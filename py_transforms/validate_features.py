"""Stream `features`: events that already are features pass through, one row for each event.

The node has decoded and validated every event (types, required fields, times within bounds,
finite values) before it calls this script, so nothing is filtered here: columns are renamed
and blanks around feature names are cut off.
"""

import polars as pl

_COLUMNS = [
    pl.col("_row"),
    pl.col("entity_id"),
    pl.col("feature_name").str.strip_chars(),
    pl.col("value"),
    pl.col("validated_at").alias("event_timestamp"),
    pl.col("created_at"),
]


def transform(batch: pl.DataFrame) -> pl.DataFrame:
    """One row out for each row in, in the same order.

    Args:
        batch: `_row`, `entity_id`, `feature_name`, `value` (may be NULL), `validated_at` and
            `created_at` (may be NULL; times in UTC, microseconds).

    Returns:
        `_row`, `entity_id`, `feature_name` (trimmed), `value`, `event_timestamp` (when the
        producer validated the value) and `created_at` (NULL: the node takes the record's time).
    """
    return batch.select(_COLUMNS)
