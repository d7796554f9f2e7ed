"""What cells and texts hold: entities, choices, words, languages.

`settle.py` decides what rows leave open, once for all of them.
"""
