//! Numbers, strings and times as text, appended to a byte buffer: for what is written a million times.

/// Appends `value` in decimal.
pub(crate) fn push_u64(buf: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    buf.extend_from_slice(&digits[start..]);
}

/// Appends `value` in decimal.
pub(crate) fn push_i64(buf: &mut Vec<u8>, value: i64) {
    if value < 0 {
        buf.push(b'-');
    }
    push_u64(buf, value.unsigned_abs());
}

/// Appends `value` in decimal, filled with zeros to `width` digits (at most 20).
pub(crate) fn push_padded(buf: &mut Vec<u8>, value: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut rest = value;
    let mut start = digits.len();
    while rest > 0 {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    buf.extend_from_slice(&digits[start.min(digits.len() - width)..]);
}

/// Appends `scaled / 10^decimals` as a JSON number with that many decimals.
pub(crate) fn push_fixed(buf: &mut Vec<u8>, scaled: i64, decimals: u8) {
    if decimals == 0 {
        return push_i64(buf, scaled);
    }
    if scaled < 0 {
        buf.push(b'-');
    }
    let unit = 10u64.pow(u32::from(decimals));
    push_u64(buf, scaled.unsigned_abs() / unit);
    buf.push(b'.');
    push_padded(buf, scaled.unsigned_abs() % unit, usize::from(decimals));
}

/// Appends `value` as a JSON number, the shortest that reads back the same; null when it is
/// not finite, since JSON has no word for that.
pub(crate) fn push_f64(buf: &mut Vec<u8>, value: f64) {
    push_float(buf, value.is_finite(), value);
}

/// As [`push_f64`], with the digits of a 32-bit float: `0.1`, not `0.10000000149011612`.
pub(crate) fn push_f32(buf: &mut Vec<u8>, value: f32) {
    push_float(buf, value.is_finite(), value);
}

fn push_float(buf: &mut Vec<u8>, finite: bool, value: impl std::fmt::Debug) {
    use std::io::Write;
    if finite {
        // Debug, unlike Display, uses an exponent for the very large and small. Writing to a
        // vector cannot fail.
        let _ = write!(buf, "{value:?}");
    } else {
        buf.extend_from_slice(b"null");
    }
}

/// Appends `text` as a JSON string, escaped where RFC 8259 demands it.
pub(crate) fn push_string(buf: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    buf.push(b'"');
    let bytes = text.as_bytes();
    let mut clean_from = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        buf.extend_from_slice(&bytes[clean_from..at]);
        clean_from = at + 1;
        match byte {
            b'"' | b'\\' => buf.extend_from_slice(&[b'\\', byte]),
            b'\n' => buf.extend_from_slice(b"\\n"),
            b'\r' => buf.extend_from_slice(b"\\r"),
            b'\t' => buf.extend_from_slice(b"\\t"),
            _ => {
                let (high, low) = (usize::from(byte >> 4), usize::from(byte & 0xF));
                buf.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[high], HEX[low]]);
            }
        }
    }
    buf.extend_from_slice(&bytes[clean_from..]);
    buf.push(b'"');
}

/// Appends the date `days` after 1970-01-01, as `YYYY-MM-DD`. Years outside `0..=9999`, which
/// RFC 3339 cannot say, get a sign and all their digits (ISO 8601's expanded form).
pub(crate) fn push_date(buf: &mut Vec<u8>, days: i64) {
    let (year, month, day) = civil_from_days(days);
    if (0..=9999).contains(&year) {
        push_padded(buf, year.unsigned_abs(), 4);
    } else {
        buf.push(if year < 0 { b'-' } else { b'+' });
        push_padded(buf, year.unsigned_abs(), 4);
    }
    buf.push(b'-');
    push_padded(buf, month, 2);
    buf.push(b'-');
    push_padded(buf, day, 2);
}

/// Appends an instant as RFC 3339 in UTC with a `Z`: `value` counts units of `10^-decimals`
/// seconds (0, 3, 6 or 9 decimals) since 1970, and all the decimals are written.
pub(crate) fn push_instant(buf: &mut Vec<u8>, value: i64, decimals: u8) {
    let unit = 10i64.pow(u32::from(decimals));
    let seconds = value.div_euclid(unit);
    push_date(buf, seconds.div_euclid(86_400));
    buf.push(b'T');
    push_clock(buf, seconds.rem_euclid(86_400), value.rem_euclid(unit), decimals);
    buf.push(b'Z');
}

/// Appends `second` of a day and a fraction of `decimals` digits, as `HH:MM:SS.ffffff`.
pub(crate) fn push_clock(buf: &mut Vec<u8>, second: i64, fraction: i64, decimals: u8) {
    let second = second.unsigned_abs();
    push_padded(buf, second / 3600, 2);
    buf.push(b':');
    push_padded(buf, second / 60 % 60, 2);
    buf.push(b':');
    push_padded(buf, second % 60, 2);
    if decimals > 0 {
        buf.push(b'.');
        push_padded(buf, fraction.unsigned_abs(), usize::from(decimals));
    }
}

