//! Commands that every stage understands.

use actix::Message;

/// Hand on everything that is held back; answered once it is handed on.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Drain;
