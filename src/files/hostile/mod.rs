//! Files that mean harm, or only look like it, for tests: made for the stream `features`.
//!
//! [`files`] is the table of them: name, what it is said to be, bytes, and the reason with which it is
//! refused as a whole, or `None` when it is sound, whatever its rows are. All are small on the wire
//! but `*_row_20_mib`.

pub mod makers;

use super::{Compression, FileFormat, FileKind, reasons as r};
use makers::{compressed, file, frame, instants, parquet, rows};
use polars::prelude::{Column, IntoColumn, NamedFrom, Series};

/// Name, what it is said to be, bytes, and why it is refused, if it is.
pub type Hostile = (&'static str, FileKind, Vec<u8>, Option<&'static str>);

const ROW: &str =
    r#"{"entity_id":"e","feature_name":"f","value":1.5,"validated_at":"2023-11-14T22:13:20Z"}"#;
const HEADER: &str = "entity_id,feature_name,value,validated_at";
const CELLS: &str = "e,f,1.5,2023-11-14T22:13:20Z";
/// Rows of a file that is forged or cut.
const ROWS: usize = 1_000;

const fn kind(format: FileFormat) -> FileKind {
    FileKind { format, compression: Compression::None }
}
const JSON: FileKind = kind(FileFormat::Json);
const NDJSON: FileKind = kind(FileFormat::Ndjson);
const CSV: FileKind = kind(FileFormat::Csv);
const PARQUET: FileKind = kind(FileFormat::Parquet);
const GZIP: FileKind = FileKind { compression: Compression::Gzip, ..JSON };
const ZSTD: FileKind = FileKind { compression: Compression::Zstd, ..JSON };

/// The table.
#[must_use]
pub fn files() -> Vec<Hostile> {
    let mut files = json_files();
    files.extend(ndjson_files());
    files.extend(csv_files());
    files.extend(parquet_files());
    files.extend(forged_parquet());
    files.extend(compressed_files());
    files.extend(mislabelled());
    files
}

/// The first sixteenths of a file.
fn cut(bytes: &[u8], part: usize) -> Vec<u8> {
    bytes[..bytes.len() * part / 16].to_vec()
}

