"""The report: its gallery, charts, wording and templates.

Scores come from `metrics/`; none is computed here. May import `pipeline`, `scans` and `scoring`.
"""
