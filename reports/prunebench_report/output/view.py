"""Everything that the page shows, as plain values for the template: the sections in one dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunebench_report.output.embedded_data import embedded_data
from prunebench_report.sections import (
    calibration,
    cards,
    failures,
    header,
    main_table,
    metrics,
    plugin_sections,
    provenance,
    pruning_cost,
    published,
    quality_plots,
    recovery_plots,
    runtimes,
    speed_plots,
    task_plots,
    tasks,
    time_breakdown,
    timelines,
    verdict,
    warnings,
)

if TYPE_CHECKING:
    from prunebench.plugin.api.report_section import ReportSection
    from prunebench_report.data.report_input import ReportInput


def view(given: ReportInput, plugins: Sequence[type[ReportSection]] = ()) -> dict[str, Any]:
    """``plugins`` are the sections of plugins."""
    # The template reads these names; the order is that of the page.
    shared_facts, _ = provenance.split_facts(given.records)
    return {
        **header.section(given),
        "warnings": warnings.section(given),
        "verdict": verdict.section(given),
        "figures": quality_plots.section(given),
        "table": main_table.section(given),
        "seed_table": main_table.seed_section(given),
        **failures.section(given),
        "cards": cards.section(given),
        "left_out": len(given.records) - len(given.detailed),
        "tasks": tasks.section(given),
        "task_plots": task_plots.section(given),
        "speed_plots": speed_plots.section(given),
        "recovery_plots": recovery_plots.section(given),
        "metrics": metrics.section(given),
        "runtimes": runtimes.section(given),
        "calibration": calibration.section(given),
        "time_breakdown": time_breakdown.section(given),
        "model_parts": time_breakdown.shown(given),
        "timelines": timelines.section(given),
        "pruning_cost": pruning_cost.section(given),
        "published": published.section(given),
        "plugin_sections": plugin_sections.section(given, plugins),
        "provenance": provenance.in_words(shared_facts),
        "data": embedded_data(given),
    }
