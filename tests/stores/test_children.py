"""How long a process was awake, by which it judges the silence of others."""

from __future__ import annotations

from service.children import AwakeClock


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    moments = iter([100.0, 103.0, 106.5, 3706.5, 3709.5])
    clock = AwakeClock(lambda: next(moments))
    seen = []
    for _ in range(4):
        clock.tick(3.0)
        seen.append(clock.now)

    assert seen == [3.0, 6.5, 12.5, 15.5]
