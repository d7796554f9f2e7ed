"""A pytest plugin: in continuous integration (CI=true) a skip that ALLOWED_SKIPS does not name fails the session."""

from __future__ import annotations

import os

import pytest

MISTRAL_COMMON = "needs mistral-common, which tutelage uses if a model's user has it, and does not install"
ALLOWED_SKIPS = {
    "tests/compare/test_ray_executor.py::test_the_node_that_does_not_see_a_folder_is_named": (
        "mounts a file system in a user namespace, which many containers forbid"
    ),
    "tests/serve/test_api.py::test_curl_gets_an_answer": (
        "curl is a program of the system; other tests send the same requests from Python"
    ),
    "tests/bytes/test_equals_reference.py::test_real_tokenizers": (
        "needs tokenizers of published models, which are no part of the project; others are built in code"
    ),
    "tests/bytes/test_tokenizers_in_python.py::test_mistrals_own_format_spells_every_text": MISTRAL_COMMON,
    "tests/bytes/test_tokenizers_in_python.py::test_a_teacher_in_mistrals_own_format": MISTRAL_COMMON,
    "tests/bytes/test_tokenizers_in_python.py::test_sentencepiece_without_a_fast_form_spells_every_text": (
        "needs sentencepiece, which trains the tokenizer of this test and no model of a user"
    ),
    "tests/export/test_formats.py": "needs gguf, xllamacpp and ctranslate2, which make check-lowest does not install",
    "tests/export/test_harness.py": "needs lm-eval, which make check-lowest does not install",
}
"""Node id without parameters, or file, of every test that may be skipped in continuous integration, with the reason."""


class SkipRule:
    """Collects the skips of a session and fails it at the end if one of them is not allowed.

    With pytest-xdist it works in the controller, which receives the reports of all workers.
    """

    def __init__(self, allowed: dict[str, str]) -> None:
        self.allowed = allowed
        self.forbidden: dict[str, str] = {}
        """Node id -> reason that pytest gives."""

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._add(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._add(report)

    def _add(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        file, test = report.nodeid.split("::")[0], report.nodeid.split("[")[0]
        if file not in self.allowed and test not in self.allowed:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            self.forbidden[report.nodeid] = str(reason)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.forbidden and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.forbidden:
            terminalreporter.section("skipped, but not in ALLOWED_SKIPS (tests/helpers/skip_rule.py)", red=True)
            for test, reason in self.forbidden.items():
                terminalreporter.line(f"{test}: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI") == "true" and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipRule(ALLOWED_SKIPS), "skip-rule")
