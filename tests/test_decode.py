"The decoder against enumeration, language models against their formulas, other decoders, and bad input"
import gzip, math, time, warnings
from collections import Counter, defaultdict
from itertools import groupby, product
from pathlib import Path

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st

from fastaudio_lite.asr.ctc import greedy, word_spans
from fastaudio_lite.asr.decode import BeamDecoder, NGram, decode_speed, prefix_search, read_lexicon, rivals, same_best, smoothings, tune
from fastaudio_lite.text import Tokens
from fastaudio_lite.audio import AudioWarning
from fastaudio_lite.datasets import find_data

letters,subwords = ['', ' ', 'a', 'b'],['', ' a', 'b', 'ab', ' ab']
vocab28 = ['', ' ', *map(chr, range(97, 123))]
texts = ['a b ab', 'ab ab', 'b a a', 'ba ab b', 'a']
exact = dict(beam=2000, min_logp=-math.inf, prune=math.inf, n_best=10**6)
few = settings(max_examples=15, deadline=None)

def log_probs(T, V, seed, scale=1.5):
    x = np.random.default_rng(seed).normal(size=(T,V))*scale
    return x - np.logaddexp.reduce(x, 1, keepdims=True)

def outputs(rows, n_pieces, sure=(3.,6.,9.), seed=0):
    "Like a trained network's: blanks, and between them a frame for each piece of the `rows`, more or less sure of it"
    rng = np.random.default_rng(seed)
    for ids in rows:
        x = rng.normal(size=(3*len(ids)+2,n_pieces))
        x[:,0] += 4
        for t,k in zip(range(1, len(x), 3), ids): x[t,k] += 4 + rng.choice(sure)
        yield x - np.logaddexp.reduce(x, 1, keepdims=True)

