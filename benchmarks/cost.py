"""Disk, memory, FLOPs and GPU hours at real sizes, worked out from shapes: `python -m benchmarks.cost [--json FILE]`.

Four ways in which a student can hear its teacher, over the same rows:

    states       ours: final hidden states on disk, the teacher's head in memory, full logits by one product
    full logits  every logit of every answer position on disk
    top-k        the k largest log-probabilities a position on disk; no full distribution, so SCD's choice is not
    possible live         the teacher in memory, a forward pass of it in every step

`python -m benchmarks.cost --check --step FILE` holds the FLOP formulas against what `benchmarks.step --json FILE`
measured.

Counting: a multiply-add is 2 FLOPs; matrix products and attention alone are counted (softmax, norms and optimizer are
bound by memory, not by FLOPs). GB are 10^9 bytes. Rows have no padding. A run is SCD+AW: as many stages as checkpoints,
`EPOCHS` passes each. Disk for the checkpoints themselves is the same four times and not in the table. Interconnects and
offloading are left out: what does not fit on one card is said not to fit.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.published import CARDS, SHAPES, Card, Llm

PAIRS = (
    ("Llama-3.1-8B", "Llama-3.2-3B"),
    ("Llama-3.1-70B", "Llama-3.1-8B"),
    ("Qwen2.5-7B", "Qwen2.5-0.5B"),
    ("Qwen2.5-32B", "Qwen2.5-1.5B"),
)
"""(teacher, student)."""
SOURCES = ("states", "full logits", "top-k", "live")

EPOCHS = 2
"""T: passes over the rows in one stage."""
PROBE_ROWS = 256
RUNS = 15
"""Runs that share one cache in the table's last column of hours: 5 methods x 3 seeds."""
LORA_RANK = 16

PEAK_SHARE = 0.4
"""Share of a card's peak that training reaches."""
USABLE = 0.9
"""Share of a card's memory that tensors may take; the rest is for CUDA's context and fragmentation."""
CHUNK_BYTES = 6 * (1 << 27)
"""Six float32 tensors of one chunk of answer positions by vocabulary: logits, log-probabilities and probabilities of
two models, as `tutelage.training.fused_loss` sizes its chunks on a GPU."""


@dataclass(frozen=True)
class Work:
    """What is trained on."""

    rows: int = 100_000
    tokens: int = 512
    """A row, answer included."""
    answer_tokens: int = 64
    """Of those, with end-of-sequence."""
    checkpoints: int = 10
    """N, and the number of stages."""
    batch: int = 8
    top_k: int = 64


# --- disk ---


def shared_vocabulary(teacher: Llm, student: Llm) -> int:
    """Entries both models have; what pads the larger embedding is cut off."""
    return min(teacher.vocabulary, student.vocabulary)


def position_bytes(teacher: Llm, vocabulary: int, top_k: int) -> dict[str, int]:
    """Bytes on disk for one answer position of one checkpoint.

    states: hidden size x 2 (bf16). full logits: vocabulary x 2 (fp16). top-k: k x (4 for the id + 4 for the
    log-probability, as `tutelage.teacher.build_cache` stores them).
    """
    return {"states": 2 * teacher.hidden, "full logits": 2 * vocabulary, "top-k": 8 * top_k, "live": 0}


def head_bytes(teacher: Llm, vocabulary: int) -> int:
    """One bf16 output head: vocabulary x hidden size x 2."""
    return 2 * vocabulary * teacher.hidden


def disk_bytes(teacher: Llm, vocabulary: int, work: Work) -> dict[str, int]:
    """Bytes on disk for all checkpoints: rows x answer tokens x checkpoints x bytes a position; states also keep N
    heads (one head for all if the teacher was trained with LoRA)."""
    positions = work.rows * work.answer_tokens * work.checkpoints
    found = {source: positions * each for source, each in position_bytes(teacher, vocabulary, work.top_k).items()}
    found["states"] += work.checkpoints * head_bytes(teacher, vocabulary)
    return found


