"""The benchmark: this service and its peers, side by side in rounds, on one machine. `make bench`, or

    python -m tests.bench [--quick] [--only SECTION,...] [--rounds N] [--seconds S]

Every figure is a ratio of medians over the rounds, with the smallest and largest ratio of a round beside it, because
machines are noisy. Load comes from another process; keys, the durable ledger and metrics are on; all inputs differ.
The report is printed, and a run of all sections is put into README.md, `last.json` and `growth.png` beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tests.bench import accuracy, growth, report, service_level, speed, targets
from tests.bench.report import Section
from tests.bench.rounds import Pace

HERE = Path(__file__).parent
FULL, QUICK = Pace(5, 3.0), Pace(1, 0.8, is_quick=True)


def sections(out: Path) -> dict[str, Callable[[Pace], Section]]:
    """All sections, in order."""
    return {
        "ig": speed.integrated_gradients,
        "gelu": speed.refinement,
        "cache": speed.cache,
        "eg": speed.saturation,
        "accuracy": accuracy.accuracy,
        "targets": targets.together,
        "job": service_level.big_job,
        "footprint": service_level.footprint,
        "ledger": speed.ledger,
        "growth": partial(growth.growth, picture=out / "growth.png"),
    }


def _options() -> argparse.Namespace:
    names = ", ".join(sections(HERE))
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Benchmark against named peers.")
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few minutes")
    parser.add_argument("--only", help=f"sections, with commas between them: {names}")
    parser.add_argument("--rounds", type=int, help="rounds that count (5; quick: 1)")
    parser.add_argument("--seconds", type=float, help="seconds of one run (3; quick: 0.8)")
    parser.add_argument("--out", type=Path, help="where the report is put; default: here if whole, else a new folder")
    return parser.parse_args()


def main() -> int:
    """Runs the sections, prints the report and keeps it. Returns 1 when a section failed, which ends no other."""
    options = _options()
    usual = QUICK if options.quick else FULL
    pace = Pace(options.rounds or usual.rounds, options.seconds or usual.seconds, options.quick)
    is_whole = not options.quick and not options.only
    out: Path = options.out or (HERE if is_whole else Path(tempfile.mkdtemp(prefix="bench-report-")))
    out.mkdir(parents=True, exist_ok=True)
    known = sections(out)
    chosen = options.only.split(",") if options.only else list(known)
    if not set(chosen) <= set(known):
        raise SystemExit(f"the sections are {', '.join(known)}")
    started = time.monotonic()
    found: dict[str, Section] = {}
    failed = False
    for name in chosen:
        print(f"{name} ({time.monotonic() - started:.0f} s)", flush=True)
        try:
            found[name] = known[name](pace)
        except Exception as error:  # noqa: BLE001 - a section that fails must not lose the others
            traceback.print_exc()
            failed = True
            found[name] = Section([report.Figure(f"section {name}", None, not_run=" ".join(str(error).split())[:300])])
    asked = " ".join(sys.argv[1:])
    command = f'make bench BENCH="{asked}"' if asked else "make bench"
    text = report.text_of(found, command, time.monotonic() - started)
    print(f"\n{text}\n")
    figures = [{**asdict(figure), "met": figure.is_met} for section in found.values() for figure in section.figures]
    raw = {name: section.raw for name, section in found.items()}
    everything = {"command": command, "machine": report.machine(), "pace": asdict(pace), "figures": figures, "raw": raw}
    (out / "last.json").write_text(json.dumps(everything, indent=1) + "\n")
    if (out / "README.md").exists():
        report.put_into_readme(out / "README.md", text)
    else:
        (out / "report.md").write_text(text + "\n")
    print(f"The report is in {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
