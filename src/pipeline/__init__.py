"""What all stages share: params, error messages, outputs, parallel work and restoring from DVC.

Nothing here depends on scans, scores or networks. This package may not import the other packages.
"""
