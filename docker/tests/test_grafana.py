"""Grafana's provisioning, held against what Grafana reads: it passes over keys that it does not know
without a word, so that a slip would only be seen as a dashboard that stays away."""

import json

import pytest
import yaml
from grafana_foundation_sdk.models import dashboard
from layouts import DOCKER, ROOT, mounts, services

PROVISIONING = DOCKER / "grafana" / "provisioning"
# The keys of Grafana 11, version 1 of both kinds of file.
DATASOURCE_KEYS = set(
    "access basicAuth basicAuthUser database editable isDefault jsonData name orgId secureJsonData "
    "type uid url user version withCredentials".split()
)
PROVIDER_KEYS = set(
    "allowUiUpdates disableDeletion editable folder folderUid name options orgId type "
    "updateIntervalSeconds".split()
)
OPTION_KEYS = {"path", "foldersFromFilesStructure"}
BOARDS = sorted((ROOT / "dashboards").glob("*.json"))


def read(folder: str) -> dict:
    (file,) = (PROVISIONING / folder).iterdir()
    return yaml.safe_load(file.read_text("utf-8"))


def test_grafana_looks_into_these_folders():
    assert mounts(services()["grafana"])["/etc/grafana/provisioning"] == "./grafana/provisioning"
    assert {folder.name for folder in PROVISIONING.iterdir()} == {"dashboards", "datasources"}


def test_the_datasources_have_only_keys_that_grafana_knows():
    file = read("datasources")
    assert set(file) <= {"apiVersion", "datasources", "deleteDatasources", "prune"}
    for source in file["datasources"]:
        assert set(source) <= DATASOURCE_KEYS
        assert {"name", "type", "access", "url", "uid"} <= set(source)


def test_the_providers_have_only_keys_that_grafana_knows():
    file = read("dashboards")
    assert set(file) <= {"apiVersion", "providers"}
    for provider in file["providers"]:
        assert set(provider) <= PROVIDER_KEYS
        assert set(provider["options"]) <= OPTION_KEYS


@pytest.mark.parametrize("file", BOARDS, ids=lambda file: file.name)
def test_a_dashboard_has_the_types_of_grafana_s_schema(file):
    text = json.loads(file.read_text("utf-8"))
    loaded = dashboard.Dashboard.from_json(text)
    assert (loaded.uid, loaded.title) == (text["uid"], text["title"])
    assert len(loaded.panels) == len(text["panels"])
