"""Exact layers on a CPU in few loops: the bits of `nn/exact.py` and `nn/layers.py`, which explain them.

There each step between two products is an operation of its own that reads and writes everything. Here Numba
compiles the steps of a row into one or two loops, for the vector units of the CPU at hand. Numba contracts no
multiplication with the addition after it and reorders no float sum, and divisions and roots are rounded
correctly. `nn/agreement.py` compares the bits before torch's side uses any of it.

No torch is needed. Compiled code is kept in Numba's cache, so that only the first run on a machine compiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from colazip.nn.grid import GRID, POINTER_RMS, PRECISION, SHARES, TABLE_STEPS, VALUE_STEPS
from colazip.nn.loops import loop

_F, _I, _H, _D = np.float32, np.int32, np.int16, np.float64
_GRID, _STEPS, _VALUES, _RMS = _F(GRID), _F(TABLE_STEPS), _F(VALUE_STEPS), _F(POINTER_RMS)
_MAGNITUDE = _I(0x7FFFFFFF)  # the bits of a float32 but its sign
_SMALLEST = _I(np.array(2.0**-121, _F).view(_I))  # as in `quantize_rows`; positive floats order as their bits
_ONE = _I(np.array(1.0, _F).view(_I))
_LOWEST = _I(-(1 << 31))
_NEVER = _F(-np.inf)
_TOTAL = 1 << PRECISION


@intrinsic
def _as_float(context: Any, bits: Any) -> Any:
    """The float32 of these bits."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), code


@intrinsic
def _as_bits(context: Any, number: Any) -> Any:
    """The bits of a float32."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.int32))

    return types.int32(types.float32), code


@loop
def _top(row):  # type: ignore[no-untyped-def]
    """The largest magnitude, or 1 if it is too small."""
    # A maximum of floats is not vectorized: it would have to mind what is not a number.
    top = _I(0)
    for j in range(len(row)):
        top = max(top, _as_bits(row[j]) & _MAGNITUDE)
    return _as_float(top if top >= _SMALLEST else _ONE)


@loop
def _round_row(row, top, out):  # type: ignore[no-untyped-def]
    by = (_F(1.0) / top) * _GRID
    for j in range(len(row)):
        out[j] = _I(np.rint(row[j] * by))


@loop
def _inverse_rms(q):  # type: ignore[no-untyped-def]
    squares = _I(0)
    for j in range(len(q)):
        squares += _I(q[j]) * _I(q[j])
    mean = _F(max(squares, _I(1))) / _F(len(q))
    return _F(1.0) / _F(np.sqrt(_D(mean)))


@loop
def _row(table, scale, index, y):  # type: ignore[no-untyped-def]
    for j in range(table.shape[1]):
        y[j] = _F(table[index, j]) * scale[index]


@loop
def look_up(q, scale, index, y):  # type: ignore[no-untyped-def]
    for i in range(len(index)):
        _row(q, scale, index[i], y[i])


@loop
def quantize_rows(x, q, factor, norm):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        row, out = x[i], q[i]
        top = _top(row)
        _round_row(row, top, out)
        if norm:
            factor[i] = _inverse_rms(out)
        else:
            factor[i] = top / _GRID


@loop
def scale_rows(product, factor, scale, y):  # type: ignore[no-untyped-def]
    for i in range(len(product)):
        by = factor[i]
        for j in range(product.shape[1]):
            y[i, j] = (_F(product[i, j]) * by) * scale[j]


@loop
def activate(product, factor, scale, q, scale_q):  # type: ignore[no-untyped-def]
    width = product.shape[1]
    held = np.empty(width, _F)
    for i in range(len(product)):
        by = factor[i]
        for j in range(width):
            value = (_F(product[i, j]) * by) * scale[j]
            value = value if value > _F(0.0) else _F(0.0)
            held[j] = value * value
        top = _top(held)
        _round_row(held, top, q[i])
        scale_q[i] = top / _GRID


@intrinsic
def _dot_of_64s(context: Any, a: Any, i: Any, b: Any, j: Any, count: Any) -> Any:
    """The sum of 64 * count products of int8 at a[i:] and b[j:], by the instruction that x86 has for it since
    AVX2, which LLVM does not find in a loop."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide, half, whole = (ir.VectorType(ir.IntType(bits), n) for bits, n in ((16, 16), (8, 16), (32, 8)))
        multiply = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(whole, [wide, wide]), "llvm.x86.avx2.pmadd.wd"
        )
        add_up = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.IntType(32), [whole]), "llvm.vector.reduce.add.v8i32"
        )
        arrays = [context.make_array(signature.args[n])(context, builder, args[n]) for n in (0, 2)]
        sums = [cgutils.alloca_once_value(builder, ir.Constant(whole, [0] * 8)) for _ in range(4)]
        with cgutils.for_range(builder, args[4]) as run:
            first = builder.mul(run.index, ir.Constant(run.index.type, 64))
            for n, total in enumerate(sums):
                parts = []
                for array, start in zip(arrays, (args[1], args[3]), strict=True):
                    at = builder.add(builder.add(start, first), ir.Constant(first.type, 16 * n))
                    loaded = builder.load(builder.bitcast(builder.gep(array.data, [at]), half.as_pointer()))
                    loaded.align = 1
                    parts.append(builder.sext(loaded, wide))
                product = builder.call(multiply, parts)
                builder.store(builder.add(builder.load(total), product), total)
        a, b, c, d = (builder.load(total) for total in sums)
        return builder.call(add_up, [builder.add(builder.add(a, b), builder.add(c, d))])

    return types.int32(a, types.int64, b, types.int64, types.int64), code


