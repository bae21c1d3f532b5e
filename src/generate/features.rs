//! The `features` stream: events that already are features.

use super::file::{Fields, Kind};
use super::hash::Draws;
use super::object::{Defect, Object, Surgery};
use super::reasons;
use crate::text;

/// One feature that the generator makes values for.
struct Feature {
    name: &'static str,
    /// The value times `10^decimals` is drawn from `min..=max`.
    min: i64,
    max: i64,
    decimals: u8,
}

const fn feature(name: &'static str, min: i64, max: i64, decimals: u8) -> Feature {
    Feature { name, min, max, decimals }
}

const FEATURES: [Feature; 20] = [
    feature("clicks_1d", 0, 120, 0),
    feature("clicks_7d", 0, 700, 0),
    feature("views_1d", 0, 400, 0),
    feature("views_7d", 0, 2500, 0),
    feature("session_seconds", 100, 5_400_000, 3),
    feature("sessions_30d", 0, 90, 0),
    feature("avg_basket", 199, 45_000, 2),
    feature("basket_size", 0, 24, 0),
    feature("orders_30d", 0, 30, 0),
    feature("spend_30d", 0, 250_000, 2),
    feature("refunds_90d", 0, 6, 0),
    feature("days_since_order", 0, 365, 0),
    feature("cart_abandon_rate", 0, 10_000, 4),
    feature("email_open_rate", 0, 10_000, 4),
    feature("discount_share", 0, 10_000, 4),
    feature("churn_score", 0, 1_000_000, 6),
    feature("fraud_score", 0, 1_000_000, 6),
    feature("price_sensitivity", -30_000, 30_000, 4),
    feature("balance", -500_000, 2_000_000, 2),
    feature("temperature_delta", -400, 400, 1),
];

/// One value in so many is null: valid, and a row like any other.
const NULL_ONE_IN: u64 = 50;

/// Every way a `features` event is malformed; all equally likely.
pub(super) const DEFECTS: &[Defect] = {
    use Surgery::{Append, Drop, Empty, Nest, Null, Replace, Truncate, Whole, Wrap};
    const fn defect(reason: &'static str, surgery: Surgery) -> Defect {
        Defect { reason, surgery }
    }
    &[
        defect(reasons::INVALID_JSON, Truncate),
        defect(reasons::INVALID_JSON, Append(b" trailing")),
        defect(reasons::INVALID_JSON, Append(b"{}")),
        defect(reasons::INVALID_JSON, Nest),
        defect(reasons::INVALID_JSON, Replace("value", b"NaN")),
        defect(reasons::INVALID_JSON, Replace("value", b"-Infinity")),
        defect(reasons::INVALID_UTF8, Replace("entity_id", b"\"user-\xFF\"")),
        defect(reasons::INVALID_UTF8, Replace("feature_name", b"\"clicks\xC3\x28\"")),
        defect(reasons::NULL_PAYLOAD, Null),
        defect(reasons::EMPTY_PAYLOAD, Empty),
        defect(reasons::MISSING_FIELD, Drop("feature_name")),
        defect(reasons::MISSING_EVENT_TIMESTAMP, Drop("validated_at")),
        defect(reasons::MISSING_EVENT_TIMESTAMP, Replace("validated_at", b"null")),
        defect(reasons::MISSING_ENTITY, Drop("entity_id")),
        defect(reasons::MISSING_ENTITY, Replace("entity_id", b"null")),
        defect(reasons::EMPTY_ENTITY, Replace("entity_id", b"\"\"")),
        defect(reasons::WRONG_TYPE, Replace("value", b"\"12.5\"")),
        defect(reasons::WRONG_TYPE, Replace("value", b"\"NaN\"")),
        defect(reasons::WRONG_TYPE, Replace("value", b"{\"amount\":1}")),
        defect(reasons::WRONG_TYPE, Replace("entity_id", b"{\"id\":7}")),
        defect(reasons::WRONG_TYPE, Replace("feature_name", b"[\"clicks_7d\"]")),
        defect(reasons::NUMBER_OUT_OF_RANGE, Replace("value", b"1e999")),
        defect(reasons::NUMBER_OUT_OF_RANGE, Replace("value", b"-1e999")),
        defect(reasons::INVALID_TIMESTAMP, Replace("validated_at", b"\"yesterday\"")),
        defect(reasons::INVALID_TIMESTAMP, Replace("validated_at", b"\"2024-05-06T07:08:09\"")),
        defect(reasons::INVALID_TIMESTAMP, Replace("validated_at", b"\"2024-13-41T25:61:00Z\"")),
        defect(reasons::NOT_AN_OBJECT, Wrap),
        defect(reasons::NOT_AN_OBJECT, Whole(b"42")),
        defect(reasons::NOT_AN_OBJECT, Whole(b"\"clicks_7d\"")),
    ]
};

/// What an event says, as the columns of a file.
pub(super) const FIELDS: Fields = &[
    ("entity_id", Kind::Text),
    ("feature_name", Kind::Text),
    ("value", Kind::Float),
    ("validated_at", Kind::Instant),
    ("created_at", Kind::Instant),
];

/// Appends the entity id, which is also the record's key: `user-000123`.
pub(super) fn push_key(buf: &mut Vec<u8>, rank: u64) {
    buf.extend_from_slice(b"user-");
    text::push_padded(buf, rank, 6);
}

/// The payload of an event about the entity `key`, validated at `event_us` microseconds.
pub(super) fn payload(
    key: &[u8],
    event_us: i64,
    surgery: Option<Surgery>,
    draws: &mut Draws,
) -> Option<Vec<u8>> {
    let feature = draws.pick(&FEATURES);
    let null = draws.below(NULL_ONE_IN) == 0;
    let spread = (feature.max - feature.min + 1).unsigned_abs();
    let scaled = feature.min + draws.below(spread) as i64;
    // Half of the events are created the moment they are validated, the others up to 2 s later.
    let pause_us = draws.below(4_000_000).saturating_sub(2_000_000) as i64;

    let mut object = Object::new(surgery);
    object.text("entity_id", key);
    object.text("feature_name", feature.name.as_bytes());
    if null {
        object.null("value");
    } else {
        object.field("value", |buf| text::push_fixed(buf, scaled, feature.decimals));
    }
    object.time("validated_at", event_us);
    object.time("created_at", event_us + pause_us);
    object.finish(draws)
}
