"""The texts of the checks: `wording` has all, `wording_results` those about the results of models."""
