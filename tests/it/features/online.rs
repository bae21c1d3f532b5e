//! Newest values as clients see them: Feast's way over HTTP, over gRPC, on the command line, and never
//! "not there" while Redis is being filled again.

use super::{ROWS, bench, line, load, runtime};
use crate::support::{millstream, run_json, wait_for};
use millstream::proto::{
    FeatureStatus, OnlineFeaturesRequest, feature_service_client::FeatureServiceClient,
};
use serde_json::{Value, json};
use std::{fmt::Write as _, path::Path, process::Command};
use tonic::Code;

/// The file of the recorded question that says what our answer must be.
fn wanted() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/asof/feast/wanted.json");
    let recorded: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    recorded[0].clone()
}

#[test]
fn feasts_question_gets_the_answer_that_its_client_reads() {
    let bench = bench();
    let node = bench.node("process,store");
    load(&bench, &node, "rows.ndjson", &ROWS.map(|(e, f, v, at)| line(e, f, v, at)).concat());

    let wanted = wanted();
    let (status, answer) = node.post("/get-online-features", &wanted["request"]["body"]);
    assert_eq!((status, &answer), (200, &wanted["response"]["body"]));

    // As Feast's client reads it, and by the rules that are stricter than it.
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/asof/feast/client.py");
    let output = Command::new(bench.config.python.venv.join("bin/python"))
        .arg(client)
        .args(["--url", &format!("http://{}", node.http)])
        .args(["--features", "stats:score,stats:clicks", "--entities", "user=half,nobody,whole"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");

    let ask = |body: Value| node.post("/get-online-features", &body);
    let (status, answer) = ask(json!({
        "entities": { "e": ["whole"] }, "features": ["stats:score"], "full_feature_names": true,
        "max_age_s": 3600,
    }));
    assert_eq!(status, 200);
    assert_eq!(answer["metadata"]["feature_names"], json!(["e", "stats__score"]));
    assert_eq!(answer["results"][1]["statuses"], json!(["OUTSIDE_MAX_AGE"]));

    for (status, body, word) in [
        (
            404,
            json!({ "entities": { "e": ["a"] }, "features": ["nope:score"] }),
            "FeatureViewNotFound",
        ),
        (404, json!({ "entities": { "e": ["a"] }, "features": ["stats:nope"] }), "`nope`"),
        (422, json!({ "entities": { "e": ["a", null] }, "features": ["score"] }), "row 1"),
        (
            422,
            json!({ "entities": { "e": ["a"], "f": ["b"] }, "features": ["score"] }),
            "join keys",
        ),
        (422, json!({ "entities": { "e": ["a"] }, "features": [] }), "no features"),
        (
            422,
            json!({ "entities": { "e": ["a"] }, "features": ["score", "stats:score"] }),
            "`score`",
        ),
        (422, json!({ "entities": { "e": ["a"] }, "feature_service": "x" }), "services"),
        (
            422,
            json!({ "entities": { "e": vec!["a"; 60_000] }, "features": ["score", "clicks"] }),
            "100000",
        ),
        (422, json!({ "features": ["score"] }), "entities"),
    ] {
        let answer = ask(body.clone());
        assert_eq!(answer.0, status, "{answer:?}");
        assert!(answer.1.to_string().contains(word), "{word}: {answer:?}");
    }
    node.stop_well();
}

#[test]
fn grpc_and_the_command_line_say_value_age_and_status() {
    let bench = bench();
    let node = bench.node("process,store");
    load(&bench, &node, "rows.ndjson", &ROWS.map(|(e, f, v, at)| line(e, f, v, at)).concat());
    runtime().block_on(async {
        let url = format!("http://{}", node.grpc);
        let mut client = FeatureServiceClient::connect(url).await.unwrap();
        let request = |features: &[&str], max_age_us| OnlineFeaturesRequest {
            entity_ids: vec!["half".into(), "empty".into()],
            features: features.iter().map(|f| (*f).to_owned()).collect(),
            max_age_us,
        };
        let of_nobody =
            OnlineFeaturesRequest { entity_ids: vec!["nobody".into()], ..<_>::default() };
        let reply = client.get_online_features(of_nobody).await.unwrap().into_inner();
        assert!(reply.features.is_empty());
        // Without names: all that any of the entities has.
        let reply = client.get_online_features(request(&[], None)).await.unwrap().into_inner();
        let names: Vec<&str> = reply.features.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["clicks", "score"]);
        let statuses: Vec<Vec<FeatureStatus>> = (reply.features.iter())
            .map(|feature| feature.values.iter().map(|value| value.status()).collect())
            .collect();
        use FeatureStatus::{NotFound, NullValue, Present};
        assert_eq!(statuses, [vec![NotFound, Present], vec![Present, NullValue]]);
        let half = &reply.features[1].values[0];
        assert_eq!((half.value, half.event_timestamp_us), (Some(0.1), Some(1_767_268_800_123_456)));
        let now = chrono::Utc::now().timestamp_micros();
        let asked_at = half.event_timestamp_us.unwrap() + half.age_us.unwrap();
        assert!((now - asked_at).abs() < 60_000_000, "the age is from the event to the question");
        assert_eq!(reply.features[0].values[0].age_us, None);

        let code = async |client: &mut FeatureServiceClient<_>, features: &[&str], age| {
            client.get_online_features(request(features, age)).await.unwrap_err().code()
        };
        assert_eq!(code(&mut client, &["nope"], None).await, Code::NotFound);
        assert_eq!(code(&mut client, &["nope:score"], None).await, Code::NotFound);
        assert_eq!(code(&mut client, &["score"], Some(0)).await, Code::InvalidArgument);
    });

    let grpc = node.grpc.to_string();
    let online = |args: &[&str]| {
        let mut command = millstream();
        command.args(["features", "online"]).args(args).args(["--grpc", &grpc]);
        command
    };
    let told = run_json(&mut online(&["half", "nobody", "--features", "stats:score", "--json"]));
    let told = told.as_array().unwrap();
    assert_eq!((&told[0]["value"], &told[0]["status"]), (&json!(0.1), &json!("PRESENT")));
    assert!(told[0]["age_s"].as_f64().unwrap() > 86_400.0);
    assert_eq!((&told[1]["value"], &told[1]["status"]), (&Value::Null, &json!("NOT_FOUND")));
    let table = online(&["whole"]).output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("clicks") && table.contains(" d "), "{table}");
    assert_eq!(online(&["whole", "--features", "nope"]).status().unwrap().code(), Some(2));
    let nobody = millstream().args(["features", "online", "a", "--grpc", "127.0.0.1:1"]).status();
    assert_eq!(nobody.unwrap().code(), Some(4));
    node.stop_well();
}