def peaky(n, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    return outputs([rng.integers(1, 28, rng.integers(10, 30)) for _ in range(n)], 28, seed=seed, **kwargs)

def squeeze(pieces): return ' '.join(''.join(pieces).split())

def enumerate_texts(lp, vocab):
    "Log-probability of every text, path by path"
    res = {}
    for path in product(range(len(vocab)), repeat=len(lp)):
        text = squeeze(vocab[k] for k,_ in groupby(path))
        res[text] = np.logaddexp(res.get(text, -math.inf), sum(o[k] for o,k in zip(lp, path)))
    return res

def same(a, b, eps=1e-9):
    assert a.keys()==b.keys()
    assert max(abs(a[k]-b[k]) for k in a) < eps

# The search

@few
@given(st.integers(0, 5), st.integers(0, 10**6))
def test_plain_search(T, seed):
    lp = log_probs(T, 4, seed)
    found = {}
    for ids,p in prefix_search(lp, 10**6):
        t = squeeze(letters[k] for k in ids)
        found[t] = np.logaddexp(found.get(t, -math.inf), p)
    same(found, enumerate_texts(lp, letters))

def test_plain_search_of_long_clips():
    "Where the products of all probabilities are too small for a float"
    found = prefix_search(np.full((300,2), -5.), 300)
    assert len(found)>100 and abs(np.logaddexp.reduce([p for _,p in found])-300*(math.log(2)-5)) < 1e-6
    assert len(prefix_search(np.full((400,121), -math.log(121)), 5))==5

def _wanted(text, am, lm=None, alpha=0.5, beta=0., hotwords=(), hotword_boost=5., oov=-10., **kwargs):
    "The score of `text` by the formula"
    words = text.split()
    res = am + beta*(len(text) if lm and lm.unit=='char' else len(words)) + hotword_boost*sum(w in hotwords for w in words)
    if lm: res += alpha*lm.score(text)
    if lm and lm.unit=='word': res += alpha*oov*sum(w not in lm.vocab for w in words)
    return res

options = [dict(), dict(beta=0.7), dict(hotwords=['ab'], hotword_boost=2.), dict(lexicon=['a','ab','bab']),
    dict(lm=NGram.fit(texts, 2), alpha=0.7, beta=0.3), dict(lm=NGram.fit(texts, 3, 'kneser-ney'), oov=-2.), dict(lm=NGram.fit(texts, 1)),
    dict(lm=NGram.fit(texts, 3, unit='char'), alpha=0.4, beta=0.2), dict(lm=NGram.fit(texts, 1, unit='char')),
    dict(lm=NGram.fit(texts, 2), lexicon=['a','ab'], hotwords=['a','bb'], beta=-0.5)]

@pytest.mark.parametrize('opt', options, ids=lambda o: '-'.join(o) or 'plain')
@pytest.mark.parametrize('vocab', [letters,subwords], ids=['letters','subwords'])
def test_scores_are_the_formula(vocab, opt):
    "Every text that there is, its score summed over all paths and all spellings"
    dec = BeamDecoder(vocab, **exact, **opt)
    for seed in range(3):
        lp = log_probs(5-len(vocab)//5, len(vocab), seed)
        every = {t:p for t,p in enumerate_texts(lp, vocab).items() if 'lexicon' not in opt or set(t.split())<=set(opt['lexicon'])}
        found = dec(lp)
        same({h.text:h.am for h in found}, every)
        same({h.text:h.score for h in found}, {t:_wanted(t, p, **opt) for t,p in every.items()})

def test_hypotheses():
    "Best first, each text once, as many as asked for; words make up the text, in order of time"
    dec = BeamDecoder(letters, n_best=5, frame_dur=0.04)
    for seed in range(5):
        hyps = dec(log_probs(30, 4, seed))
        assert len(hyps)==5 and len({h.text for h in hyps})==5
        assert [h.score for h in hyps]==sorted([h.score for h in hyps], reverse=True)
        for h in hyps:
            assert ' '.join(w.text for w in h.words)==h.text
            ends = [t for w in h.words for t in (w.start, w.end)]
            assert ends==sorted(ends) and all(0<=t<=30*0.04+1e-9 for t in ends) and all(0<w.prob<=1 for w in h.words)

@pytest.mark.parametrize('vocab', [letters,subwords], ids=['letters','subwords'])
def test_words_are_those_of_the_best_spelling(vocab):
    "Of all ways to spell the winner that are on the beam, the most probable one says when, and how surely"
    dec = BeamDecoder(vocab, frame_dur=0.06)
    for seed in range(4):
        lp = log_probs(25, len(vocab), seed)
        h = dec(lp)[0]
        found = [ids for ids,_ in prefix_search(lp, 50) if squeeze(vocab[k] for k in ids)==h.text]
        assert found and h.words==word_spans(torch.tensor(lp), found[0], dec, 0.06)==dec.read(lp, 0.06)

def test_one_path_has_one_confidence():
    "Greedy or with a beam: where both find the same pieces, words have the same times and probabilities"
    for lp in peaky(10, sure=(6.,)):
        ids,dec = greedy(torch.tensor(lp)[None])[0],BeamDecoder(vocab28, frame_dur=0.06)
        a,b = word_spans(torch.tensor(lp), ids, dec, 0.06),dec(lp)[0].words
        if ' '.join(o.text for o in a)==' '.join(o.text for o in b): assert a==b

def test_a_text_in_two_spellings():
    dec,lp = BeamDecoder(['',' ','d',' d'], frame_dur=0.06),torch.full((4,4), -9.)
    lp[:,0] = -1e-3
    lp[1],lp[2] = torch.tensor([.97,.01,.01,.01]).log(),torch.tensor([.25,.1,.05,.6]).log()
    best = dec(lp.log_softmax(-1))[0]
    assert best.text=='d' and best.words[0].prob==pytest.approx(.6, abs=.01) and best.words[0].start==pytest.approx(1.5*0.06)

ways = st.builds(dict, beta=st.sampled_from([0.,.7,-1.]), hotwords=st.dictionaries(st.sampled_from(['ab','b','bba']), st.sampled_from([3.,-2.,-30.]), max_size=2),
    lexicon=st.sampled_from([None,['a','ab','bab']]), alpha=st.sampled_from([0.,.7]), oov=st.sampled_from([-10.,-1.]),
    lm=st.sampled_from([None, NGram.fit(texts, 2), NGram.fit(texts, 3, unit='char')]))

@few
@given(ways, st.sampled_from([letters,subwords]), st.integers(0, 10**6))
def test_the_winner_wins(opt, vocab, seed):
    "The reported score is the documented sum, and no text that could have been written has a higher one"
    lp = log_probs(4, len(vocab), seed)
    every = {t:p for t,p in enumerate_texts(lp, vocab).items() if not opt['lexicon'] or set(t.split())<=set(opt['lexicon'])}
    hots = opt['hotwords']
    want = {t:_wanted(t, p, **opt|dict(hotwords=())) + sum(hots.get(w, 0.) for w in t.split()) for t,p in every.items()}
    best = BeamDecoder(vocab, **exact, **opt)(lp)[0]
    assert best.score==pytest.approx(want[best.text]) and best.score>=max(want.values())-1e-9

@pytest.mark.parametrize('boost', [-5.,-12.,-20.,-100.])
def test_unwanted_word(boost):
    "A negative boost takes its word's share, and never the whole text"
    lp = next(outputs([[2,3,1,2,1,3]], 4, sure=(9.,)))
    plain,h = BeamDecoder(letters)(lp)[0],BeamDecoder(letters, hotwords={'a':boost})(lp)[0]
    assert plain.text=='ab a b' and h.text and h.score>=plain.score+boost-1e-6

@few
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 10**6),
    st.sampled_from([{}, dict(lm=NGram.fit(texts, 2)), dict(lexicon=['ab','a'], beam=5)]))
