"""Recipes mutated in values and text, and overrides: read, or refused by a user error in two seconds and 500 MB."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from benchmarks.fuzz_cases import RecipeCase, check_recipe, recipe_cases


@settings(max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(recipe_cases())
def test_only_user_errors_come_out_of_a_recipe(case: RecipeCase):
    check_recipe(case)
