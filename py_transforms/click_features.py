"""Stream `clicks`: raw user events become features of the user (batch style, polars).

| action      | rows                                                                       |
|-------------|----------------------------------------------------------------------------|
| view        | `clicks_dwell_seconds` = `duration_ms` / 1000, NULL when there is no duration |
| click       | `clicks_click` = 1                                                         |
| add_to_cart | `clicks_add_to_cart` = 1                                                   |
| purchase    | `clicks_purchase` = 1, then `purchase_amount` = `amount` (may be NULL)     |
| scroll      | none: filtered                                                             |
| any other   | none: filtered                                                             |

A pure function of its rows. `click_features_by_event.py` is the same in the one-event style.
"""

import polars as pl

#: The first feature that an action yields. Actions that are not here yield none.
FEATURE_OF_ACTION = {
    "view": "clicks_dwell_seconds",
    "click": "clicks_click",
    "add_to_cart": "clicks_add_to_cart",
    "purchase": "clicks_purchase",
}
MS_PER_SECOND = 1000.0

_ENTITY = pl.col("user_id").cast(pl.String).alias("entity_id")
_EVENT_TIMESTAMP = pl.col("timestamp").alias("event_timestamp")


def transform(batch: pl.DataFrame) -> pl.DataFrame:
    """Zero, one or two rows out for each event, sorted by `_row`.

    Args:
        batch: `_row`, `user_id`, `action`, `timestamp` (UTC, microseconds), and what may be
            NULL: `page`, `duration_ms` (milliseconds) and `amount` (money, in the shop's unit).

    Returns:
        `_row`, `entity_id` (the user id as text), `feature_name`, `value`, `event_timestamp`.
        `created_at` is left to the node.
    """
    is_view = pl.col("action") == "view"
    # polars may multiply by 1 / 1000 where it should divide, which is off by the last bit now and
    # then, and depends on the size of the batch. Rounded to milliseconds the value is exact.
    dwell_seconds = (pl.col("duration_ms").cast(pl.Float64) / MS_PER_SECOND).round(3)
    first = batch.filter(pl.col("action").is_in(list(FEATURE_OF_ACTION))).select(
        "_row",
        _ENTITY,
        pl.col("action")
        .replace_strict(FEATURE_OF_ACTION, return_dtype=pl.String)
        .alias("feature_name"),
        pl.when(is_view).then(dwell_seconds).otherwise(1.0).alias("value"),
        _EVENT_TIMESTAMP,
    )
    amounts = batch.filter(pl.col("action") == "purchase").select(
        "_row",
        _ENTITY,
        pl.lit("purchase_amount").alias("feature_name"),
        pl.col("amount").alias("value"),
        _EVENT_TIMESTAMP,
    )
    # A stable sort keeps `clicks_purchase` before `purchase_amount` of the same event.
    return pl.concat([first, amounts]).sort("_row", maintain_order=True)
