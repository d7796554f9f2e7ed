"""Slices that nobody gave: found in the prompts on one half of the rows, judged on the other half.

A shallow decision tree over what the prompts contain, and clusters of their TF-IDF, propose slices on which the
difference of two models is not what it is elsewhere. A search always comes upon some, so its own half proves nothing:
each candidate is tested once on rows that the search has not seen, with Holm's correction over all candidates of a
pair, and must lean the same way there.

Terms are words and pairs of words, and pieces of 1 to 4 characters where a script puts no spaces between words or glues
particles to them (Chinese, Japanese, Korean). scikit-learn is loaded when a function is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from tutelage.analysis.slices import MEASURES, Answers, Slice, measure_slices, membership_p
from tutelage.analysis.statistics import holm

FEWEST_ROWS = 100
"""With fewer rows nothing is looked for: half of them could not tell a slice from noise."""
LEAST_ROWS = 15
"""A candidate has at least so many rows, and 2 %, in the half in which it is found."""
ALPHA = 0.05
"""A candidate is reported where its corrected p-value on the other half is at most this."""

_CANDIDATES, _DEPTH, _SPLITTERS, _ALIKE = 5, 3, 100, 0.8
_CHARACTERS, _SAMPLE, _TERMS = 1000, 10_000, 20_000
_CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"
_PIECE = re.compile(rf"[{_CJK}]+|\d+|[^\W\d{_CJK}]+")
_WITHOUT_SPACES = re.compile(rf"[{_CJK}]")


class Condition(NamedTuple):
    """A part of a found slice's rule."""

    what: str
    """`contains` (the prompt, in lower case, numbers as #), `characters` (of the prompt, at least so many), or a key
    that the rows have (`language`)."""
    value: str
    holds: bool = True
    """False: the rows where it does not hold."""

    def __str__(self) -> str:
        """As words."""
        if self.what == "contains":
            return f"{'contains' if self.holds else 'without'} {self.value!r}"
        if self.what == "characters":
            return f"{'at least' if self.holds else 'fewer than'} {self.value} characters"
        return f"{self.what} {'is' if self.holds else 'is not'} {self.value}"


class Prompts(NamedTuple):
    """All rows' prompts as the search sees them."""

    find: np.ndarray
    """[rows] whether a row is in the half that is searched; the others judge."""
    terms: Any
    """Sparse [rows, conditions] 0/1, by column."""
    conditions: list[Condition]
    topics: np.ndarray
    """[rows, k] TF-IDF of the terms in few dimensions."""
    clusters: list[Candidate]
    """Groups of similar prompts."""


class Candidate(NamedTuple):
    """A slice that may be one."""

    name: str
    how: str
    """`tree` or `cluster`."""
    rule: tuple[Condition, ...]
    """All hold on its rows. Of a cluster: none; its name gives the words it is rich in."""
    inside: np.ndarray
    """[rows] whether a row of either half is in it."""


