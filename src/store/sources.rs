//! The sources as the store knows them: opening, adopting and halting one.

use super::StoreError;
use crate::{
    planted,
    protocol::{
        apply::{SourceState, Watermarks},
        new_partition::{self, Sibling, Verdict},
        source::{
            AdoptAt, OpenReply, OpenRequest, Position, SourceAttributes, SourceName, Token,
            halt_reason,
        },
    },
};
use duckdb::{Connection, params};
use std::collections::HashMap;

/// What the store knows of a source besides its watermark.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceInfo {
    /// What must not change unnoticed.
    pub attributes: SourceAttributes,
    /// Partitions that the topic had when the source was first opened.
    pub topic_partitions: Option<i32>,
    /// Why it must not be read, whatever the broker says.
    pub halted: Option<String>,
    /// An operator's decision that the next open carries out.
    pub adopt: Option<AdoptAt>,
}

/// The sources by name; of a name that has several rows the one with the greatest number.
#[derive(Debug, Default)]
pub struct Sources {
    /// Tokens and positions.
    pub marks: Watermarks,
    /// The rest.
    pub info: HashMap<SourceName, SourceInfo>,
}

/// What an open has decided, before it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The new token.
    pub token: Token,
    /// `None`: a new row, because the source is new or its log is.
    pub source_no: Option<i32>,
    /// Where it is read.
    pub next_pos: Position,
    /// What is known of it from now on.
    pub info: SourceInfo,
}

impl Sources {
    /// Reads the table.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load(connection: &Connection) -> Result<Self, StoreError> {
        let mut sources = Self::default();
        let mut statement = connection
            .prepare(
                "SELECT source_no, source, token::VARCHAR, token_no, next_pos, cluster_id, topic_id,
                        topic_partitions, halted, adopt
                 FROM sources
                 QUALIFY source_no = max(source_no) OVER (PARTITION BY source)",
            )
            .map_err(StoreError::of_statement)?;
        let mut rows = statement.query([]).map_err(StoreError::of_statement)?;
        while let Some(row) = rows.next().map_err(StoreError::of_statement)? {
            let (name, state, info) = read(row).map_err(StoreError::of_statement)?;
            sources.marks.insert(name.clone(), state);
            sources.info.insert(name, info);
        }
        Ok(sources)
    }

    /// Decides on an open, without changing anything.
    ///
    /// | the store knows | answer |
    /// |---|---|
    /// | nothing of the name, and the rule of [`new_partition`] lets it in | a new source at `start` |
    /// | nothing of the name, but older partitions that are behind | waiting |
    /// | that an operator adopted it at `earliest` or `latest` | a new source at `low` or `high` |
    /// | other attributes, and the broker is ephemeral | a new source at `start` |
    /// | that it was halted, or something that [`halt_reason`] refuses | halted |
    /// | that an operator adopted it `here` | the next token, `next_pos`, the attributes of the open |
    /// | else | the next token, `next_pos` |
    ///
    /// # Errors
    /// The answer, when the source is not opened.
    pub fn decide(&self, open: &OpenRequest) -> Result<Opening, OpenReply> {
        let name = &open.source;
        let (Some(state), Some(info)) = (self.marks.get(name), self.info.get(name)) else {
            self.may_be_new(open)?;
            return Ok(fresh(open, 0, open.start));
        };
        let number = state.token.number;
        match info.adopt {
            Some(AdoptAt::Earliest) => return Ok(fresh(open, number, open.low)),
            Some(AdoptAt::Latest) => return Ok(fresh(open, number, open.high)),
            _ if open.ephemeral && info.attributes != open.attributes => {
                return Ok(fresh(open, number, open.start));
            }
            _ => {}
        }
        let here = info.adopt == Some(AdoptAt::Here);
        let known = if here { SourceAttributes::default() } else { info.attributes.clone() };
        if let Some(reason) = info.halted.clone().filter(|_| !here) {
            return Err(OpenReply::Halted { reason });
        }
        if let Some(reason) = halt_reason(&known, state.next_pos, open) {
            return Err(OpenReply::Halted { reason });
        }
        let OpenRequest { attributes, .. } = open.clone();
        // To read from the broker's offset alone would do nothing: batches that do not begin at
        // `next_pos` are refused. The defect is that of a store that believes the broker: the open's
        // `start` is the broker's offset then, and the watermark is set to it.
        let believes = planted!("start_at_committed") && name.kafka_partition().is_some();
        Ok(Opening {
            token: Token::after(number),
            source_no: Some(state.source_no),
            next_pos: if believes { open.start } else { state.next_pos },
            info: SourceInfo {
                attributes: SourceAttributes {
                    cluster_id: attributes.cluster_id.or(known.cluster_id),
                    topic_id: attributes.topic_id.or(known.topic_id),
                },
                topic_partitions: info.topic_partitions,
                halted: None,
                adopt: None,
            },
        })
    }

    fn may_be_new(&self, open: &OpenRequest) -> Result<(), OpenReply> {
        let Some((_, partition)) = open.source.kafka_partition() else { return Ok(()) };
        if open.ephemeral {
            return Ok(());
        }
        let siblings: Vec<Sibling> = self
            .marks
            .iter()
            .filter(|(name, _)| name.is_sibling_of(&open.source))
            .map(|(name, state)| Sibling {
                source: name.clone(),
                next_pos: state.next_pos,
                topic_partitions: self.info.get(name).and_then(|i| i.topic_partitions),
            })
            .collect();
        match new_partition::verdict(partition, &siblings, &open.ends) {
            Verdict::Read => Ok(()),
            Verdict::Wait(older) => Err(OpenReply::Waiting { older }),
        }
    }

    /// Takes over what became durable.
    pub fn opened(&mut self, name: &SourceName, opening: Opening, source_no: i32) {
        let Opening { token, next_pos, info, .. } = opening;
        self.marks.insert(name.clone(), SourceState { source_no, token, next_pos });
        self.info.insert(name.clone(), info);
    }
}

