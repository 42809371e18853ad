"""The released model applied to scans: prepared, segmented, warned of, and written.

It runs without PyTorch, pandas and OpenCV. How files are read belongs to `scans`. May import
`pipeline`, `scans` and `page`.
"""
