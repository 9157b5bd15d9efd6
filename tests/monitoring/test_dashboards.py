"""The dashboards as files: the rules of Grafana's dashboard-linter, written down, and what this project asks beyond.

One rule is another: the linter wants the data source's variable to be called `datasource`, here it is `DS_PROMETHEUS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.monitoring.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
DATA_SOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
UNITS = {"percentunit", "s", "bytes", "short", "none", "ops", "reqps"}
METRIC = re.compile(r"\banswerable_\w+")
SELECTOR = re.compile(r"\b(answerable_\w+)(\{[^}]*\})?")
RANGE = re.compile(r"\[([^\]]*)\]")
COUNTER = re.compile(r"(rate|increase|irate)\(answerable_\w+(_total|_bucket|_count|_sum)\{")


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(request.param.read_bytes())
    return content


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    return (target["expr"] for panel in panels(dashboard) for target in panel["targets"])


def exported() -> set[str]:
    """Names of samples that the service exports."""
    metrics = Metrics()
    names = set()
    for family in text_string_to_metric_families(metrics.render(1).decode()):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names


def test_there_are_three() -> None:
    assert {path.stem for path in DASHBOARDS} == {"explanation-health", "serving", "compliance"}


def test_nobody_edits_what_is_provisioned(dashboard: dict[str, Any]) -> None:
    assert dashboard["editable"] is False
    assert dashboard["uid"]
    assert dashboard["title"].startswith("Answerable: ")
    assert dashboard["description"]


def test_the_variables(dashboard: dict[str, Any]) -> None:
    source, *labels = dashboard["templating"]["list"]

    assert (source["name"], source["type"], source["query"]) == ("DS_PROMETHEUS", "datasource", "prometheus")
    assert [variable["name"] for variable in labels] == ["job", "instance", "model"]
    for variable in labels:
        name = variable["name"]
        assert variable["type"] == "query"
        assert variable["datasource"] == DATA_SOURCE
        assert variable["label"] == name.capitalize()
        assert variable["query"]["query"].startswith("label_values(answerable_model_info")
        assert variable["query"]["query"].endswith(f", {name})")
        assert variable["refresh"] == 2  # when the time range changes
        assert variable["multi"] is variable["includeAll"] is True
        assert variable["allValue"] == ".+"


def test_every_panel_says_what_it_shows(dashboard: dict[str, Any]) -> None:
    assert panels(dashboard)
    for panel in panels(dashboard):
        assert panel["title"], panel
        assert len(panel["description"]) > 30, panel["title"]
        assert panel["datasource"] == DATA_SOURCE, panel["title"]
        assert panel["targets"], panel["title"]
        assert all(target["datasource"] == DATA_SOURCE for target in panel["targets"])
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(set(titles)) == len(titles)


def test_every_query_keeps_to_the_variables(dashboard: dict[str, Any]) -> None:
    for expression in expressions(dashboard):
        for name, matchers in SELECTOR.findall(expression):
            assert 'job=~"$job"' in matchers, (name, expression)
            assert 'instance=~"$instance"' in matchers, (name, expression)
        assert set(RANGE.findall(expression)) <= {"$__rate_interval"}, expression


def test_counters_are_shown_as_rates(dashboard: dict[str, Any]) -> None:
    for expression in expressions(dashboard):
        counters = [
            name for name in METRIC.findall(expression) if name.endswith(("_total", "_bucket", "_count", "_sum"))
        ]
        assert len(COUNTER.findall(expression)) == len(counters), expression


def test_the_worst_is_shown_of_what_is_told_more_than_once(dashboard: dict[str, Any]) -> None:
    for expression in expressions(dashboard):
        if "attribution_ndcg" in expression:  # drift is below
            assert expression.startswith("min")


def test_misses_are_shares_of_what_could_miss(dashboard: dict[str, Any]) -> None:
    for expression in expressions(dashboard):
        if "over_tolerance_total" in expression:
            assert "answerable_completeness_error_count" in expression.split(" / ")[1]


def test_every_metric_is_exported(dashboard: dict[str, Any]) -> None:
    found = {name for expression in expressions(dashboard) for name in METRIC.findall(expression)}

    assert found
    assert found <= exported()


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_metric_is_on_a_dashboard() -> None:
    shown = {
        name
        for path in DASHBOARDS
        for expression in expressions(json.loads(path.read_bytes()))
        for name in METRIC.findall(expression)
    }
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exported()}

    assert families == {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}


def test_grafana_finds_them_where_they_are_mounted() -> None:
    providers = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/answerable.yaml").read_bytes())["providers"]
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_bytes())["datasources"]
    services = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_bytes())["services"]
    mounts = {mount.split(":")[0]: mount.split(":")[1] for mount in services["grafana"]["volumes"]}

    assert mounts["./deploy/grafana/dashboards"] == providers[0]["options"]["path"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert sources[0]["uid"] == json.loads(DASHBOARDS[0].read_bytes())["templating"]["list"][0]["current"]["value"]
    assert sources[0]["url"] == "http://prometheus:9090"
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{providers[0]['options']['path']}/explanation-health.json"


def test_every_alert_has_an_entry_in_the_runbook() -> None:
    runbook = (DEPLOY / "RUNBOOK.md").read_text()
    anchors = {f"#{heading.lower()}" for heading in re.findall(r"^## (\w+)$", runbook, re.MULTILINE)}
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_bytes())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]

    assert len(rules) >= 8
    for rule in rules:
        file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert file == "deploy/RUNBOOK.md"
        assert anchor == rule["alert"].lower()
        assert f"#{anchor}" in anchors, rule["alert"]
        assert set(METRIC.findall(rule["expr"])) <= exported(), rule["alert"]
    assert {f"#{rule['alert'].lower()}" for rule in rules} == anchors - {"#ordinary"}
