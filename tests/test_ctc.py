"CTC against PyTorch's, torchaudio's and plain enumeration; clips alone and in a batch; what cannot be learnt"
import math, warnings
from itertools import groupby, product

import numpy as np, pytest, torch, torch.nn.functional as F
from fastcore.test import expect_fail
from hypothesis import Phase, given, settings, strategies as st
from torch import tensor

from fastaudio_lite.asr.ctc import (CTCLoss, CTCModel, LogProbs, Sounds, align, blank_share, collapse, ctc_learner, ctc_nll,
    cut_words, greedy, quietest, word_spans, words_of)
from fastaudio_lite.kinds import Span
from fastaudio_lite.layers import BiLSTM, flip_valid
from fastaudio_lite.text import SpeechDataLoaders, TensorText, Tokens, pad_text, steps_needed
from fastaudio_lite.audio import AudioTensor, AudioWarning
from fastaudio_lite.spectrogram import AudioSpectrogram, FrontEnd

few = settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
paths = st.lists(st.integers(0, 3), max_size=12)

def log_probs(*size, seed=0, dtype=torch.float64): return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype).log_softmax(-1)

# The rule
@few
@given(paths)
def test_collapse(ids):
    "Nothing is left to collapse but repeats; blanks, and steps that say the same again, change nothing"
    res = collapse(ids)
    assert 0 not in res and len(res)<=len(ids)
    assert collapse([0, *ids, 0])==res==collapse([o for o in ids for _ in range(2)])
    assert collapse([o for k in res for o in (k,0)])==res
    assert [k for k,_ in groupby(res)]==collapse(res)

@few
@given(paths, paths)
def test_collapse_joins(a, b): assert collapse([*a, 0, *b])==collapse(a)+collapse(b)

# The loss
@st.composite
def batches(draw):
    "Log-probabilities, valid steps, texts with many repeats, some empty, some impossible"
    n,T,V = draw(st.integers(1, 4)),draw(st.integers(1, 9)),draw(st.integers(2, 5))
    lens = torch.tensor([draw(st.integers(1, T)) for _ in range(n)])
    texts = [draw(st.lists(st.integers(1, V-1), max_size=5)) for _ in range(n)]
    ids = pad_text([TensorText(torch.tensor(o, dtype=torch.long)) for o in texts])
    return log_probs(n, T, V, seed=draw(st.integers(0, 10**6))),lens,ids.as_subclass(torch.Tensor),ids.lens

def torch_nll(lp, lens, ids, n): return F.ctc_loss(lp.transpose(0,1), ids, lens, n, reduction='none')

@few
@given(batches())
def test_loss_value(batch):
    "PyTorch's, infinite ones included; and these are what `steps_needed` says"
    lp,lens,ids,n = batch
    ours = ctc_nll(lp, lens, ids, n)
    torch.testing.assert_close(ours, torch_nll(lp, lens, ids, n))
    assert torch.equal(ours.isinf(), steps_needed(ids)>lens)

@few
@given(batches())
def test_loss_gradient(batch):
    "With respect to what goes into the softmax, and no NaN where a text is impossible"
    lp,lens,ids,n = batch
    grads = []
    for f in (ctc_nll, torch_nll):
        x = lp.clone().requires_grad_()
        nll = f(x.log_softmax(-1), lens, ids, n)
        nll[nll.isfinite()].sum().backward()
        grads.append(x.grad)
    ok = (steps_needed(ids)<=lens)[:,None,None]
    torch.testing.assert_close(grads[0].masked_fill(~ok, 0), grads[1].masked_fill(~ok, 0))
    assert not grads[0].isnan().any()

@few
@given(st.integers(1, 5), st.lists(st.integers(1, 2), max_size=3), st.integers(0, 10**6))
def test_loss_enumerated(T, ids, seed):
    "The sum over every path that collapses to the text"
    lp = log_probs(1, T, 3, seed=seed)
    ps = [lp[0,range(T),list(o)].sum() for o in product(range(3), repeat=T) if collapse(o)==ids]
    want = -torch.stack(ps).logsumexp(0) if ps else torch.tensor(math.inf, dtype=lp.dtype)
    torch.testing.assert_close(ctc_nll(lp, torch.tensor([T]), torch.tensor([ids], dtype=torch.long), torch.tensor([len(ids)]))[0], want)

