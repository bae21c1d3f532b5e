//! The tables of docs/faults.md are true.

use millstream::{
    chaos::fault::{KINDS, Needs, find},
    failpoint::DEFECTS,
};
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page() -> String {
    std::fs::read_to_string(root().join("docs/faults.md")).unwrap()
}

/// The cells of a table's row; another line is one cell.
fn cells(line: &str) -> Vec<&str> {
    match line.strip_prefix('|').and_then(|row| row.strip_suffix('|')) {
        Some(row) => row.split('|').map(str::trim).collect(),
        None => vec![line],
    }
}

/// The rows of the table below a heading.
fn table<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).unwrap();
    let rows = section.lines().skip_while(|line| !line.starts_with('|'));
    rows.take_while(|line| line.starts_with('|')).skip(2).map(cells).collect()
}

/// What stands in backticks.
fn names(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

fn is_identifier(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn has_function(file: &Path, name: &str) -> bool {
    std::fs::read_to_string(file).is_ok_and(|text| text.contains(&format!("fn {name}(")))
}

/// Whether `module::test` is there, in `module.rs` or in `module/mod.rs`.
fn has_test(module: &str, test: &str) -> bool {
    let module = root().join("tests/it").join(module.replace("::", "/"));
    has_function(&module.with_extension("rs"), test) || has_function(&module.join("mod.rs"), test)
}

#[test]
fn every_test_that_is_named_exists() {
    let page = page();
    let (mut seen, mut missing) = (0, Vec::new());
    for cell in page.lines().flat_map(cells) {
        // Names behind the path of a file are its functions.
        let mut file: Option<PathBuf> = None;
        for name in names(cell) {
            let is_there = if let Some((module, test)) = name.rsplit_once("::") {
                has_test(module, test)
            } else if name.starts_with("src/") {
                let path = root().join(name);
                file.insert(path).is_file()
            } else if let Some(file) = file.as_deref().filter(|_| is_identifier(name)) {
                has_function(file, name)
            } else {
                continue;
            };
            seen += 1;
            if !is_there {
                missing.push(name);
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
    assert!(seen > 100, "{seen} names");
}

#[test]
fn the_kinds_of_chaos_are_those_of_the_program() {
    let page = page();
    let known: Vec<Vec<String>> = KINDS
        .iter()
        .map(|kind| {
            let is_random = kind.needs != Needs::InProcessBroker;
            let runs = if is_random { "CI, `make chaos`" } else { "CI" };
            let name = format!("`{}`", kind.name);
            vec![name, kind.target.to_string(), kind.what.to_owned(), runs.to_owned()]
        })
        .collect();
    assert_eq!(table(&page, "By `millstream chaos`"), known);
    for heading in ["The faults of the design", "Further cases"] {
        for row in table(&page, heading) {
            assert_eq!(row.len(), 5, "{row:?}");
            for name in names(row[4]) {
                let is_random = find(name).is_some_and(|k| k.needs != Needs::InProcessBroker);
                assert!(is_random, "`make chaos` has no `{name}`: {row:?}");
            }
        }
    }
}

#[test]
fn the_planted_defects_are_those_of_the_program() {
    let page = page();
    let rows = table(&page, "Defects planted for the judge");
    let listed: Vec<(&str, &str)> =
        rows.iter().map(|row| (row[0].trim_matches('`'), row[1])).collect();
    assert_eq!(listed, DEFECTS);
    assert!(rows.iter().all(|row| row[2].starts_with("`planted::")), "{rows:?}");
}