@intrinsic
def _fetch(context: Any, a: Any, i: Any) -> Any:
    """Has the cache line of a[i] on its way, wherever that is."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        array = context.make_array(signature.args[0])(context, builder, args[0])
        at = builder.bitcast(builder.gep(array.data, [args[1]]), byte)
        # To read, soon to be used again, as data.
        builder.call(fetch, [at, *(ir.Constant(number, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.none(a, types.int64), code


# Inlined by Numba: LLVM, which sees a call, does not keep what is the same for all rows in registers.
if binding.get_host_cpu_features().get("avx2"):

    @njit(inline="always")
    def _dot(a, i, b, j, width):  # type: ignore[no-untyped-def]
        """Sum of products of int8 [width] at a[i:] and b[j:], of arrays of one dimension."""
        total = _dot_of_64s(a, i, b, j, width >> 6)
        for k in range(width >> 6 << 6, width):
            total += _I(a[i + k]) * _I(b[j + k])
        return total

else:

    @njit(inline="always")
    def _dot(a, i, b, j, width):  # type: ignore[no-untyped-def]
        """Sum of products of int8 [width] at a[i:] and b[j:], of arrays of one dimension."""
        total = _I(0)
        for k in range(width):
            total += _I(a[i + k]) * _I(b[j + k])
        return total


@loop
def multiply(q, weight, product):  # type: ignore[no-untyped-def]
    """Exact product of int8 matrices [N, K] x [M, K] -> int32 [N, M], of few rows."""
    rows, matrix = q.reshape(-1), weight.reshape(-1)
    width = weight.shape[1]
    for j in range(len(weight)):
        for i in range(len(q)):
            product[i, j] = _dot(rows, i * width, matrix, j * width, width)


@loop
def pick_rows(q, weights, factor, group, scale, scaled, y):  # type: ignore[no-untyped-def]
    _, slots, width = weights.shape
    rows, matrices = q.reshape(-1), weights.reshape(-1)
    for i in range(len(q)):
        own, by = group[i], factor[i]
        for j in range(slots):
            value = _F(_dot(rows, i * width, matrices, (own * slots + j) * width, width)) * by
            y[i, j] = value * scale[own, j] if scaled else value


@loop
def project(product, factor, scale, first, q, k, v):  # type: ignore[no-untyped-def]
    """Rows from `first` on of all positions of the batch, as a matrix gives them, int [n, 3 * H * W], into
    int8 [B, H, P, W]."""
    _, heads, positions, width = q.shape
    held = np.empty(width, _F)
    for i in range(len(product)):
        b, p = (first + i) // positions, (first + i) % positions
        by = factor[i]
        for part in range(3):
            for h in range(heads):
                at = (part * heads + h) * width
                for j in range(width):
                    held[j] = (_F(product[i, at + j]) * by) * scale[at + j]
                if part == 0:
                    _round_row(held, _top(held), q[b, h, p])
                elif part == 1:
                    _round_row(held, _top(held), k[b, h, p])
                else:
                    out = v[b, h, p]
                    for j in range(width):
                        value = held[j] * _VALUES
                        value = value if value > -_GRID else -_GRID
                        out[j] = _I(np.rint(value if value < _GRID else _GRID))


@loop
def _order(number):  # type: ignore[no-untyped-def]
    """Bits of a float32 as an integer that orders as it does, and of such an integer the bits again."""
    return number ^ ((number >> _I(31)) & _MAGNITUDE)


@loop
def _step(gap, last):  # type: ignore[no-untyped-def]
    """The step of a table whose end is `last`, of a gap from 0 on, rounded half to even."""
    gap = gap if gap < last else last
    return _as_bits(gap + _F(8388608.0)) & _I(0x7FFFFF)  # 2**23: what is added to it is rounded to integers


@loop
def weigh(products, factor, slope, valid, causal, table, weights, total):  # type: ignore[no-untyped-def]
    """Products of queries and keys [P, P] -> weights of the keys, less 128 to fit int8, and sums of the
    weights of each query."""
    length, last = len(products), _F(len(table) - 1)
    scores, steps = np.empty(length, _F), np.empty(length, np.uint32)
    for i in range(length):
        here = _I(i)
        end = i + 1 if causal else length
        top = _LOWEST
        for j in range(end):
            score = _F(products[i, j]) * factor - slope * (_F(abs(here - _I(j))) * _STEPS)
            scores[j] = score if causal or valid[j] else _NEVER
            top = max(top, _order(_as_bits(scores[j])))
        highest = _as_float(_order(top))
        for j in range(end):
            steps[j] = _step(highest - scores[j], last)
        whole = _I(0)
        for j in range(end):
            weight = table[steps[j]]
            whole += weight
            weights[i, j] = weight - _I(128)
        for j in range(end, length):
            weights[i, j] = -128
        total[i] = max(whole, _I(1))


@loop
def share(mixed, v, total, y, first):  # type: ignore[no-untyped-def]
    """Sums [P, W] of values weighed by what `_weigh` gives -> those over the sums of weights, in columns of y
    from `first` on. v: int8 [P, W], the values."""
    length, width = mixed.shape
    every = np.zeros(width, _I)  # what the 128 that were taken from each weight stand for
    for j in range(length):
        for k in range(width):
            every[k] += _I(v[j, k])
    for i in range(length):
        whole = _F(total[i]) * _VALUES
        for k in range(width):
            y[i, first + k] = _F(_I(mixed[i, k]) + (every[k] << 7)) / whole


@loop
def attend_step(q, keys, values, positions, factor, slopes, table, y):  # type: ignore[no-untyped-def]
    lanes, heads, width = q.shape
    room, last = keys.shape[2], _F(len(table) - 1)
    queries, known, said = q.reshape(-1), keys.reshape(-1), values.reshape(-1)
    scores, steps = np.empty(positions, _F), np.empty(positions, np.uint32)
    mixed = np.empty(width, _I)
    for n in range(lanes):
        for h in range(heads):
            by, slope, pair = factor[h], slopes[h], n * heads + h
            for j in range(positions):
                at = (pair * room + j) * width
                _fetch(said, at)
                scores[j] = _F(_dot(queries, pair * width, known, at, width))
            top = _LOWEST
            for j in range(positions):
                score = scores[j] * by - slope * (_F(_I(positions - 1 - j)) * _STEPS)
                scores[j] = score
                top = max(top, _order(_as_bits(score)))
            highest = _as_float(_order(top))
            for j in range(positions):
                steps[j] = _step(highest - scores[j], last)
            mixed[:] = 0
            whole = _I(0)
            for j in range(positions):
                _fetch(known, ((pair + 1) * room + j) * width)  # of the next head
                weight = _H(table[steps[j]])
                if weight > 0:  # many keys are too far to count
                    whole += _I(weight)
                    for i in range(width):
                        # 255 * 127 fits.
                        mixed[i] += _I(_H(weight * _H(values[n, h, j, i])))
            share = _F(whole) * _VALUES
            for i in range(width):
                y[n, h * width + i] = _F(mixed[i]) / share


@loop
def _table_steps(logits, last, steps):  # type: ignore[no-untyped-def]
    """Where each logit's weight stands in a table that ends at `last`."""
    top = _LOWEST
    for j in range(len(logits)):
        top = max(top, _order(_as_bits(logits[j])))
    highest = _as_float(_order(top))
    for j in range(len(logits)):
        steps[j] = _step((highest - logits[j]) * _STEPS, last)


