"""Healing: the unpruned model is distilled into the pruned one at every position of text without labels.

The recipe is Minitron's (arXiv 2407.14679): the loss is the forward KL between full distributions alone, without gold
tokens. The unpruned model reads the text once; its final hidden states are stored, and read back in every epoch.

`OUT.healing` holds what an interrupted command continues from, and is deleted when `OUT` is finished:

    started.json          what was asked for
    blocks/               the text as blocks of tokens, to train on and held out
    cache/unpruned/       hidden states of the unpruned model at all positions
    pruned.json           influence, layers and units kept, loss of the unpruned model on held-out blocks
    pruned/               the smaller model, not yet trained
    trainer/, log.jsonl   resume checkpoints and the loss curve
    healed/               the trained model
    checked.json          its loss, once what was written is known to be what was trained
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tutelage.data.collate import pad_id_of, vocabulary_of
from tutelage.data.encode import EncodedRow
from tutelage.data.readers import check_files
from tutelage.data.token_store import TokenStore, write_tokens
from tutelage.errors import ConfigError, DiskFullError, ModelError, StaleArtifactError, UserError
from tutelage.errors.wording import first_line
from tutelage.models.evaluation import sample_losses
from tutelage.models.load import (
    check_embeddings,
    config_of,
    hidden_size,
    load_model,
    load_tokenizer,
    load_trainable,
    longest_context,
    skeleton,
)
from tutelage.models.placement import device
from tutelage.models.precision import bf16_pays
from tutelage.models.save import check_same_loss, save_student
from tutelage.recipe.schema import Model
from tutelage.run.manifest import differences, folder_fingerprint, locked, versions
from tutelage.run.threads import settle_threads
from tutelage.shrink.make import (
    Kept,
    blocks_at_a_time,
    check_size,
    choose,
    influence_rows,
    measure_influence,
    reading_dtype,
    refuse_existing,
)
from tutelage.shrink.plan import HealingPlan, healing_arguments, trained_tokens, training_steps
from tutelage.shrink.record import RECORD, UNPRUNED, show
from tutelage.shrink.text import as_rows, pack, read_documents, split_blocks
from tutelage.shrink.width import unit_count
from tutelage.teacher.build_cache import CacheBuilder
from tutelage.teacher.hidden_store import bytes_on_disk
from tutelage.teacher.sources import CachedTeacher
from tutelage.training.callbacks import JsonLog, OnStep, SaveAt, last_whole_checkpoint, seconds_before
from tutelage.training.trainer import DistillTrainer, Guidance, train, training_arguments
from tutelage.utils.checksums import STARTED
from tutelage.utils.console import Screen
from tutelage.utils.disk import free_space
from tutelage.utils.files import discard, is_remains, read_json, replacing, write_json
from tutelage.utils.integrity import content_hash
from tutelage.utils.memory import is_out_of_memory
from tutelage.utils.progress import PROGRESS

CHECKED = "checked.json"
SHARDS = 128
"""Most files of the cache."""
OF_TRAINING = ("batch_size", "learning_rate")
"""Options that only the training depends on."""
RESUME_POINTS = 10
"""An interrupted training loses at most one in so many of its steps."""


def heal_model(name: str, out: Path, plan: HealingPlan) -> None:
    """Prune `name` as the plan says, heal it, write model, tokenizer, healing.json and log.jsonl to `out`.

    The same call continues an interrupted one. Raises ModelError if `out` exists, ConfigError for a plan that cannot
    work, StaleArtifactError if `OUT.healing` was begun with another plan, RunLockedError if another process works
    there, DiskFullError if the disk is too small.
    """
    settle_threads(Screen().say)
    folder = out.with_name(f"{out.name}.healing")
    left = [path for path in out.parent.glob(f".{folder.name}.deleting-*") if is_remains(path)]
    if (folder / STARTED).is_file():
        left.append(folder)
    if left and (out / RECORD).is_file():  # killed in the last step
        for path in left:
            discard(path)
        Screen().say(f"{out} is finished")
        return
    refuse_existing(out)
    with locked(folder, "type another OUT", lambda path: (path / STARTED).is_file()):
        try:
            Healing(name, out, plan, folder).run()
        except UserError:
            if not (folder / "blocks").exists():  # nothing to continue from
                discard(folder)
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise ModelError(
                f"not enough memory ({first_line(error)}): type a smaller --batch-size than {plan.batch_size}, which"
                " continues the work so far, or another OUT and a smaller --block-length"
            ) from error


@dataclass
class Healing:
    """The steps of a healing; each leaves a file or folder by which a later process sees that it is done."""

    name: str
    out: Path
    plan: HealingPlan
    folder: Path
    """`OUT.healing`."""
    on_step: Callable[[int, int], None] = lambda done, total: None
    """Called with the optimizer steps done, and all of them."""
    screen: Screen = field(default_factory=Screen)

    def run(self) -> None:
        """Do what is not done yet, and tell the user the perplexities."""
        self._begin()
        self._write_blocks()
        facts = self._read_unpruned()
        self._prune(Kept(facts["kept"], facts["units"] and facts["units"]["kept"]))
        if not self._is_trained:
            self._train()
        record = self._record(facts)
        with replacing(self.out, new=True) as draft:
            shutil.copytree(self.folder / "healed", draft)
            shutil.copyfile(self.folder / "log.jsonl", draft / "log.jsonl")
            write_json(draft / RECORD, record)
        discard(self.folder)
        show(record)
        self.screen.say(f"{self.out}: healed on {record['tokens']:,} tokens; {self.out / RECORD} has the numbers")

    # --- what is needed everywhere ---

    @cached_property
    def section(self) -> Model:
        """The unpruned model, in the dtype in which this machine reads fastest."""
        return Model(model_name_or_path=self.name, dtype=reading_dtype())

    @cached_property
    def bf16(self) -> bool:
        """Whether to compute in bfloat16 here."""
        return bf16_pays(device().type)[0]

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own."""
        return load_tokenizer(self.section)

    @cached_property
    def rows(self) -> TokenStore:
        """The blocks to train on."""
        return TokenStore(self._blocks_file, "train")

    @cached_property
    def held_out(self) -> TokenStore:
        """The blocks that are never trained on."""
        return TokenStore(self.folder / "blocks" / "held_out.arrow", "validation")

    def losses(self, model: nn.Module) -> np.ndarray:
        """[held-out blocks] mean cross-entropy with the text, in nats per token."""
        return sample_losses(
            model,
            self.held_out,
            vocabulary=vocabulary_of(self.tokenizer),
            pad_id=pad_id_of(self.tokenizer),
            batch_size=blocks_at_a_time(self.held_out, self.tokenizer),
        )

    # --- the steps ---

    def _begin(self) -> None:
        """Check the plan, and that the folder was begun with the same one."""
        plan, started = self.plan, self.folder / STARTED
        config = config_of(self.section)
        check_embeddings(config, vocabulary_of(self.tokenizer), "teacher")
        if config is not None:
            check_size(skeleton(self.section), plan.layers, plan.width)
        context = longest_context(self.section)
        if context is not None and plan.block_length > context:
            raise ConfigError(
                f"{self.name} has positions for {context:,} tokens, and blocks would have {plan.block_length:,}: type"
                f" --block-length {context}"
            )
        check_files([str(path) for path in plan.text])
        texts = {f"text {path}": content_hash(path) for path in plan.text}
        others = {key: value for key, value in asdict(plan).items() if key != "text"}
        inputs = {"model": self.name, "weights": folder_fingerprint(self.name), **others, **texts}
        if self._blocks_file.with_suffix(".index.safetensors").is_file():
            self._refuse_changed(read_json(started)["inputs"], inputs)
        write_json(started, {"inputs": inputs})
        (self.folder / PROGRESS).touch()

    def _refuse_changed(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """Raises StaleArtifactError for work with other options, unless these concern a training that has no resume
        checkpoint yet: too large a batch shows in its first step."""
        changed, trainer = differences(before, now), self.folder / "trainer"
        if not changed:
            return
        trained = last_whole_checkpoint(trainer) or self._is_trained
        anew = f"delete {self.folder} to start anew"
        if all(before.get(key) == now.get(key) for key in (before | now).keys() - set(OF_TRAINING)):
            if not trained:
                return
            anew = f"delete {trainer} to train anew on the same hidden states"
        raise StaleArtifactError(
            f"{self.folder} holds an unfinished healing with other options ({'; '.join(changed)}): type the former"
            f" command to continue it, name another OUT, or {anew}"
        )

    @property
    def _is_trained(self) -> bool:
        return (self.folder / CHECKED).is_file()

    @property
    def _blocks_file(self) -> Path:
        return self.folder / "blocks" / "train.arrow"

    def _write_blocks(self) -> None:
        """Tokenize the text, and choose the blocks to train on and those held out."""
        path, plan = self._blocks_file, self.plan
        if path.with_suffix(".index.safetensors").is_file():
            return
        blocks = pack(read_documents(plan.text, self.tokenizer), plan.block_length)
        split = split_blocks(len(blocks), -(-plan.tokens // plan.block_length), plan.seed)
        if training_steps(plan, len(split.train)) < 2:
            raise ConfigError(
                f"{plan.tokens:,} tokens are one optimizer step of {plan.batch_size:,} blocks with"
                f" {plan.block_length:,} tokens, and the first step has learning rate 0: raise --tokens, or lower"
                " --batch-size"
            )
        write_tokens(path.with_name("held_out.arrow"), as_rows(blocks, split.held_out, "validation"))
        write_tokens(path, as_rows(blocks, split.train, "train"))
        self.screen.say(
            f"text: {len(blocks):,} blocks of {plan.block_length:,} tokens; {len(split.train):,} to train on,"
            f" {len(split.held_out):,} held out"
        )

    def _read_unpruned(self) -> dict[str, Any]:
        """Run the unpruned model over the text: influence of its layers, loss on held-out blocks, hidden states."""
        done = self.folder / "pruned.json"
        if done.is_file():
            return read_json(done)
        self._check_disk()
        model, plan = load_model(self.section), self.plan
        chosen_on = influence_rows(_as_array(self.rows))
        influence = measure_influence(model, self.tokenizer, chosen_on)
        by_influence = influence if plan.by == "influence" else None
        kept = choose(model, self.tokenizer, chosen_on, plan.layers, by_influence, plan.width)
        facts = {
            "kept": kept.layers,
            "units": {"kept": kept.units, "of": unit_count(model)} if kept.units else None,
            "influence": influence,
            "parameters": model.num_parameters(),
            "nll": float(self.losses(model).mean()),
        }
        builder = self._builder()
        with self.screen.progress("hidden states", len(self.rows), builder.done_before(UNPRUNED)) as advance:
            note = builder.build(UNPRUNED, model, {"checkpoint": self.name}, advance)
        if note:
            self.screen.warn(note)
        write_json(done, facts)
        return facts

    def _check_disk(self) -> None:
        width = hidden_size(self.section)
        needed = bytes_on_disk(self.rows, width, 2) if width else 0
        if needed > (free := free_space(self.folder)):
            raise DiskFullError(
                f"the hidden states of {self.name} take {needed / 1e9:,.1f} GB and {self.folder} has"
                f" {free / 1e9:,.1f} GB free: heal on fewer tokens (--tokens), or name an OUT on a larger disk"
            )

    def _builder(self) -> CacheBuilder:
        return CacheBuilder(
            self.folder / "cache",
            self.rows,
            vocabulary=vocabulary_of(self.tokenizer),
            pad_id=pad_id_of(self.tokenizer),
            dtype=torch.bfloat16,
            batch_size=blocks_at_a_time(self.rows, self.tokenizer),
            shard_rows=max(8, -(-len(self.rows) // SHARDS)),
        )

    def _prune(self, kept: Kept) -> None:
        """Save the model without everything else, in the dtype that it is stored in."""
        if not (self.folder / "pruned").is_dir():
            model = load_model(self.section.model_copy(update={"dtype": "auto"}))
            save_student(kept.cut(model), self.tokenizer, self.folder / "pruned")

    def _train(self) -> None:
        """Train the pruned model on the stored hidden states; `healed` is the result, checked."""
        folder, stored = self.folder / "trainer", Model(model_name_or_path=str(self.folder / "pruned"), dtype="auto")
        model = load_trainable(stored.model_copy(update={"dtype": "float32"}), None, self.plan.seed)
        began, steps = time.monotonic() - seconds_before(folder), training_steps(self.plan, len(self.rows))
        given = healing_arguments(self.plan, steps, self.bf16)
        every = given["logging_steps"]  # a logged loss is a mean since the last one, so none spans a restart
        every *= -(-steps // (RESUME_POINTS * every))
        source = CachedTeacher(self.folder / "cache", [UNPRUNED], self.rows, bf16=self.bf16)
        with self.screen.steps("heal") as on_step:

            def report(done: int, total: int) -> None:
                on_step(done, total)
                self.on_step(done, total)

            train(
                DistillTrainer(
                    model,
                    training_arguments(folder, given, seed=self.plan.seed),
                    self.rows,
                    vocabulary=vocabulary_of(self.tokenizer),
                    pad_id=pad_id_of(self.tokenizer),
                    guidance=Guidance(source, UNPRUNED, np.ones(len(self.rows))),
                    callbacks=[
                        SaveAt(range(every, steps, every), began),
                        JsonLog(self.folder / "log.jsonl"),
                        OnStep(report),
                    ],
                )
            )
        self._save(model, config_of(stored).dtype)

    def _save(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Write the model in this dtype, and compare what was written with what was trained."""
        healed, read_dtype = self.folder / "healed", getattr(torch, self.section.dtype)
        losses = self.losses(model.to(dtype).to(read_dtype))  # rounded as the file is
        if not np.isfinite(losses).all():
            raise ModelError(
                "the loss became NaN or infinite while healing, so the training diverged: delete"
                f" {self.folder / 'trainer'} and type a lower --learning-rate than {self.plan.learning_rate:g}"
            )
        save_student(model.to(dtype), self.tokenizer, healed)
        check_same_loss(losses, self.losses(self._load("healed")), healed)
        write_json(self.folder / CHECKED, {"nll": float(losses.mean())})

    def _load(self, name: str) -> nn.Module:
        """A model in the folder."""
        return load_model(self.section.model_copy(update={"model_name_or_path": str(self.folder / name)}))

    # --- what is reported ---

    def _record(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Content of healing.json: everything that shaped the model, and perplexities on held-out blocks."""
        rows, plan = len(self.rows), self.plan
        (pruned, smaller), (healed, _) = self._loss_and_size("pruned"), self._loss_and_size("healed")
        losses = {UNPRUNED: facts["nll"], "pruned": pruned, "healed": healed}
        return {
            "model": self.name,
            "layers": {"kept": facts["kept"], "of": len(facts["influence"]), "by": plan.by},
            "units": facts["units"] and {"kept": plan.width, "of": facts["units"]["of"]},
            "influence": facts["influence"],
            "parameters": {"unpruned": facts["parameters"], "pruned": smaller},
            "text": [str(path) for path in plan.text],
            "blocks": {"length": plan.block_length, "train": rows, "held_out": len(self.held_out)},
            "tokens": trained_tokens(plan, rows),
            "steps": training_steps(plan, rows),
            "learning_rate": plan.learning_rate,
            "batch_size": plan.batch_size,
            "seed": plan.seed,
            "perplexity": {name: math.exp(loss) for name, loss in losses.items()},
            "versions": versions(),
        }

    def _loss_and_size(self, name: str) -> tuple[float, int]:
        """Loss on held-out blocks and number of parameters of a model in the folder."""
        model = self._load(name)
        return float(self.losses(model).mean()), model.num_parameters()


def _as_array(rows: Sequence[EncodedRow]) -> np.ndarray:
    """[blocks, length] token ids."""
    return np.array([[*row.prompt, *row.answer] for row in rows], dtype=np.int32)