def speech(texts, T=6, V=4, lens=None):
    lp = log_probs(len(texts), T, V, dtype=torch.float32).requires_grad_()
    x = lp.as_subclass(LogProbs)
    x.lens = torch.full((len(texts),), T) if lens is None else torch.tensor(lens)
    return lp,x,pad_text([TensorText(torch.tensor(o, dtype=torch.long)) for o in texts])

def test_ctcloss_counts():
    "Impossible clips are counted, said once, and neither in the mean nor in the gradient"
    loss,(lp,x,y) = CTCLoss(),speech([[1,2], [3]*4, []])
    with pytest.warns(AudioWarning, match='got 1 clips with more text'): res = loss(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        torch.testing.assert_close(loss(x, y), res)
    assert loss.skipped==2
    nll = ctc_nll(lp, x.lens, y.as_subclass(torch.Tensor), y.lens)
    torch.testing.assert_close(res.as_subclass(torch.Tensor), (nll[0]/2+nll[2])/2)
    res.backward()
    assert lp.grad[1].abs().sum()==0 and lp.grad[0].abs().sum()>0

def test_ctcloss_strict():
    _,x,y = speech([[1,2], [3]*4])
    with expect_fail(ValueError, 'more text than their steps'): CTCLoss(strict=True)(x, y)
    assert CTCLoss(strict=True)(*speech([[1,2], [3]*3])[1:]).isfinite()

def test_ctcloss_all_impossible():
    "A number, and nothing to learn from it"
    lp,x,y = speech([[1]*4, [2]*5])
    with pytest.warns(AudioWarning): res = CTCLoss()(x, y)
    res.backward()
    assert res==0 and not lp.grad.isnan().any() and lp.grad.abs().sum()==0

def test_ctcloss_padding():
    "Steps after the end of a clip have no say"
    lp,x,y = speech([[1,2], [3]], lens=[3,6])
    CTCLoss()(x, y).backward()
    assert lp.grad[0,3:].abs().sum()==0 and lp.grad[1,3:].abs().sum()>0

# The network
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=4)

@few
@given(lengths, st.integers(0, 10**6))
def test_flip_valid(lens, seed):
    x,n = log_probs(len(lens), max(lens)+1, 2, seed=seed),torch.tensor(lens)
    y = flip_valid(x, n)
    for a,b,k in zip(x, y, lens): assert torch.equal(b[:k], a[:k].flip(0)) and torch.equal(b[k:], a[k:])
    assert torch.equal(flip_valid(y, n), x)

@few
@given(lengths, st.integers(0, 10**6))
def test_packed(lens, seed):
    "Both directions are those of PyTorch's own LSTM on packed clips"
    ours,ref = BiLSTM(6, 0.).eval(),torch.nn.LSTM(6, 3, batch_first=True, bidirectional=True)
    ref.load_state_dict({f'{k}{s}':v for m,s in ((ours.fwd,''),(ours.bwd,'_reverse')) for k,v in m.state_dict().items()})
    x,n = log_probs(len(lens), max(lens), 6, seed=seed, dtype=torch.float32),torch.tensor(lens)
    pack = torch.nn.utils.rnn.pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False)
    h = torch.nn.utils.rnn.pad_packed_sequence(ref(pack)[0], batch_first=True)[0]
    want,(got,_) = ours.norm(x+h),ours(x, n)
    for a,b,k in zip(want, got, lens): torch.testing.assert_close(a[:k], b[:k])

def spec(n, lens=None, n_mels=16, seed=0):
    "Spectrograms; padding is zero, as the front end leaves it"
    x = torch.randn(n, 1, n_mels, max(lens or [40]), generator=torch.Generator().manual_seed(seed))
    for o,k in zip(x, lens or ()): o[...,k:] = 0
    return AudioSpectrogram(x, sr=16000, hop=160, lens=torch.tensor(lens) if lens else None)

small = dict(n_mels=16, chs=(4,6), strides=(2,2), n_hidden=12, n_layers=2)
model = CTCModel(7, **small).eval()

