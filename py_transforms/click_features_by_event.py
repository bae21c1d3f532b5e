"""Stream `clicks`: raw user events become features of the user (one-event style, no packages).

The same rows as `click_features.py`, whose table says what each action yields. This style is
easier to write and calls Python once for each event; the batch style is many times faster.
"""

MS_PER_SECOND = 1000.0


def transform(event: dict) -> list[dict] | dict | None:
    """The feature rows of one event.

    Args:
        event: `user_id`, `action`, `timestamp` (a datetime in UTC), and what may be None:
            `page`, `duration_ms` (milliseconds) and `amount`.

    Returns:
        One row, a list of rows, or None when the event yields nothing (filtered).
    """
    match event["action"]:
        case "view":
            duration_ms = event["duration_ms"]
            seconds = None if duration_ms is None else float(duration_ms) / MS_PER_SECOND
            return _row(event, "clicks_dwell_seconds", seconds)
        case "click":
            return _row(event, "clicks_click", 1.0)
        case "add_to_cart":
            return _row(event, "clicks_add_to_cart", 1.0)
        case "purchase":
            return [
                _row(event, "clicks_purchase", 1.0),
                _row(event, "purchase_amount", event["amount"]),
            ]
        case _:
            return None


def _row(event: dict, feature_name: str, value: float | None) -> dict:
    return {
        "entity_id": str(event["user_id"]),
        "feature_name": feature_name,
        "value": value,
        "event_timestamp": event["timestamp"],
    }
