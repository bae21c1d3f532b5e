"""What is right over make_data.py's history, at full size: the rules once more, in the words of polars.

check.py asks the oracle, which takes minutes for ten million values; this takes seconds. The two are held
against each other whenever the oracle is asked.
"""

import polars as pl

ASKED = ["entity_id", "event_timestamp", "label"]


def right_answers(
    wide: pl.DataFrame, spine: pl.DataFrame, names: list[str], as_known: bool
) -> pl.DataFrame:
    """The questions in their order, and for each feature value, status and event timestamp.

    Args:
        wide: The history, a row an observation.
        spine: The questions.
        names: The features.
        as_known: Whether a row is seen from `created_at` on, if that is later than its event.
    """
    seen = pl.col("event_timestamp")
    if as_known:
        seen = pl.max_horizontal(seen, "created_at")
    # The greater version wins: numbered once over all entities.
    versions = wide.sort("event_timestamp", "created_at").with_row_index("version")
    history = (
        versions.select("entity_id", "version", seen.alias("seen"))
        .sort("seen", "version")
        .with_columns(pl.col("version").cum_max().over("entity_id"))
        .unique(["entity_id", "seen"], keep="last", maintain_order=True)
    )
    answers = (
        spine.select(ASKED)
        .with_row_index("question")
        .sort("event_timestamp")
        .join_asof(
            history,
            left_on="event_timestamp",
            right_on="seen",
            by="entity_id",
            strategy="backward",
            check_sortedness=False,
        )
        .join(
            versions.select("version", pl.col("event_timestamp").alias("at"), *names),
            on="version",
            how="left",
        )
        .sort("question")
    )
    cells = []
    for name in names:
        status = (
            pl.when(pl.col("version").is_null())
            .then(pl.lit("NOT_FOUND"))
            .when(pl.col(name).is_null())
            .then(pl.lit("NULL_VALUE"))
            .otherwise(pl.lit("PRESENT"))
        )
        at = pl.col("at").alias(f"{name}__event_timestamp")
        cells += [pl.col(name), status.alias(f"{name}__status"), at]
    return answers.select(*ASKED, *cells)


def compare(got: pl.DataFrame, right: pl.DataFrame) -> dict:
    """`wrong_rows` of what was read, by the columns that it has, and whether it is `in_order`."""
    columns = [name for name in right.columns if name in got.columns]
    as_us = pl.selectors.datetime().dt.epoch("us")
    got, right = got.select(columns).with_columns(as_us), right.select(columns).with_columns(as_us)
    if got.height != right.height:
        return {"rows": got.height, "wrong_rows": abs(got.height - right.height), "in_order": False}
    in_order = got.select(ASKED).equals(right.select(ASKED))
    if not in_order:
        got, right = got.sort(ASKED), right.sort(ASKED)
    same = pl.all_horizontal(got[name].eq_missing(right[name]) for name in columns)
    wrong = pl.select((~same).sum()).item()
    return {"rows": got.height, "wrong_rows": wrong, "in_order": in_order}
