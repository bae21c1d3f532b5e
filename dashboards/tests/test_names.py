"""Dashboards and rules name only what nodes export: metrics, labels and values of labels."""

import metrics_table
import promql
import pytest
from catalogue import TARGET_LABELS, by_series, metrics, recording_rules, sources
from queries import board_queries, filled_in, named_ids, rule_queries

ALL = board_queries() + rule_queries()
RECORDED = {"job_topic": {"job", "topic"}, "job": {"job"}}


def labels_of(series: str) -> set[str]:
    if series in recording_rules():
        return RECORDED[series.split(":")[0]]
    assert series in by_series(), f"no node exports {series}"
    return by_series()[series].labels | TARGET_LABELS


@pytest.mark.parametrize("where,query", ALL, ids=named_ids(ALL))
def test_metrics_and_labels_are_in_the_catalogue(where, query):
    found = promql.named(filled_in(query))
    assert found.series, where
    of_all = set()
    for series, matchers in found.series:
        labels = labels_of(series)
        of_all |= labels
        for label, _ in matchers:
            assert label in labels, f"{where}: {series} has no label {label}"
    assert found.grouping <= of_all, where


@pytest.mark.parametrize("where,query", ALL, ids=named_ids(ALL))
def test_values_of_labels_are_ones_that_the_code_gives(where, query):
    for series, matchers in promql.named(filled_in(query)).series:
        for label, value in matchers:
            if label in TARGET_LABELS:
                continue
            if label == "le":
                assert value in by_series()[series].buckets, f"{where}: {value}"
                continue
            for one in value.split("|"):
                assert f'"{one}"' in sources(), f"{where}: nothing gives {label}={one}"


@pytest.mark.parametrize("where,query", ALL, ids=named_ids(ALL))
def test_only_what_grows_has_a_rate(where, query):
    for function, series, _ in promql.windows(filled_in(query), "rate|irate|increase"):
        metric = by_series()[series]
        assert metric.kind in ("counter", "histogram"), f"{where}: {function} of {series}"
    for function, series, _ in promql.windows(
        filled_in(query), "delta|idelta|deriv|predict_linear"
    ):
        assert by_series()[series].kind == "gauge", f"{where}: {function} of {series}"


def test_every_metric_is_on_a_dashboard():
    shown = {
        series
        for _, query in board_queries()
        for series, _ in promql.named(filled_in(query)).series
    }
    for name, metric in metrics().items():
        assert shown.intersection(metric.series(name)), f"no panel shows {name}"


def test_the_list_of_metrics_for_people_is_current():
    assert metrics_table.is_current(), "run `make dashboards`"


def test_the_catalogue_is_read_whole():
    known = metrics()
    assert known["millstream_stage_errors_total"].labels == {"stage", "error_type"}
    assert known["millstream_stage_busy_seconds_total"].labels == {"stage"}
    assert known["millstream_stage_busy_seconds_total"].stage == ""
    assert known["millstream_kafka_lag_records"].labels == {"topic", "partition"}
    assert known["millstream_kafka_lag_records"].stage == "kafka_ingest"
    assert known["millstream_kafka_rebalances_total"].help == "Rebalances of the consumer group."
    assert known["millstream_batch_rows"].kind == "histogram"
    assert "100" in known["millstream_batch_rows"].buckets
    assert "0.05" in known["millstream_end_to_end_seconds"].buckets


@pytest.mark.parametrize(
    "query",
    [
        "sum(rate(millstream_no_such_total[1m]))",
        'millstream_actor_up{stage="x"}',
        "sum by (topic) (millstream_actor_up)",
    ],
)
def test_a_wrong_name_is_seen(query):
    with pytest.raises(AssertionError):
        test_metrics_and_labels_are_in_the_catalogue("here", query)