def test_step_by_step(parts, seed, opt):
    "In parts of any length as in one; an earlier state can be gone on from again"
    lp,dec = log_probs(sum(parts), 4, seed),BeamDecoder(letters, **opt)
    state,t = dec.start(),0
    for n in parts:
        before,state,t = state,dec.step(state, lp[t:t+n]),t+n
        assert dec.best(state)==dec(lp[:t])
    assert dec.best(dec.step(before, lp[t-n:t]))==dec.best(state)
    assert dec.best(dec.start())==dec(np.zeros((0,4)))

def test_only_unfinished_words():
    "What is whole of them is scored by itself: the documented sum"
    lp,dec = log_probs(4, 4, 0, 6.),BeamDecoder(letters, lexicon=['abab','b'], hotwords={'b':1.}, lm=NGram.fit(texts, 2), beam=1)
    for seed in range(30):
        lp = log_probs(5, 4, seed, 6.)
        every = enumerate_texts(lp, letters)
        for h in dec(lp): assert h.am<=every[h.text]+1e-9 and h.score==pytest.approx(_wanted(h.text, h.am, dec.lm, hotwords=['b'], hotword_boost=1.))

def test_batch_is_its_clips():
    dec = BeamDecoder(letters, NGram.fit(texts, 2))
    lps = [torch.tensor(log_probs(n, 4, n)).float() for n in (7, 20, 12)]
    batch = torch.full((3,20,4), 9.)
    for o,lp in zip(batch, lps): o[:len(lp)] = lp
    alone = [dec.decode(lp)[0] for lp in lps]
    assert dec.decode(batch, torch.tensor([7, 20, 12]))==alone==[dec(lp)[0].text for lp in lps]

def test_lengths_of_other_clips():
    lps = np.stack([log_probs(6, 4, s) for s in range(3)])
    for x,lens in (lps[1],[2,6,6]),(lps,[2,6]):
        with pytest.raises(ValueError, match=f'got {len(lens)} lengths for . clips'): BeamDecoder(letters).decode(x, lens)

@pytest.mark.parametrize('make', [lambda x: x, lambda x: torch.tensor(x), lambda x: torch.tensor(x).float(), lambda x: x.astype('float32'),
    lambda x: np.asfortranarray(x), lambda x: torch.tensor(x, requires_grad=True), lambda x: x.tolist()])
def test_takes_any_numbers(make):
    lp = log_probs(12, 4, 0)
    assert BeamDecoder(letters).decode(make(lp))==BeamDecoder(letters).decode(lp)

def test_read_only():
    lp = log_probs(12, 4, 0)
    lp.setflags(write=False)
    assert BeamDecoder(letters)(lp)

def test_takes_tokens():
    toks = Tokens.letters(['ab a'])
    lp = log_probs(12, len(toks), 3)
    assert BeamDecoder(toks).decode(lp)==BeamDecoder(toks.vocab).decode(lp)

def test_no_frames():
    h = BeamDecoder(letters, NGram.fit(texts, 2))(np.zeros((0,4)))
    assert [(o.text, o.words, o.am) for o in h]==[('', [], 0.)]

