//! RFC 3339 timestamps to UTC microseconds, floored.

use chrono::{DateTime, NaiveDateTime};
use std::ops::Range;

/// The microseconds that RFC 3339 can say: the years 0 to 9999.
pub const RFC_3339_US: Range<i64> = -62_167_219_200_000_000..253_402_300_800_000_000;

/// Reads an RFC 3339 timestamp. One without a zone is read as UTC if `naive_is_utc`, else refused.
///
/// # Errors
/// A sentence for the dead letter.
pub fn parse(text: &str, naive_is_utc: bool) -> Result<i64, &'static str> {
    if let Some(us) = parse_common(text.as_bytes()) {
        return Ok(us);
    }
    match DateTime::parse_from_rfc3339(text) {
        Ok(t) => Ok(t.timestamp_micros()),
        Err(_) => match parse_naive(text) {
            Some(t) if naive_is_utc => Ok(t.and_utc().timestamp_micros()),
            Some(_) => Err("has no zone; set `timezone = \"UTC\"` on the stream to read it as UTC"),
            None => Err("is not an RFC 3339 timestamp"),
        },
    }
}

fn parse_naive(text: &str) -> Option<NaiveDateTime> {
    ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"]
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
}

/// The form nearly every producer writes, `YYYY-MM-DDTHH:MM:SS[.fraction]Z`, without the general
/// parser's cost; `None` sends anything else there.
fn parse_common(t: &[u8]) -> Option<i64> {
    if t.len() < 20
        || t[4] != b'-'
        || t[7] != b'-'
        || t[10] != b'T'
        || t[13] != b':'
        || t[16] != b':'
    {
        return None;
    }
    let (year, month, day) = (number(&t[0..4])?, number(&t[5..7])?, number(&t[8..10])?);
    let (hour, minute, second) = (number(&t[11..13])?, number(&t[14..16])?, number(&t[17..19])?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let date = chrono::NaiveDate::from_ymd_opt(
        i32::try_from(year).ok()?,
        u32::try_from(month).ok()?,
        u32::try_from(day).ok()?,
    )?;
    let (fraction, zone) = match t[19] {
        b'.' => {
            t[20..].split_at_checked(t[20..].iter().take_while(|b| b.is_ascii_digit()).count())?
        }
        _ => (&[][..], &t[19..]),
    };
    if zone != b"Z" || (t[19] == b'.' && fraction.is_empty()) {
        return None;
    }
    let kept = &fraction[..fraction.len().min(6)];
    let micros = number(kept)? * 10_i64.pow(u32::try_from(6 - kept.len()).ok()?);
    let days = i64::from(chrono::Datelike::num_days_from_ce(&date)) - UNIX_EPOCH_DAY;
    Some(((days * 24 + hour) * 60 + minute) * 60_000_000 + second * 1_000_000 + micros)
}

/// Days from the first day of year 1 to 1970-01-01, as chrono counts them.
const UNIX_EPOCH_DAY: i64 = 719_163;

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0i64, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_years_0_to_9999_can_be_said() {
        let text = |us| chrono::DateTime::from_timestamp_micros(us).unwrap().to_rfc3339();
        let Range { start, end } = RFC_3339_US;
        assert_eq!(text(start), "0000-01-01T00:00:00+00:00");
        assert_eq!(text(end - 1), "9999-12-31T23:59:59.999999+00:00");
        assert_eq!(parse(&text(start), false), Ok(start));
        assert!(parse(&text(start - 1), false).is_err() && parse(&text(end), false).is_err());
    }

    #[test]
    fn zones_fractions_and_refusals() {
        let t = |text| parse(text, false);
        assert_eq!(t("1970-01-01T00:00:01Z"), Ok(1_000_000));
        assert_eq!(t("1970-01-01T01:00:00+01:00"), Ok(0));
        assert_eq!(t("1970-01-01T00:00:00.1234569Z"), Ok(123_456), "floored");
        assert_eq!(t("1969-12-31T23:59:59.9999999Z"), Ok(-1), "floored below the epoch too");
        assert_eq!(t("2024-02-29T12:00:00Z"), Ok(1_709_208_000_000_000));
        assert!(t("2023-02-29T12:00:00Z").is_err());
        assert!(t("2024-01-01T24:00:00Z").is_err());
        assert!(t("yesterday").is_err());
        assert!(t("").is_err());
        assert!(t("2024-01-01T00:00:00").unwrap_err().contains("zone"));
        assert_eq!(parse("1970-01-01T00:00:01", true), Ok(1_000_000));
        assert_eq!(parse("1970-01-01 00:00:01.5", true), Ok(1_500_000));
    }

    proptest! {
        #[test]
        fn the_fast_form_agrees_with_chrono(us in -2_208_988_800_000_000i64..4_102_444_800_000_000) {
            let text = chrono::DateTime::from_timestamp_micros(us).unwrap()
                .to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            prop_assert_eq!(parse_common(text.as_bytes()), Some(us));
            prop_assert_eq!(parse(&text, false), Ok(us));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = parse(&text, true);
        }
    }
}
