"""Distributions over the next byte of an answer, from a model of any tokenizer: what a teacher and a student with
different vocabularies are compared by.

Read in this order:

    spelling      the bytes that each token spells, and whether a tokenizer spells texts as they are
    vocabulary    a vocabulary sorted by its bytes: the tokens that begin with some bytes are one range
    lookups       which ranges the bytes of an answer need, position by position
    masses        the probability of those ranges, and its gradient
    alphabet      from masses to log-probabilities [bytes, 257]

The first three load no torch.
"""
