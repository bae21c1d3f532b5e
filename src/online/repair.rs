//! Taking back what is online though DuckDB refused its row.

use super::{OnlineOutcome, format_field, format_timestamp, format_value};
use crate::{messages::Repair, queue::Keys};
use redis::{Script, aio::ConnectionManager};

const SCRIPT: &str = include_str!("repair_online.lua");

/// Puts the newest durable values in the place of refused ones; newer ones stay.
///
/// # Errors
/// Redis' word; any of the repairs may or may not be done then, and can be done again.
pub async fn repair(
    connection: &mut ConnectionManager,
    keys: &Keys,
    generation: &str,
    repairs: &[Repair],
) -> redis::RedisResult<OnlineOutcome> {
    let script = Script::new(SCRIPT);
    let mut call = script.prepare_invoke();
    call.arg(keys.namespace()).arg(generation);
    for repair in repairs {
        let packed = repair.refused.pack(0);
        call.arg(&repair.entity_id).arg(&repair.feature_name).arg(&packed[..packed.len() - 8]);
        match &repair.newest {
            Some((v, token_number)) => {
                call.arg(format_field(v.value, &v.version, *token_number));
            }
            None => {
                call.arg("");
            }
        }
        match &repair.newest_of_feature {
            Some((v, token_number)) => {
                call.arg(format_value(v.value))
                    .arg(format_timestamp(v.version.event_timestamp))
                    .arg(&v.entity_id)
                    .arg(v.version.pack(*token_number));
            }
            None => {
                call.arg("").arg("").arg("").arg("");
            }
        }
    }
    let answer: String = call.invoke_async(connection).await?;
    Ok(OnlineOutcome::of(&[answer]))
}
