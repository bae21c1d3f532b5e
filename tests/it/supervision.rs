//! Any actor may be killed, panic or fail at any moment: nothing is lost, nothing is doubled.

use crate::support::{Bench, broker, expected, the_only_node};
use millstream::{
    node::{Node, NodeOptions, Role},
    supervision::Registry,
};
use std::time::Duration;

/// Events that must come through after each end of an actor.
const PROGRESS: u64 = 400;

#[test]
fn every_actor_killed_in_turn_under_load() {
    every_actor_ended_in_turn("every actor killed", Registry::kill);
}

/// Three panics an actor: well within what the restart policy mends.
#[test]
fn every_actor_panicked_in_turn_under_load() {
    every_actor_ended_in_turn("every actor panicked", Registry::panic);
}

/// As if a handler had returned an error that it cannot mend.
#[test]
fn every_actor_failed_in_turn_under_load() {
    every_actor_ended_in_turn("every actor failed", Registry::fail);
}

/// Ends every actor once, then every actor twice in a row, while events flow.
fn every_actor_ended_in_turn(what: &str, end: fn(&Registry, &str) -> bool) {
    let Some(brokers) = broker(&format!("supervision: {what}")) else { return };
    let mut bench = Bench::new(&brokers);
    let _only = the_only_node();
    bench.config.generator.rate = 4_000.0;
    bench.config.generator.upload_every_s = 1.0;
    bench.config.batch.max_rows = 500;
    bench.config.node.http = ([127, 0, 0, 1], 0).into();
    bench.config.node.grpc = ([127, 0, 0, 1], 0).into();
    bench.create_topics();
    let mut options = NodeOptions::new([Role::Generate, Role::Process, Role::Store]);
    options.keep_ids = true;
    options.worker_program = Some(env!("CARGO_BIN_EXE_millstream").into());
    let config = bench.config.clone();
    let what = what.to_owned();
    let (expected, ends) = actix::System::new().block_on(async move {
        let mut node = Node::start(config, options).await.unwrap();
        node.wait_ready(Duration::from_secs(60)).await.unwrap();
        let actors: Vec<&'static str> = node.view.registry.status().into_keys().collect();
        assert!(actors.len() >= 9, "{actors:?}");
        let mut ends = 0;
        for round in 0..2 {
            for actor in &actors {
                let before = millstream::telemetry::totals().events;
                assert!(end(&node.view.registry, actor));
                ends += 1;
                if round == 1 {
                    // Twice in a row, the second time while it is coming back.
                    assert!(end(&node.view.registry, actor));
                    ends += 1;
                }
                let flows = async {
                    while millstream::telemetry::totals().events < before + PROGRESS {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                };
                tokio::select! {
                    () = flows => {}
                    fatal = node.fatal() => panic!("{fatal}"),
                    () = tokio::time::sleep(Duration::from_secs(60)) => panic!("{what}: nothing flows after {actor}"),
                }
            }
        }
        let generator = node.view.generator.clone().unwrap();
        node.stop_generator().await.unwrap();
        node.view.wait_caught_up(Duration::from_secs(60)).await.unwrap();
        let audit = node.view.verify(true).await.unwrap();
        assert!(audit.ok(), "{audit:#?}");
        let restarts: u64 = node.view.registry.status().values().map(|a| a.generation - 1).sum();
        assert_eq!(restarts, ends, "each end makes one new instance");
        node.stop().await.unwrap();
        (expected(&generator), ends)
    });
    assert!(ends >= 27);
    let report = bench.judge(&expected);
    assert!(report.ok, "{report:#?}");
    assert_eq!((report.lost, report.duplicated), (0, 0));
}
