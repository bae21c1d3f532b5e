//! Writing an event's JSON object, whole or with one planned defect.

use super::hash::Draws;
use crate::text;

/// One way of spoiling an event: what is done to it, and the reason the decoder must give.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defect {
    /// One of [`super::reasons`].
    pub(crate) reason: &'static str,
    /// What is done.
    pub(crate) surgery: Surgery,
}

/// What is done to a well-formed event.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Surgery {
    /// The field is left out.
    Drop(&'static str),
    /// The field's value is these bytes instead.
    Replace(&'static str, &'static [u8]),
    /// These bytes follow the object.
    Append(&'static [u8]),
    /// These bytes are the whole payload.
    Whole(&'static [u8]),
    /// The object is the only element of an array.
    Wrap,
    /// The payload stops somewhere before its last byte.
    Truncate,
    /// A field of the name `extra` holds 200 to 399 nested arrays or objects: far more than
    /// serde_json's limit of 128, and harmless to a decoder without recursion.
    Nest,
    /// No bytes.
    Empty,
    /// No payload.
    Null,
}

/// An object being written field by field, subject to a [`Surgery`].
pub(crate) struct Object {
    buf: Vec<u8>,
    surgery: Option<Surgery>,
}

impl Object {
    /// An empty object, with room for the longest of the built-in events.
    pub(crate) fn new(surgery: Option<Surgery>) -> Self {
        let mut buf = Vec::with_capacity(208);
        buf.push(b'{');
        Self { buf, surgery }
    }

    /// Adds a field whose value `write` appends. `name` needs no escapes.
    pub(crate) fn field(&mut self, name: &'static str, write: impl FnOnce(&mut Vec<u8>)) {
        let replaced = match self.surgery {
            Some(Surgery::Drop(dropped)) if dropped == name => return,
            Some(Surgery::Replace(field, bytes)) if field == name => Some(bytes),
            _ => None,
        };
        if self.buf.len() > 1 {
            self.buf.push(b',');
        }
        self.buf.push(b'"');
        self.buf.extend_from_slice(name.as_bytes());
        self.buf.extend_from_slice(b"\":");
        match replaced {
            Some(bytes) => self.buf.extend_from_slice(bytes),
            None => write(&mut self.buf),
        }
    }

    /// Adds a field that is null.
    pub(crate) fn null(&mut self, name: &'static str) {
        self.field(name, |buf| buf.extend_from_slice(b"null"));
    }

    /// Adds a string field; neither name nor text need escapes.
    pub(crate) fn text(&mut self, name: &'static str, text: &[u8]) {
        self.field(name, |buf| {
            buf.push(b'"');
            buf.extend_from_slice(text);
            buf.push(b'"');
        });
    }

    /// Adds a field that is the instant `micros` microseconds after 1970.
    pub(crate) fn time(&mut self, name: &'static str, micros: i64) {
        self.field(name, |buf| {
            buf.push(b'"');
            text::push_instant(buf, micros, 6);
            buf.push(b'"');
        });
    }

    /// The payload; `None` for a record without one.
    pub(crate) fn finish(mut self, draws: &mut Draws) -> Option<Vec<u8>> {
        if let Some(Surgery::Nest) = self.surgery {
            let levels = 200 + draws.below(200) as usize;
            let (open, core, close): (&[u8], &[u8], &[u8]) =
                if draws.below(2) == 0 { (b"[", b"", b"]") } else { (b"{\"a\":", b"1", b"}") };
            self.field("extra", |buf| {
                buf.extend(open.repeat(levels));
                buf.extend_from_slice(core);
                buf.extend(close.repeat(levels));
            });
        }
        self.buf.push(b'}');
        match self.surgery {
            Some(Surgery::Append(bytes)) => self.buf.extend_from_slice(bytes),
            Some(Surgery::Whole(bytes)) => bytes.clone_into(&mut self.buf),
            Some(Surgery::Wrap) => {
                self.buf.insert(0, b'[');
                self.buf.push(b']');
            }
            Some(Surgery::Truncate) => {
                // Any cut between the first and the last byte leaves the object open.
                let keep = 1 + draws.below(self.buf.len() as u64 - 1);
                self.buf.truncate(keep as usize);
            }
            Some(Surgery::Empty) => self.buf.clear(),
            Some(Surgery::Null) => return None,
            None | Some(Surgery::Drop(_) | Surgery::Replace(..) | Surgery::Nest) => {}
        }
        Some(self.buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{"a":1,"b":"x"}` under `surgery`.
    fn operated(surgery: Surgery, seed: u64) -> Option<String> {
        let mut object = Object::new(Some(surgery));
        object.field("a", |buf| buf.push(b'1'));
        object.text("b", b"x");
        let payload = object.finish(&mut Draws::new(seed))?;
        Some(String::from_utf8(payload).unwrap())
    }

    #[test]
    fn each_surgery_does_what_it_says() {
        let done = |surgery| operated(surgery, 1).unwrap();
        assert_eq!(done(Surgery::Drop("a")), r#"{"b":"x"}"#);
        assert_eq!(done(Surgery::Drop("b")), r#"{"a":1}"#);
        assert_eq!(done(Surgery::Replace("b", b"[]")), r#"{"a":1,"b":[]}"#);
        assert_eq!(done(Surgery::Append(b" x")), r#"{"a":1,"b":"x"} x"#);
        assert_eq!(done(Surgery::Whole(b"42")), "42");
        assert_eq!(done(Surgery::Wrap), r#"[{"a":1,"b":"x"}]"#);
        assert_eq!(done(Surgery::Empty), "");
        assert_eq!(operated(Surgery::Null, 1), None);
    }

    #[test]
    fn a_cut_object_is_never_empty_nor_whole() {
        for seed in 0..1000 {
            let cut = operated(Surgery::Truncate, seed).unwrap();
            assert!(!cut.is_empty());
            assert!(serde_json::from_str::<serde_json::Value>(&cut).is_err());
        }
    }

    #[test]
    fn nesting_is_balanced_and_too_deep_for_serde_json() {
        for seed in 0..100 {
            let nested = operated(Surgery::Nest, seed).unwrap();
            let error = serde_json::from_str::<serde_json::Value>(&nested).unwrap_err();
            assert!(error.to_string().contains("recursion limit"), "{error}");
            // Well-formed all the same: a scanner without recursion reaches the end.
            serde_json::from_str::<serde::de::IgnoredAny>(&nested).unwrap();
        }
    }
}
