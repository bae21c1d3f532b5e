//! Why records become dead letters: the closed list of reasons that decoding gives.

/// Not JSON: cut off, garbage behind the object, nested too deep, bare `NaN`.
pub const INVALID_JSON: &str = "invalid_json";
/// Bytes that are not UTF-8.
pub const INVALID_UTF8: &str = "invalid_utf8";
/// A record without a payload (a tombstone).
pub const NULL_PAYLOAD: &str = "null_payload";
/// A payload of no bytes.
pub const EMPTY_PAYLOAD: &str = "empty_payload";
/// JSON, but not an object.
pub const NOT_AN_OBJECT: &str = "not_an_object";
/// The entity is missing or null.
pub const MISSING_ENTITY: &str = "missing_entity";
/// The entity is the empty string.
pub const EMPTY_ENTITY: &str = "empty_entity";
/// The event timestamp is missing or null.
pub const MISSING_EVENT_TIMESTAMP: &str = "missing_event_timestamp";
/// Another required field is missing or null.
pub const MISSING_FIELD: &str = "missing_field";
/// A field twice in one object.
pub const DUPLICATE_FIELD: &str = "duplicate_field";
/// A value of another type than declared.
pub const WRONG_TYPE: &str = "wrong_type";
/// A number that a double or a 64-bit integer cannot hold.
pub const NUMBER_OUT_OF_RANGE: &str = "number_out_of_range";
/// Not RFC 3339, or without a zone.
pub const INVALID_TIMESTAMP: &str = "invalid_timestamp";
/// Further ahead than the stream's tolerance.
pub const FUTURE_TIMESTAMP: &str = "future_timestamp";
/// Before 1900, or not to be told in microseconds.
pub const TIMESTAMP_OUT_OF_RANGE: &str = "timestamp_out_of_range";
/// A plain write to a table that takes none.
pub const UNKNOWN_TABLE: &str = "unknown_table";
/// Longer than a record may be.
pub const RECORD_TOO_LARGE: &str = "record_too_large";

/// All of them.
pub const ALL: [&str; 17] = [
    INVALID_JSON,
    INVALID_UTF8,
    NULL_PAYLOAD,
    EMPTY_PAYLOAD,
    NOT_AN_OBJECT,
    MISSING_ENTITY,
    EMPTY_ENTITY,
    MISSING_EVENT_TIMESTAMP,
    MISSING_FIELD,
    DUPLICATE_FIELD,
    WRONG_TYPE,
    NUMBER_OUT_OF_RANGE,
    INVALID_TIMESTAMP,
    FUTURE_TIMESTAMP,
    TIMESTAMP_OUT_OF_RANGE,
    UNKNOWN_TABLE,
    RECORD_TOO_LARGE,
];
