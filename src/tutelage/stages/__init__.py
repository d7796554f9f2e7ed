"""The stages of a run, one module each: they communicate through the run folder and never import each other."""

STAGES: dict[str, str] = {
    "prepare": "Read, check and render the rows; loads no model.",
    "teach": "Fine-tune the teacher and keep its checkpoints, or use yours. Selects the best on validation.",
    "silver": "Let the teacher answer the unlabelled rows, if there are any.",
    "anchor": "Fine-tune the student without a teacher: the anchor. Adaptive weights use its losses.",
    "cache": "Store the hidden states of every checkpoint. Distillation reads them in place of the teacher.",
    "cross_fit": "Compute out-of-fold losses, for methods ccd-aw and *-aw-cf.",
    "distill": "Train the students, stage by stage. Each stage follows one teacher checkpoint.",
    "evaluate": "Score every model on the test set.",
    "diagnose": "Compare each student with its teacher, slice by slice.",
    "report": "Write report/index.html from the files in the run folder.",
}
"""Stage by name, in the order of a full run, with its help text; each is `tutelage.stages.NAME.run_stage`."""
