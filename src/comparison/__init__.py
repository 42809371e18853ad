"""The study: its tables of trainings and patients, and the comparison of recipes.

The modules need only the tables, no images or networks. They may import `pipeline`, `scans` and
`scoring`.
"""