fn json_files() -> Vec<Hostile> {
    let text = |name, text: &str, reason| (name, JSON, text.as_bytes().to_vec(), reason);
    let deep = |n: usize| format!("[{{\"x\":{}{}}}]", "[".repeat(n), "]".repeat(n));
    let nul = format!("[{ROW},\0{ROW}]");
    let mut not_utf8 = format!("[{ROW}]").into_bytes();
    not_utf8[15] = 0xFF;
    let utf_16: Vec<u8> =
        format!("\u{feff}[{ROW}]").encode_utf16().flat_map(u16::to_le_bytes).collect();
    vec![
        text("json_no_rows", "[]", None),
        text("json_mark_and_space", &format!("\u{feff} \n[ {ROW} , {ROW} ]\n\n"), None),
        text("json_odd_rows", "[1,\"x\",null,[],{},{\"entity_id\":\"\\ud800\"},1e999]", None),
        ("json_not_utf8_row", JSON, not_utf8, None),
        text("json_no_bytes", "", Some(r::EMPTY_FILE)),
        text("json_only_space", " \n\t ", Some(r::EMPTY_FILE)),
        text("json_only_a_mark", "\u{feff}", Some(r::EMPTY_FILE)),
        text("json_object", ROW, Some(r::NOT_AN_ARRAY)),
        text("json_word", "true", Some(r::NOT_AN_ARRAY)),
        text("json_nul_bytes", &nul, Some(r::INVALID_JSON)),
        text("json_only_nul_bytes", &"\0".repeat(5_000), Some(r::NOT_AN_ARRAY)),
        text("json_garbage_behind", &format!("[{ROW}] x"), Some(r::TRAILING_DATA)),
        text("json_two_documents", &format!("[{ROW}]\n[{ROW}]"), Some(r::TRAILING_DATA)),
        text("json_comma_at_end", &format!("[{ROW},]"), Some(r::INVALID_JSON)),
        text("json_comma_at_begin", &format!("[,{ROW}]"), Some(r::INVALID_JSON)),
        text("json_no_comma", &format!("[{ROW} {ROW}]"), Some(r::INVALID_JSON)),
        text("json_broken_row", &format!("[{ROW},{{\"a\":}},{ROW}]"), Some(r::INVALID_JSON)),
        text("json_wrong_bracket", "[{\"a\":[1}]]", Some(r::INVALID_JSON)),
        text("json_nan", "[{\"value\":NaN}]", Some(r::INVALID_JSON)),
        text("json_word_in_it", "[nul]", Some(r::INVALID_JSON)),
        text("json_depth_100", &deep(100), None),
        text("json_depth_200", &deep(200), Some(r::TOO_DEEP)),
        text("json_depth_of_a_million", &"[".repeat(1_000_000), Some(r::TOO_DEEP)),
        text("json_open_string", &format!("[{ROW},{{\"a\":\"b}}]"), Some(r::CUT_OFF)),
        ("json_cut", JSON, cut(&file(JSON, &rows(ROWS)), 9), Some(r::CUT_OFF)),
        ("json_utf_16", JSON, utf_16, Some(r::WRONG_FORMAT)),
        text("json_row_2_mib", &format!("[{{\"a\":\"{}\"}}]", "x".repeat(2 << 20)), None),
        text(
            "json_row_20_mib",
            &format!("[{{\"a\":\"{}\"}}]", "x".repeat(20 << 20)),
            Some(r::ROW_TOO_LARGE),
        ),
    ]
}

fn ndjson_files() -> Vec<Hostile> {
    let text = |name, text: &str, reason| (name, NDJSON, text.as_bytes().to_vec(), reason);
    let pretty = "[\n  {\n    \"entity_id\": \"e\"\n  }\n]\n";
    vec![
        text("ndjson_no_bytes", "", None),
        text("ndjson_blank_lines", "\n\r\n  \n", None),
        text("ndjson_odd_rows", &format!("{ROW}\n\0\0\n\n[1]\n{{\n\u{7f}\n"), None),
        text("ndjson_no_break_at_end", &format!("{ROW}\r\n{ROW}"), None),
        text("ndjson_cut", &format!("{ROW}\n{}", &ROW[..40]), Some(r::CUT_OFF)),
        text("ndjson_cut_in_first", &ROW[..1], Some(r::CUT_OFF)),
        text("ndjson_pretty_array", pretty, Some(r::NOT_NDJSON)),
        text("ndjson_pretty_object", "{\n  \"entity_id\": \"e\"\n}\n", Some(r::NOT_NDJSON)),
        text(
            "ndjson_100_others_first",
            &format!("{}{ROW}\n", "hello\n".repeat(100)),
            Some(r::NOT_NDJSON),
        ),
        text("ndjson_text", "hello\nworld\n", Some(r::NOT_NDJSON)),
        text(
            "ndjson_row_20_mib",
            &format!("{ROW}\n{{\"a\":\"{}\"}}\n", "x".repeat(20 << 20)),
            Some(r::ROW_TOO_LARGE),
        ),
    ]
}

