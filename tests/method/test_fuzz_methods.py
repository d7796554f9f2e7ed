"""Names of methods with settings, mutated: found, or refused by a user error."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from benchmarks.fuzz_cases import check_method, method_names


@settings(max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(method_names())
def test_only_user_errors_come_out_of_a_methods_name(name: str):
    check_method(name)


def test_a_variant_is_found():
    assert check_method("scd+schedule.advance=true") == "read"
    assert "temprature" in check_method("scd+temprature=2")
