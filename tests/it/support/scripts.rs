//! Scripts of a test's own, and the commands that are about them.

use super::{Bench, millstream};
use std::{
    path::PathBuf,
    process::{Command, Output},
};

/// The stream `features` with a script of the test's own, in a folder of its own.
pub fn scripted(script: &str) -> Bench {
    let mut bench = Bench::new("");
    bench.config.streams.truncate(1);
    bench.config.streams[0].transform = "under_test".into();
    bench.config.python.transforms_dir = bench.dir.path().join("transforms");
    std::fs::create_dir(&bench.config.python.transforms_dir).unwrap();
    std::fs::write(script_of(&bench), script).unwrap();
    bench
}

/// The file of that script.
pub fn script_of(bench: &Bench) -> PathBuf {
    bench.config.python.transforms_dir.join("under_test.py")
}

/// An event of that stream.
pub fn event(value: &str) -> String {
    format!(
        r#"{{"entity_id":"e","feature_name":"f","value":{value},"validated_at":"2024-05-01T10:00:00Z"}}"#
    )
}

/// A file of the bench, with this content.
pub fn file(bench: &Bench, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = bench.dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// `millstream transforms` with the configuration of the bench.
pub fn transforms(bench: &Bench, command: &str) -> Command {
    let mut transforms = millstream();
    transforms.args(["transforms", command, "--config"]).arg(bench.config_file());
    transforms
}

/// Exit code, standard output and standard error.
pub fn ended(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code(), text(&stdout), text(&stderr))
}

/// Whether a message for people says this, wherever its lines are broken.
pub fn says(message: &str, expected: &str) -> bool {
    let squeezed = |text: &str| -> String {
        text.chars().filter(|c| !c.is_whitespace() && !"│|".contains(*c)).collect()
    };
    squeezed(message).contains(&squeezed(expected))
}