fn csv_files() -> Vec<Hostile> {
    let text = |name, text: &str, reason| (name, CSV, text.as_bytes().to_vec(), reason);
    let wide: Vec<String> = (0..20_000).map(|i| format!("c{i}")).collect();
    let bytes = |text: &str, byte: u8| {
        let at = |b: &u8| if *b == b'?' { byte } else { *b };
        text.as_bytes().iter().map(at).collect::<Vec<u8>>()
    };
    vec![
        text("csv_only_a_header", HEADER, None),
        text("csv_mark_and_crlf", &format!("\u{feff}{HEADER}\r\n{CELLS}\r\n\r\n"), None),
        text("csv_blank_lines", &format!("{HEADER}\n\n{CELLS}\n\n\n"), None),
        text("csv_nul_bytes", &format!("{HEADER}\n\0,f,\0,x\n"), None),
        ("csv_not_utf8_cell", CSV, bytes(&format!("{HEADER}\n?,f,1,x\n{CELLS}\n"), 0xFF), None),
        text("csv_no_bytes", "", Some(r::EMPTY_FILE)),
        text("csv_only_breaks", "\n\r\n\n", Some(r::EMPTY_FILE)),
        ("csv_not_utf8_header", CSV, bytes(&format!("?,{HEADER}\n"), 0xFF), Some(r::INVALID_UTF8)),
        text(
            "csv_double_header",
            &format!("{HEADER},value\n{CELLS},2\n"),
            Some(r::DUPLICATE_COLUMN),
        ),
        text("csv_no_header", &format!("{CELLS}\n{CELLS}\n"), Some(r::MISSING_COLUMN)),
        text("csv_no_event_time", "entity_id,value\ne,1\n", Some(r::MISSING_COLUMN)),
        text(
            "csv_semicolons",
            &format!("{HEADER}\n{CELLS}\n").replace(',', ";"),
            Some(r::MISSING_COLUMN),
        ),
        text("csv_field_too_few", &format!("{HEADER}\n{CELLS}\ne,f,1\n"), Some(r::RAGGED_ROW)),
        text("csv_field_too_many", &format!("{HEADER}\n{CELLS},x\n"), Some(r::RAGGED_ROW)),
        text(
            "csv_open_quote",
            &format!("{HEADER}\n{CELLS}\n\"e,f,1,2\n{CELLS}\n"),
            Some(r::UNCLOSED_QUOTE),
        ),
        text(
            "csv_open_quote_in_header",
            &format!("\"{HEADER}\n{CELLS}\n"),
            Some(r::UNCLOSED_QUOTE),
        ),
        text("csv_20000_columns", &format!("{}\n", wide.join(",")), Some(r::TOO_MANY_COLUMNS)),
        text(
            "csv_row_20_mib",
            &format!("{HEADER}\n\"{}\",f,1,x\n", "x".repeat(20 << 20)),
            Some(r::ROW_TOO_LARGE),
        ),
    ]
}

fn parquet_files() -> Vec<Hostile> {
    let with = |change: fn(&str, Column) -> Column| {
        let mut changed = frame(&rows(20));
        let columns: Vec<Column> = changed
            .columns()
            .iter()
            .map(|column| change(column.name().as_str(), column.clone()))
            .collect();
        changed = polars::prelude::DataFrame::new_infer_height(columns).expect("same lengths");
        parquet(&mut changed, 10)
    };
    let mut wide: Vec<Column> = (0..2_500)
        .map(|i| Series::new(format!("c{i}").as_str().into(), [1i32]).into_column())
        .collect();
    wide.push(Series::new("entity_id".into(), ["e"]).into_column());
    wide.push(instants("validated_at", [Some(makers::BASE_US)].into_iter()));
    let mut wide = polars::prelude::DataFrame::new_infer_height(wide).expect("one row");
    vec![
        ("parquet_no_rows", PARQUET, parquet(&mut frame(&[]), 10), None),
        (
            "parquet_not_finite",
            PARQUET,
            with(|name, column| match name {
                "value" => Series::new(name.into(), vec![f64::NAN; 20]).into_column(),
                _ => column,
            }),
            None,
        ),
        (
            "parquet_entity_of_integers",
            PARQUET,
            with(|name, column| match name {
                "entity_id" => Series::new(name.into(), vec![1i64; 20]).into_column(),
                _ => column,
            }),
            Some(r::COLUMN_TYPE),
        ),
        (
            "parquet_value_of_text",
            PARQUET,
            with(|name, column| match name {
                "value" => Series::new(name.into(), vec!["1.5"; 20]).into_column(),
                _ => column,
            }),
            Some(r::COLUMN_TYPE),
        ),
        (
            "parquet_instant_of_integers",
            PARQUET,
            with(|name, column| match name {
                "validated_at" => Series::new(name.into(), vec![1i64; 20]).into_column(),
                _ => column,
            }),
            Some(r::COLUMN_TYPE),
        ),
        (
            "parquet_no_entity",
            PARQUET,
            with(|name, mut column| {
                if name == "entity_id" {
                    column.rename("entity".into());
                }
                column
            }),
            Some(r::MISSING_COLUMN),
        ),
        ("parquet_2500_columns", PARQUET, parquet(&mut wide, 10), Some(r::TOO_MANY_COLUMNS)),
    ]
}

