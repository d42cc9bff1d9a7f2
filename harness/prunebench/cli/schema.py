"""`prunebench schema`: the JSON Schema of a suite file, so that editors complete and check it."""

from __future__ import annotations

import click


@click.command("schema", short_help="Print the JSON Schema of a suite file.")
def command() -> None:
    """Print the JSON Schema of a suite file, with the options of every installed method, allocation, recovery and metric.

    Save it and name it in the first line of a suite, and editors complete and check the suite:
    `# yaml-language-server: $schema=suite.schema.json`
    """
    import json

    from prunebench.plugin.host import load_plugins
    from prunebench.suite.schema import json_schema

    registry = load_plugins()
    methods = registry.registered("method")
    recoveries = registry.registered("recovery")
    allocations = registry.registered("allocation")
    metrics = registry.registered("metric")
    schema = json_schema(
        methods,
        registry["model"],
        registry["corpus"],
        recoveries,
        registry["task data"],
        allocations,
        metrics,
    )
    click.echo(json.dumps(schema, indent=2))
