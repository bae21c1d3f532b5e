//! Entries of the queue, while the store does not look: there twice, in reverse order, gone.

use super::{Done, Trouble, nothing};
use crate::{
    chaos::{
        plan::Planned,
        processes::Frozen,
        rig::{NodeSlot, Rig},
    },
    queue::Keys,
};
use anyhow::Context as _;
use std::time::Duration;

/// For how long the store is stopped before, so that something is there.
const GATHER: Duration = Duration::from_millis(300);
/// Entries that are disturbed at most.
const ENTRIES: usize = 20;

/// Does to the last entries of a stream what ARGV[1] says, at once; how many there were. A copy has
/// the fields of its entry: the list of the answer, and the round.
const DISTURB: &str = r"
local found = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', ARGV[2])
local how = ARGV[1]
if how == 'reorder' or how == 'lose' then
  for _, entry in ipairs(found) do redis.call('XDEL', KEYS[1], entry[1]) end
end
if how == 'reorder' then
  for _, entry in ipairs(found) do redis.call('XADD', KEYS[1], '*', unpack(entry[2])) end
elseif how == 'duplicate' then
  for i = #found, 1, -1 do redis.call('XADD', KEYS[1], '*', unpack(found[i][2])) end
end
return #found";

/// Stops the store for a moment and disturbs what has gathered.
pub(super) fn disturb(rig: &Rig, store: &mut NodeSlot, planned: &Planned) -> Done {
    store.keep()?;
    let _stopped = Frozen::new(store.pid().context("the store lives")?)?;
    std::thread::sleep(GATHER);
    let how = planned.kind.trim_start_matches("queue-").to_owned();
    let key = Keys::new(&rig.config.node.namespace).queue();
    let url = rig.direct.redis.url.clone();
    let disturbed = move || -> anyhow::Result<usize> {
        let client = redis::Client::open(url)?;
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(2))?;
        connection.set_read_timeout(Some(Duration::from_secs(5)))?;
        let script = redis::Script::new(DISTURB);
        Ok(script.key(key).arg(how).arg(ENTRIES).invoke(&mut connection)?)
    };
    match disturbed() {
        Ok(0) => nothing("the queue was empty"),
        Ok(_) => Ok(None),
        // Redis has troubles of its own just now.
        Err(error) => Err(Trouble::Nothing(format!("Redis did not answer: {error:#}"))),
    }
}
