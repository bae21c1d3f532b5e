//! Uploads: which files are known, by the keys that their clients gave them.

use super::StoreError;
use crate::{
    messages::{RegisterUpload, UploadRegistered},
    protocol::source::SourceName,
};
use duckdb::{Connection, OptionalExt, params};

/// What the table says of a key.
struct Known {
    upload_id: String,
    source: String,
    rows: i64,
    sha256: String,
    stream: String,
    format: String,
    compression: String,
}

/// Writes an upload down, inside of a transaction.
///
/// | the table has of the key | what is done |
/// |---|---|
/// | nothing | the upload is new: a row with the id of the request |
/// | the same bytes, stream, format and compression | nothing; with `adopt`, and as long as it has not landed, it belongs to the owner of the request from now on |
/// | anything else | nothing; the answer says what differs |
///
/// The same request may come twice: it is known by its id, and is answered as it was the first time.
///
/// # Errors
/// [`StoreError::Statement`], [`StoreError::Refused`].
pub fn register(
    connection: &Connection,
    upload: &RegisterUpload,
    stamp_us: i64,
) -> Result<UploadRegistered, StoreError> {
    let Some(known) = find(connection, upload)? else {
        return insert(connection, upload, stamp_us);
    };
    let landed = has_landed(connection, &known.source, known.rows)?;
    let conflict = conflict(&known, upload);
    if upload.adopt && conflict.is_none() && !landed {
        connection
            .execute(
                "UPDATE uploads SET owner = ? WHERE idempotency_key = ? AND owner != ?",
                params![upload.owner, upload.idempotency_key, upload.owner],
            )
            .map_err(StoreError::of_statement)?;
    }
    Ok(UploadRegistered { upload_id: known.upload_id, conflict, landed })
}

fn find(connection: &Connection, upload: &RegisterUpload) -> Result<Option<Known>, StoreError> {
    connection
        .query_row(
            "SELECT upload_id, source, rows, sha256, stream, format, compression
             FROM uploads WHERE idempotency_key = ?",
            params![upload.idempotency_key],
            |row| {
                Ok(Known {
                    upload_id: row.get(0)?,
                    source: row.get(1)?,
                    rows: row.get(2)?,
                    sha256: row.get(3)?,
                    stream: row.get(4)?,
                    format: row.get(5)?,
                    compression: row.get(6)?,
                })
            },
        )
        .optional()
        .map_err(StoreError::of_statement)
}

fn insert(
    connection: &Connection,
    upload: &RegisterUpload,
    stamp_us: i64,
) -> Result<UploadRegistered, StoreError> {
    let source = SourceName::upload(&upload.stream, &upload.upload_id);
    connection
        .execute(
            "INSERT INTO uploads (upload_id, idempotency_key, sha256, stream, source, owner, filename,
                                  format, compression, size, rows, registered_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, make_timestamptz(?))",
            params![
                upload.upload_id,
                upload.idempotency_key,
                upload.sha256,
                upload.stream,
                source.0.as_ref(),
                upload.owner,
                upload.filename,
                upload.format,
                upload.compression,
                // No file is larger.
                i64::try_from(upload.size).unwrap_or(i64::MAX),
                upload.rows,
                stamp_us
            ],
        )
        .map_err(StoreError::of_statement)?;
    Ok(UploadRegistered {
        upload_id: upload.upload_id.clone(),
        conflict: None,
        landed: upload.rows == 0,
    })
}

/// Whether every row is accounted for.
fn has_landed(connection: &Connection, source: &str, rows: i64) -> Result<bool, StoreError> {
    if rows == 0 {
        return Ok(true);
    }
    let next_pos: Option<i64> = connection
        .query_row(
            "SELECT next_pos FROM sources WHERE source = ? ORDER BY source_no DESC LIMIT 1",
            params![source],
            |row| row.get(0),
        )
        .optional()
        .map_err(StoreError::of_statement)?;
    Ok(next_pos.is_some_and(|next_pos| next_pos >= rows))
}

/// What differs between what a key stands for and what is asked, as a sentence.
fn conflict(known: &Known, upload: &RegisterUpload) -> Option<String> {
    let mut differs = Vec::new();
    if known.sha256 != upload.sha256 {
        differs.push("other bytes".to_owned());
    }
    for (what, known, asked) in [
        ("stream", &known.stream, &upload.stream),
        ("format", &known.format, &upload.format),
        ("compression", &known.compression, &upload.compression),
    ] {
        if known != asked {
            differs.push(format!("the {what} `{known}` instead of `{asked}`"));
        }
    }
    let (last, others) = differs.split_last()?;
    let differs = match others {
        [] => last.clone(),
        others => format!("{} and {last}", others.join(", ")),
    };
    let key = &upload.idempotency_key;
    Some(format!("the key `{key}` stands for an upload with {differs}: choose another key"))
}

#[cfg(test)]
mod tests;
