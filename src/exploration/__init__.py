"""What the images look like, before anything is trained: measurements, findings, figures.

May import `pipeline` and `scans`.
"""