@loop
def _accumulate(weights, whole, cdf):  # type: ignore[no-untyped-def]
    """Cumulative frequencies of weights that add up to `whole`."""
    count = len(weights)
    share = (1.0 / _D(whole)) * _D(_TOTAL - count)
    spare = _I(_TOTAL)
    for j in range(count):
        frequency = _I(weights[j] * share) + _I(1)  # cut off, which is the floor of what is positive
        spare -= frequency
        cdf[j + 1] = frequency
    cdf[0] = 0
    for j in range(count):
        spare += cdf[j + 1]
        cdf[j + 1] = spare


@loop
def cumulative(logits, table, cdf):  # type: ignore[no-untyped-def]
    rows, count = logits.shape
    last = _F(len(table) - 1)
    steps, weights = np.empty(count, np.uint32), np.empty(count, _D)
    for i in range(rows):
        _table_steps(logits[i], last, steps)
        whole = np.int64(0)
        for j in range(count):
            weight = table[steps[j]]
            weights[j] = weight
            whole += np.int64(weight)
        _accumulate(weights, whole, cdf[i])


@loop
def cumulative_mix(logits, table, own, pointed, cdf):  # type: ignore[no-untyped-def]
    """`cumulative` of a mixture, as `exact.Mix` has it."""
    rows, count = logits.shape
    last = _F(len(table) - 1)
    steps, weights = np.empty(count, np.uint32), np.empty(count, _D)
    for i in range(rows):
        _table_steps(logits[i], last, steps)
        whole, total = np.int64(0), np.int64(0)
        for j in range(count):
            whole += np.int64(table[steps[j]])
        for j in range(count):
            # Below 2**53, as is what they add up to.
            weight = np.int64(table[steps[j]]) * np.int64(own[i]) + np.int64(pointed[i, j]) * whole
            weights[j] = _D(weight)
            total += weight
        _accumulate(weights, total, cdf[i])


