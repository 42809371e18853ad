"""Patients and slices on disk: file formats, names, tables, volumes, intensities, the phantom.

What is computed from a prediction belongs to `scoring`, what a network needs to `learning`. May
import `pipeline`.
"""
