"""Data exploration before training: measurements, findings, tables and figures.

May import `pipeline` and `scans`.
"""