@loop
def point(query, reserve, factor, keys, labels, first, count, table, own, by_class, weights):  # type: ignore[no-untyped-def]
    """As `pointer.point`; first, count: where the keys of each row begin and how many there are."""
    rows, known = query.reshape(-1), keys.reshape(-1)
    width, last = query.shape[1], _F(len(table) - 1)
    scores = np.empty(weights.shape[1], _F)
    for i in range(len(query)):
        lo, length = first[i], count[i]
        top = _order(_as_bits(reserve[i]))
        for j in range(length):
            score = _F(_dot(rows, i * width, known, (lo + j) * width, width)) * factor
            scores[j] = score
            top = max(top, _order(_as_bits(score)))
        highest = _as_float(_order(top))
        own[i] = max(table[_step(highest - reserve[i], last)], _I(1))
        by_class[i] = 0
        weights[i] = 0
        for j in range(length):
            if highest - scores[j] < last:  # few are: the end of the table is 0
                weight = table[_step(highest - scores[j], last)]
                weights[i, j] = weight
                by_class[i, labels[lo + j]] += weight


@loop
def level_rows(x, width, q):  # type: ignore[no-untyped-def]
    """As `pointer.level_rows`, of two rows side by side: [N, 2 * W] -> int8 [N, 2, W]."""
    for i in range(len(x)):
        for part in range(2):
            row, out = x[i, part * width : (part + 1) * width], q[i, part]
            _round_row(row, _top(row), out)
            by = _inverse_rms(out) * _RMS
            for j in range(width):
                value = np.rint(_F(out[j]) * by)
                value = value if value < _GRID else _GRID
                out[j] = _I(value if value > -_GRID else -_GRID)


@loop
def mix_slots(own, by_class, weights, first, count, labels, slot_of, cdf, classes, mixed, pointed):  # type: ignore[no-untyped-def]
    """As `pointer.plain_mix_slots`."""
    for i in range(len(weights)):
        lo, came = first[i], classes[i]
        pointed[i] = 0
        whole = by_class[i, came]
        if whole == 0:
            mixed[i] = 1
            continue
        total = np.int64(own[i])
        for c in range(by_class.shape[1]):
            total += np.int64(by_class[i, c])
        total *= np.int64(cdf[i, came + 1] - cdf[i, came])
        share = min(_I(np.rint(_D(whole) * _D(SHARES * _TOTAL) / _D(total))), _I(SHARES - 1))
        mixed[i] = max((_I(SHARES) - share) * whole, _I(1))
        for j in range(count[i]):
            if labels[lo + j] == came:
                pointed[i, slot_of[lo + j]] += _I(weights[i, j]) * share


# -- steps of the networks for a few lanes (`nn/compiled.py`). They are in this file since Numba's cache looks
# at the file of a function alone to see if it is up to date, not at those of the functions that it calls.