# --- FLOPs ---


def body_flops(shape: Llm, tokens: int) -> int:
    """A row's forward pass without the head: tokens x (2 x body + 4 x layers x tokens x heads x head_dim).

    Attention: scores and weighted sum, each 2 x tokens x heads x head_dim a token, the masked half included.
    """
    return tokens * (2 * shape.body + 4 * shape.layers * tokens * shape.heads * shape.head_dim)


def head_flops(shape: Llm, positions: int, vocabulary: int) -> int:
    """Logits at some positions of a row: positions x 2 x vocabulary x hidden."""
    return positions * 2 * vocabulary * shape.hidden


def forward_flops(shape: Llm, tokens: int, positions: int, vocabulary: int) -> int:
    """A row's forward pass with logits at `positions` of its tokens."""
    return body_flops(shape, tokens) + head_flops(shape, positions, vocabulary)


def training_flops(
    shape: Llm, tokens: int, positions: int, vocabulary: int, *, lora: bool = False, recompute: bool = False
) -> int:
    """A student's forward and backward pass on a row.

    Backward costs a forward pass for the gradients of the inputs and another for those of the weights: 3 in all. With
    LoRA frozen weights have none (2 in all) and adapters add 3 x 2 x adapters a token; attention has no weights and
    stays at 3.
    recompute: gradient checkpointing runs the body forward once more; the head is not part of it.
    """
    attention = body_flops(shape, tokens) - tokens * 2 * shape.body
    times = 2 if lora else 3
    products = times * (tokens * 2 * shape.body + head_flops(shape, positions, vocabulary)) + 3 * attention
    adapters = tokens * 6 * shape.adapters(LORA_RANK) if lora else 0
    return products + adapters + (body_flops(shape, tokens) if recompute else 0)


def teacher_flops(teacher: Llm, source: str, tokens: int, positions: int, vocabulary: int) -> int:
    """What hearing the teacher adds to a step, for one row."""
    if source == "states":
        return head_flops(teacher, positions, vocabulary)
    return forward_flops(teacher, tokens, positions, vocabulary) if source == "live" else 0


def run_flops(teacher: Llm, student: Llm, source: str, work: Work, runs: int = 1) -> dict[str, int]:
    """FLOPs of whole runs by part, full student with gradient checkpointing.

    cache: every checkpoint reads every row once, however many runs there are. student and teacher: stages x EPOCHS x
    rows.
    losses: a live teacher measures each stage's checkpoint on all rows for adaptive weighting; on disk they are there
    already.
    choice: in each stage the student reads PROBE_ROWS rows and N checkpoints and T* answer for them.
    """
    vocabulary = shared_vocabulary(teacher, student)
    size = (work.tokens, work.answer_tokens, vocabulary)
    pass_of_teacher = work.rows * forward_flops(teacher, *size)
    read = work.checkpoints * EPOCHS * work.rows * runs
    answers = (work.checkpoints + 1) * teacher_flops(teacher, source, *size)
    choice = runs * work.checkpoints * PROBE_ROWS * (forward_flops(student, *size) + answers)
    return {
        "cache": 0 if source == "live" else work.checkpoints * pass_of_teacher,
        "student": read * training_flops(student, *size, recompute=True),
        "teacher": read * teacher_flops(teacher, source, *size),
        "losses": runs * work.checkpoints * pass_of_teacher if source == "live" else 0,
        "choice": choice if source != "top-k" else 0,
    }


def hours(flops: float, card: Card) -> float:
    """GPU hours at `PEAK_SHARE` of the card's peak."""
    return flops / (card.flops * PEAK_SHARE) / 3600


# --- memory ---


def state_bytes(student: Llm, lora: bool) -> int:
    """Weights bf16 (2), and for what is trained a bf16 gradient (2) and two AdamW moments in float32 (8): 12 bytes a
    parameter in full training; with LoRA 2 a parameter and 12 an adapter's. No float32 copy of the weights is
    counted."""
    trained = student.adapters(LORA_RANK) if lora else student.parameters
    return 2 * (student.parameters + (trained if lora else 0)) + 10 * trained