def test_pruning_loses_nothing():
    "The defaults leave out what cannot win: the same texts as with every piece and prefix looked at"
    a,b = BeamDecoder(vocab28),BeamDecoder(vocab28, min_logp=-math.inf, prune=math.inf, max_pieces=28)
    lps = list(peaky(40))
    assert [a.decode(o) for o in lps]==[b.decode(o) for o in lps]

def test_flat_outputs_are_bounded():
    "Two thousand frames of a thousand equal pieces: time and memory are the beam's, not the alphabet's"
    dec = BeamDecoder(['', *(f' w{i}' for i in range(999))], NGram.fit(['w1 w2'], 2), beam=20)
    dec(np.full((5,1000), -math.log(1000)))
    t0 = time.process_time()
    assert dec.decode(np.full((2000,1000), -math.log(1000)))
    assert time.process_time()-t0 < 15

# What steers it

def test_lexicon_holds():
    "Whatever is heard, and where it ends, only words of the lexicon are written"
    dec = BeamDecoder(letters, lexicon=['abab','bb'])
    for seed in range(30):
        for h in dec(log_probs(9, 4, seed, 3.)): assert set(h.text.split()) <= {'abab','bb'}

def test_words_that_cannot_be_written():
    "Left out with a warning, be they of the lexicon or hotwords; phrases are their words"
    with pytest.warns(AudioWarning, match='a lexicon with letters .* left out 1 of 5 words: café'): dec = BeamDecoder(letters, lexicon=['ab','café','a b','ba'])
    assert {w for h in dec(log_probs(9, 4, 0)) for w in h.text.split()}<={'ab','a','b','ba'}
    with pytest.warns(AudioWarning, match='a hotword with .* left out 1 of 2 words: ñu'): BeamDecoder(letters, hotwords=['ab','ñu'])
    with warnings.catch_warnings(action='error'): BeamDecoder(letters, NGram.fit([*texts, 'ñu']), lexicon=['ab a'], hotwords=['b'])

def test_unfinished_word_of_a_lexicon():
    "The clip breaks off: what is complete is kept"
    lp = np.full((6,4), -30.)
    for t,k in enumerate((2, 3, 1, 2, 0, 0)): lp[t,k] = 0.
    dec = BeamDecoder(letters, lexicon=['ab','aba'], min_logp=-5.)
    assert dec.decode(lp)==['ab']

def test_hotword():
    lp = np.log(np.array([[.1,.05,.6,.25]]*1 + [[.9,.05,.03,.02]] + [[.2,.05,.4,.35]]))
    assert BeamDecoder(letters).decode(lp)==['aa']
    assert BeamDecoder(letters, hotwords=['ab']).decode(lp)==['ab']
    assert BeamDecoder(letters, hotwords={'ab':9., 'aa':9.}).decode(lp)==['aa']

def test_weight_can_be_changed_later():
    dec,lp = BeamDecoder(letters, NGram.fit(texts, 2), alpha=0.),log_probs(9, 4, 1)
    dec.alpha,dec.beta = 2.,0.5
    assert dec(lp)==BeamDecoder(letters, NGram.fit(texts, 2), alpha=2., beta=0.5)(lp)

def test_tune():
    dec,lps = BeamDecoder(letters, NGram.fit(texts, 2), alpha=0.5),[log_probs(9, 4, s) for s in range(6)]
    refs = [dec.decode(o)[0] or 'a' for o in lps]
    table = tune(lps, refs, letters, NGram.fit(texts, 2), alphas=(0., 0.5, 5.), betas=(0.,))
    assert table.wer.is_monotonic_increasing and len(table)==3
    assert table.wer[0]==0

def test_tune_ties():
    lps = list(outputs([[2,3]], 4, sure=(20.,)))
    table = tune(lps, ['ab'], letters, NGram.fit(texts, 2), alphas=(1., 0.5), betas=(-2., 2., 0.))
    assert not table.wer.any() and list(table.beta.abs())==[0.]*2 + [2.]*4 and list(table.alpha[:2])==[0.5, 1.]

# Language models

@few
@given(st.lists(st.text('ab c', min_size=1, max_size=12), min_size=1, max_size=8), st.integers(1, 5), st.sampled_from(sorted(smoothings)),
    st.sampled_from(['word','char']), st.lists(st.sampled_from(['<s>','a','b','ab','c',' ','zz']), max_size=6))
