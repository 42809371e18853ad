"""The network and its training: encoder, decoder, batches, augmentation, checkpoints, devices.

The only package that imports PyTorch. May import `pipeline`, `scans` and `scoring`.
"""
