//! The `clicks` stream: raw user events that a script turns into features.

use super::file::{Fields, Kind};
use super::hash::Draws;
use super::object::{Defect, Object, Surgery};
use super::reasons;
use crate::text;

/// What the user did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    View,
    Click,
    Scroll,
    AddToCart,
    Purchase,
}

impl Action {
    /// An action as often as in a shop: per 1,000 events 500 views, 240 clicks, 150 scrolls,
    /// 80 additions to the cart and 30 purchases.
    pub(super) fn draw(draws: &mut Draws) -> Self {
        match draws.below(1000) {
            0..500 => Self::View,
            500..740 => Self::Click,
            740..890 => Self::Scroll,
            890..970 => Self::AddToCart,
            _ => Self::Purchase,
        }
    }

    /// The rows that the `click_features` script makes of it; 0 means that it filters it out.
    pub(super) const fn rows(self) -> u8 {
        match self {
            Self::Scroll => 0,
            Self::View | Self::Click | Self::AddToCart => 1,
            Self::Purchase => 2,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Click => "click",
            Self::Scroll => "scroll",
            Self::AddToCart => "add_to_cart",
            Self::Purchase => "purchase",
        }
    }

    /// Time is spent on a page, not on a button.
    const fn has_duration(self) -> bool {
        matches!(self, Self::View | Self::Scroll)
    }

    const fn has_amount(self) -> bool {
        matches!(self, Self::AddToCart | Self::Purchase)
    }
}

/// The pages of the shop.
const PAGES: [&str; 12] = [
    "/",
    "/search",
    "/sale",
    "/category/books",
    "/category/garden",
    "/category/toys",
    "/product/1138",
    "/product/2187",
    "/product/4711",
    "/cart",
    "/account/orders",
    "/help/returns",
];

/// Every way a `clicks` event is malformed; all equally likely.
pub(super) const DEFECTS: &[Defect] = {
    use Surgery::{Append, Drop, Empty, Nest, Null, Replace, Truncate, Whole, Wrap};
    const fn defect(reason: &'static str, surgery: Surgery) -> Defect {
        Defect { reason, surgery }
    }
    &[
        defect(reasons::INVALID_JSON, Truncate),
        defect(reasons::INVALID_JSON, Append(b"]")),
        defect(reasons::INVALID_JSON, Append(b"\n{\"user_id\":1}")),
        defect(reasons::INVALID_JSON, Nest),
        defect(reasons::INVALID_JSON, Replace("amount", b"Infinity")),
        defect(reasons::INVALID_JSON, Replace("page", b"'/cart'")),
        defect(reasons::INVALID_UTF8, Replace("page", b"\"/caf\xE9\"")),
        defect(reasons::INVALID_UTF8, Replace("action", b"\"view\xFF\"")),
        defect(reasons::NULL_PAYLOAD, Null),
        defect(reasons::EMPTY_PAYLOAD, Empty),
        defect(reasons::MISSING_EVENT_TIMESTAMP, Drop("timestamp")),
        defect(reasons::MISSING_EVENT_TIMESTAMP, Replace("timestamp", b"null")),
        defect(reasons::MISSING_ENTITY, Drop("user_id")),
        defect(reasons::MISSING_ENTITY, Replace("user_id", b"null")),
        defect(reasons::WRONG_TYPE, Replace("user_id", b"\"forty-two\"")),
        defect(reasons::WRONG_TYPE, Replace("duration_ms", b"\"1200\"")),
        defect(reasons::WRONG_TYPE, Replace("amount", b"\"NaN\"")),
        defect(reasons::WRONG_TYPE, Replace("action", b"{\"name\":\"view\"}")),
        defect(reasons::WRONG_TYPE, Replace("page", b"[\"/cart\"]")),
        defect(reasons::NUMBER_OUT_OF_RANGE, Replace("amount", b"1e999")),
        defect(reasons::INVALID_TIMESTAMP, Replace("timestamp", b"\"yesterday\"")),
        defect(reasons::INVALID_TIMESTAMP, Replace("timestamp", b"\"2024-05-06 07:08:09\"")),
        defect(reasons::INVALID_TIMESTAMP, Replace("timestamp", b"\"2024-02-30T00:00:00Z\"")),
        defect(reasons::NOT_AN_OBJECT, Wrap),
        defect(reasons::NOT_AN_OBJECT, Whole(b"[]")),
        defect(reasons::NOT_AN_OBJECT, Whole(b"-1.5")),
    ]
};

/// What an event says, as the columns of a file.
pub(super) const FIELDS: Fields = &[
    ("user_id", Kind::Int),
    ("action", Kind::Text),
    ("timestamp", Kind::Instant),
    ("page", Kind::Text),
    ("duration_ms", Kind::Int),
    ("amount", Kind::Float),
];

/// Appends the user id, which is also the record's key.
pub(super) fn push_key(buf: &mut Vec<u8>, rank: u64) {
    text::push_u64(buf, rank);
}

/// The payload of `action` by the user `key` at `event_us` microseconds.
pub(super) fn payload(
    key: &[u8],
    action: Action,
    event_us: i64,
    surgery: Option<Surgery>,
    draws: &mut Draws,
) -> Option<Vec<u8>> {
    let page = draws.pick(&PAGES);
    let duration_ms = 50 + draws.below(120_000);
    let cents = 99 + draws.below(30_000) as i64;
    // What makes no sense for an action is null in half of the events and absent in the others.
    let say_null = draws.below(2) == 0;

    let mut object = Object::new(surgery);
    object.field("user_id", |buf| buf.extend_from_slice(key));
    object.text("action", action.name().as_bytes());
    object.time("timestamp", event_us);
    // A defect may sit in a field that the action would leave out, so it is then written.
    let spoilt = |name| matches!(surgery, Some(Surgery::Replace(field, _)) if field == name);
    if action != Action::Purchase || spoilt("page") {
        object.text("page", page.as_bytes());
    } else if say_null {
        object.null("page");
    }
    if action.has_duration() || spoilt("duration_ms") {
        object.field("duration_ms", |buf| text::push_u64(buf, duration_ms));
    } else if say_null {
        object.null("duration_ms");
    }
    if action.has_amount() || spoilt("amount") {
        object.field("amount", |buf| text::push_fixed(buf, cents, 2));
    } else if say_null {
        object.null("amount");
    }
    object.finish(draws)
}
