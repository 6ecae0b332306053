"""Comparisons with other projects: `python -m benchmarks NAME [--json FILE]`, one file each.

A benchmark is a program and asserts no times. Peers take turns in one run, each in a process of its
own, so that a machine whose speed drifts slows all of them alike; compare ratios.
"""