def test_sums_to_one(corpus, order, smoothing, unit, context):
    if not squeeze(''.join(corpus)): return
    m = NGram.fit(corpus, order, smoothing, unit)
    assert abs(sum(math.exp(m.logp(w, context)) for w in m.vocab)-1) < 1e-9

def _pairs(corpus, n): return Counter(tuple(s[i:i+n]) for s in corpus for i in range(len(s)-n+1))

def test_witten_bell_by_its_formula():
    sents = [['<s>', *t.split(), '</s>'] for t in texts]
    m,one,two = NGram.fit(texts, 2),Counter(w for s in sents for w in s[1:]),_pairs(sents, 2)
    n,kinds,size = sum(one.values()),len(one),len(m.vocab)
    after = defaultdict(dict)
    for (h,w),c in two.items(): after[h][w] = c
    for h,w in product(after, m.vocab):
        p = (one[w] + kinds/size)/(n + kinds)
        p = (after[h].get(w, 0) + len(after[h])*p)/(sum(after[h].values()) + len(after[h]))
        assert abs(m.logp(w, [h])-math.log(p)) < 1e-9

def test_kneser_ney_by_its_formula():
    sents = [['<s>', *t.split(), '</s>'] for t in texts]
    m,two = NGram.fit(texts, 2, 'kneser-ney'),_pairs(sents, 2)
    cont = Counter(w for _,w in two)
    def discount(c):
        k = Counter(c.values())
        return k[1]/(k[1]+2*k[2]) if k[1] and k[2] else 0.75
    d1,d2 = discount(cont),discount(two)
    after = defaultdict(dict)
    for (h,w),c in two.items(): after[h][w] = c
    for h,w in product(after, m.vocab):
        p = (max(cont[w]-d1, 0) + d1*len(cont)/len(m.vocab))/sum(cont.values())
        p = (max(after[h].get(w, 0)-d2, 0) + d2*len(after[h])*p)/sum(after[h].values())
        assert abs(m.logp(w, [h])-math.log(p)) < 1e-9

@pytest.mark.parametrize('smoothing', sorted(smoothings))
@pytest.mark.parametrize('order', range(1, 6))
def test_the_machine_is_the_model(order, smoothing):
    "Walking through the arrays gives what `score` gives"
    m = NGram.fit(texts, order, smoothing)
    a = m.arrays
    def step(state, w):
        p = 0.
        while True:
            i = np.searchsorted(a['keys'], state*len(m.vocab)+w)
            if i<len(a['keys']) and a['keys'][i]==state*len(m.vocab)+w: return p+a['arc'][i,0],int(a['arc'][i,1])
            p,state = p+a['state'][state,0],int(a['state'][state,1])
    for t in ['a b ab', 'b b b b b', 'zz a', '', 'ab ab a a ba']:
        state,total = a['start'],0.
        for w in [*t.split(), '</s>']:
            p,state = step(state, a['ids'].get(w, a['unk']))
            total += p
        assert abs(total-m.score(t)) < 1e-9

@pytest.mark.parametrize('unit', ['word','char'])
@pytest.mark.parametrize('name', ['x.arpa','x.arpa.gz'])
def test_arpa_there_and_back(tmp_path, name, unit):
    m = NGram.fit([*texts, 'ñandú ähm'], 3, 'modified-kneser-ney', unit)
    m.save(tmp_path/name)
    r = NGram.load(tmp_path/name)
    assert (r.unit, r.order, sorted(r.vocab))==(unit, 3, sorted(m.vocab))
    for t in ['a b ab', 'b ñandú', 'zz', '']: assert abs(r.score(t)-m.score(t)) < 1e-4
    assert [o.name for o in tmp_path.iterdir()]==[name]

def test_arpa_of_letters_without_a_space(tmp_path):
    m = NGram.fit(['ja','nein'], unit='char')
    m.save(tmp_path/'x.arpa')
    r = NGram.load(tmp_path/'x.arpa')
    assert r.unit=='char' and abs(r.score('ja')-m.score('ja')) < 1e-4 and NGram.load(tmp_path/'x.arpa', unit='word').unit=='word'

def test_arpa_with_a_byte_order_mark(tmp_path):
    fn = tmp_path/'x.arpa'
    NGram.fit(texts, 2).save(fn)
    fn.write_text(fn.read_text(encoding='utf-8'), encoding='utf-8-sig')
    assert NGram.load(fn).order==2