def halves(rows: int, seed: int = 0) -> np.ndarray:
    """[rows] whether a row is in the half that is searched: a seeded choice of half of them."""
    find = np.zeros(rows, dtype=bool)
    find[np.random.default_rng(seed).permutation(rows)[: rows // 2]] = True
    return find


def read_prompts(texts: Sequence[str], known: Mapping[str, Sequence[str | None]], seed: int = 0) -> Prompts:
    """Prompts ready for any number of searches. texts: [rows], at least `FEWEST_ROWS`; known: [rows] values by key
    (`language`).

    Terms in fewer rows than a slice must have, or absent in fewer, can make none and are left out; of texts over 1,000
    characters the end is read, where the question stands. Which terms and clusters there are is settled on the searched
    half.
    """
    from scipy.sparse import csc_matrix, hstack
    from sklearn.feature_extraction.text import CountVectorizer

    find = halves(len(texts), seed)
    own = np.flatnonzero(find)[:_SAMPLE]
    least = _least(len(own))
    vectorizer = CountVectorizer(
        analyzer=terms_of,
        binary=True,
        min_df=least,
        max_df=max(len(own) - least, least),
        max_features=_TERMS,
        dtype=np.float32,
    )
    try:
        vectorizer.fit([texts[place] for place in own])
        words = vectorizer.transform(texts)
        conditions = [Condition("contains", term) for term in vectorizer.get_feature_names_out()]
    except ValueError:  # no term is in enough rows
        words, conditions = csc_matrix((len(texts), 0), dtype=np.float32), []
    columns = []
    for condition, column in _known_columns(texts, known, own, least):
        conditions.append(condition)
        columns.append(column.astype(np.float32))
    terms = hstack([words, *(csc_matrix(column[:, None]) for column in columns)]).tocsc()
    topics = _topics(words, own, seed)
    clusters = _clusters(words, topics, find, [c.value for c in conditions[: words.shape[1]]], seed)
    return Prompts(find, terms, conditions, topics, clusters)


def terms_of(text: str) -> set[str]:
    """What a prompt contains: words, pairs of neighbouring words, pieces of 1 to 4 characters of CJK text; numbers are
    #."""
    found: set[str] = set()
    pieces = ["#" if piece[0].isdecimal() else piece for piece in _PIECE.findall(text[-_CHARACTERS:].lower())]
    for piece in pieces:
        if _WITHOUT_SPACES.match(piece):
            found.update(piece[start : start + size] for size in range(1, 5) for start in range(len(piece) - size + 1))
        else:
            found.add(piece)
    found.update(f"{one} {other}" for one, other in pairwise(pieces) if not _WITHOUT_SPACES.match(one + other))
    return found


def search(
    student: Answers, teacher: Answers, prompts: Prompts, *, resamples: int = 1000, seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Slices on which a student's difference from its teacher is not what it is elsewhere; JSON-able.

    `found`: those that held, as lines of `slices.measure_slices` on the judging half, with `name`, `how`, `rule`, `by`
    (the measure it was found by) and `searched` (rows and difference against the rest in the searched half), surest
    first. `tried`: the name and corrected p-value of every candidate.
    """
    judged = np.flatnonzero(~prompts.find)
    pairs = [(by, candidate) for by in MEASURES for candidate in _candidates(_apart(student, teacher, by), prompts)]
    tests = [_judge(_apart(student, teacher, by), candidate, prompts.find) for by, candidate in pairs]
    adjusted = holm([p_value for _, _, p_value in tests]).tolist() if tests else []
    found, tried = [], []
    for (by, candidate), (before, after, p_value), p_holm in zip(pairs, tests, adjusted, strict=True):
        held = p_holm <= ALPHA and before * after > 0
        tried.append({"name": candidate.name, "by": by, "p_value": p_value, "p_holm": p_holm, "held": held})
        if held:
            found.append((p_holm, by, candidate, before))
    found.sort(key=lambda one: one[0])
    slices = [Slice("found", one.name, np.flatnonzero(one.inside[judged])) for _, _, one, _ in found]
    if not slices:
        return {"found": [], "tried": tried}
    lines = measure_slices({"student": student.at(judged)}, teacher.at(judged), slices, resamples=resamples, seed=seed)
    for line, one in zip(lines["student"]["slices"], found, strict=True):
        _describe(line, *one, prompts.find)
    return {"found": lines["student"]["slices"], "tried": tried}


def members(line: dict[str, Any], prompts: Prompts) -> np.ndarray:
    """[rows] whether a row, of either half, is in a slice that `search` found."""
    if line["how"] == "cluster":
        return next(cluster.inside for cluster in prompts.clusters if cluster.name == line["name"])
    places = {condition[:2]: place for place, condition in enumerate(prompts.conditions)}
    inside = np.ones(len(prompts.find), dtype=bool)
    for part in line["rule"]:
        inside &= _column(prompts, places[part["what"], part["value"]]) == part["holds"]
    return inside


# --- candidates ---


def _candidates(apart: np.ndarray, prompts: Prompts) -> list[Candidate]:
    """The few slices of the searched half that are furthest from the rest of it, none of them twice in other words."""
    find = prompts.find
    own = np.flatnonzero(find)
    least = _least(len(own))
    proposed = [*_tree(apart, prompts, least), *prompts.clusters]
    ranked = []
    for order, one in enumerate(proposed):
        places = np.flatnonzero(one.inside[own])
        if least <= len(places) <= len(own) - least:
            ranked.append((membership_p(apart[own], places), order, one))
    chosen: list[Candidate] = []
    for _, _, one in sorted(ranked, key=lambda entry: entry[:2]):
        if len(chosen) < _CANDIDATES and not any(_alike(one.inside[own], other.inside[own]) for other in chosen):
            chosen.append(one)
    return chosen


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two slices hold nearly the same rows, or one nearly those that the other leaves out: the same test either
    way."""
    return any((one & side).sum() > _ALIKE * (one | side).sum() for side in (other, ~other))


def _tree(apart: np.ndarray, prompts: Prompts, least: int) -> list[Candidate]:
    """Every node of a shallow tree but its root, the simplest rules first."""
    from sklearn.tree import DecisionTreeRegressor

    own = np.flatnonzero(prompts.find)
    # A few rows with losses of many nats would draw every split to themselves.
    target = np.clip(apart[own], *np.quantile(apart[own], [0.01, 0.99]))
    splitters = _splitters(target - target.mean(), prompts, own)
    if not len(splitters) or not target.std():
        return []
    table = prompts.terms[own][:, splitters].toarray()
    tree = DecisionTreeRegressor(max_depth=_DEPTH, min_samples_leaf=least, random_state=0).fit(table, target).tree_
    everything = {place: _column(prompts, place) for place in set(splitters[tree.feature[tree.feature >= 0]].tolist())}
    found: list[Candidate] = []
    waiting: list[tuple[int, tuple[Condition, ...], np.ndarray]] = [(0, (), np.ones(len(prompts.find), dtype=bool))]
    for node, rule, inside in waiting:  # grows while it is read: breadth first
        if rule:
            found.append(Candidate("; ".join(map(str, rule)), "tree", rule, inside))
        if tree.feature[node] >= 0:
            place = int(splitters[tree.feature[node]])
            for child, holds in ((tree.children_left[node], False), (tree.children_right[node], True)):
                condition = prompts.conditions[place]._replace(holds=holds)
                waiting.append((child, (*rule, condition), inside & (everything[place] == holds)))
    return found


def _splitters(target: np.ndarray, prompts: Prompts, own: np.ndarray) -> np.ndarray:
    """Places of the conditions that go furthest with a centred target; of those on the same rows the longest is
    kept."""
    terms = prompts.terms[own]
    share = np.asarray(terms.mean(axis=0)).ravel()
    strength = np.abs(terms.T @ target) / np.sqrt(np.maximum(share * (1 - share), 1e-12))
    order = sorted(
        np.argsort(-strength, kind="stable")[: 4 * _SPLITTERS], key=lambda n: -len(prompts.conditions[n].value)
    )
    kept = {}
    for place in order:
        kept.setdefault((round(float(strength[place]), 6), round(float(share[place]), 9)), int(place))
    return np.array(sorted(kept.values(), key=lambda n: (-strength[n], n))[:_SPLITTERS], dtype=int)


def _clusters(words: Any, topics: np.ndarray, find: np.ndarray, names: Sequence[str], seed: int) -> list[Candidate]:
    """Groups of similar prompts, named by the terms that are commoner in them than elsewhere."""
    from sklearn.cluster import MiniBatchKMeans

    own = np.flatnonzero(find)[:_SAMPLE]
    number = min(12, len(own) // 50)
    if topics.shape[1] < 2 or number < 2:
        return []
    means = MiniBatchKMeans(n_clusters=number, n_init=3, random_state=seed).fit(topics[own])
    groups = means.predict(topics)
    overall = np.asarray(words[own].mean(axis=0)).ravel()
    found = []
    for group in np.unique(groups[own]):
        lift = np.asarray(words[own[groups[own] == group]].mean(axis=0)).ravel() - overall
        rich = [names[place] for place in np.argsort(-lift, kind="stable")[:3]]
        name = f"cluster {group + 1}: {', '.join(rich)}"
        found.append(Candidate(name, "cluster", (), groups == group))
    return found


def _topics(words: Any, own: np.ndarray, seed: int) -> np.ndarray:
    """[rows, k] TF-IDF in at most 30 dimensions, fitted on the searched half."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    size = min(30, words.shape[1] - 1)
    if size < 2:
        return np.zeros((words.shape[0], 0))
    weigh = TfidfTransformer().fit(words[own])
    reduce = TruncatedSVD(size, random_state=seed).fit(weigh.transform(words[own]))
    return reduce.transform(weigh.transform(words))


def _known_columns(
    texts: Sequence[str], known: Mapping[str, Sequence[str | None]], own: np.ndarray, least: int
) -> Iterator[tuple[Condition, np.ndarray]]:
    """[rows] columns of what is known beside the words: length, and each value of the keys that the rows have."""
    lengths = np.array([len(text) for text in texts])
    columns = {
        Condition("characters", f"{edge}"): lengths >= edge
        for edge in np.unique(np.quantile(lengths[own], [0.25, 0.5, 0.75]).astype(int)).tolist()
    }
    for key, values in known.items():
        named = np.array([str(value) for value in values])
        columns |= {Condition(key, value): named == value for value in np.unique(named).tolist()}
    for condition, column in columns.items():
        if least <= column[own].sum() <= len(own) - least:
            yield condition, column


# --- verdicts ---


def _judge(apart: np.ndarray, candidate: Candidate, find: np.ndarray) -> tuple[float, float, float]:
    """Difference against the rest in the searched half and in the judging half, and the p-value of the latter."""
    seen = [(apart[half], candidate.inside[half]) for half in (find, ~find)]
    before, after = (
        values[inside].mean() - values[~inside].mean() if 0 < inside.sum() < len(inside) else 0.0
        for values, inside in seen
    )
    values, inside = seen[1]
    return float(before), float(after), membership_p(values, np.flatnonzero(inside))


def _describe(
    line: dict[str, Any], p_holm: float, by: str, candidate: Candidate, before: float, find: np.ndarray
) -> None:
    """Say in a slice's line how it was found; its one corrected p-value is that of the test it had to pass."""
    for measure in MEASURES:
        line[measure]["p_holm"] = None
        line[measure]["against_rest"]["p_holm"] = p_holm if measure == by else None
    line |= {
        "name": candidate.name,
        "how": candidate.how,
        "by": by,
        "rule": [part._asdict() for part in candidate.rule],
    }
    line["searched"] = {"rows": int(candidate.inside[find].sum()), "against_rest": before}


def _apart(student: Answers, teacher: Answers, by: str) -> np.ndarray:
    """[rows] student - teacher."""
    return getattr(student, by) - getattr(teacher, by)


def _column(prompts: Prompts, place: int) -> np.ndarray:
    """[rows] whether a condition holds."""
    return prompts.terms[:, [place]].toarray().ravel() > 0


def _least(rows: int) -> int:
    return max(LEAST_ROWS, round(0.02 * rows))
