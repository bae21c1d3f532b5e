//! `FeatureService/GetHistoricalFeatures`.

use super::{Answering, Ask, Spine, http::MOST_SPINE_BYTES, spine::Columns};
use crate::{
    node::NodeView,
    proto::{
        AsOfMode, HistoricalFeaturesQuestion, HistoricalFeaturesReply, HistoricalFeaturesRequest,
        Watermark, historical_features_reply::Part as ReplyPart,
        historical_features_request::Part as RequestPart,
    },
    protocol::as_of::Mode,
    service::query::chunks,
};
use futures::stream::{self, BoxStream, StreamExt};
use tonic::{Status, Streaming};

/// Answers a question; the spine is taken whole first.
pub(in crate::service) async fn over_grpc(
    view: &NodeView,
    mut request: Streaming<HistoricalFeaturesRequest>,
) -> Result<BoxStream<'static, Result<HistoricalFeaturesReply, Status>>, Status> {
    let first = request.message().await?.and_then(|message| message.part);
    let Some(RequestPart::Question(question)) = first else {
        return Err(Status::invalid_argument("the first request says what is asked"));
    };
    let mut spine = Vec::new();
    while let Some(message) = request.message().await? {
        let Some(RequestPart::Spine(bytes)) = message.part else {
            return Err(Status::invalid_argument("all requests but the first carry the spine"));
        };
        spine.extend_from_slice(&bytes);
        if spine.len() > MOST_SPINE_BYTES {
            let most = MOST_SPINE_BYTES >> 30;
            return Err(Status::resource_exhausted(format!("a spine has at most {most} GiB")));
        }
    }
    let spine = Spine::Arrow(spine.into());
    let (watermark, pieces) =
        Answering::begin(view.clone(), spine, ask(question)).await?.into_arrow().await?;
    let stamp_us = watermark.map(|watermark| watermark.stamp_us).filter(|us| *us != i64::MIN);
    let head = ReplyPart::Watermark(Watermark { stamp_us });
    let rows = pieces.flat_map(|piece| {
        let parts = match piece {
            Ok(bytes) => {
                chunks(bytes).map(|chunk| chunk.map(|c| ReplyPart::Rows(c.data))).collect()
            }
            Err(problem) => vec![Err(Status::from(problem))],
        };
        stream::iter(parts)
    });
    let replies = stream::once(async { Ok(head) }).chain(rows);
    Ok(replies.map(|part| part.map(|part| HistoricalFeaturesReply { part: Some(part) })).boxed())
}

fn ask(question: HistoricalFeaturesQuestion) -> Ask {
    let mode = match question.mode() {
        AsOfMode::AsKnown => Mode::AsKnown,
        AsOfMode::EventTime => Mode::EventTime,
    };
    let usual = Columns::default();
    Ask {
        columns: Columns {
            entity: question.entity_column.unwrap_or(usual.entity),
            time: question.time_column.unwrap_or(usual.time),
            naive_is_utc: question.naive_is_utc,
        },
        features: question.features,
        mode,
        strict: question.strict,
        max_age_us: question.max_age_us,
        wait: question.wait,
    }
}
