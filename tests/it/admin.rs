//! Faults on request: a node ends its own parts where its configuration allows it, says and counts
//! it, and they come back; elsewhere nothing happens.

use crate::support::{Bench, NodeProcess, ended, millstream, says, wait_for};
use millstream::{
    proto::{KillActorRequest, KillHow, StatusRequest, admin_service_client::AdminServiceClient},
    supervision::RestartPolicy,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What is asked for, and the cause that a restart then has.
const WAYS: [(&str, &str); 3] = [("kill", "killed"), ("panic", "panicked"), ("error", "failed")];
const KILLS: &str = "millstream_chaos_kills_total";
const RESTARTS: &str = "millstream_actor_restarts_total";

fn node(allow: bool) -> (Bench, NodeProcess) {
    let mut bench = Bench::new("");
    bench.config.generator.rate = 500.0;
    bench.config.chaos.allow = allow;
    let node = bench.node("generate,process,store");
    wait_for("the node to be ready", || (node.get("/readyz").0 == 200).then_some(()));
    (bench, node)
}

/// Instances that each actor has had.
fn generations(node: &NodeProcess) -> BTreeMap<String, u64> {
    let status = node.status();
    let actors = status["actors"].as_object().unwrap().iter();
    actors.map(|(name, actor)| (name.clone(), actor["generation"].as_u64().unwrap())).collect()
}

fn targets(node: &NodeProcess) -> Value {
    let (status, body) = node.get("/api/chaos");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// The node's live workers.
fn workers(node: &NodeProcess) -> Vec<u64> {
    let workers = targets(node)["workers"].as_array().unwrap().clone();
    workers.iter().map(|worker| worker["pid"].as_u64().unwrap()).collect()
}

fn error(answer: &Value) -> &str {
    answer["error"].as_str().unwrap()
}

/// The answer to `KillActor`; `how` is a number, as it travels.
fn kill_over_grpc(node: &NodeProcess, actor: &str, how: i32) -> Result<u64, tonic::Status> {
    let url = format!("http://{}", node.grpc);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut admin = AdminServiceClient::connect(url).await.unwrap();
        let request = KillActorRequest { actor: actor.into(), how };
        let reply = admin.kill_actor(request).await?.into_inner();
        // The same node says the same over its other port.
        let status = admin.status(StatusRequest {}).await?.into_inner().json;
        assert!(status.contains("\"chaos_allowed\":true"), "{status}");
        Ok(reply.generation)
    })
}

/// `millstream kill`: exit code, standard output, standard error.
fn kill(node: &NodeProcess, words: &[&str]) -> (Option<i32>, String, String) {
    ended(millstream().arg("kill").args(words).args(["--http", &node.http.to_string()]))
}

#[test]
fn a_node_that_does_not_allow_it_ends_nothing() {
    let (_bench, node) = node(false);
    let running = wait_for("a worker", || workers(&node).first().copied());
    let before = generations(&node);
    assert_eq!(targets(&node)["allowed"], false);
    assert_eq!(node.status()["chaos_allowed"], false);

    for (fault, _) in WAYS {
        let (status, answer) =
            node.post("/api/chaos", &json!({ "do": fault, "actor": "redis_queue" }));
        assert_eq!(status, 403, "{answer}");
        assert!(error(&answer).contains("set chaos.allow = true"), "{answer}");
    }
    for fault in ["worker_kill", "worker_stop", "worker_continue"] {
        let (status, answer) = node.post("/api/chaos", &json!({ "do": fault, "pid": running }));
        assert_eq!(status, 403, "{answer}");
    }
    // Nobody learns here what there is.
    let (status, _) = node.post("/api/chaos", &json!({ "do": "kill", "actor": "nobody" }));
    assert_eq!(status, 403);
    let refused = kill_over_grpc(&node, "redis_queue", KillHow::Kill as i32).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
    let (code, _, message) = kill(&node, &["redis_queue"]);
    assert_eq!(code, Some(1), "{message}");
    assert!(says(&message, "set chaos.allow = true in its configuration"), "{message}");

    assert_eq!(generations(&node), before);
    assert!(workers(&node).contains(&running));
    assert_eq!(node.metric(KILLS, &[]), 0.0);
    assert_eq!(node.metric(RESTARTS, &[]), 0.0);
    // What somebody tried stands in the log.
    assert!(node.log().contains("somebody asks to end an actor's instance"), "{}", node.log());
    node.stop_well();
}

