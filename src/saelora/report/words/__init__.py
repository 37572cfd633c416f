"""What each part of an evaluation found, in plain words: pure functions of its result, for terminal and page alike.

A module for each part, with ``lines(result) -> list[str]``: the finding first, each line a sentence or two.
"""
