"""Sections of the report made from recorded confidences: calibration, and the cascade of student and teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tutelage.analysis.calibration import TOLERANCE, Calibration, CascadePoint
from tutelage.analysis.run_results import Results
from tutelage.report.charts import CascadeChart, ReliabilityDiagram, cascade_chart, reliability_diagram


@dataclass(frozen=True, slots=True)
class ModelCalibration:
    """Calibration of a model, with its result in a word."""

    model: str
    record: Calibration
    verdict: Literal["over", "under", "calibrated"]
    """Over- or underconfident; `calibrated`: no more miscalibrated than a perfect model may be by chance."""
    diagram: ReliabilityDiagram


def calibration(results: Results) -> list[ModelCalibration]:
    """Calibration of main student, teacher and anchor as `diagnose` measured it; empty without recorded confidences."""
    records = results.summary.get("calibration") or {}
    names = [name for name in (results.main, "teacher", "anchor") if _is_measured(records.get(name))]
    return [
        ModelCalibration(
            model=name,
            record=records[name],
            verdict=_verdict(records[name]),
            diagram=reliability_diagram(records[name]["bins"], height=240),
        )
        for name in names
    ]


def _is_measured(record: Calibration | None) -> bool:
    """Whether confidences were recorded; records made `from` gold answers hold bounds instead."""
    return record is not None and record["from"] == "confidence"


def _verdict(record: Calibration) -> Literal["over", "under", "calibrated"]:
    if record["ece"] <= record["ece_by_chance"]:
        return "calibrated"
    return "over" if record["confidence"] > record["accuracy"] else "under"


@dataclass(frozen=True, slots=True)
class CascadeSection:
    """The main student in front of its teacher."""

    points: list[CascadePoint]
    level: CascadePoint | None
    """The smallest fraction whose score reaches the teacher's."""
    surely_level: CascadePoint | None
    """The smallest fraction whose 95 % interval ends at most `tolerance` below the teacher's score."""
    tolerance: float
    student_cost: float | None
    """A call of the student in calls of the teacher."""
    chart: CascadeChart

    @property
    def alone(self) -> float:
        """Score of the student alone."""
        return self.points[0]["score"]

    @property
    def teacher(self) -> float:
        """Score of the teacher alone."""
        return self.points[-1]["score"]


def cascade(results: Results) -> CascadeSection | None:
    """Score and cost by the fraction of rows passed on to the teacher; None without recorded confidences."""
    record = (results.summary.get("cascades") or {}).get(results.main)
    if not record or record["signal"] != "confidence":
        return None
    by_fraction = {point["share"]: point for point in record["points"]}
    marks = [fraction for key in ("level", "surely_level") if (fraction := record[key]) is not None]
    return CascadeSection(
        points=record["points"],
        level=by_fraction.get(record["level"]),
        surely_level=by_fraction.get(record["surely_level"]),
        tolerance=TOLERANCE,
        student_cost=record["student_cost"],
        chart=cascade_chart(record["points"], list(dict.fromkeys(marks)), height=240),
    )