#[test]
fn each_actor_comes_back_whichever_way_it_is_ended() {
    let (_bench, node) = node(true);
    let found = targets(&node);
    let actors: Vec<&str> =
        found["actors"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(found["allowed"], true);
    assert_eq!(found["max_workers"], 2);
    assert!(actors.contains(&"batch_accumulator") && actors.len() >= 12, "{actors:?}");
    for (fault, cause) in WAYS {
        for actor in &actors {
            let before = generations(&node)[*actor];
            let (status, answer) = node.post("/api/chaos", &json!({ "do": fault, "actor": actor }));
            assert_eq!(status, 200, "{answer}");
            assert_eq!(answer, json!({ "actor": actor, "do": fault, "generation": before }));
            let status = wait_for("the next instance", || {
                let status = node.status()["actors"][*actor].clone();
                (status["up"] == true && status["generation"] == before + 1).then_some(status)
            });
            let says = status["last_cause"].as_str().unwrap();
            assert!(says.starts_with(cause), "{actor}: {says}");
        }
    }
    let status = node.status();
    let text = node.get("/metrics").1;
    for actor in actors {
        let of = format!("actor=\"{actor}\"");
        let metric = |name: &str, label: String| {
            let series = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
            let mut found = series.filter(|line| line.contains(&of) && line.contains(&label));
            let line = found.next().unwrap_or_else(|| panic!("no {name} {label} of {actor}"));
            assert!(found.next().is_none(), "{line}");
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        for (fault, cause) in WAYS {
            assert_eq!(metric(KILLS, format!("kind=\"{fault}\"")), 1.0, "{actor} {fault}");
            assert_eq!(metric(RESTARTS, format!("cause=\"{cause}\"")), 1.0, "{actor} {cause}");
        }
        // It has not ended by itself, and the series is there all the same.
        assert_eq!(metric(RESTARTS, "cause=\"finished\"".into()), 0.0, "{actor}");
        let recovered = metric("millstream_actor_recovery_seconds_count", String::new());
        assert_eq!(recovered, 3.0, "{actor}");
        let recovery = &status["actors"][actor]["recovery"];
        assert_eq!(recovery["count"], 3, "{actor}: {recovery}");
        // The second failure waited for its back-off.
        assert!(recovery["max_ms"].as_f64().unwrap() >= 20.0, "{actor}: {recovery}");
        assert!(recovery["p50_ms"].as_f64() <= recovery["p99_ms"].as_f64(), "{recovery}");
    }
    let events = node.committed_events();
    wait_for("events after all that", || (node.committed_events() > events + 500).then_some(()));
    node.stop_well();
}

#[test]
fn an_actor_that_fails_again_and_again_ends_its_node_and_one_that_is_killed_as_often_does_not() {
    let (_bench, mut node) = node(true);
    let most = RestartPolicy::default().max_restarts;
    let end = |fault: &str| {
        let wish = json!({ "do": fault, "actor": "replayer" });
        let (status, answer) = node.post("/api/chaos", &wish);
        assert_eq!(status, 200, "{answer}");
    };
    (0..=most).for_each(|_| end("kill"));
    (0..most).for_each(|_| end("panic"));
    wait_for("the instance after as many failures as are mended", || {
        let replayer = node.status()["actors"]["replayer"].clone();
        (replayer["up"] == true && replayer["generation"] == 2 * most + 2).then_some(())
    });
    // One more, after which no other instance lives.
    let (code, said, _) = kill(&node, &["replayer", "--panic"]);
    assert_ne!(code, Some(0), "{said}");
    let status = node.end();
    let log = node.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(says(&log, "replayer: failed again and again, last: panicked: on request"), "{log}");
}

#[test]
fn what_is_asked_wrongly_is_refused_and_the_command_says_what_it_did() {
    let (_bench, node) = node(true);
    for nonsense in [
        json!({}),
        json!([]),
        json!({ "do": "dance", "actor": "redis_queue" }),
        json!({ "do": "kill" }),
        json!({ "do": "kill", "pid": 1 }),
        json!({ "do": "kill", "actor": "redis_queue", "pid": 1 }),
        json!({ "do": "worker_kill", "pid": -1 }),
        json!({ "do": "worker_kill", "actor": "redis_queue" }),
        json!({ "do": "kill", "actor": "x".repeat(8 << 10) }),
    ] {
        let (status, answer) = node.post("/api/chaos", &nonsense);
        assert_eq!(status, 400, "{nonsense}: {answer}");
    }
    let (status, answer) = node.post("/api/chaos", &json!({ "do": "kill", "actor": "redis_que" }));
    assert_eq!(status, 404, "{answer}");
    assert!(error(&answer).contains("did you mean `redis_queue`?"), "{answer}");
    assert!(error(&answer).contains("batch_accumulator, "), "{answer}");

    let unknown = kill_over_grpc(&node, "nobody", KillHow::Kill as i32).unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound, "{unknown}");
    let nonsense = kill_over_grpc(&node, "redis_queue", 77).unwrap_err();
    assert_eq!(nonsense.code(), tonic::Code::InvalidArgument, "{nonsense}");
    assert_eq!(node.metric(KILLS, &[]), 0.0, "nothing was done yet");
    assert_eq!(kill_over_grpc(&node, "replayer", KillHow::Error as i32).unwrap(), 1);

    let (code, said, message) = kill(&node, &["redis_queue"]);
    assert_eq!(code, Some(0), "{message}");
    assert!(said.starts_with("redis_queue: instance 1 killed, instance 2 lives after "), "{said}");
    assert!(said.ends_with(" ms\n") && said.lines().count() == 1, "{said}");
    let (_, said, message) = kill(&node, &["redis_queue", "--panic"]);
    assert!(said.starts_with("redis_queue: instance 2 panicked, instance 3 lives"), "{message}");
    let (_, said, message) = kill(&node, &["redis_queue", "--error", "--json"]);
    let done: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}{message}"));
    assert!(done["after_ms"].as_f64().unwrap() >= 20.0, "the second failure waits: {done}");
    assert_eq!(done["do"], "error");
    assert_eq!((&done["generation"], &done["next_generation"]), (&json!(3), &json!(4)));

    let (code, _, message) = kill(&node, &["redis-queue"]);
    assert_eq!(code, Some(2), "{message}");
    assert!(says(&message, "did you mean `redis_queue`?"), "{message}");
    assert!(says(&message, "its actors are batch_accumulator, duckdb_writer,"), "{message}");
    for wrong in [&[][..], &["redis_queue", "--panic", "--error"], &["redis_queue", "--list"]] {
        assert_eq!(kill(&node, wrong).0, Some(2), "{wrong:?}");
    }

    let (_, table, _) = kill(&node, &["--list"]);
    let line = table.lines().find(|line| line.contains("redis_queue ")).unwrap();
    let cells: Vec<&str> = line.split(['│', '┆']).map(str::trim).collect();
    assert_eq!(cells[1..5], ["redis_queue", "up", "3", "failed: on request"], "{table}");
    let (_, list, _) = kill(&node, &["--list", "--json"]);
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    assert!(list.iter().any(|a| a["actor"] == "replayer" && a["restarts"] == 1), "{list:?}");

    let nowhere = ended(millstream().args(["kill", "redis_queue", "--http", "127.0.0.1:1"]));
    assert_eq!(nowhere.0, Some(4), "{nowhere:?}");
    node.stop_well();
}

