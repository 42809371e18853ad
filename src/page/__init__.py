"""The report and the model card: gallery, charts, wording and templates.

Scores are read from `metrics/`, never computed here. May import `pipeline`, `scans` and `scoring`.
"""
