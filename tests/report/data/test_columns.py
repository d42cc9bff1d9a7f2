from __future__ import annotations

from prunebench_report.data.columns import ALL, column_names, kind_of


def test_every_column_is_explained_and_named_once():
    assert all(column.meaning for column in ALL)
    assert len({column.name for column in ALL}) == len(ALL)


def test_sets_are_numbered_from_the_second_on():
    names = column_names(2, 1, tasks=2)
    assert [name for name in names if name.startswith("recovery_percent")] == [
        "recovery_percent",
        "recovery_percent_low",
        "recovery_percent_high",
        "recovery_percent_2",
        "recovery_percent_low_2",
        "recovery_percent_high_2",
    ]
    assert names.index("task_2") < names.index("tasks_run")
    assert not [name for name in names if name.startswith("metric")]
    assert kind_of("perplexity_3") == "real"
