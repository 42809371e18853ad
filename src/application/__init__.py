"""Apply the released model to scans: prepare them, segment them, warn, and write the results.

It runs without PyTorch, pandas and OpenCV. Code that reads files belongs in `scans`. This package
may import `pipeline`, `scans` and `page`.
"""