#[test]
fn while_redis_is_filled_again_nothing_is_called_not_there() {
    const ENTITIES: usize = 30_000;
    let mut bench = bench();
    let redis = bench.redis();
    let node = bench.node("process,store");
    let mut rows = String::new();
    for i in 0..ENTITIES {
        write!(rows, "{}", line(&format!("e{i}"), "score", Some(1.0), "2026-01-01T00:00:00Z"))
            .unwrap();
    }
    load(&bench, &node, "many.ndjson", &rows);
    let first = format!("e{}", ENTITIES - 1);
    let question = json!({ "entities": { "e": ["e0", "e15000", first] }, "features": ["score"] });
    // 200: whether everything was there; else the status.
    let ask = || match node.post("/get-online-features", &question) {
        (200, answer) => {
            let statuses = &answer["results"][1]["statuses"];
            assert_eq!(*statuses, json!(["PRESENT", "PRESENT", "PRESENT"]));
            200
        }
        (status, answer) => {
            assert_eq!(status, 503, "{answer}");
            503
        }
    };
    assert_eq!(ask(), 200);
    let filled_again = |what: &str| {
        assert_eq!(ask(), 503, "{what}");
        wait_for(what, || (ask() == 200).then_some(()));
    };
    let () = ::redis::cmd("FLUSHALL").query(&mut redis.connection()).unwrap();
    filled_again("Redis to be filled again after FLUSHALL");
    redis.kill();
    redis.delete_files();
    redis.start_again();
    filled_again("Redis to be filled again after it was replaced by an empty one");
    node.stop_well();
}