@few
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 10**6))
def test_alone_as_padded(lens, seed):
    "A clip gets the same numbers alone and in a batch"
    x = spec(len(lens), lens, seed=seed)
    with torch.no_grad(): both = model(x)
    for o,y,n,k in zip(x, both, both.lens, lens):
        with torch.no_grad(): one = model(o.as_subclass(torch.Tensor)[None,:,:,:k])
        assert n==one.lens[0]==one.shape[1]==-(-k//model.stride)
        torch.testing.assert_close(y[:n].as_subclass(torch.Tensor), one[0].as_subclass(torch.Tensor), atol=1e-5, rtol=1e-4)

def test_garbage_padding():
    "Nor does it matter what the padding holds"
    lens,x = [40,23,6],spec(3, [40,23,6])
    for o,k in zip(x, lens): o[...,k:] = 1e3
    with torch.no_grad(): both,alone = model(x),[model(spec(3, lens)[i:i+1,...,:k].as_subclass(torch.Tensor)) for i,k in enumerate(lens)]
    for y,one in zip(both, alone): torch.testing.assert_close(*(o.as_subclass(torch.Tensor) for o in (y, one[0])), atol=1e-5, rtol=1e-4)

def test_odd_features():
    with expect_fail(ValueError, 'got 33 features, expected an even number'): CTCModel(5, n_hidden=33)

def test_model_config():
    model = CTCModel(7, **small, p=.1)
    assert CTCModel(**model.config()).config()==model.config() and model.stride==4
    x = model(spec(2))
    torch.testing.assert_close(x.exp().sum(-1).as_subclass(torch.Tensor), torch.ones(2, 10))

def test_trains():
    "A text is learnt by heart in a moment, and every weight has a part in it"
    torch.manual_seed(0)
    model,x,y = CTCModel(4, **small, p=0.),spec(2),pad_text([TensorText(torch.tensor(o)) for o in ([1,1,2], [3])])
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = CTCLoss()(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    assert all(o.grad.abs().sum()>0 for o in model.parameters())
    assert greedy(model.eval()(x))==[[1,1,2],[3]]

# Reading it
@few
@given(st.lists(paths.filter(len), min_size=1, max_size=4))
def test_greedy(rows):
    "The collapse of the best path, within the valid steps only"
    n = torch.tensor(list(map(len, rows)))
    best = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, rows)), batch_first=True, padding_value=3)
    lp = F.one_hot(best, 4).float().log()
    want = list(map(collapse, rows))
    assert greedy(lp, n)==want
    lp = lp.as_subclass(LogProbs)
    lp.lens = n
    assert greedy(lp)==want
    assert blank_share(lp)==pytest.approx(sum(o.count(0) for o in rows)/int(n.sum()))

def test_slices():
    "A part of a batch has the lengths of its clips; a clip alone is cut to what is valid"
    lp = F.one_hot(torch.tensor([[1,0,2,2], [1,0,1,2], [0,1,2,1]]), 3).float().log().as_subclass(LogProbs)
    lp.lens = torch.tensor([1,4,3])
    want = [[1],[1,1,2],[1,2]]
    assert greedy(lp)==want and greedy(lp[1:])==want[1:] and greedy(lp[[2,0]])==[want[2],want[0]]
    assert [greedy(o[None])[0] for o in lp]==[greedy(lp[i][None])[0] for i in (0,1,2)]==want
    assert lp[2].lens is None and lp[-1].shape==(3,3)

# In fastai
def learner(deltas=0, **kwargs):
    "On a few noises"
    tokens,fe = Tokens.letters(['ab']),FrontEnd(8000, n_mels=16, deltas=deltas)
    items = [(AudioTensor(torch.randn(1, 4000, generator=torch.Generator().manual_seed(i)), sr=8000), 'ab') for i in range(4)]
    dls = SpeechDataLoaders.from_items(items[:2], items[2:], tokens, front_end=fe, sr=8000, bs=2)
    return ctc_learner(dls, n_hidden=8, n_layers=1, **kwargs),items

def test_predict():
    "What a user of fastai types first"
    learn,items = learner()
    with learn.no_bar(): text,ids,lp = learn.predict(items[0][0])
    assert isinstance(text, str) and set(text) <= set('ab ') and learn.tokens.decode(greedy(lp[None])[0])==text

def test_show_results():
    from matplotlib import pyplot as plt
    learn,_ = learner()
    with learn.no_bar(): learn.show_results()
    assert any('ab' in o.get_title() for o in plt.gcf().axes)
    plt.close('all')

def test_learner_arguments():
    "No metrics are no metrics; slopes are refused in a sentence"
    assert len(learner()[0].metrics)==3 and len(learner(metrics=[])[0].metrics)==0
    with expect_fail(ValueError, 'got spectrograms of 2 channels, expected 1'): learner(deltas=1)

@st.composite
def clips(draw):
    "Log-probabilities of one clip and a text that it is long enough for, with many repeats"
    ids = draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    need = len(ids) + sum(a==b for a,b in zip(ids, ids[1:]))
    return log_probs(draw(st.integers(need, need+8)), 4, seed=draw(st.integers(0, 10**6)), dtype=torch.float32),ids

