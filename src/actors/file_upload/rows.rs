//! The rows of an accepted file, in pieces.

use super::{METER, UploadDesk, status::Unfinished};
use crate::{
    actors::feeder::Supply,
    files::{FileLimits, FileReader},
    messages::Records,
    protocol::source::Position,
};
use anyhow::{Context as _, bail};
use std::sync::Arc;

/// See the module.
pub(super) struct FileRows {
    desk: Arc<UploadDesk>,
    upload: Unfinished,
    stream: usize,
    /// Open at `next`.
    reader: Option<FileReader>,
    next: Position,
}

impl FileRows {
    pub(super) fn new(desk: Arc<UploadDesk>, upload: Unfinished, stream: usize) -> Self {
        Self { desk, upload, stream, reader: None, next: 0 }
    }

    fn open(&self) -> impl FnOnce() -> anyhow::Result<FileReader> + Send + 'static {
        let config = self.desk.config().clone();
        let (path, stream) = (self.desk.spool().file(&self.upload.upload_id), self.stream);
        let (kind, at_us) = (self.upload.kind, self.upload.registered_at_us);
        move || {
            let limits = FileLimits::of(&config);
            Ok(FileReader::open(&path, kind, &config.streams[stream], &limits, at_us)?)
        }
    }
}

impl Supply for FileRows {
    async fn records(&mut self, from: Position, most: usize) -> anyhow::Result<Records> {
        let work = METER.begin();
        let reader = self.reader.take().filter(|_| self.next == from);
        let open = self.open();
        let reading = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            let mut reader = match reader {
                Some(reader) => reader,
                None => {
                    let mut reader = open()?;
                    reader.skip_to(from.cast_unsigned())?;
                    reader
                }
            };
            let records = reader.next(most)?;
            Ok((reader, records))
        });
        let (reader, records) = reading.await??;
        let records = records.filter(|records| !records.is_empty()).with_context(|| {
            format!("the file ends before row {from}, though it had {} rows", self.upload.rows)
        })?;
        METER.received(records.len());
        METER.sent(records.len());
        work.done();
        self.reader = Some(reader);
        self.next = from + records.len() as i64;
        Ok(records)
    }

    async fn is_ours(&mut self) -> anyhow::Result<bool> {
        let path = self.desk.spool().file(&self.upload.upload_id);
        if !path.exists() {
            bail!(
                "its file is not in the spool any more ({}): send it again with the same key",
                path.display()
            );
        }
        self.desk.owns(&self.upload.upload_id).await
    }
}
