//! Reading the configuration: file, then environment, then checks.

use super::Config;
use crate::text::nearest;
use serde::Deserialize;
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// Prefix of the environment variables that override keys of the file.
const ENV_PREFIX: &str = "MILLSTREAM__";

/// Why a configuration cannot be used. Every message says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// The file does not say what a configuration can say.
    #[error("{path}:{line}:{column}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong, and which key was probably meant.
        message: String,
    },
    /// A variable of the environment does not fit.
    #[error("environment: {0}")]
    Env(String),
    /// Everything parses, but a rule is broken.
    #[error("configuration: {0}")]
    Invalid(String),
}

/// Reads `path` (the defaults, when `None`), applies the environment and validates.
///
/// Relative folders of scripts and environments are taken from the file's own folder.
///
/// # Errors
/// See [`ConfigError`].
pub fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
    load_with(path, std::env::vars())
}

fn load_with(
    path: Option<&Path>,
    vars: impl Iterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let mut table = toml::Table::new();
    if let Some(path) = path {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        // Parsed twice: once for errors that know their place, once to put the environment over it.
        toml::from_str::<Config>(&text).map_err(|e| parse_error(path, &text, &e))?;
        table = toml::from_str(&text).map_err(|e| parse_error(path, &text, &e))?;
    }
    let mut named = Vec::new();
    for (key, value) in vars {
        if let Some(rest) = key.strip_prefix(ENV_PREFIX) {
            set(&mut table, rest, &value).map_err(|e| ConfigError::Env(format!("{key}: {e}")))?;
            named.push(key);
        }
    }
    let mut config = Config::deserialize(table).map_err(|e| {
        ConfigError::Env(format!("{} (set by {})", did_you_mean(e.message()), named.join(", ")))
    })?;
    if let Some(folder) = path.and_then(Path::parent) {
        for dir in [&mut config.python.transforms_dir, &mut config.python.venv] {
            if dir.is_relative() && !dir.as_os_str().is_empty() {
                *dir = folder.join(&dir);
            }
        }
    }
    config.validate().map_err(ConfigError::Invalid)?;
    Ok(config)
}

/// Puts `SECTION__KEY=value` into the table. A value that parses as TOML is taken as such.
fn set(table: &mut toml::Table, key: &str, value: &str) -> Result<(), String> {
    let path: Vec<String> = key.split("__").map(str::to_lowercase).collect();
    let Some((last, sections)) = path.split_last() else { return Err("names no key".into()) };
    let mut at = table;
    for section in sections {
        at = at
            .entry(section.clone())
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| format!("`{section}` is not a section"))?;
    }
    let text = toml::Value::String(value.to_owned());
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or(text);
    at.insert(last.clone(), parsed);
    Ok(())
}

fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |s| s.start).min(text.len());
    let before = &text.as_bytes()[..at];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = at - before.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1) + 1;
    ConfigError::Parse {
        path: path.to_owned(),
        line,
        column,
        message: did_you_mean(error.message()),
    }
}

/// serde says ``unknown field `x`, expected one of `a`, `b` ``: adds the nearest name.
fn did_you_mean(message: &str) -> String {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let mut out = message.to_owned();
    if message.starts_with("unknown field")
        && let Some((wrong, known)) = names.split_first()
        && let Some(best) = nearest(wrong, known.iter().copied())
    {
        // Writing to a String cannot fail.
        let _ = write!(out, " — did you mean `{best}`?");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn an_unknown_key_names_its_place_and_the_likely_one() {
        let f = file("[batch]\nmax_rows = 10\nmax_agems = 5\n");
        let error = load_with(Some(f.path()), std::iter::empty()).unwrap_err().to_string();
        assert!(error.contains(":3:1:"), "{error}");
        assert!(error.contains("did you mean `max_age_ms`?"), "{error}");
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let f = file("[batch]\nmax_rows = 10\n");
        let vars = [
            ("MILLSTREAM__BATCH__MAX_ROWS", "99"),
            ("MILLSTREAM__KAFKA__BROKERS", "localhost:9092"),
            ("UNRELATED", "1"),
        ];
        let vars = vars.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
        let config = load_with(Some(f.path()), vars).unwrap();
        assert_eq!(config.batch.max_rows, 99);
        assert_eq!(config.kafka.brokers, "localhost:9092");
    }

    #[test]
    fn a_wrong_variable_is_named() {
        let vars = [("MILLSTREAM__BATCH__MAX_ROW".to_owned(), "1".to_owned())];
        let error = load_with(None, vars.into_iter()).unwrap_err().to_string();
        assert!(error.contains("MILLSTREAM__BATCH__MAX_ROW"), "{error}");
        assert!(error.contains("max_rows"), "{error}");
    }

    #[test]
    fn the_schema_keeps_the_order_of_the_file() {
        let f = file(
            "[[streams]]\nname='s'\ntopic='t'\ntransform='x'\nentity='z'\nevent_time='a'\n\
             schema = { z = 'string', m = 'int64', a = 'timestamp' }\n",
        );
        let config = load_with(Some(f.path()), std::iter::empty()).unwrap();
        let names: Vec<_> = config.streams[0].schema.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["z", "m", "a"]);
    }

    /// The keys of a table and of the tables in it, as `section.key`.
    fn keys(table: &toml::Table, of: &str) -> Vec<String> {
        table
            .iter()
            .flat_map(|(key, value)| match value {
                toml::Value::Table(inner) => keys(inner, &format!("{of}{key}.")),
                _ => vec![format!("{of}{key}")],
            })
            .collect()
    }

    #[test]
    fn the_example_has_every_key_with_its_default() {
        let text = include_str!("../../millstream.example.toml");
        let said: toml::Table = toml::from_str(text).unwrap();
        let said = keys(&said, "");
        let defaults = toml::Table::try_from(Config::default()).unwrap();
        for key in keys(&defaults, "") {
            assert!(said.contains(&key), "the example does not have {key}");
        }
        let example: Config = toml::from_str(text).unwrap();
        assert_eq!(toml::Table::try_from(example).unwrap(), defaults);
    }

    #[test]
    fn the_shipped_streams_survive_a_round_trip() {
        let text = toml::to_string(&Config::default()).unwrap();
        let f = file(&text);
        let config = load_with(Some(f.path()), std::iter::empty()).unwrap();
        assert_eq!(config.streams[1].schema, Config::default().streams[1].schema);
    }
}
