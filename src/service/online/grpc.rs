//! `FeatureService/GetOnlineFeatures`.

use super::{Named, Problem, ask};
use crate::{
    node::NodeView,
    online::read::Newest,
    proto::{
        FeatureStatus, OnlineFeature, OnlineFeatureValue, OnlineFeaturesReply,
        OnlineFeaturesRequest,
    },
    protocol::status::Status,
};

/// Entities whose features may all be asked for at once.
const MOST_ENTITIES: usize = 1_000;

impl From<Problem> for tonic::Status {
    fn from(problem: Problem) -> Self {
        match problem {
            Problem::Invalid(why) => Self::invalid_argument(why),
            Problem::NoStream(why) | Problem::NoFeature(why) => Self::not_found(why),
            Problem::Unavailable(why) => Self::unavailable(why),
        }
    }
}

/// Answers a question; without features: all that any of the entities has.
pub(in crate::service) async fn get_online_features(
    view: &NodeView,
    request: OnlineFeaturesRequest,
) -> Result<OnlineFeaturesReply, tonic::Status> {
    let OnlineFeaturesRequest { entity_ids, mut features, max_age_us } = request;
    let named;
    if features.is_empty()
        && let Some(online) = &view.online
    {
        if entity_ids.len() > MOST_ENTITIES {
            let why = format!("all features are told of at most {MOST_ENTITIES} entities at once");
            return Err(Problem::Invalid(why).into());
        }
        features = online.features_of(&entity_ids).await.map_err(Problem::from)?;
        if features.is_empty() {
            return Ok(OnlineFeaturesReply::default());
        }
        named = features.iter().map(|feature| Named { stream: None, feature }).collect();
    } else {
        let of = features.iter().map(|name| Named::of(name, &view.config));
        named = of.collect::<Result<Vec<_>, _>>()?;
    }
    let found = ask(view, &entity_ids, &named, max_age_us).await?;
    let column = |i: usize| found.iter().map(|of_entity| value(of_entity[i])).collect();
    let features = named
        .iter()
        .enumerate()
        .map(|(i, named)| OnlineFeature { name: named.feature.to_owned(), values: column(i) });
    Ok(OnlineFeaturesReply { features: features.collect() })
}

fn value(newest: Newest) -> OnlineFeatureValue {
    let status = match newest.status {
        Status::Present => FeatureStatus::Present,
        Status::NullValue => FeatureStatus::NullValue,
        Status::NotFound => FeatureStatus::NotFound,
        Status::OutsideMaxAge => FeatureStatus::OutsideMaxAge,
    };
    OnlineFeatureValue {
        value: newest.value,
        status: status.into(),
        event_timestamp_us: newest.event_timestamp_us,
        age_us: newest.age_us,
    }
}
