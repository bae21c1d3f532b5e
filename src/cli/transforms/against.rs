//! Another version that runs beside the one that is tried, on the same records in the same batches.

use super::{Failure, decided::print_examples, find_script, history, short};
use crate::{
    actors::python_worker_supervisor::{Difference, Rehearsal, RehearsalError},
    cli::client::ClientArgs,
    config::{Config, StreamConfig},
    messages::{FeaturePart, Records},
    python::Script,
};
use serde::Serialize;
use std::time::Duration;

/// Digits that a version is told by, at least.
const LEAST_DIGITS: usize = 6;
/// Digits of a whole SHA-256.
const ALL_DIGITS: usize = 64;

/// What a version is held against.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// What the stream runs.
    Running,
    /// The version that begins like this.
    Version(String),
    /// A script's file, or name.
    File,
}

impl Wanted {
    /// A script that is there goes before a version that is called like it.
    fn of(config: &Config, text: &str) -> Self {
        let is_version = (LEAST_DIGITS..=ALL_DIGITS).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_hexdigit());
        match text {
            "running" => Self::Running,
            _ if is_version && find_script(config, text).is_err() => {
                Self::Version(text.to_ascii_lowercase())
            }
            _ => Self::File,
        }
    }
}

/// The version that `--diff-against` names.
///
/// # Errors
/// [`Failure::Usage`] when there is none or several, [`Failure::Unreachable`] when the node is
/// needed and does not answer.
pub async fn find(
    config: &Config,
    stream: &StreamConfig,
    text: &str,
    node: &ClientArgs,
) -> Result<Script, Failure> {
    let sha256 = match Wanted::of(config, text) {
        Wanted::File => {
            let path = find_script(config, text).map_err(|_| neither(config, text))?;
            return Script::read_with(&path, &[&config.python.transforms_dir])
                .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())));
        }
        Wanted::Running => history::running(node, &stream.name).await?,
        Wanted::Version(whole) if whole.len() == ALL_DIGITS => whole,
        Wanted::Version(beginning) => {
            match &history::versions_like(node, &stream.name, &beginning).await?[..] {
                [only] => only.clone(),
                found => return Err(not_one(&stream.name, &beginning, found)),
            }
        }
    };
    let text = history::text(node, &sha256).await?;
    Ok(text.script(&super::file_of(config, stream)))
}

fn neither(config: &Config, text: &str) -> Failure {
    Failure::Usage(format!(
        "`{text}` is neither `running`, nor a version (its first {LEAST_DIGITS} hexadecimal digits or more, as \
         `millstream transforms history` shows them), nor a script here or in {}",
        config.python.transforms_dir.display()
    ))
}

fn not_one(stream: &str, beginning: &str, found: &[String]) -> Failure {
    Failure::Usage(match found {
        [] => format!(
            "`{stream}` has never known a version {beginning}…; `millstream transforms history {stream}` shows \
             those that it has"
        ),
        several => {
            format!("{beginning} is the beginning of several versions: {}", several.join(", "))
        }
    })
}

/// See the module.
pub struct Against {
    name: String,
    sha256: String,
    rehearsal: Rehearsal,
    difference: Difference,
    /// Whether packages are loaded, or that must not be done.
    is_warm: bool,
}

impl Against {
    /// The version `sha256`, called `name` by the user, in a rehearsal of its own. Without
    /// `may_warm_up` no batch is run twice: the scripts keep state.
    pub fn new(name: &str, sha256: &str, rehearsal: Rehearsal, may_warm_up: bool) -> Self {
        Self {
            name: name.to_owned(),
            sha256: sha256.to_owned(),
            rehearsal,
            difference: Difference::default(),
            is_warm: !may_warm_up,
        }
    }

    /// Starts its worker.
    ///
    /// # Errors
    /// [`RehearsalError`].
    pub async fn start(&mut self) -> Result<(), RehearsalError> {
        self.rehearsal.start().await.map(drop)
    }

    /// Before the first batch: both versions run it once without a watch, so that neither time has
    /// what packages load lazily.
    ///
    /// # Errors
    /// [`RehearsalError`] of this version.
    pub async fn warm_up(&mut self, records: &Records) -> Result<(), RehearsalError> {
        self.is_warm = true;
        self.rehearsal.warm_up(records.clone()).await
    }

    /// Whether [`Self::warm_up`] is still to come.
    pub fn is_cold(&self) -> bool {
        !self.is_warm
    }

    /// Runs a batch.
    ///
    /// # Errors
    /// [`RehearsalError`].
    pub async fn run(&mut self, records: Records) -> Result<FeaturePart, RehearsalError> {
        self.rehearsal.run(records).await
    }

    /// Both versions are through a batch.
    ///
    /// # Errors
    /// [`RehearsalError::Defect`].
    pub fn compare(
        &mut self,
        before: &FeaturePart,
        after: &FeaturePart,
    ) -> Result<(), RehearsalError> {
        self.difference.add(Difference::between_parts(before, after)?);
        Ok(())
    }

    /// Lets its worker end; what was found, when the new version took `after` for all batches.
    pub async fn finish(self, after: Duration) -> Compared {
        let before = self.rehearsal.transform_time();
        self.rehearsal.stop().await;
        let (before_s, after_s) = (before.as_secs_f64(), after.as_secs_f64());
        Compared {
            name: self.name,
            against: self.sha256,
            difference: self.difference,
            before_s,
            after_s,
            time_ratio: (before_s > 0.0).then(|| after_s / before_s),
        }
    }
}

/// What the version that is tried makes of the input, held against what another one makes of it.
#[derive(Debug, Serialize)]
pub struct Compared {
    /// As the user called it.
    #[serde(skip)]
    name: String,
    /// The other version.
    against: String,
    #[serde(flatten)]
    difference: Difference,
    /// Seconds that the other version took for all batches.
    before_s: f64,
    /// Seconds that the new one took.
    after_s: f64,
    /// How many times as long that is.
    time_ratio: Option<f64>,
}

impl Compared {
    /// Prints it for people.
    pub fn print(&self) {
        let Self { name, against, difference, before_s, after_s, time_ratio } = self;
        println!("against {} ({name}): {difference}", short(against));
        print_examples(difference);
        if let Some(ratio) = time_ratio {
            println!("time    {ratio:.2} times: {before_s:.3} s before, {after_s:.3} s now");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_version_is_held_against_is_told_by_its_look() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.python.transforms_dir = folder.path().to_owned();
        let version = |text: &str| Wanted::Version(text.into());
        for (text, wanted) in [
            ("running", Wanted::Running),
            ("facade", version("facade")),
            ("0123ABC", version("0123abc")),
            ("01234", Wanted::File),
            ("feature", Wanted::File),
            (&"a".repeat(64), version(&"a".repeat(64))),
            (&"a".repeat(65), Wanted::File),
        ] {
            assert_eq!(Wanted::of(&config, text), wanted, "{text}");
        }
        std::fs::write(folder.path().join("facade.py"), "").unwrap();
        assert_eq!(Wanted::of(&config, "facade"), Wanted::File, "there is a script of that name");
    }

    #[test]
    fn what_is_no_version_is_said_with_what_to_do() {
        let said = |found: &[String]| match not_one("s", "0123ab", found) {
            Failure::Usage(message) => message,
            other => panic!("{other:?}"),
        };
        assert!(said(&[]).contains("millstream transforms history s"));
        assert!(said(&["0123abc".into(), "0123abd".into()]).ends_with("0123abc, 0123abd"));
    }
}
