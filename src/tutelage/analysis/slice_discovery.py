"""Slice discovery: slices of the prompts on which two models differ otherwise than on the rest.

Half of the test rows is searched: a shallow decision tree over what the prompts contain, and clusters of their TF-IDF,
propose candidates on which the difference of the two models is not what it is elsewhere. A search always finds some, so
its own half proves nothing: each candidate is tested once on the other half, with Holm's correction over all candidates
of a pair, and must have the same sign there.

Terms are words and pairs of words, and character n-grams (1 to 4) in scripts without spaces between words or with
attached particles (Chinese, Japanese, Korean). scikit-learn is loaded when a function is called.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np

from tutelage.analysis.significance import ALPHA, holm, membership_test
from tutelage.analysis.slices import MEASURES, Answers, Measure, Slice, SliceRecord, measure_slices

FEWEST_ROWS = 100
"""With fewer rows nothing is searched: half of them could not distinguish a slice from noise."""
LEAST_ROWS = 15
"""A candidate has at least this many rows, and 2 %, of the searched half."""

_CANDIDATES, _DEPTH, _SPLITTERS, _SAME_ROWS = 5, 3, 100, 0.8
_CHARACTERS, _FITTED_ROWS, _TERMS = 1000, 10_000, 20_000
_CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"
_PIECE = re.compile(rf"[{_CJK}]+|\d+|[^\W\d{_CJK}]+")
_WITHOUT_SPACES = re.compile(rf"[{_CJK}]")


class Condition(NamedTuple):
    """A part of a discovered slice's rule."""

    what: str
    """`contains` (the prompt, in lower case, numbers as #), `characters` (the prompt has at least as many), or a key of
    the rows (`language`)."""
    value: str
    holds: bool = True
    """False: the rows where it does not hold."""

    def __str__(self) -> str:
        """The condition as a phrase for reports, `at least 80 characters`."""
        if self.what == "contains":
            return f"{'contains' if self.holds else 'without'} {self.value!r}"
        if self.what == "characters":
            return f"{'at least' if self.holds else 'fewer than'} {self.value} characters"
        return f"{self.what} {'is' if self.holds else 'is not'} {self.value}"


class SliceCandidate(NamedTuple):
    """A slice proposed by the search."""

    name: str
    how: Literal["tree", "cluster"]
    rule: tuple[Condition, ...]
    """All hold on its rows. Empty for a cluster."""
    terms: tuple[str, ...]
    """Words that are frequent in a cluster; empty for a tree."""
    inside: np.ndarray
    """[rows] whether a row of either half is in it."""


class Prompts(NamedTuple):
    """All rows' prompts in the form that the search needs."""

    searched: np.ndarray
    """[rows] whether a row is in the half that is searched; the others test."""
    terms: Any
    """Sparse [rows, conditions] 0/1, by column."""
    conditions: list[Condition]
    clusters: list[SliceCandidate]
    """Groups of similar prompts."""


class ConditionRecord(TypedDict):
    """A `Condition` in a JSON file."""

    what: str
    value: str
    holds: bool


class SearchedHalf(TypedDict):
    """A discovered slice in the half it was found in."""

    rows: int
    against_rest: float
    """Difference on the slice minus that on the rest, biased upwards by the search."""


class DiscoveredSlice(SliceRecord):
    """A slice whose difference from the rest is significant; its numbers are those of the testing half."""

    name: str
    how: Literal["tree", "cluster"]
    by: Measure
    """The measure it was found by. Only this measure's `against_rest` has a `p_holm`: the test it passed."""
    rule: list[ConditionRecord]
    """All hold; empty for a cluster."""
    terms: NotRequired[list[str]]
    """Words that are frequent in a cluster; missing in files of version 0.2.0."""
    searched: SearchedHalf


class TriedCandidate(TypedDict):
    """A candidate with its test on the testing half."""

    name: str
    by: Measure
    p_value: float
    p_holm: float
    held: bool
    """Whether it is significant with the same sign in both halves."""


class Discovery(TypedDict):
    """What a search found, and every candidate that it tested."""

    found: list[DiscoveredSlice]
    """Smallest p-value first."""
    tried: list[TriedCandidate]


class _HeldCandidate(NamedTuple):
    p_holm: float
    by: Measure
    candidate: SliceCandidate
    in_searched_half: float


