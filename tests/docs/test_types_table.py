"""The table of types in plugins/README.md is what `prunebench families` shows."""

from __future__ import annotations

from pathlib import Path

from prunebench.app.families import LEVELS, all_levels

README = Path(__file__).resolve().parents[2] / "plugins" / "README.md"
BEGIN, END = "<!-- types: made by tests/docs/test_types_table.py -->", "<!-- types end -->"


def table() -> str:
    """Types that can do the same, in one row; most first."""
    rows: dict[tuple[bool, ...], list[str]] = {}
    for model_type, answers in all_levels().items():
        works = tuple(not answers.get(level, "not tried") for level in LEVELS)
        rows.setdefault(works, []).append(model_type)
    lines = [f"| {' | '.join(LEVELS)} | types |", "|---" * (len(LEVELS) + 1) + "|"]
    for works, types in sorted(rows.items(), key=lambda row: (-sum(row[0]), -len(row[1]))):
        marks = " | ".join("yes" if each else "no" for each in works)
        lines.append(f"| {marks} | {', '.join(f'`{each}`' for each in types)} |")
    return "\n".join(lines)


def test_plugins_readme_has_the_table_of_types(tmp_path: Path) -> None:
    made = table()
    (tmp_path / "types.md").write_text(made, encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    assert BEGIN in text and END in text
    assert text.split(BEGIN)[1].split(END)[0].strip() == made, (
        f"put {tmp_path / 'types.md'} between the marks in plugins/README.md"
    )
