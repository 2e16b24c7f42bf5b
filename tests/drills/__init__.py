"""Faults brought about on purpose, and whether what docs/faults.md promises then happens: `make drills`.

Each drill is a function that brings one fault about in real processes and returns what was seen in one line; an
AssertionError says which promise was broken. tests/drills/test_drills.py runs those that need no server of their own.
"""