@loop
def linear_rows(x, weight, scale, norm, y):  # type: ignore[no-untyped-def]
    """y = W x, or W (x / rms(x)): [n, K] -> [n, M]."""
    q, factor = np.empty(x.shape, np.int8), np.empty(len(x), np.float32)
    product = np.empty(y.shape, np.int32)
    quantize_rows(x, q, factor, norm)
    multiply(q, weight, product)
    scale_rows(product, factor, scale, y)


@loop
def add_mlp(x, up, up_scale, down, down_scale):  # type: ignore[no-untyped-def]
    """x + down(relu(up(x)) ** 2), in place: [n, D]."""
    q, factor, inner_scale = (
        np.empty(x.shape, np.int8),
        np.empty(len(x), np.float32),
        np.empty(len(x), np.float32),
    )
    product, back = np.empty((len(x), len(up)), np.int32), np.empty(x.shape, np.int32)
    inner, added = np.empty(product.shape, np.int8), np.empty(x.shape, np.float32)
    quantize_rows(x, q, factor, True)
    multiply(q, up, product)
    activate(product, factor, up_scale, inner, inner_scale)
    multiply(inner, down, back)
    scale_rows(back, inner_scale, down_scale, added)
    x += added


@loop
def advance(x, position, keys, values, qkv, out, up, down, scales, factor, slopes, table):  # type: ignore[no-untyped-def]
    """A position of all blocks of a stack: x [n, D], in place. keys, values: int8 [blocks, lanes, H, room,
    W]; matrices of all blocks [blocks, ...], and their scales in the same order."""
    lanes, width = x.shape
    heads, size = keys.shape[2], keys.shape[4]
    qkv_scale, out_scale, up_scale, down_scale = scales
    q, by = np.empty(x.shape, np.int8), np.empty(lanes, np.float32)
    product, query = np.empty((lanes, 3 * width), np.int32), np.empty((lanes, heads, size), np.int8)
    mixed, added = np.empty(x.shape, np.float32), np.empty(x.shape, np.float32)
    own = query.reshape(lanes, heads, 1, size)
    for i in range(len(keys)):
        quantize_rows(x, q, by, True)
        multiply(q, qkv[i], product)
        here = slice(position, position + 1)
        project(product, by, qkv_scale[i], 0, own, keys[i, :lanes, :, here], values[i, :lanes, :, here])
        attend_step(query, keys[i], values[i], position + 1, factor[i], slopes, table, mixed)
        linear_rows(mixed, out[i], out_scale[i], False, added)
        x += added
        add_mlp(x, up[i], up_scale[i], down[i], down_scale[i])


@loop
def recall_rows(history, guess, kind, tables, scales, recent):  # type: ignore[no-untyped-def]
    """As `PortableNetworks._recall`; tables and scales: of tokens, bigrams, trigrams, kinds."""
    width, narrow, count = tables[0].shape[1], tables[1].shape[1], len(tables[1])
    for i in range(len(history)):
        out = recent[i]
        for k in range(3):
            _row(tables[0], scales[0], history[i, k], out[k * width :])
        one, two, three = history[i, 0], history[i, 1], history[i, 2]
        bigram = (one * 40503 + two * 30011 + 7) % count  # as `grid.ngram_rows`
        trigram = (one * 40503 + two * 30011 + three * 52711 + 11) % count
        _row(tables[1], scales[1], bigram, out[3 * width :])
        _row(tables[2], scales[2], trigram, out[3 * width + narrow :])
        at = 3 * width + 2 * narrow
        if kind[i] > 0:
            _row(tables[0], scales[0], guess[i], out[at:])
        else:
            out[at : at + width] = 0.0
        _row(tables[3], scales[3], kind[i], out[at + width :])


@loop
def judge_tokens(recent, slots, enter, enter_scale, ups, downs, scales, judge, judge_scale, states, judged):  # type: ignore[no-untyped-def]
    """What the tokens before say, [n, R], and the patch's states [n, L] -> states of the tokens [n, L] and
    what `judge` makes of them [n, J]."""
    linear_rows(recent, enter, enter_scale, False, states)
    states += slots
    for i in range(len(ups)):
        add_mlp(states, ups[i], scales[0][i], downs[i], scales[1][i])
    linear_rows(states, judge, judge_scale, True, judged)


@loop
def slot_logits(states, weights, scale, classes, logits):  # type: ignore[no-untyped-def]
    q, factor = np.empty(states.shape, np.int8), np.empty(len(states), np.float32)
    quantize_rows(states, q, factor, True)
    pick_rows(q, weights, factor, classes, scale, True, logits)
