"""The paper, arXiv 2601.10114: everything that defines a distillation method, and nothing about models or files.

Read in this order:

    methods      METHODS, the table: a method is schedule x divergence x weighting
    schedule     SCD: which teacher checkpoint a stage follows
    weighting    AW: how much of an example's loss follows the teacher
    divergences  distances between student and teacher distributions
    mixed_loss   the training loss
    taid         the moving target of method `taid`
    risk_split   when a student is better than its teacher

The package itself loads no torch.
"""

from tutelage.method.methods import METHODS, Method

__all__ = ["METHODS", "Method"]
