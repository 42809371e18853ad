"""Scores for predictions: overlap, distances, detection, calibration, and confidence intervals.

The modules work on masks, counts and tables from any predictor; none of them depends on the
network. They may import `pipeline` and `scans`.
"""
