//! Opening the database file, and opening it again.

use super::{StoreError, lock::StoreLock, readers::Readers, schema};
use crate::{config::Config, spool::chunk_folder};
use duckdb::Connection;
use std::path::{Path, PathBuf};

/// How the file is opened.
#[derive(Debug, Clone)]
pub struct DatabaseOptions {
    /// The file.
    pub file: PathBuf,
    /// DuckDB's memory limit in MiB.
    pub memory_limit_mib: usize,
    /// What DuckDB may put aside on the disk, in MiB: a reader must not fill the writer's.
    pub max_spill_mib: usize,
    /// DuckDB's threads.
    pub threads: usize,
    /// Folder of the chunks that nodes leave for the store, see [`crate::spool`]; the only files
    /// besides its own that DuckDB may open.
    pub chunks: Option<PathBuf>,
}

impl DatabaseOptions {
    /// What the configuration says.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            file: config.database(),
            memory_limit_mib: config.store.memory_limit_mib,
            max_spill_mib: config.store.max_spill_mib,
            threads: config.store.threads,
            chunks: Some(chunk_folder(&config.spool())),
        }
    }
}

/// The open database. The lock is dropped after the last connection.
#[derive(Debug)]
pub struct Database {
    /// `None` only inside [`Database::reopen`].
    connection: Option<Connection>,
    readers: Readers,
    /// Its `chunks` are an absolute path, or `None` when there is no such folder.
    options: DatabaseOptions,
    _lock: StoreLock,
}

impl Database {
    /// Takes the lock, opens the file, creates the tables that are missing.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::Open`].
    pub fn open(mut options: DatabaseOptions) -> Result<Self, StoreError> {
        options.chunks = options.chunks.as_deref().and_then(absolute_folder);
        if let Some(folder) = options.file.parent() {
            std::fs::create_dir_all(folder).map_err(|e| open_error(&options.file, &e))?;
        }
        let lock = StoreLock::take(&options.file)?;
        let mut database =
            Self { connection: None, readers: Readers::default(), options, _lock: lock };
        database.connect()?;
        Ok(database)
    }

    /// Closes every connection, whoever holds it, and opens the file again: only so can it be known
    /// whether a COMMIT that reported an error has happened. The lock stays taken all the while.
    ///
    /// # Errors
    /// [`StoreError::Open`]: nothing is open then; this can be tried again.
    pub fn reopen(&mut self) -> Result<(), StoreError> {
        // Two instances of DuckDB on one file would ruin it: readers first, and waited for.
        self.readers.close();
        self.connection = None;
        self.connect()
    }

    fn connect(&mut self) -> Result<(), StoreError> {
        let connection = connect(&self.options)?;
        schema::create(&connection).map_err(|e| open_error(&self.options.file, &e))?;
        let for_readers = connection.try_clone().map_err(StoreError::of_statement)?;
        self.connection = Some(connection);
        self.readers.open(for_readers, self.options.memory_limit_mib << 20);
        Ok(())
    }

    /// The writer's connection.
    ///
    /// # Panics
    /// After a [`Database::reopen`] that failed: the writer tries that until it succeeds, or ends.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("a database that could not be reopened is not used")
    }

    /// Where readers get connections to the same open database.
    #[must_use]
    pub fn readers(&self) -> Readers {
        self.readers.clone()
    }

    /// How it was opened.
    #[must_use]
    pub fn options(&self) -> &DatabaseOptions {
        &self.options
    }

    /// Bytes of the file and its write-ahead log.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        let mut wal = self.options.file.as_os_str().to_owned();
        wal.push(".wal");
        [self.options.file.as_path(), Path::new(&wal)]
            .iter()
            .filter_map(|p| std::fs::metadata(p).ok())
            .map(|meta| meta.len())
            .sum()
    }
}

fn open_error(file: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Open { file: file.display().to_string(), reason: error.to_string() }
}

/// The folder's own path, whatever links and dots lead to it: by that DuckDB knows it. Without one
/// rows travel over the queue.
fn absolute_folder(folder: &Path) -> Option<PathBuf> {
    match std::fs::create_dir_all(folder).and_then(|()| folder.canonicalize()) {
        Ok(path) if path.to_str().is_some() => Some(path),
        Ok(path) => {
            tracing::warn!(folder = %path.display(), "a spool whose path is not UTF-8 is not used");
            None
        }
        Err(error) => {
            tracing::warn!(%error, folder = %folder.display(), "the spool cannot be used");
            None
        }
    }
}

fn connect(options: &DatabaseOptions) -> Result<Connection, StoreError> {
    let build = || {
        duckdb::Config::default()
            .max_memory(&format!("{}MiB", options.memory_limit_mib))?
            .threads(i64::try_from(options.threads).unwrap_or(1))
    };
    let connection = build()
        .and_then(|config| Connection::open_with_flags(&options.file, config))
        .map_err(|e| open_error(&options.file, &e))?;
    // DuckDB takes the list of folders only while it runs, and only before it is shut off from all
    // others. Its own files, with the log and what it spills, it then adds itself.
    let allowed = match options.chunks.as_deref().and_then(Path::to_str) {
        Some(folder) => format!("['{}/']", folder.replace('\'', "''")),
        None => "[]".to_owned(),
    };
    // A checkpoint holds up the commit that triggers it: with DuckDB's usual 16 MiB of log that
    // would be every few commits under load. 128 MiB are replayed within seconds at an opening.
    // A chunk is read once: there is nothing in it to cache.
    connection
        .execute_batch(&format!(
            "SET GLOBAL allowed_directories = {allowed};
             SET GLOBAL enable_external_access = false;
             SET GLOBAL enable_external_file_cache = false;
             SET GLOBAL TimeZone = 'UTC';
             SET GLOBAL checkpoint_threshold = '128MiB';
             SET GLOBAL max_temp_directory_size = '{}MiB';
             SET lock_configuration = true;",
            options.max_spill_mib,
        ))
        .map_err(|e| open_error(&options.file, &e))?;
    Ok(connection)
}