fn forged_parquet() -> Vec<Hostile> {
    let sound = parquet(&mut frame(&rows(ROWS)), ROWS);
    // The count of rows as Thrift writes it, with the type of the field before it: in the footer, in
    // each column and in the row group, in this order.
    let count = [0x16, 0xD0, 0x0F];
    let end = sound.len();
    let length = u32::from_le_bytes(sound[end - 8..end - 4].try_into().expect("4 bytes"));
    let places: Vec<usize> = (end - 8 - length as usize..end - 8)
        .filter(|at| sound[*at..].starts_with(&count))
        .collect();
    let forged = |which: &[usize], low: u8| {
        let mut bytes = sound.clone();
        for at in which {
            bytes[at + 1] = low;
        }
        bytes
    };
    let change = |at: usize, byte: u8| {
        let mut bytes = sound.clone();
        bytes[at] = byte;
        bytes
    };
    let (first, last) = (&places[..1], &places[places.len() - 1..]);
    let all = &places[..];
    let damaged = Some(r::DAMAGED_PARQUET);
    vec![
        // Twice the count, and one more for a number below zero.
        ("parquet_footer_says_999", PARQUET, forged(first, 0xCE), Some(r::ROW_COUNT)),
        ("parquet_group_says_1001", PARQUET, forged(last, 0xD2), Some(r::ROW_COUNT)),
        ("parquet_all_say_999", PARQUET, forged(all, 0xCE), Some(r::ROW_COUNT)),
        ("parquet_all_say_1001", PARQUET, forged(all, 0xD2), Some(r::ROW_COUNT)),
        ("parquet_less_than_no_rows", PARQUET, forged(first, 0xCF), damaged),
        ("parquet_group_of_less_than_no_rows", PARQUET, forged(last, 0xCF), damaged),
        ("parquet_page_without_header", PARQUET, change(4, 0xFF), damaged),
        ("parquet_footer_longer_than_file", PARQUET, change(end - 6, 0xFF), damaged),
        (
            "parquet_footer_of_no_bytes",
            PARQUET,
            [&sound[..end - 8], b"\0\0\0\0PAR1"].concat(),
            damaged,
        ),
        ("parquet_cut", PARQUET, cut(&sound, 8), damaged),
        ("parquet_only_magic", PARQUET, b"PAR1".to_vec(), damaged),
        ("parquet_garbage_between", PARQUET, b"PAR1 no footer at all PAR1".to_vec(), damaged),
        ("parquet_no_bytes", PARQUET, Vec::new(), Some(r::EMPTY_FILE)),
    ]
}

