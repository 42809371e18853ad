"""What every stage stands on: params, refusals, outputs, and copies that DVC has.

Nothing here knows of scans, scores or networks. May import none of the other packages.
"""
