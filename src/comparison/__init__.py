"""The study: its tables of trainings and patients, and how recipes compare.

Works on the tables alone, without images or networks. May import `pipeline`, `scans` and
`scoring`.
"""