@few
@given(clips())
def test_align(clip):
    "torchaudio's forced alignment"
    from torchaudio.functional import forced_align, merge_tokens
    lp,ids = clip
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        path,scores = forced_align(lp[None], torch.tensor([ids], dtype=torch.int32))
        want = merge_tokens(path[0], scores[0].exp())
    got = align(lp, ids)
    assert [o[0] for o in got]==ids and [o[:3] for o in got]==[(o.token,o.start,o.end) for o in want]
    for k,a,b,p in got: assert p==pytest.approx(lp[a:b,k].mean().exp().item())

@few
@given(clips())
def test_align_is_best(clip):
    "No path through the lattice that says the text is more probable"
    lp,ids = clip
    path = torch.zeros(len(lp), dtype=torch.long)
    for k,a,b,_ in align(lp, ids): path[a:b] = k
    rows = torch.tensor(list(product(range(4), repeat=len(lp)))) if len(lp)<=5 else torch.zeros(0, len(lp), dtype=torch.long)
    scores = [lp[range(len(lp)),o].sum().item() for o in rows if collapse(o.tolist())==ids]
    assert collapse(path.tolist())==ids
    assert not scores or lp[range(len(lp)),path].sum().item()==pytest.approx(max(scores), abs=1e-4)

def test_align_ends():
    lp = log_probs(4, 3, dtype=torch.float32)
    assert align(lp, [])==[]
    with expect_fail(ValueError, 'got 4 steps for a text that needs 5'): align(lp, [1,1,1])

def test_word_spans():
    "Words of letters and of sub-words, in seconds; spaces twice or at the ends make no words"
    def _lp(path, V): return F.one_hot(torch.tensor(path), V).float().log().clamp(min=-20)
    tokens = Tokens(['', ' ', 'a', 'b'])
    got = word_spans(_lp([1,2,0,2,3,1,0,1,3,1], 4), [1,2,2,3,1,1,3,1], tokens, .1)
    assert [(o.text, round(o.start, 2), round(o.end, 2)) for o in got]==[('aab',.05,.45),('b',.75,.85)]
    assert all(o.prob==pytest.approx(1, abs=1e-3) for o in got)
    sub = Tokens(['', ' a', 'b', ' ba'])
    got = word_spans(_lp([1,2,0,3,0], 4), [1,2,3], sub, 1.)
    assert [(o.text,o.start,o.end) for o in got]==[('ab',0,1.5),('ba',2.5,3.5)]
    assert word_spans(_lp([0,0], 4), [], tokens, 1.)==[]

def test_one_mean():
    "Of a word's tokens the geometric mean, whatever pieces it is made of; certain errors and spaces do no harm"
    said = [Span(t, i, i+1, p) for i,(t,p) in enumerate([(' a',.5), ('b ',.125), ('c',.3), (' ',.9), ('d',0.)])]
    got = words_of(said)
    assert [(o.text,o.start,o.end) for o in got]==[('ab',0,2), ('c',2,3), ('d',4,5)]
    assert [o.prob for o in got]==pytest.approx([.25,.3,0.])
    assert words_of([Span('a', 0, 1, .01)]*400)[0].prob==pytest.approx(.01) and words_of([])==[]

@pytest.mark.parametrize('strides', [(1,), (2,2), (2,3)])
def test_steps_are_where_they_are_heard(strides):
    "A click is in the span of the step that hears it best: front end and strides have their middles at 0, 1, 2 steps"
    fe = FrontEnd(8000, n_mels=16, n_fft=256, hop=80, norm=None)
    net = CTCModel(3, 16, chs=(1,)*len(strides), strides=strides, n_hidden=4, n_layers=1).eval()
    for b in net.encoder.stem: torch.nn.init.ones_(b.conv.weight)
    step = math.prod(strides)*fe.hop/fe.sr
    for at in np.linspace(.2, .8, 13):
        wav = AudioTensor(torch.zeros(1, 1, 8000), sr=8000)
        wav[...,int(at*8000)] = 1.
        x = fe(wav).as_subclass(torch.Tensor) + 120
        for b in net.encoder.stem: x,_ = b(x)
        k = int(x.mean((0,1,2)).argmax())
        lp = torch.full((x.shape[-1],3), -9.)
        lp[:,0],lp[k,0],lp[k,2] = 0.,-9.,0.
        o, = word_spans(lp, [2], Tokens(['',' ','a']), step)
        assert o.end-o.start==pytest.approx(step) and o.start-fe.hop/fe.sr<=at<=o.end+fe.hop/fe.sr
        assert abs((o.start+o.end)/2-at) <= step/2+fe.hop/fe.sr