def test_save_leaves_nothing_behind(tmp_path):
    (tmp_path/'x.arpa').mkdir()
    with pytest.raises(OSError): NGram.fit(texts, 2).save(tmp_path/'x.arpa')
    assert [o.name for o in tmp_path.iterdir()]==['x.arpa']

def test_arpa_of_other_tools(tmp_path):
    "A heading, capitals in special words, spaces for tabs, no back-off weights"
    fn = tmp_path/'x.arpa'
    fn.write_text('made by hand, see \\data\\ below\n\n\\data\\\nngram 1=4\nngram 2=1\n\n\\1-grams:\n-0.6 <UNK>\n-0.6 </S>\n-99 <S> -0.3\n-0.6 YES\n\n'
        '\\2-grams:\n-0.1 <S> YES\n\n\\end\\\n')
    m = NGram.load(fn, clean=str.lower)
    assert sorted(m.vocab)==['</s>', '<unk>', 'yes']
    assert abs(m.score('yes')-math.log(10)*(-0.1-0.6)) < 1e-9
    assert abs(m.score('no')-math.log(10)*(-0.3-0.6-0.6)) < 1e-9

def arpa(fn, *sections):
    lines = ['\\data\\', *(f'ngram {i}={len(o)}' for i,o in enumerate(sections, 1))]
    for i,o in enumerate(sections, 1): lines += [f'\\{i}-grams:', *o]
    fn.write_text('\n'.join([*lines, '\\end\\', '']))
    return fn

odd_files = dict(no_end=([['-1 <unk>','-99 <s> -0.3','-0.8 a -0.3','-0.9 ab -0.2'], ['-0.2 <s> a','-0.3 a ab']], f'no </s>'),
    no_word=([['-1 <unk>','-0.9 </s>','-0.8 a -0.3'], ['-0.2 <s> a','-0.3 a ab','-0.1 ab a']], '1 words that are no 1-gram'),
    no_unk=([['-0.9 </s>','-99 <s> -0.1','-0.8 a -0.3'], ['-0.2 <s> a','-0.3 a a']], None),
    no_history=([['-1.2 <unk> -0.1','-99 <s> -0.3','-0.9 </s>','-0.8 a -0.3','-0.9 ab -0.3'], ['-0.2 <s> a 0'], ['-0.1 a ab a','-0.2 <s> a b']], '1 words'),
    above_one=([['-1 <unk>','0.01 </s>','-0.8 a'],], '1 probabilities above 1'))

@pytest.mark.parametrize('name', odd_files)
@few
@given(seed=st.integers(0, 10**6))
def test_arpa_that_leaves_things_out(tmp_path_factory, name, seed):
    "It is read, and decoder and `score` see the same model, unknown words included"
    sections,says = odd_files[name]
    fn = arpa(tmp_path_factory.mktemp('a')/'x.arpa', *sections)
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        lm = NGram.load(fn)
    assert ([says in str(o.message) and 'x.arpa' in str(o.message) for o in ws if issubclass(o.category, AudioWarning)] or [True])==[True] and bool(says)==bool(ws)
    lp = log_probs(5, 4, seed)
    for h in BeamDecoder(letters, lm, **exact, oov=-1.)(lp): assert h.score==pytest.approx(_wanted(h.text, h.am, lm, oov=-1.))

@pytest.mark.parametrize('line', ['inf a','-inf a','nan a','-1 a inf','1e999 a'])
def test_arpa_with_numbers_that_are_none(tmp_path, line):
    with pytest.raises(ValueError, match='x.arpa'): NGram.load(arpa(tmp_path/'x.arpa', [line,'-1 </s>']))

def test_arpa_of_probabilities(tmp_path):
    with pytest.raises(ValueError, match='are they probabilities'): NGram.load(arpa(tmp_path/'x.arpa', ['0.2 a','0.3 b','0.5 </s>']))