def layer_bytes(shape: Llm, tokens: int) -> int:
    """bf16 activations inside one layer: per token 4 x hidden (two norms, two residuals), queries, keys, values,
    attention's output, and 4 x intermediate (gate, its activation, up, their product). Attention scores are never held
    (SDPA)."""
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return 2 * tokens * (4 * shape.hidden + attention + 4 * shape.intermediate)


def activation_bytes(student: Llm, tokens: int) -> int:
    """With gradient checkpointing: the bf16 input of every layer, and one layer with its gradients (twice
    `layer_bytes`)."""
    return 2 * student.layers * tokens * student.hidden + 2 * layer_bytes(student, tokens)


def step_bytes(teacher: Llm, student: Llm, source: str, work: Work, lora: bool) -> int:
    """Memory of a training step: student's state, activations, loss, and what the source keeps beside it.

    Loss: four float32 chunks, and in full training the head's gradient in float32 (vocabulary x hidden x 4). states:
    the teacher's head. full logits, top-k: one batch. live: the teacher's bf16 weights, one of its layers, its logits
    in bf16.
    """
    vocabulary = shared_vocabulary(teacher, student)
    tokens, positions = work.batch * work.tokens, work.batch * work.answer_tokens
    head_gradient = 0 if lora else 4 * vocabulary * student.hidden
    each = position_bytes(teacher, vocabulary, work.top_k)[source]
    beside = {
        "states": head_bytes(teacher, vocabulary) + positions * each,
        "full logits": positions * each,
        "top-k": positions * each,
        "live": 2 * teacher.parameters + layer_bytes(teacher, tokens) + positions * 2 * vocabulary,
    }[source]
    return state_bytes(student, lora) + activation_bytes(student, tokens) + CHUNK_BYTES + head_gradient + beside


def caching_bytes(teacher: Llm, work: Work) -> int:
    """Memory of the cache stage: bf16 weights of one checkpoint, one layer of a batch, bf16 logits at its answer
    positions."""
    tokens, positions = work.batch * work.tokens, work.batch * work.answer_tokens
    return 2 * teacher.parameters + layer_bytes(teacher, tokens) + positions * 2 * teacher.vocabulary


def fits(amount: float) -> str:
    """The smallest of `CARDS` that holds so many bytes, or how many of the largest would."""
    for card in CARDS:
        if amount <= USABLE * card.gib * 2**30:
            return f"{card.gib} GB"
    largest = USABLE * CARDS[-1].gib * 2**30
    return f"no, {-(-amount // largest):.0f} x {CARDS[-1].gib}"


# --- the table ---


def pair_record(teacher_name: str, student_name: str, work: Work) -> dict[str, Any]:
    """Everything about one pair, in bytes, FLOPs and hours."""
    teacher, student = SHAPES[teacher_name], SHAPES[student_name]
    vocabulary = shared_vocabulary(teacher, student)
    plain = training_flops(student, work.tokens, work.answer_tokens, vocabulary, recompute=True)
    disk, each = disk_bytes(teacher, vocabulary, work), position_bytes(teacher, vocabulary, work.top_k)
    sources = {}
    for source in SOURCES:
        extra = teacher_flops(teacher, source, work.tokens, work.answer_tokens, vocabulary)
        one, many = (run_flops(teacher, student, source, work, runs) for runs in (1, RUNS))
        memory = {kind: step_bytes(teacher, student, source, work, kind == "lora") for kind in ("full", "lora")}
        sources[source] = {
            "position_bytes": each[source],
            "disk_bytes": disk[source],
            "step_flops": work.batch * (plain + extra),
            "step_ratio": (plain + extra) / plain,
            "run_flops": one,
            "hours": {card.name: hours(sum(one.values()), card) for card in CARDS},
            f"hours_{RUNS}_runs": {card.name: hours(sum(many.values()), card) for card in CARDS},
            "memory_bytes": memory,
            "fits": {kind: fits(amount) for kind, amount in memory.items()},
        }
    caching = caching_bytes(teacher, work)
    cache = {
        "flops": run_flops(teacher, student, "states", work)["cache"],
        "memory_bytes": caching,
        "fits": fits(caching),
        "checkpoint_bytes": 2 * teacher.parameters,
    }
    return {
        "teacher": teacher_name,
        "student": student_name,
        "vocabulary": vocabulary,
        "cache": cache,
        "sources": sources,
    }


