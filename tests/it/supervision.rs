//! Any actor may be killed at any moment: nothing is lost, nothing is doubled.

use crate::support::{Bench, broker, expected};
use millstream::node::{Node, NodeOptions, Role};
use std::time::Duration;

/// Events that must come through after each kill.
const PROGRESS: u64 = 400;

#[test]
fn every_actor_killed_in_turn_under_load() {
    let Some(brokers) = broker("supervision: every actor killed") else { return };
    let mut bench = Bench::new(&brokers);
    bench.config.generator.rate = 4_000.0;
    bench.config.batch.max_rows = 500;
    bench.config.node.http = ([127, 0, 0, 1], 0).into();
    bench.config.node.grpc = ([127, 0, 0, 1], 0).into();
    bench.create_topics();
    let mut options = NodeOptions::new([Role::Generate, Role::Process, Role::Store]);
    options.keep_ids = true;
    options.worker_program = Some(env!("CARGO_BIN_EXE_millstream").into());
    let config = bench.config.clone();
    let (expected, kills) = actix::System::new().block_on(async move {
        let mut node = Node::start(config, options).await.unwrap();
        node.wait_ready(Duration::from_secs(60)).await.unwrap();
        let actors: Vec<&'static str> = node.view.registry.status().into_keys().collect();
        assert!(actors.len() >= 9, "{actors:?}");
        let mut kills = 0;
        for round in 0..2 {
            for actor in &actors {
                let before = millstream::telemetry::totals().events;
                assert!(node.view.registry.kill(actor));
                kills += 1;
                if round == 1 {
                    // Twice in a row, the second time while it is coming back.
                    assert!(node.view.registry.kill(actor));
                    kills += 1;
                }
                let flows = async {
                    while millstream::telemetry::totals().events < before + PROGRESS {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                };
                tokio::select! {
                    () = flows => {}
                    fatal = node.fatal() => panic!("{fatal}"),
                    () = tokio::time::sleep(Duration::from_secs(60)) => panic!("nothing flows after {actor} was killed"),
                }
            }
        }
        let generator = node.view.generator.clone().unwrap();
        node.stop_generator().await.unwrap();
        node.view.wait_caught_up(Duration::from_secs(60)).await.unwrap();
        let audit = node.view.verify(true).await.unwrap();
        assert!(audit.ok(), "{audit:#?}");
        let restarts: u64 = node.view.registry.status().values().map(|a| a.generation - 1).sum();
        assert_eq!(restarts, kills, "each kill makes one new instance");
        node.stop().await.unwrap();
        (expected(&generator), kills)
    });
    assert!(kills >= 27);
    let report = bench.judge(&expected);
    assert!(report.ok, "{report:#?}");
    assert_eq!((report.lost, report.duplicated), (0, 0));
}