#[test]
fn a_worker_is_killed_and_frozen_and_no_other_process_is_touched() {
    let (_bench, node) = node(true);
    let strike = |fault: &str, pid: u64| {
        let (status, answer) = node.post("/api/chaos", &json!({ "do": fault, "pid": pid }));
        if status == 200 {
            assert_eq!(answer, json!({ "pid": pid }));
        } else {
            assert!(error(&answer).contains("no live Python worker of this node"), "{answer}");
        }
        status
    };
    let first = wait_for("a worker", || workers(&node).first().copied());
    // This test's own process would be ended by that.
    for foreign in [u64::from(std::process::id()), u64::from(node.pid()), 0, 1] {
        for fault in ["worker_kill", "worker_stop", "worker_continue"] {
            assert_eq!(strike(fault, foreign), 404, "{fault} {foreign}");
        }
    }
    let struck =
        |kind: &str| node.metric(KILLS, &["actor=\"python_worker\"", &format!("kind=\"{kind}\"")]);
    assert_eq!((struck("worker_kill"), struck("worker_stop")), (0.0, 0.0));

    assert_eq!(strike("worker_kill", first), 200);
    wait_for("another worker in its place", || {
        let living = workers(&node);
        (!living.is_empty() && !living.contains(&first)).then_some(())
    });
    let events = node.committed_events();
    wait_for("events after it", || (node.committed_events() > events + 200).then_some(()));
    assert_eq!(strike("worker_kill", first), 404, "its number may be anybody's by now");
    // Each stream has a worker: the other one's may go on first.
    wait_for("its replacement to be counted", || {
        let replaced =
            node.metric("millstream_python_worker_restarts_total", &["cause=\"signal\""]);
        assert!(replaced <= 1.0, "{replaced}");
        (replaced == 1.0).then_some(())
    });

    // One that has nothing to do may leave between the look and the strike.
    let next = wait_for("a worker that is stopped", || {
        workers(&node).into_iter().find(|pid| strike("worker_stop", *pid) == 200)
    });
    wait_for("it to stand still", || (state_of(next) == 'T').then_some(()));
    assert_eq!(strike("worker_continue", next), 200);
    wait_for("it to go on", || (state_of(next) != 'T').then_some(()));
    assert_eq!((struck("worker_kill"), struck("worker_stop")), (1.0, 1.0));
    assert_eq!(node.metric(KILLS, &[]), 2.0, "letting one go on is no fault");
    node.stop_well();
}

/// The state of a process, as the kernel names it.
fn state_of(pid: u64) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after_name) = stat.rsplit_once(") ").unwrap();
    after_name.chars().next().unwrap()
}