def assumptions(work: Work) -> dict[str, Any]:
    """All numbers that went in."""
    return {
        **asdict(work),
        "epochs_per_stage": EPOCHS,
        "probe_rows": PROBE_ROWS,
        "lora_rank": LORA_RANK,
        "cards": [asdict(card) for card in CARDS],
        "peak_share": PEAK_SHARE,
        "usable_memory": USABLE,
        "weights": "bf16, gradients bf16, AdamW moments float32, gradient checkpointing",
    }


def pair_table(found: dict[str, Any], work: Work) -> Table:
    """One pair: a line a source."""
    cache, card = found["cache"], CARDS[-1]
    each = cache["flops"] / work.checkpoints
    caption = (
        f"caching one checkpoint: {each / 1e18:.2f} EFLOP = {hours(each, card):.1f} {card.name} hours,"
        f" {cache['memory_bytes'] / 1e9:.0f} GB in memory, fits: {cache['fits']};"
        f" a checkpoint's weights in bf16: {cache['checkpoint_bytes'] / 1e9:.1f} GB"
    )
    view = Table(title=f"{found['teacher']} to {found['student']}", caption=caption)
    headings = ("bytes a position", "disk, GB", "step, TFLOP", "x plain step", f"run, {card.name} h", f"{RUNS} runs, h")
    for heading in ("source", *headings, "full: GB", "fits", "LoRA: GB", "fits"):
        view.add_column(heading, justify="left" if heading in ("source", "fits") else "right")
    for source, line in found["sources"].items():
        memory, fit = line["memory_bytes"], line["fits"]
        view.add_row(
            source,
            f"{line['position_bytes']:,}",
            f"{line['disk_bytes'] / 1e9:,.1f}",
            f"{line['step_flops'] / 1e12:,.0f}",
            f"{line['step_ratio']:.2f}",
            f"{line['hours'][card.name]:,.0f}",
            f"{line[f'hours_{RUNS}_runs'][card.name]:,.0f}",
            *(cell for kind in ("full", "lora") for cell in (f"{memory[kind] / 1e9:,.1f}", fit[kind])),
        )
    return view


def in_words(work: Work) -> str:
    """The assumptions in a few lines."""
    cards = ", ".join(f"{card.name} {card.gib} GB at {card.flops / 1e12:.0f} TFLOP/s" for card in CARDS)
    return (
        f"{work.rows:,} rows of {work.tokens} tokens, {work.answer_tokens} of them answer;"
        f" {work.checkpoints} checkpoints, as many stages, {EPOCHS} epochs each; batch {work.batch}; top {work.top_k}."
        " Weights and gradients bf16, AdamW moments float32, gradient checkpointing (its second forward pass counted);"
        f" LoRA of rank {LORA_RANK} on all layers. {cards}; {PEAK_SHARE:.0%} of peak; {USABLE:.0%} of memory usable."
        " Hours are of a full student, wherever it fits."
    )


# --- the check ---