/// Year, month and day of the day `days` after 1970-01-01 in the proleptic Gregorian calendar
/// (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`).
fn civil_from_days(days: i64) -> (i64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months counted from March, so that the leap day comes last.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month.unsigned_abs(), day.unsigned_abs())
}

/// A text as an SQL literal.
#[must_use]
pub fn sql_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The name that was probably meant by a wrong one: at most three letters are otherwise.
#[must_use]
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const MOST: usize = 3;
    let length = wrong.chars().count();
    // Names whose lengths differ by more are further apart; what is very long is not compared.
    let like = known.into_iter().filter(|name| name.chars().count().abs_diff(length) <= MOST);
    like.map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .filter(|(distance, _)| *distance <= MOST)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, SecondsFormat, Utc};
    use proptest::prelude::*;

    /// What `write` appends.
    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut buf = Vec::new();
        write(&mut buf);
        String::from_utf8(buf).unwrap()
    }

    proptest! {
        #[test]
        fn integers_read_back(value: u64, signed: i64) {
            prop_assert_eq!(text(|b| push_u64(b, value)), value.to_string());
            prop_assert_eq!(text(|b| push_i64(b, signed)), signed.to_string());
            prop_assert_eq!(text(|b| push_padded(b, value, 6)), format!("{value:06}"));
        }

        #[test]
        fn fixed_numbers_are_the_quotient(scaled in -1_000_000_000i64..1_000_000_000, decimals in 0u8..6) {
            let read: f64 = text(|b| push_fixed(b, scaled, decimals)).parse().unwrap();
            let expected = scaled as f64 / 10f64.powi(i32::from(decimals));
            prop_assert!((read - expected).abs() < 1e-6);
        }

        #[test]
        fn floats_read_back_or_are_null(bits: u64, bits32: u32) {
            let (value, single) = (f64::from_bits(bits), f32::from_bits(bits32));
            let (double, short) = (text(|b| push_f64(b, value)), text(|b| push_f32(b, single)));
            for (json, finite) in [(&double, value.is_finite()), (&short, single.is_finite())] {
                // JSON, but read by `parse`: serde_json may be off by the last bit.
                let read: Option<f64> = serde_json::from_str(json).unwrap();
                prop_assert_eq!(read.is_some(), finite);
            }
            if value.is_finite() {
                prop_assert_eq!(double.parse::<f64>().unwrap().to_bits(), bits);
            }
            if single.is_finite() {
                prop_assert_eq!(short.parse::<f32>().unwrap().to_bits(), bits32);
            }
        }

        #[test]
        fn strings_read_back(value: String, control in "[\\x00-\\x1f\"\\\\\u{7f}é🦀]*") {
            for value in [value, control] {
                let json = text(|b| push_string(b, &value));
                prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), value);
            }
        }

        #[test]
        fn instants_are_those_of_chrono(
            micros in prop_oneof![
                -62_167_219_200_000_000i64..253_402_300_800_000_000,
                -8_000_000_000_000_000_000i64..8_000_000_000_000_000_000,
            ],
        ) {
            let chrono = DateTime::<Utc>::from_timestamp_micros(micros).unwrap();
            let expected = chrono.to_rfc3339_opts(SecondsFormat::Micros, true);
            prop_assert_eq!(text(|b| push_instant(b, micros, 6)), expected);
            let expected = chrono.date_naive().to_string();
            prop_assert_eq!(text(|b| push_date(b, micros.div_euclid(86_400_000_000))), expected);
        }

        #[test]
        fn any_instant_is_written(value: i64, decimals in prop::sample::select(vec![0u8, 3, 6, 9])) {
            text(|b| push_instant(b, value, decimals));
        }
    }

    #[test]
    fn the_nearest_name_is_one_that_was_probably_meant() {
        let known = ["redis_queue", "redis_queue_server", "replayer"];
        let nearest = |wrong: &str| nearest(wrong, known);
        assert_eq!(nearest("redis_qeue"), Some("redis_queue"));
        assert_eq!(nearest("redis-queue-server"), Some("redis_queue_server"));
        assert_eq!(nearest("replay"), Some("replayer"));
        assert_eq!(nearest("duckdb"), None);
        assert_eq!(nearest(&"r".repeat(1 << 20)), None);
    }

    #[test]
    fn years_beyond_rfc_3339_keep_their_digits() {
        assert_eq!(text(|b| push_instant(b, 253_402_300_800, 0)), "+10000-01-01T00:00:00Z");
        assert_eq!(text(|b| push_instant(b, -62_167_219_201, 0)), "-0001-12-31T23:59:59Z");
        assert_eq!(text(|b| push_instant(b, -1, 9)), "1969-12-31T23:59:59.999999999Z");
    }
}