fn compressed_files() -> Vec<Hostile> {
    let json = file(JSON, &rows(ROWS));
    let (gzip, zstd) = (compressed(Compression::Gzip, &json), compressed(Compression::Zstd, &json));
    let space = [&b"["[..], &b" ".repeat(96 << 20), b"]"].concat();
    let mut wrong_sum = gzip.clone();
    let sum = wrong_sum.len() - 8;
    wrong_sum[sum] ^= 1;
    let halves = |compression| {
        let (a, b) = json.split_at(json.len() / 2);
        [compressed(compression, a), compressed(compression, b)].concat()
    };
    // A frame that wants a window of 256 MiB for two bytes, `[]`.
    let wide = b"\x28\xB5\x2F\xFD\x00\x90\x11\x00\x00[]".to_vec();
    vec![
        ("gzip_members", GZIP, halves(Compression::Gzip), None),
        ("zstd_frames", ZSTD, halves(Compression::Zstd), None),
        ("gzip_cut", GZIP, cut(&gzip, 12), Some(r::CUT_OFF)),
        ("gzip_without_its_sum", GZIP, gzip[..gzip.len() - 8].to_vec(), Some(r::CUT_OFF)),
        ("zstd_cut", ZSTD, cut(&zstd, 12), Some(r::CUT_OFF)),
        ("gzip_wrong_sum", GZIP, wrong_sum, Some(r::DAMAGED_COMPRESSION)),
        (
            "gzip_garbage_behind",
            GZIP,
            [&gzip[..], b"garbage behind"].concat(),
            Some(r::DAMAGED_COMPRESSION),
        ),
        (
            "zstd_garbage_behind",
            ZSTD,
            [&zstd[..], b"garbage behind"].concat(),
            Some(r::DAMAGED_COMPRESSION),
        ),
        ("gzip_bomb", GZIP, compressed(Compression::Gzip, &space), Some(r::RATIO_TOO_HIGH)),
        ("zstd_bomb", ZSTD, compressed(Compression::Zstd, &space), Some(r::RATIO_TOO_HIGH)),
        ("zstd_window", ZSTD, wide, Some(r::WINDOW_TOO_LARGE)),
        ("gzip_of_no_bytes", GZIP, compressed(Compression::Gzip, b""), Some(r::EMPTY_FILE)),
        ("gzip_twice", GZIP, compressed(Compression::Gzip, &gzip), Some(r::WRONG_FORMAT)),
        ("gzip_said_none", JSON, gzip.clone(), Some(r::WRONG_COMPRESSION)),
        ("zstd_said_none", JSON, zstd.clone(), Some(r::WRONG_COMPRESSION)),
        ("gzip_said_zstd", ZSTD, gzip, Some(r::WRONG_COMPRESSION)),
        ("zstd_said_gzip", GZIP, zstd, Some(r::WRONG_COMPRESSION)),
        ("json_said_gzip", GZIP, json.clone(), Some(r::WRONG_COMPRESSION)),
        ("json_said_zstd", ZSTD, json, Some(r::WRONG_COMPRESSION)),
    ]
}

/// Every format under the name of every other one.
fn mislabelled() -> Vec<Hostile> {
    let rows = rows(20);
    let [json, ndjson, csv, parquet] = [JSON, NDJSON, CSV, PARQUET].map(|kind| file(kind, &rows));
    let (format, lines) = (Some(r::WRONG_FORMAT), Some(r::NOT_NDJSON));
    vec![
        ("json_said_ndjson", NDJSON, json.clone(), lines),
        ("json_said_csv", CSV, json.clone(), format),
        ("json_said_parquet", PARQUET, json, format),
        ("ndjson_said_json", JSON, ndjson.clone(), Some(r::NOT_AN_ARRAY)),
        ("ndjson_said_csv", CSV, ndjson.clone(), format),
        ("ndjson_said_parquet", PARQUET, ndjson, format),
        ("csv_said_json", JSON, csv.clone(), format),
        ("csv_said_ndjson", NDJSON, csv.clone(), lines),
        ("csv_said_parquet", PARQUET, csv, format),
        ("parquet_said_json", JSON, parquet.clone(), format),
        ("parquet_said_ndjson", NDJSON, parquet.clone(), format),
        ("parquet_said_csv", CSV, parquet, format),
    ]
}
