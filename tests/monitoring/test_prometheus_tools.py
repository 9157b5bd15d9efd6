"""What promtool says of the rules, of their tests, and of the metrics."""

from __future__ import annotations

import subprocess
from pathlib import Path

from service.methods.registry import BY_NAME
from service.monitoring.metrics import Metrics
from tests.conftest import PATIENCE_SECONDS
from tests.faults.prometheus import binary

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"


def promtool(*arguments: str, given: bytes = b"") -> str:
    """Its output; it must succeed."""
    run = subprocess.run(
        [binary("promtool"), *arguments],
        input=given,
        cwd=FOLDER,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    said = (run.stdout + run.stderr).decode()
    assert run.returncode == 0, said
    return said


def test_the_rules_are_rules() -> None:
    assert "9 rules found" in promtool("check", "rules", "alerts.yml")


def test_every_alert_fires_in_time_and_clears() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


def test_the_configuration_is_one() -> None:
    assert "SUCCESS" in promtool("check", "config", "--syntax-only", "prometheus.yml")


def test_the_metrics_keep_to_the_conventions() -> None:
    metrics = Metrics()
    metrics.expect("loan", next(iter(BY_NAME)), ["protected_share"])
    metrics.observe_request("loan", "predict", 200, 0.01)
    metrics.observe_append(0.001, 1, ok=True)

    assert promtool("check", "metrics", given=metrics.render(1)) == ""