def predicted(teacher: Llm, student: Llm, tokens: int, positions: int, lora: bool) -> dict[str, float]:
    """Ratios of `benchmarks.step` by FLOPs alone, no gradient checkpointing; TRL's logits are at all positions of both
    models."""
    vocabulary = shared_vocabulary(teacher, student)
    limit = training_flops(student, tokens, positions, vocabulary, lora=lora)
    everywhere = training_flops(student, tokens, tokens, vocabulary, lora=lora)
    flops = {
        "limit": limit,
        "sft_all": everywhere,
        "cached": limit + teacher_flops(teacher, "states", tokens, positions, vocabulary),
        "live": limit + teacher_flops(teacher, "live", tokens, positions, vocabulary),
        "trl_gkd": everywhere + forward_flops(teacher, tokens, tokens, vocabulary),
    }
    pairs = (("cached", "limit"), ("live", "cached"), ("trl_gkd", "cached"), ("sft_all", "limit"))
    return {f"{a}/{b}": flops[a] / flops[b] for a, b in pairs}


def check(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Predicted and measured ratios of every record of `benchmarks.step` that was not skipped."""
    from benchmarks.shapes import CASES, SMOLLM2_10_LAYERS, SMOLLM2_135M

    teacher, student = (_llm(shape) for shape in (SMOLLM2_135M, SMOLLM2_10_LAYERS))
    found = []
    for record in records:
        if "skipped" in record:
            continue
        batch, seconds = CASES[record["case"]], record["seconds"]
        expected = predicted(teacher, student, batch.tokens, batch.answer_tokens, record["student"] == "lora")
        for name, value in expected.items():
            a, b = name.split("/")
            if a in seconds and b in seconds:
                about = {key: record[key] for key in ("case", "dtype", "student")}
                found.append({**about, "ratio": name, "predicted": value, "measured": seconds[a] / seconds[b]})
    return found


def _llm(shape: Any) -> Llm:
    """A shape of the benchmarks."""
    head_dim = shape.hidden // shape.heads
    sizes = (shape.hidden, shape.layers, shape.intermediate, shape.heads, shape.kv_heads, head_dim, shape.vocabulary)
    return Llm(*sizes, tied=True)


def check_table(found: list[dict[str, Any]]) -> Table:
    """Predicted beside measured."""
    caption = "FLOPs leave out softmax, optimizer and memory traffic, which weigh most where models are small"
    view = Table(title="ratios of seconds a step: by FLOPs, and as measured", caption=caption)
    for heading in ("case", "dtype", "student", "ratio", "predicted", "measured", "measured / predicted"):
        view.add_column(heading, justify="right" if "ed" in heading and heading != "student" else "left")
    for line in found:
        cells = [line[key] for key in ("case", "dtype", "student", "ratio")]
        both = line["predicted"], line["measured"]
        view.add_row(*cells, *(f"{value:.2f}" for value in (*both, both[1] / both[0])))
    return view


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file.")] = None,
    check_formulas: Annotated[bool, typer.Option("--check", help="Compare the formulas with --step.")] = False,
    step_file: Annotated[
        Path | None, typer.Option("--step", exists=True, help="JSON of benchmarks.step, for --check.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Training rows.")] = Work.rows,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of a row, answer included.")] = Work.tokens,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Answer tokens of a row.")] = Work.answer_tokens,
    checkpoints: Annotated[int, typer.Option(min=1, help="N.")] = Work.checkpoints,
) -> None:
    """What a run costs by shapes alone, for four ways to hear the teacher."""
    if check_formulas != (step_file is not None):
        raise typer.BadParameter(
            "--check and --step FILE go together; FILE comes from `python -m benchmarks.step --json FILE`"
        )
    if answer_tokens > tokens:
        raise typer.BadParameter(f"--answer-tokens {answer_tokens} is more than the {tokens} tokens of a row")
    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console = Console(width=150)
    if step_file is not None:
        found: Any = check(json.loads(step_file.read_text(encoding="utf-8")))
        console.print(check_table(found))
    else:
        work = Work(rows, tokens, answer_tokens, checkpoints)
        console.print(in_words(work), highlight=False)
        pairs = [pair_record(*pair, work) for pair in PAIRS]
        for pair in pairs:
            console.print(pair_table(pair, work))
        found = {"assumptions": assumptions(work), "pairs": pairs}
    if json_file:
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
