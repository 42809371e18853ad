"""Patients and slices on disk: file formats, names, tables, volumes, intensities, the phantom.

Code that evaluates predictions belongs in `scoring`, code for networks in `learning`. May import
`pipeline`.
"""