# Words cut out
def test_quietest():
    "The middle of the silence, in the part that is looked at, however short that is"
    wav = torch.ones(1, 1000)
    wav[:,600:640],wav[:,200:260] = 0,0
    assert 600<=quietest(wav, 400, 1000, 40)<=640 and 200<=quietest(wav, 0, 400, 40)<=260
    assert quietest(wav, 999, 1000, 40)==999

@few
@given(st.lists(st.floats(0, 2), min_size=2, max_size=12), st.integers(1, 9000))
def test_cut_words(times, n):
    "As many pieces as words; together they are the clip, even where times run past its end"
    times = sorted(times)
    wav = AudioTensor(torch.randn(1, n), sr=8000)
    parts = cut_words(wav, [Span('a', t, t, 1.) for t in times])
    assert len(parts)==len(times) and torch.equal(torch.cat(parts, -1), wav) and parts[0].sr==8000

# Speech sounds
def test_sounds(tmp_path):
    "CMU's format: comments, stress and variants go; unknown words have no sounds; a file without entries is one sentence"
    fn = tmp_path/'d.dict'
    fn.write_text(";;; a comment\nONE  W AH1 N\nONE(2)  HH W AH1 N\n# another\nTWO  T UW1\n\nlonely\n", encoding='utf-8')
    d = Sounds.read(fn)
    assert d.words==dict(one=['w','ah','n'], two=['t','uw']) and d.vocab==['','ah','n','t','uw','w'] and len(d)==6
    assert d.encode('two one')==[3,4,5,1,2] and d.encode('two three')==[] and d.encode('')==[]
    fn.write_text('nothing\n')
    with pytest.raises(ValueError, match='without an entry'): Sounds.read(fn)

def test_sounds_loss():
    "Texts with an unknown word, and those whose sounds need more steps than there are, do not count; nothing left is nothing added"
    lp,y = LogProbs(log_probs(3, 6, 4, dtype=torch.float32)),pad_text([TensorText(torch.tensor(o)) for o in ([1],[2],[3])])
    lp.lens = torch.tensor([6,6,6])
    lp.sounds = log_probs(3, 6, 5, seed=1, dtype=torch.float32)
    plain = CTCLoss()(lp, y)
    named = F.ctc_loss(lp.sounds[:1].transpose(0,1), torch.tensor([[1,2]]), torch.tensor([6]), torch.tensor([2]))
    said = {1:[1,2], 2:[], 3:[4]*5}
    both = CTCLoss(sounds=lambda ids: said[ids[0]])(lp, y)
    assert math.isclose(both-plain, 0.5*named, rel_tol=1e-4)
    assert CTCLoss(sounds=lambda ids: [])(lp, y)==plain

def test_sounds_need_a_place():
    "A network that names no speech sounds does not learn from a dictionary"
    dls = learner()[0].dls
    with expect_fail(ValueError, 'names 0 speech sounds'): ctc_learner(dls, CTCModel(len(dls.tokens), 16, n_hidden=8, n_layers=1), sounds=['', 'x'])

def test_a_loss_for_each_clip():
    "What fastai's `Interpretation` asks for: each clip by itself, and infinite where a clip is too short for its text"
    loss,each = CTCLoss(),CTCLoss(reduction='none')
    torch.manual_seed(0)
    lp = LogProbs(torch.randn(3,6,4).log_softmax(-1), lens=tensor([6,5,2]))
    ids = pad_text([TensorText(tensor(o)) for o in ([1,2],[3],[1,1,2])])
    with pytest.warns(AudioWarning, match='more text'): a,b = each(lp, ids),loss(lp, ids)
    assert a.shape==(3,) and a[2]==float('inf') and torch.allclose(a[:2].mean(), b)

def test_steps_join():
    "Batches of unequal length join, and each clip keeps its steps"
    a,b = (LogProbs(torch.randn(2,t,4), lens=tensor([t,1])) for t in (3,5))
    c = torch.cat([a, b], dim=0)
    assert c.shape==(4,5,4) and c.lens.tolist()==[3,1,5,1] and c.sounds is None
    assert torch.equal(c[0].as_subclass(torch.Tensor), a[0].as_subclass(torch.Tensor)) and torch.cat([a, a], 1).shape==(2,6,4)
