"""How good a prediction is: overlap, distances, detection, calibration, and their intervals.

Works on masks, counts and tables, whatever predicted them; nothing here knows of a network. May
import `pipeline` and `scans`.
"""
