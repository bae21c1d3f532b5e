use super::*;

fn whole(parts: usize) -> Whole {
    Whole {
        batch: Uuid::now_v7(),
        clock: Clock::read(),
        since: Instant::now(),
        parts,
        landed: AtomicUsize::new(0),
        attributes: Vec::new(),
    }
}

fn data(begun: Begun) -> SpanData {
    begun.data(Status::Unset, "n", InstrumentationScope::default())
}

#[test]
fn the_trace_has_the_batchs_id() {
    let whole = whole(1);
    let root = data(whole.root());
    let id = root.span_context.trace_id().to_string();
    assert_eq!(id, whole.batch.simple().to_string());
    assert!(root.span_context.is_valid() && root.span_context.is_sampled());
    assert_eq!(root.parent_span_id, SpanId::INVALID);
    let (one, two) =
        (data(whole.step("decode", whole.since)), data(whole.step("decode", whole.since)));
    assert_ne!(one.span_context.span_id(), two.span_context.span_id());
    assert_eq!(one.parent_span_id, root.span_context.span_id());
    assert_eq!(one.span_context.trace_id(), root.span_context.trace_id());
}

#[test]
fn every_process_makes_the_same_ids_and_each_write_another() {
    let batch = Uuid::parse_str("0197a5f0-1234-7abc-8def-0123456789ab").unwrap();
    assert_eq!(trace_id(batch).to_string(), "0197a5f012347abc8def0123456789ab");
    assert_eq!(root_id(batch).to_string(), "8def0123456789ab");
    let (one, two) = (Token::after(0), Token::after(0));
    assert_eq!(queue_id(batch, one), queue_id(batch, one));
    assert_ne!(queue_id(batch, one), queue_id(batch, two));
    assert_ne!(queue_id(batch, one), root_id(batch));
}

#[test]
fn the_id_decides_and_the_share_is_kept() {
    let batches: Vec<Uuid> = (0..20_000).map(|_| Uuid::now_v7()).collect();
    let of = |share: f64| batches.iter().filter(|b| is_sampled(**b, share)).count();
    assert_eq!(of(0.0), 0);
    assert_eq!(of(1.0), batches.len());
    let quarter = of(0.25);
    assert!((4_600..5_400).contains(&quarter), "{quarter} of 20000");
    // Whoever takes fewer takes none that the others do not.
    assert!(batches.iter().all(|b| !is_sampled(*b, 0.1) || is_sampled(*b, 0.25)));
    assert!(!is_sampled(Uuid::nil(), 1.0), "nobody knows the batch of such a write");
}

#[test]
fn a_batch_that_did_not_land_whole_says_so() {
    let whole = whole(2);
    whole.landed.fetch_add(1, Ordering::Relaxed);
    assert!(matches!(whole.outcome(), Status::Error { .. }));
    whole.landed.fetch_add(1, Ordering::Relaxed);
    assert_eq!(whole.outcome(), Status::Unset);
}

#[test]
fn times_are_those_of_the_step() {
    let whole = whole(1);
    let at = |seconds| whole.since - Duration::from_secs(seconds);
    let (earlier, later) = (data(whole.step("a", at(2))), data(whole.step("b", at(1))));
    let apart = later.start_time.duration_since(earlier.start_time).unwrap();
    assert_eq!(apart, Duration::from_secs(1), "exactly: they go by one clock");
    let took = earlier.end_time.duration_since(earlier.start_time).unwrap();
    assert!(took >= Duration::from_secs(2), "{took:?}");
    // It began a second ago; the two clocks are not read at quite the same moment.
    let ago = SystemTime::now().duration_since(later.start_time).unwrap();
    assert!((0.9..60.0).contains(&ago.as_secs_f64()), "{ago:?}");
}

#[test]
fn while_nothing_is_exported_nothing_is_kept() {
    assert!(EXPORT.get().is_none());
    start(&TelemetryConfig::default(), "n").unwrap();
    let none = TelemetryConfig { otlp: "http://127.0.0.1:1".into(), otlp_sample: 0.0 };
    start(&none, "n").unwrap();
    assert!(EXPORT.get().is_none());
    let way = Way::begin(Uuid::now_v7(), "s", 1, 1, Instant::now());
    assert!(way.0.is_none());
    assert!(way.step("decode").text("a", "b").count("c", 1).0.is_none());
    stop(Duration::ZERO);
}