/// A log that starts anew.
fn fresh(open: &OpenRequest, number: u32, next_pos: Position) -> Opening {
    Opening {
        token: Token::after(number),
        source_no: None,
        next_pos,
        info: SourceInfo {
            attributes: open.attributes.clone(),
            topic_partitions: open.partitions,
            halted: None,
            adopt: None,
        },
    }
}

fn read(row: &duckdb::Row<'_>) -> duckdb::Result<(SourceName, SourceState, SourceInfo)> {
    let text = |i: usize| row.get::<_, Option<String>>(i);
    let unreadable = |i: usize, e: Box<dyn std::error::Error + Send + Sync>| {
        duckdb::Error::FromSqlConversionFailure(i, duckdb::types::Type::Text, e)
    };
    let id: String = row.get(2)?;
    let id = uuid::Uuid::parse_str(&id).map_err(|e| unreadable(2, Box::new(e)))?;
    let number: i32 = row.get(3)?;
    let token = Token { id, number: number.cast_unsigned() };
    let adopt =
        text(9)?.map(|t| t.parse()).transpose().map_err(|e: String| unreadable(9, e.into()))?;
    let name: String = row.get(1)?;
    Ok((
        SourceName(name.into()),
        SourceState { source_no: row.get(0)?, token, next_pos: row.get(4)? },
        SourceInfo {
            attributes: SourceAttributes { cluster_id: text(5)?, topic_id: text(6)? },
            topic_partitions: row.get(7)?,
            halted: text(8)?,
            adopt,
        },
    ))
}

/// Writes the row of a source that is opened and gives its number.
///
/// # Errors
/// [`StoreError`].
pub fn record_open(
    connection: &Connection,
    source: &SourceName,
    owner: &str,
    opening: &Opening,
) -> Result<i32, StoreError> {
    let Opening { token, source_no, next_pos, info } = opening;
    let (id, number) = (token.id.to_string(), token.number.cast_signed());
    let SourceAttributes { cluster_id, topic_id } = &info.attributes;
    if let Some(source_no) = *source_no {
        let changed = connection
            .execute(
                "UPDATE sources SET token = ?, token_no = ?, owner = ?, cluster_id = ?, topic_id = ?,
                        halted = NULL, adopt = NULL, updated_at = now()
                 WHERE source_no = ?",
                params![id, number, owner, cluster_id, topic_id, source_no],
            )
            .map_err(StoreError::of_statement)?;
        if planted!("start_at_committed") {
            connection
                .execute(
                    "UPDATE sources SET next_pos = ? WHERE source_no = ?",
                    params![next_pos, source_no],
                )
                .map_err(StoreError::of_statement)?;
        }
        return exactly_one(changed, source).map(|()| source_no);
    }
    connection
        .query_row(
            "INSERT INTO sources (source_no, source, token, token_no, owner, next_pos, start_pos,
                                  cluster_id, topic_id, updated_at, topic_partitions)
             SELECT nextval('source_numbers'), ?, ?, ?, ?, ?, ?, ?, ?, now(), ? RETURNING source_no",
            params![
                source.0.as_ref(),
                id,
                number,
                owner,
                next_pos,
                next_pos,
                cluster_id,
                topic_id,
                info.topic_partitions
            ],
            |row| row.get(0),
        )
        .map_err(StoreError::of_statement)
}

/// Writes an operator's decision, or why a source must not be read, to its current row.
///
/// # Errors
/// [`StoreError`].
pub fn record_info(
    connection: &Connection,
    source: &SourceName,
    source_no: i32,
    info: &SourceInfo,
) -> Result<(), StoreError> {
    let adopt = info.adopt.map(AdoptAt::name);
    let changed = connection
        .execute(
            "UPDATE sources SET halted = ?, adopt = ?, updated_at = now() WHERE source_no = ?",
            params![info.halted, adopt, source_no],
        )
        .map_err(StoreError::of_statement)?;
    exactly_one(changed, source)
}

/// A statement that must have changed exactly the row of one source.
///
/// # Errors
/// [`StoreError::Unbalanced`] when it did not.
pub fn exactly_one(changed: usize, source: &SourceName) -> Result<(), StoreError> {
    if changed == 1 {
        return Ok(());
    }
    Err(StoreError::Unbalanced(format!("{changed} rows of `sources` instead of one for {source}")))
}
