"""From an automaton over bytes to one over tokens, on the host.

A token is a function from states to states: the composition of its bytes'. Tokens with the same
function are one class. Functions are found by walking each token's bytes, with one table lookup a
byte where the same function has met the same kind of byte before (as in a trie, but over what
prefixes do instead of how they are spelled). Willard and Louf (2023), "Efficient guided generation
for large language models", have one row a token and state instead.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from .byte_dfa import ByteDFA

SINK, END, START = 0, 1, 2
TEXTLESS, ENDING = 0, 1
FAR = 1 << 30
_SMALLEST = 16
_BLOCK = 256


class Tables(NamedTuple):
    """An automaton over tokens, padded with what is never reached.

    `classes` [V] is the class of each token: `TEXTLESS` leads nowhere, `ENDING` is the end.
    `transitions` [S, C] is the next state, `SINK` for none; the class `ENDING` leads from accepting
    states to `END`. `distance` [S] is the fewest further tokens to an accepting state, the end not
    counted: `FAR` for none, -1 at `END`.
    """

    classes: np.ndarray
    transitions: np.ndarray
    distance: np.ndarray


def token_functions(
    dfa: ByteDFA, token_bytes: Sequence[bytes], texts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """What each token does: its function [V], and the functions [F, S]; function 0 is all dead."""
    columns, kinds = np.unique(dfa.table, axis=1, return_inverse=True)
    moves = np.ascontiguousarray(columns.T)
    translation = kinds.reshape(-1).astype(np.uint8).tobytes()
    identity = np.arange(len(dfa.accepting), dtype=np.int32)
    functions = [np.zeros_like(identity), identity]
    known = {f.tobytes(): i for i, f in enumerate(functions)}
    steps: dict[tuple[int, int], int] = {}
    spelled: dict[bytes, int] = {}
    of_token = np.zeros(len(token_bytes), np.int32)
    for token in texts:
        word = token_bytes[token].translate(translation)
        here = spelled.get(word)
        if here is None:
            here = 1
            for kind in word:
                step = (here, kind)
                after = steps.get(step)
                if after is None:
                    new = moves[kind][functions[here]]
                    after = known.setdefault(new.tobytes(), len(functions))
                    if after == len(functions):
                        functions.append(new)
                    steps[step] = after
                here = after
                if not here:
                    break
            spelled[word] = here
        of_token[token] = here
    return of_token, np.stack(functions)


def tables(of_token: np.ndarray, functions: np.ndarray, accepting: np.ndarray, eos: int) -> Tables:
    """The padded tables of token functions over states 0 (dead), 1 (start), ....

    Only states that the start leads to by whole tokens, and that lead to acceptance by whole
    tokens, remain. Without any, `transitions` leads nowhere and `distance[START]` is `FAR`.
    """
    used, of_token = np.unique(of_token, return_inverse=True)
    forward = functions[used].T
    graph = _graph(forward)
    distance = _distances(graph, accepting)
    live = np.zeros(len(accepting), bool)
    live[csgraph.breadth_first_order(graph, 1, return_predecessors=False)] = True
    live &= distance < FAR
    states = np.flatnonzero(live)
    if not live[1]:
        states = np.array([1])
    number = np.full(len(accepting), SINK, np.int32)
    number[states] = np.arange(START, START + len(states))
    following = number[forward[states]]
    distinct: dict[bytes, int] = {bytes(following[:, :1].nbytes): TEXTLESS}
    labels, kept = [], []
    for column in np.ascontiguousarray(following.T):
        key = column.tobytes()
        if key not in distinct:
            distinct[key] = ENDING + len(distinct)
            kept.append(column)
        labels.append(distinct[key])
    classes = np.array(labels, np.int32)[of_token.reshape(-1)]
    classes[eos] = ENDING
    transitions = np.zeros((bucket(START + len(states)), bucket(2 + len(kept))), np.int32)
    if kept:
        transitions[START : START + len(states), 2 : 2 + len(kept)] = np.stack(kept, axis=1)
    transitions[START : START + len(states), ENDING] = np.where(accepting[states], END, SINK)
    padded = np.full(len(transitions), FAR, np.int32)
    padded[END], padded[START : START + len(states)] = -1, distance[states]
    return Tables(classes, transitions, padded)


def need_rows(tables: Tables, limit: int) -> tuple[np.ndarray, np.ndarray | None]:
    """How many symbols, itself and the end included, a text needs from each token on.

    As distinct rows [R, V] of small unsigned integers, the largest for "never", and the row of each
    state [S]; None for rows of more than `limit` bytes.
    """
    need = np.minimum(tables.distance[tables.transitions], FAR - 2) + 2
    most = int(need[need < FAR].max(initial=0))
    dtype = np.uint8 if most < 255 else np.uint16
    need = np.minimum(need, np.iinfo(dtype).max).astype(dtype)
    distinct, row = np.unique(need, axis=0, return_inverse=True)
    rows = bucket(len(distinct))
    if most >= 65535 or rows * len(tables.classes) * need.itemsize > limit:
        return np.zeros(len(need), np.int32), None
    spread = np.full((rows, len(tables.classes)), np.iinfo(dtype).max, dtype)
    np.take(distinct, tables.classes, axis=1, out=spread[: len(distinct)])
    return row.reshape(-1).astype(np.int32), spread


def bucket(size: int) -> int:
    """The padded size: a power of two, or half as much again; at least 16."""
    room = _SMALLEST
    while room < size:
        room = room * 3 // 2 if room & (room - 1) == 0 else room // 3 * 4
    return room


def _graph(forward: np.ndarray) -> sparse.csr_matrix:
    """Which states lead to which by one token; the dead one is left out."""
    count = len(forward)
    blocks = []
    for first in range(0, count, _BLOCK):
        part = forward[first : first + _BLOCK]
        edges = np.zeros((len(part), count), bool)
        edges[np.arange(len(part))[:, None], part] = True
        edges[:, 0] = False
        blocks.append(sparse.csr_matrix(edges))
    return sparse.csr_matrix(sparse.vstack(blocks))


def _distances(graph: sparse.csr_matrix, accepting: np.ndarray) -> np.ndarray:
    """Fewest tokens from each state to an accepting one."""
    targets = np.flatnonzero(accepting)
    far = csgraph.dijkstra(graph.T, unweighted=True, indices=targets, min_only=True)
    return np.where(np.isfinite(far), far, FAR).astype(np.int32)


def joint(one: Tables, other: Tables) -> Tables:
    """The tables of the texts that both accept: pairs of states that the start leads to."""
    codes = one.classes.astype(np.int64) * other.transitions.shape[1] + other.classes
    pairs, of_token = np.unique(codes, return_inverse=True)
    first, second = np.divmod(pairs, other.transitions.shape[1])
    ends = (first == ENDING) | (second == ENDING)
    width = len(other.distance)
    number = {0: 0, START * width + START: 1}
    rows, at = [np.zeros(len(pairs), np.int32)], 1
    states = list(number)
    while at < len(states):
        left, right = divmod(states[at], width)
        a, b = one.transitions[left, first], other.transitions[right, second]
        following = np.where((a == SINK) | (b == SINK) | ends, 0, a.astype(np.int64) * width + b)
        distinct, inverse = np.unique(following, return_inverse=True)
        for code in distinct.tolist():
            if code not in number:
                number[code] = len(states)
                states.append(code)
        rows.append(np.array([number[c] for c in distinct.tolist()], np.int32)[inverse.reshape(-1)])
        at += 1
    left, right = np.divmod(np.array(states), width)
    accepting = (one.distance[left] == 0) & (other.distance[right] == 0)
    eos = int(np.flatnonzero(one.classes == ENDING)[0])
    return tables(of_token.reshape(-1), np.stack(rows, axis=1), accepting, eos)
