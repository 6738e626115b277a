"What the checks of the exercises share: an answer counts by what it holds, in whatever form it comes"
from numbers import Number
from reprlib import Repr

import numpy as np

__all__ = ['expect', 'numbers']

class _Short(Repr):
    "Long answers cut short, floats to six digits"
    def repr_float(self, x, level): return f'{x:.6g}'

_short = _Short()
_short.maxlist,_short.maxstring,_short.maxother = 8,80,80

def _bare(o):
    "The lists, numbers and strings in `o`: tuples, arrays, tensors and generators of them are told apart no more"
    if hasattr(o, 'tolist'): return o.tolist()
    if isinstance(o, (str,dict)) or not np.iterable(o): return o
    return [_bare(x) for x in o]

def _same(a, b, eps):
    "Do `a` and `b` hold the same, numbers to `eps`?"
    if isinstance(a, list) and isinstance(b, list): return len(a)==len(b) and all(_same(x, y, eps) for x,y in zip(a, b))
    return a==b or (isinstance(a, Number) and isinstance(b, Number) and abs(a-b)<=eps)

def expect(
    got, # An answer: a number, a text, or a list, tuple, array, tensor or generator of them
    want, # The right one
    why:str, # Words that help to get there
    eps:float=1e-5 # How far off numbers may be
):
    "An `AssertionError` that says what was got and what was expected, unless `got` holds what `want` does"
    got,want = _bare(got),_bare(want)
    assert _same(got, want, eps), f'got {_short.repr(got)}, expected {_short.repr(want)}: {why}'

def numbers(
    got, # An answer: a number, or a list, tuple, array, tensor or generator of them
    what:str, # What it should be, for the message
    shape:tuple|None=None # Wanted shape (None: any)
)->np.ndarray: # The numbers
    "The numbers in `got`; an `AssertionError` if it holds anything else, or has another shape"
    got = _bare(got)
    try: res = np.array(got)
    except ValueError: res = np.array(None) # Rows of different lengths
    assert res.dtype.kind in 'biuf', f'got {_short.repr(got)}, expected {what}'
    assert shape in (None,res.shape), f'got numbers of shape {res.shape}, expected {what}, of shape {shape}'
    return res