# --- prompts ---


def halves(rows: int) -> np.ndarray:
    """[rows] whether a row is in the half that is searched: a seeded choice of half of them."""
    searched = np.zeros(rows, dtype=bool)
    searched[np.random.default_rng(0).permutation(rows)[: rows // 2]] = True
    return searched


def read_prompts(texts: Sequence[str], known: Mapping[str, Sequence[str | None]]) -> Prompts:
    """Prompts ready for any number of searches.

    texts: [rows], at least `FEWEST_ROWS`. known: [rows] values by key (`language`). Terms in fewer rows than a slice
    must have, or absent from fewer, are left out; of texts over 1,000 characters the end is read, which usually holds
    the question. Terms and clusters are chosen on the searched half.
    """
    from scipy.sparse import csc_matrix, hstack

    searched = halves(len(texts))
    fitted = np.flatnonzero(searched)[:_FITTED_ROWS]
    least = _least_rows(len(fitted))
    words, names = _word_columns(texts, fitted, least)
    columns = _known_columns(texts, known, fitted, least)
    conditions = [*(Condition("contains", term) for term in names), *columns]
    sparse = (csc_matrix(column[:, None].astype(np.float32)) for column in columns.values())
    terms = hstack([words, *sparse]).tocsc()
    clusters = _clusters(words, _topics(words, fitted), fitted, names)
    return Prompts(searched, terms, conditions, clusters)


def terms_of(text: str) -> set[str]:
    """What a prompt contains: words, pairs of neighbouring words, n-grams (1 to 4) of CJK text; numbers are #."""
    terms: set[str] = set()
    pieces = ["#" if piece[0].isdecimal() else piece for piece in _PIECE.findall(text[-_CHARACTERS:].lower())]
    for piece in pieces:
        if _WITHOUT_SPACES.match(piece):
            terms.update(piece[start : start + size] for size in range(1, 5) for start in range(len(piece) - size + 1))
        else:
            terms.add(piece)
    terms.update(f"{left} {right}" for left, right in pairwise(pieces) if not _WITHOUT_SPACES.match(left + right))
    return terms


def _word_columns(texts: Sequence[str], fitted: np.ndarray, least: int) -> tuple[Any, list[str]]:
    """(sparse [rows, terms] 0/1, names of the terms)."""
    from scipy.sparse import csc_matrix
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(
        analyzer=terms_of,
        binary=True,
        min_df=least,
        max_df=max(len(fitted) - least, least),
        max_features=_TERMS,
        dtype=np.float32,
    )
    try:
        vectorizer.fit([texts[index] for index in fitted])
    except ValueError:  # no term is in enough rows
        return csc_matrix((len(texts), 0), dtype=np.float32), []
    return vectorizer.transform(texts), vectorizer.get_feature_names_out().tolist()


def _known_columns(
    texts: Sequence[str], known: Mapping[str, Sequence[str | None]], fitted: np.ndarray, least: int
) -> dict[Condition, np.ndarray]:
    """[rows] columns of what is known besides the words: length, and each value of the rows' keys."""
    lengths = np.array([len(text) for text in texts])
    columns = {
        Condition("characters", f"{edge}"): lengths >= edge
        for edge in np.unique(np.quantile(lengths[fitted], [0.25, 0.5, 0.75]).astype(int)).tolist()
    }
    for key, values in known.items():
        named = np.array([str(value) for value in values])
        columns |= {Condition(key, value): named == value for value in np.unique(named).tolist()}
    most = len(fitted) - least
    return {condition: column for condition, column in columns.items() if least <= column[fitted].sum() <= most}


def _topics(words: Any, fitted: np.ndarray) -> np.ndarray:
    """[rows, k] TF-IDF in at most 30 dimensions, fitted on the searched half."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    size = min(30, words.shape[1] - 1)
    if size < 2:
        return np.zeros((words.shape[0], 0))
    tfidf = TfidfTransformer().fit(words[fitted])
    svd = TruncatedSVD(size, random_state=0).fit(tfidf.transform(words[fitted]))
    return svd.transform(tfidf.transform(words))


def _clusters(words: Any, topics: np.ndarray, fitted: np.ndarray, names: Sequence[str]) -> list[SliceCandidate]:
    """Groups of similar prompts, named by the terms that are more frequent in them than elsewhere.

    topics: as of `_topics`. fitted: indices of the rows that groups and names are made from.
    """
    from sklearn.cluster import MiniBatchKMeans

    number = min(12, len(fitted) // 50)
    if topics.shape[1] < 2 or number < 2:
        return []
    means = MiniBatchKMeans(n_clusters=number, n_init=3, random_state=0).fit(topics[fitted])
    groups = means.predict(topics)
    overall = np.asarray(words[fitted].mean(axis=0)).ravel()
    clusters = []
    for group in np.unique(groups[fitted]):
        lift = np.asarray(words[fitted[groups[fitted] == group]].mean(axis=0)).ravel() - overall
        frequent = tuple(names[index] for index in np.argsort(-lift, kind="stable")[:3])
        name = f"cluster {group + 1}: {', '.join(frequent)}"
        clusters.append(SliceCandidate(name, "cluster", (), frequent, groups == group))
    return clusters


# --- search ---


def search(student: Answers, teacher: Answers, prompts: Prompts, *, resamples: int = 1000) -> Discovery:
    """Slices on which a student's difference from its teacher is not what it is elsewhere."""
    testing = np.flatnonzero(~prompts.searched)
    differences: dict[Measure, np.ndarray] = {by: getattr(student, by) - getattr(teacher, by) for by in MEASURES}
    candidates = [(by, candidate) for by in MEASURES for candidate in _candidates(differences[by], prompts)]
    tests = [_test(differences[by], candidate.inside, prompts.searched) for by, candidate in candidates]
    adjusted = holm([p_value for _, _, p_value in tests]).tolist() if tests else []
    held_candidates, tried = [], []
    for (by, candidate), (before, after, p_value), p_holm in zip(candidates, tests, adjusted, strict=True):
        held = p_holm <= ALPHA and before * after > 0
        tried.append(TriedCandidate(name=candidate.name, by=by, p_value=p_value, p_holm=p_holm, held=held))
        if held:
            held_candidates.append(_HeldCandidate(p_holm, by, candidate, before))
    held_candidates.sort(key=lambda held: held.p_holm)
    if not held_candidates:
        return {"found": [], "tried": tried}
    slices = [
        Slice("found", held.candidate.name, np.flatnonzero(held.candidate.inside[testing])) for held in held_candidates
    ]
    answers = {"student": student.at(testing)}
    measured = measure_slices(answers, teacher.at(testing), slices, resamples=resamples)["student"]["slices"]
    found = [_discovered(line, held, prompts) for line, held in zip(measured, held_candidates, strict=True)]
    return {"found": found, "tried": tried}


def rows_inside(found: DiscoveredSlice, prompts: Prompts) -> np.ndarray:
    """[rows] whether a row, of either half, is in a slice that `search` found."""
    if found["how"] == "cluster":
        return next(cluster.inside for cluster in prompts.clusters if cluster.name == found["name"])
    columns = {condition[:2]: column for column, condition in enumerate(prompts.conditions)}
    inside = np.ones(len(prompts.searched), dtype=bool)
    for part in found["rule"]:
        inside &= _column(prompts, columns[part["what"], part["value"]]) == part["holds"]
    return inside


def _candidates(differences: np.ndarray, prompts: Prompts) -> list[SliceCandidate]:
    """The few slices of the searched half that differ most from the rest of it, each set of rows once."""
    searched = np.flatnonzero(prompts.searched)
    least = _least_rows(len(searched))
    ranked = []
    for order, candidate in enumerate([*_tree_nodes(differences, prompts, least), *prompts.clusters]):
        indices = np.flatnonzero(candidate.inside[searched])
        if least <= len(indices) <= len(searched) - least:
            ranked.append((membership_test(differences[searched], indices), order, candidate))
    chosen: list[SliceCandidate] = []
    for _, _, candidate in sorted(ranked, key=lambda entry: entry[:2]):
        inside = candidate.inside[searched]
        if len(chosen) < _CANDIDATES and not any(_same_rows(inside, other.inside[searched]) for other in chosen):
            chosen.append(candidate)
    return chosen


def _same_rows(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two slices hold nearly the same rows, or one nearly the complement of the other: the test is the same."""
    return any((first & side).sum() > _SAME_ROWS * (first | side).sum() for side in (second, ~second))


def _tree_nodes(differences: np.ndarray, prompts: Prompts, least: int) -> list[SliceCandidate]:
    """Every node of a shallow tree except its root, the simplest rules first."""
    from sklearn.tree import DecisionTreeRegressor

    searched = np.flatnonzero(prompts.searched)
    # A few rows with losses of many nats would determine every split.
    target = np.clip(differences[searched], *np.quantile(differences[searched], [0.01, 0.99]))
    splitters = _splitters(target - target.mean(), prompts, searched)
    if not len(splitters) or not target.std():
        return []
    table = prompts.terms[searched][:, splitters].toarray()
    tree = DecisionTreeRegressor(max_depth=_DEPTH, min_samples_leaf=least, random_state=0).fit(table, target).tree_
    used = set(splitters[tree.feature[tree.feature >= 0]].tolist())
    columns = {column: _column(prompts, column) for column in used}
    nodes: list[SliceCandidate] = []
    waiting: list[tuple[int, tuple[Condition, ...], np.ndarray]] = [(0, (), np.ones(len(differences), dtype=bool))]
    for node, rule, inside in waiting:  # grows while it is read: breadth first
        if rule:
            nodes.append(SliceCandidate("; ".join(map(str, rule)), "tree", rule, (), inside))
        if tree.feature[node] >= 0:
            column = int(splitters[tree.feature[node]])
            for child, holds in ((tree.children_left[node], False), (tree.children_right[node], True)):
                condition = prompts.conditions[column]._replace(holds=holds)
                waiting.append((child, (*rule, condition), inside & (columns[column] == holds)))
    return nodes


def _splitters(target: np.ndarray, prompts: Prompts, searched: np.ndarray) -> np.ndarray:
    """Columns of the conditions that correlate most with a centred target; of those on the same rows the longest."""
    terms = prompts.terms[searched]
    fraction = np.asarray(terms.mean(axis=0)).ravel()
    strength = np.abs(terms.T @ target) / np.sqrt(np.maximum(fraction * (1 - fraction), 1e-12))
    strongest = np.argsort(-strength, kind="stable")[: 4 * _SPLITTERS]
    kept: dict[tuple[float, float], int] = {}
    for column in sorted(strongest, key=lambda column: -len(prompts.conditions[column].value)):
        kept.setdefault((round(float(strength[column]), 6), round(float(fraction[column]), 9)), int(column))
    ordered = sorted(kept.values(), key=lambda column: (-strength[column], column))
    return np.array(ordered[:_SPLITTERS], dtype=int)


def _test(differences: np.ndarray, inside: np.ndarray, searched: np.ndarray) -> tuple[float, float, float]:
    """(difference against the rest in the searched half, in the testing half, p-value of the latter)."""
    against_rest = []
    for half in (searched, ~searched):
        values, members = differences[half], inside[half]
        both = 0 < members.sum() < len(members)
        against_rest.append(float(values[members].mean() - values[~members].mean()) if both else 0.0)
    before, after = against_rest
    return before, after, membership_test(differences[~searched], np.flatnonzero(inside[~searched]))


def _discovered(line: SliceRecord, held: _HeldCandidate, prompts: Prompts) -> DiscoveredSlice:
    """A slice's record with how it was found; its only corrected p-value is that of the test it had to pass."""
    candidate = held.candidate
    for measure in MEASURES:
        line[measure]["p_holm"] = None
        line[measure]["against_rest"]["p_holm"] = held.p_holm if measure == held.by else None
    return {
        **line,
        "name": candidate.name,
        "how": candidate.how,
        "by": held.by,
        "rule": [ConditionRecord(**part._asdict()) for part in candidate.rule],
        "terms": list(candidate.terms),
        "searched": {"rows": int(candidate.inside[prompts.searched].sum()), "against_rest": held.in_searched_half},
    }


def _column(prompts: Prompts, column: int) -> np.ndarray:
    """[rows] whether a condition holds."""
    return prompts.terms[:, [column]].toarray().ravel() > 0


def _least_rows(rows: int) -> int:
    return max(LEAST_ROWS, round(0.02 * rows))