@pytest.mark.parametrize('text,want', {'plain': ('the\nCat\n\n', ['the','cat']), 'phrases': ('new york\nlos angeles\nlog in', ['new york','los angeles','log in']),
    'flashlight': ('the\tt h e |\ncat\tc a t |', ['the','cat']), 'flashlight, spaces': ('the t h e |\ncat c a t |', ['the','cat']), 'sub-words': ('the ▁t he\nit ▁it', ['the','it']),
    'cmudict': (';;; x\nTHE  DH AH0\nTHE(2)  DH IY0\nCAT  K AE1 T', ['the','cat']), 'kaldi': ('!SIL SIL\n<unk> SPN\nabandon AH B AE N\nthe DH AH', ['abandon','the']),
    'letters': ('a\nb\nc', ['a','b','c']), 'one line': ('one two three', ['one two three']), 'BOM, CR': ('\ufeffthe\r\ncat\r\nthe\r\n', ['the','cat'])}.values())
def test_lexicon_files(tmp_path, text, want):
    (tmp_path/'x.txt').write_text(text, encoding='utf-8', newline='')
    assert read_lexicon(tmp_path/'x.txt')==want

@pytest.mark.parametrize('data,says', [(b'', 'without a word'), (b'\xe9\xff', 'UTF-8'), (b'# x\n?\n', 'without a word')])
def test_bad_lexicon_files(tmp_path, data, says):
    (tmp_path/'x.txt').write_bytes(data)
    with pytest.raises(ValueError, match=says): read_lexicon(tmp_path/'x.txt')
    with pytest.raises(FileNotFoundError, match='expected a text file'): read_lexicon(tmp_path/'none.txt')

@pytest.mark.real
def test_the_data_sets_own_model():
    if not find_data('an4'): pytest.skip('AN4 is not on the data path')
    fn = find_data('an4')/'etc'/'an4.lm'
    m = NGram.load(fn)
    assert m.order==2 and 'APOSTROPHE' in m.vocab and len(m.vocab)==106
    vocab = ['', ' ', *'abcdefghijklmnopqrstuvwxyz']
    with pytest.raises(ValueError, match=r'APOSTROPHE|str\.lower'): BeamDecoder(vocab, m)
    assert BeamDecoder(vocab, NGram.load(fn, clean=str.lower)).decode(next(peaky(1)))

# Others

same_settings = [dict(), dict(min_logp=-7., prune=15.)]

@pytest.mark.parametrize('opt', same_settings, ids=['exact','pruned'])
@pytest.mark.parametrize('name', ['ctc-beam-decoder','flashlight','plain Python'])
def test_agrees_with(name, opt):
    all_ = rivals(vocab28, beam=100, **opt)
    if name not in all_: pytest.skip(f'{name} is not installed')
    lps = list(peaky(4 if name=='plain Python' else 40, seed=4, sure=(4.,8.)))
    assert len(same_best({k:all_[k] for k in ('ours', name)}, lps)[name]) <= len(lps)//40

def nll(lp, ids):
    "Of the pieces `ids`, by torch's CTC loss"
    y,n = torch.tensor([ids]),torch.tensor([len(lp)])
    return torch.nn.functional.ctc_loss(torch.tensor(lp)[:,None], y, n, torch.tensor([len(ids)]), reduction='sum').item()

@pytest.mark.parametrize('name', ['ctc-beam-decoder','flashlight'])
def test_where_a_narrow_beam_decides_ours_is_better(name):
    "Both hold a prefix twice, after a blank and after its last piece: of equal beams theirs is the narrower"
    both = rivals(vocab28, beam=10)
    if name not in both: pytest.skip(f'{name} is not installed')
    lps = list(peaky(60, seed=4, sure=(0.,1.)))
    differ = same_best({k:both[k] for k in ('ours', name)}, lps)[name]
    gain = [nll(lps[i], list(map(vocab28.index, b)))-nll(lps[i], list(map(vocab28.index, a))) for i,a,b in differ if a and b]
    assert len(gain) > 5 and sum(o>0 for o in gain) > 0.7*len(gain)

def test_agrees_with_a_language_model(tmp_path):
    "Sub-words, so that no clip ends in a space: there ctc-beam-decoder counts an empty word, as unknown"
    pytest.importorskip('ctc_beam_decoder')
    vocab = ['', *(f' {o}' for o in 'abcdefgh'), *'abcdefgh']
    rng = np.random.default_rng(0)
    words = [rng.integers(1, 9, 1).tolist() + rng.integers(9, 17, n).tolist() for n in (0, 1, 1, 2, 2, 2, 3, 3)]
    rows = [[words[i] for i in rng.integers(0, 8, 5)] for _ in range(200)]
    NGram.fit([squeeze(vocab[k] for w in r for k in w) for r in rows[60:]], 3).save(tmp_path/'x.arpa')
    both = rivals(vocab, 50, lm=tmp_path/'x.arpa', alpha=0.6, beta=1., oov=-5.)
    lps = list(outputs([[k for w in r for k in w] for r in rows[:60]], len(vocab), sure=(1.,5.)))
    assert len(same_best(both, lps)['ctc-beam-decoder']) <= 1

def test_speed_report():
    rates = decode_speed(rivals(vocab28, beam=5), list(peaky(2)), n=1, few=1)
    assert 'ours' in rates and all(v>0 for v in rates.values())

# Bad input

@pytest.mark.parametrize('lp,says', [(np.zeros((3,5)), 'shape'), (np.zeros(4), 'shape'), (np.full((3,4), np.nan), 'NaN'),
    (np.full((3,4), 0.25), 'log_softmax'), (np.random.default_rng(0).normal(size=(3,4))*5, 'log_softmax'), (np.full((3,4), -np.inf), 'log_softmax')])
def test_bad_outputs(lp, says):
    with pytest.raises(ValueError, match=says) as e: BeamDecoder(letters)(lp)
    assert 'expected' in str(e.value) and '\n' not in str(e.value)

@pytest.mark.parametrize('make,says', [(lambda: BeamDecoder(['a','b']), 'blank'), (lambda: BeamDecoder([]), 'blank'), (lambda: BeamDecoder(letters, beam=0), 'beam'),
    (lambda: BeamDecoder(letters, alpha=-1.), 'alpha'), (lambda: BeamDecoder(letters, NGram.fit([t.upper() for t in texts])), 'str.lower'),
    (lambda: BeamDecoder(letters, NGram.fit(['да нет'])), 'spelling'), (lambda: BeamDecoder(letters, NGram.fit(['да нет'], unit='char')), 'spelling'),
    (lambda: BeamDecoder(letters, lexicon=['ZZ']), 'lexicon'), (lambda: BeamDecoder(letters, lexicon=[]), 'lexicon'), (lambda: BeamDecoder(letters, lexicon='ab'), 'lexicon'),
    (lambda: BeamDecoder(letters, hotwords=['xyz']), 'hotword'), (lambda: BeamDecoder(letters, hotwords={'ab':math.nan}), 'boost of ab'),
    (lambda: BeamDecoder(letters, beta=math.inf), 'beta'), (lambda: BeamDecoder(letters, alpha=math.nan), 'alpha'), (lambda: NGram.fit([]), 'no text'), (lambda: NGram.fit(['', ' ']), 'no text'),
    (lambda: NGram.fit(texts, 0), 'order'), (lambda: NGram.fit(texts, 2, 'good-turing'), 'witten-bell'), (lambda: NGram.fit(texts, unit='syllable'), 'unit')])
def test_bad_settings(make, says):
    with pytest.raises(ValueError, match=says) as e: make()
    assert 'expected' in str(e.value)

def test_cut_off_arpa(tmp_path):
    "At whichever line the file ends: one sentence that names it"
    NGram.fit(texts, 2).save(tmp_path/'whole.arpa')
    lines = (tmp_path/'whole.arpa').read_text().splitlines()
    fn = tmp_path/'cut.arpa'
    for n in range(len(lines)):
        fn.write_text('\n'.join(lines[:n]))
        with pytest.raises(ValueError, match='cut.arpa') as e: NGram.load(fn)
        assert '\n' not in str(e.value)

@pytest.mark.parametrize('data', [b'', b'\x00\xff\xfe\x80'*50, gzip.compress(b'x'*100, mtime=0), b'\\data\\\nngram 1=x\n\\1-grams:\n\\end\\', b'\\data\\\n\\end\\',
    b'\\data\\\nngram 1=1\n\\1-grams:\nword -1\n\\end\\', b'\\data\\\nngram 1=1\n\\1-grams:\n-1 a b c d\n\\end\\'])
@pytest.mark.parametrize('name', ['bad.arpa','bad.arpa.gz'])
def test_garbled_arpa(tmp_path, data, name):
    fn = tmp_path/name
    fn.write_bytes(data)
    with pytest.raises(ValueError, match='bad.arpa'): NGram.load(fn)

def test_missing_arpa(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such file'): BeamDecoder(letters, lm=Path(tmp_path/'none.arpa'))
