"Hidden Markov models: every path counted, hmmlearn, dense against banded, the loop of words, bad input"
import copy
from itertools import product

import numpy as np, pytest, torch
from fastcore.test import test_close as close
from hmmlearn import hmm as hmmlearn
from hypothesis import given, settings, strategies as st

from fastaudio_lite.asr.hmm import *
from fastaudio_lite.text import digit_strings, wer
from fastaudio_lite.audio import AudioError, AudioTensor, load_audio
from fastaudio_lite.datasets import digit_files, digit_speaker, find_data, is_digit_test, starter_path
from fastaudio_lite.spectrogram import FrontEnd

inf = float('inf')
quick = settings(max_examples=25, deadline=None)

def _draw(T, S, seed, holes=0.3):
    "Random emissions, transitions with holes, start, end"
    g = torch.Generator().manual_seed(seed)
    emis,trans,start,end = (torch.randn(*o, generator=g, dtype=torch.float64) for o in ((T,S), (S,S), (S,), (S,)))
    return emis,trans.masked_fill(torch.rand(S, S, generator=g)<holes, -inf),start,end

def _every(emis, trans, start, end):
    "Log score of each path"
    e,a,s,z = (o.tolist() for o in (emis, trans, start, end))
    def score(q): return s[q[0]] + z[q[-1]] + sum(e[t][i] for t,i in enumerate(q)) + sum(a[i][j] for i,j in zip(q, q[1:]))
    return {q:score(q) for q in product(range(len(s)), repeat=len(e))}

# Every path
@quick
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 9999))
def test_every_path(T, S, seed):
    "Likelihood, best path, state and move posteriors against the sum over all paths"
    args = _draw(T, S, seed)
    paths,p,(top,best) = _every(*args),posteriors(*args),viterbi(*args)
    total = np.logaddexp.reduce(list(paths.values()))
    if total==-inf:
        assert p.ll==-inf and not p.gamma.any() and not p.moves.any()
        return
    close(p.ll, total, eps=1e-9)
    close(log_backward(*args)[0], total, eps=1e-9)
    close(top, max(paths.values()), eps=1e-9)
    close(paths[tuple(best.tolist())], top, eps=1e-9)
    gamma,moves = np.zeros((T,S)),np.zeros((S,S))
    for q,o in paths.items():
        for t,s in enumerate(q): gamma[t,s] += np.exp(o-total)
        for i,j in zip(q, q[1:]): moves[i,j] += np.exp(o-total)
    close(p.gamma, gamma, eps=1e-9)
    close(p.moves, moves, eps=1e-9)

@quick
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 9999))
def test_padding(lens, S, seed):
    "A clip alone and the clip in a padded batch, whatever is in the padding"
    emis,trans,start,end = _draw(max(lens)*len(lens), S, seed, 0.)
    emis,n = emis.view(len(lens), -1, S),torch.tensor(lens)
    p,(top,path) = posteriors(emis, trans, start, end, n),viterbi(emis, trans, start, end, n)
    for i,k in enumerate(lens):
        q,(t,b) = posteriors(emis[i,:k], trans, start, end),viterbi(emis[i,:k], trans, start, end)
        close(p.ll[i], q.ll, eps=1e-9)
        close(p.gamma[i,:k], q.gamma, eps=1e-9)
        close(p.moves[i], q.moves, eps=1e-9)
        assert (p.gamma[i,k:]==0).all() and (path[i,k:]==-1).all() and path[i,:k].tolist()==b.tolist()
        close(top[i], t, eps=1e-9)

def test_no_end():
    "Without `end` a clip may stop anywhere"
    emis,trans,start,_ = _draw(6, 3, 0)
    close(log_forward(emis, trans, start)[0], log_forward(emis, trans, start, torch.zeros(3))[0])
    close(log_backward(emis, trans, start)[0], log_forward(emis, trans, start)[0], eps=1e-9)

def test_many_models():
    "Models and clips at once"
    emis,trans,start = torch.randn(4,3,7,5),torch.randn(3,5,5),torch.randn(3,5)
    lens = torch.tensor([7,2,5,1])
    ll = log_forward(emis, trans, start, lens=lens[:,None])[0]
    for b,w in product(range(4), range(3)): close(ll[b,w], log_forward(emis[b,w,:lens[b]], trans[w], start[w])[0], eps=1e-4)

def test_gradient():
    "The derivative of the log likelihood is the posterior"
    emis,trans,start,end = _draw(6, 4, 1, 0.)
    emis.requires_grad_()
    log_forward(emis, trans, start, end)[0].backward()
    close(emis.grad, posteriors(emis.detach(), trans, start, end).gamma, eps=1e-9)

# hmmlearn
def _mixture_model(seed=0, S=4, M=3, D=5):
    "hmmlearn's model and the same numbers as tensors"
    rng = np.random.default_rng(seed)
    m = hmmlearn.GMMHMM(S, M, covariance_type='diag')
    m.startprob_,m.transmat_ = rng.dirichlet(np.ones(S)),rng.dirichlet(np.ones(S), S)
    m.weights_,m.means_,m.covars_ = rng.dirichlet(np.ones(M), S),rng.normal(size=(S,M,D)),rng.uniform(0.5, 2, (S,M,D))
    m.n_features = D
    return m,*(torch.tensor(o) for o in (m.startprob_, m.transmat_, m.weights_, m.means_, m.covars_))

def test_hmmlearn():
    "Likelihood, best path and posteriors of a Gaussian-mixture model"
    m,start,trans,w,mean,var = _mixture_model()
    x = torch.randn(30, 5, dtype=torch.float64)
    e = (log_gauss(x, mean.flatten(0, 1), var.flatten(0, 1)).view(30, 4, 3) + w.log()).logsumexp(-1)
    p = posteriors(e, trans.log(), start.log())
    close(p.ll, m.score(x.numpy()), eps=1e-8)
    close(p.gamma, m.predict_proba(x.numpy()), eps=1e-8)
    top,path = viterbi(e, trans.log(), start.log())
    theirs,states = m.decode(x.numpy())
    close(top, theirs, eps=1e-8)
    assert path.tolist()==states.tolist()

def test_baum_welch_step():
    "Means, variances and probabilities to stay after one pass over a left-to-right word, as hmmlearn's"
    g = torch.Generator().manual_seed(0)
    xs = [torch.randn(n, 2, generator=g) + torch.linspace(-2, 2, n)[:,None] for n in (12,17,9)]
    ours = GMMHMM(1, 2, n_states=3, n_mix=1, tie=0, floor=0)
    ours.mean = torch.tensor([[-1.5,-1],[0,0.2],[1,1.5],[0,0]])[:,None]
    # no gap, and a word that always ends in its last frame: hmmlearn knows neither
    ours.chain = lambda texts: Chain(torch.arange(3).expand(len(texts), -1), *_no_gap(ours.stay[:3]))
    them = hmmlearn.GaussianHMM(3, 'diag', n_iter=1, init_params='', covars_prior=0, min_covar=0)
    them.startprob_,them.means_,them.covars_ = np.array([1.,0,0]),ours.mean[:3,0].double().numpy(),np.ones((3,2))
    them.transmat_ = np.array([[.5,.5,0],[0,.5,.5],[0,0,1]])
    them.fit(torch.cat(xs).numpy().astype(float), [len(o) for o in xs])
    ours.fit([(x, n, [[0]]*len(n)) for x,n,_ in frame_batches(xs)], n_iter=1, fresh=False)
    close(ours.mean[:3,0], them.means_, eps=1e-4)
    close(ours.var[:3,0], np.stack([np.diag(o) for o in them.covars_]), eps=1e-3)
    close(ours.stay[:2], np.diag(them.transmat_)[:2], eps=1e-4)

def _no_gap(stay):
    trans = torch.full((3,3), -inf)
    trans.diagonal().copy_(stay.log())
    trans.diagonal(1).copy_((1-stay[:2]).log())
    trans[2,2] = 0.
    return trans,torch.tensor([0.,-inf,-inf]),None

# Models of words
@quick
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=3), st.integers(1, 4))
def test_chain(texts, S):
    "From each state that can be reached, the ways on and out have probability 1"
    hmm = GMMHMM(3, 2, S, 1)
    hmm.stay = torch.rand(3*S+1)*0.8+0.1
    c = hmm.chain(texts)
    close(c.start.exp().sum(), 1.)
    for i,t in enumerate(texts):
        n = 1+len(t)*(S+1)
        close((c.trans[i].exp().sum(1)+c.end[i].exp())[:n-2], torch.ones(n-2), eps=1e-5)
        words = [s//S for s in c.states[i,:n].tolist() if s!=hmm.gap][::S]
        assert words==t and (c.trans[i,:n,n:]==-inf).all()

def _model(seed=0, W=2, S=2, D=3, M=2):
    g = torch.Generator().manual_seed(seed)
    hmm = GMMHMM(W, D, S, M)
    hmm.mean,hmm.stay = torch.randn(hmm.mean.shape, generator=g)*1.5,torch.rand(hmm.stay.shape, generator=g)*0.6+0.2
    return hmm

def test_likelihood_is_the_chain():
    "All words at once, or each by its own chain"
    hmm,x,lens = _model(W=3),torch.randn(5,9,3),torch.tensor([9,4,2,7,1])
    ll = hmm.log_likelihood(x, lens)
    for b,w in product(range(5), range(3)):
        c = hmm.chain([[w]])
        one = log_forward(hmm.emissions(x[b:b+1,:lens[b]], c.states), *c[1:])[0]
        if lens[b]<2: assert ll[b,w]==one==-inf
        else: close(ll[b,w], one[0], eps=1e-3)

def _dense_loop(hmm, penalty):
    "The loop of words as one large matrix"
    W,S,gap = hmm.n_words,hmm.n_states,hmm.gap
    enter = torch.full((gap+1,), -inf)
    enter[:gap:S],enter[gap] = -penalty,0.
    stay,leave = hmm.stay.log(),(1-hmm.stay).log()
    trans = torch.diag(stay).masked_fill(~torch.eye(gap+1, dtype=torch.bool), -inf)
    outs = [*range(S-1, gap, S), gap]
    for s in range(gap):
        if s not in outs: trans[s,s+1] = leave[s]
    end = torch.full((gap+1,), -inf)
    for s in outs:
        trans[s],end[s] = torch.logaddexp(trans[s], torch.full_like(enter, -inf)),leave[s]
        back = leave[s]+enter
        trans[s] = torch.where(torch.arange(gap+1)==s, trans[s].maximum(back), back)
    return trans,enter,end

@quick
@given(st.integers(0, 9999), st.sampled_from([-1.,0.,2.]), st.integers(1, 5))
def test_loop_is_a_matrix(seed, penalty, block):
    "The walk through the loop finds what Viterbi finds in the matrix of all states, in blocks of any size"
    hmm = _model(seed%50, S=3)
    x = torch.randn(2, 14, 3, generator=torch.Generator().manual_seed(seed))*2
    lens = torch.tensor([14,8])
    got = hmm.decode(x, lens, penalty, block)
    emis = hmm.emissions(x, torch.arange(hmm.gap+1))
    path = viterbi(emis, *_dense_loop(hmm, penalty), lens)[1]
    for i,n in enumerate(lens.tolist()):
        words = [(w, a, b) for w,a,b in got[i]]
        spoken = {t:(w,(t-a)) for w,a,b in words for t in range(a, b)}
        for t,s in enumerate(path[i,:n].tolist()):
            assert (t in spoken)==(s!=hmm.gap)
            if t in spoken: assert spoken[t][0]==s//3
        assert all(b-a>=3 for _,a,b in words)

def test_likelihood_rises():
    "Own variances, no floor: each pass is at least as good as the one before"
    xs = [torch.randn(n, 3)+torch.linspace(-2, 2, n)[:,None] for n in range(12, 40)]
    hmm = GMMHMM(1, 3, n_states=3, n_mix=1, tie=0, floor=0)
    ll = hmm.fit([(x, n, [[0]]*len(n)) for x,n,_ in frame_batches(xs, 100)], n_iter=8)
    assert all(b>=a-1e-4 for a,b in zip(ll, ll[1:])) and ll[-1]>ll[0]
    close(hmm.weight.sum(-1), torch.ones(4))
    assert (hmm.var>0).all() and ((hmm.stay>0) & (hmm.stay<1)).all()

@quick
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 200))
def test_batches(lens, n):
    "Every clip, once, whole"
    bs = frame_batches([torch.full((k,2), float(k)) for k in lens], n)
    assert sorted(i for _,_,now in bs for i in now)==list(range(len(lens)))
    for x,k,now in bs:
        assert k.tolist()==[lens[i] for i in now] and (x.numel()//2<=n or len(now)==1)
        for o,m in zip(x, k.tolist()): assert (o[:m]==m).all() and (o[m:]==0).all()

@quick
@given(st.floats(0.8, 1.25))
def test_warp(alpha):
    "A warp keeps what is constant over the bands, and 1 keeps everything"
    fe = FrontEnd(8000, n_mels=24, kind='mfcc', n_mfcc=13)
    w = warp_bands(fe, alpha)
    close(w.sum(1), torch.ones(24), eps=1e-4)
    assert (w>=0).all()
    close(warp_bands(fe, 1.), torch.eye(24), eps=1e-5)
    centre = (w@torch.eye(24)*torch.arange(24)).sum(1)[5:18]-torch.arange(5, 18)
    assert (centre<=1e-3).all() if alpha>=1 else (centre>=-1e-3).all()

# The recognizer, on the starter set
@pytest.fixture(scope='module')
def clips():
    fs = sorted((starter_path()/'digits'/'recordings').glob('[037]_*.wav'))
    return [f for f in fs if not is_digit_test(f)],[f for f in fs if is_digit_test(f)]

@pytest.fixture(scope='module')
def rec(clips):
    r = HMMDigits(n_mix=1, n_states=5, warps=(1.,))
    r.fit(clips[0], [digit_word(f) for f in clips[0]], n_iter=3)
    return r

def test_recognizes(rec, clips):
    heard = rec.predict(clips[1])
    assert np.mean([h==digit_word(f) for f,h in zip(clips[1], heard)]) > 0.8
    assert rec.words==['seven','three','zero']

def test_alone_or_together(rec, clips):
    assert [rec.predict(f) for f in clips[1][:5]]==rec.predict(clips[1][:5])
    assert [rec.transcribe(f) for f in clips[1][:5]]==rec.transcribe(clips[1][:5])

def test_any_sound(rec, clips):
    "A path, samples and their rate, 48 kHz stereo, bytes"
    f = clips[0][0]
    wav = load_audio(f)
    many = [f, str(f), f.read_bytes(), (wav[0].numpy(), wav.sr), wav.repeat(2, 1).resample(48000)]
    assert {rec.predict(o) for o in many}=={rec.predict(f)}

def test_spans(rec, clips):
    "Times count from the beginning of the sound, silence and all"
    wav = load_audio(clips[0][0], 8000)
    late = AudioTensor(torch.cat([torch.zeros(1,4000), wav.as_subclass(torch.Tensor)], 1), sr=8000)
    (a,b) = rec.spans(wav),rec.spans(late)
    assert [o.text for o in a]==[o.text for o in b] and a
    close([o.start+0.5 for o in a], [o.start for o in b], eps=0.03)
    assert all(0<=o.start<o.end<=wav.dur+0.02 and 0<o.prob<=1 for o in a)

def test_spans_begin_between_frames(rec, clips, monkeypatch):
    "Frame k has its middle at k hops, so a word begins half a hop before its first frame, and where one ends the next begins"
    wav = load_audio(clips[0][0], 8000)
    monkeypatch.setattr(type(rec), '_paths', lambda self, xs, penalty: [[(0,0,4), (1,4,9)] for _ in xs])
    a,b = rec.spans(wav)
    t = rec._clip(wav)[1]
    close([a.start-t, a.end-t, b.start-t, b.end-t], [0, .035, .035, .085], eps=1e-6)

def test_prob_of_a_word(rec, clips):
    "What a word's own frames say of it, beside the other words; certain where there is no other"
    sounds = [f for f in clips[1][:6]]
    for f in sounds:
        (x,),path = rec.features([f]),[(w,0,rec.features([f])[0].shape[0]) for w in range(len(rec.words))]
        p = [rec._probs(x, [o])[0] for o in path]
        close([sum(p)], [1.], eps=1e-4)
        assert rec.words[p.index(max(p))]==rec.predict(f)

def test_saved(rec, clips):
    "Settings and state make the same recognizer"
    other = HMMDigits.from_config(rec.config())
    other.load_state_dict(rec.state_dict())
    assert other.predict(clips[1][:9])==rec.predict(clips[1][:9])

def test_saved_to_a_folder(rec, clips, tmp_path):
    "As a folder of numbers and names it comes back, and a stranger's settings are within bounds"
    from fastaudio_lite.export import export_onnx, from_pretrained, save_pretrained
    from fastaudio_lite.kinds import PretrainedError
    folder = save_pretrained(rec, tmp_path/'words', dict(accuracy=.5))
    for other in from_pretrained(folder, 'hmm'),HMMDigits.from_pretrained(folder):
        assert other.config()==rec.config() and other.spans(clips[1][0])==rec.spans(clips[1][0])
    with pytest.raises(PretrainedError, match='got a hmm'): from_pretrained(folder, 'classifier')
    with pytest.raises(PretrainedError, match='it has no graph'): export_onnx(rec, tmp_path/'x.onnx')
    with pytest.raises(PretrainedError, match='got n_states=1000000'): HMMDigits.check({**rec.config(), 'n_states':10**6})
    with pytest.raises(PretrainedError, match='lacks penalty'): HMMDigits.check({k:v for k,v in rec.config().items() if k!='penalty'})

def test_deterministic(rec, clips):
    again = HMMDigits(n_mix=1, n_states=5, warps=(1.,))
    again.fit(clips[0], [digit_word(f) for f in clips[0]], n_iter=3)
    assert torch.equal(again.hmm.mean, rec.hmm.mean)

def test_accuracy_and_speakers(clips):
    "The functions behind the figures"
    few = [f for f in clips[0] if digit_speaker(f) in ('awb','rms','slt')]
    res = by_speaker(few, digits_accuracy, n_mix=1, n_states=4, warps=(1.,))
    assert list(res)==['awb','rms','slt'] and all(r['n']==15 and 0<=r['accuracy']<=1 for r in res.values())
    assert all(len(r['wrong'])==round((1-r['accuracy'])*15) for r in res.values())

def test_wer(clips):
    res = digits_wer([*clips[0][:80], *clips[1]], is_digit_test, n=6, n_train=20, n_mix=1, n_states=4, warps=(1.,))
    assert set(res['wer'])=={0.1,-0.05} and all(0<=v<=1.5 for v in res['wer'].values()) and res['words'][0.1]>=18

# Bad input
def test_silence(rec):
    quiet = AudioTensor(torch.zeros(1,8000), sr=8000)
    assert rec.transcribe(quiet)=='' and rec.spans([quiet, quiet])==[[],[]]
    with pytest.raises(AudioError, match='silence'): rec.predict(quiet)
    with pytest.raises(AudioError, match='got silence as clip 1'): HMMDigits(n_states=1).fit([AudioTensor(torch.randn(1,8000)*0.1, sr=8000), quiet], ['one','two'])

def test_tune(rec, clips):
    "The error rate of `transcribe` at each price, silence among the strings"
    r,(sounds,texts) = copy.deepcopy(rec),zip(*digit_strings(clips[0], n=4), (AudioTensor(torch.zeros(1,8000), sr=8000),''))
    tried = r.tune(sounds, texts, (0,40,300))
    assert tried[r.penalty]==min(tried.values())
    for r.penalty,e in tried.items(): assert e==wer(texts, r.transcribe(list(sounds)))

@pytest.mark.parametrize('good,want', (((20,40,60),40), ((0,20,40,60),40), ((80,),80)))
def test_tune_takes_the_middle(monkeypatch, good, want):
    "Of several prices with the fewest errors the middle one, of an even number the dearer of the two"
    r = HMMDigits(words=['one','two'])
    monkeypatch.setattr(HMMDigits, 'features', lambda self, sounds: sounds)
    monkeypatch.setattr(HMMDigits, '_paths', lambda self, xs, p: [[(int(p not in good), 0, 1)] for _ in xs])
    tried = r.tune(['a'], ['one'], (-20,0,20,40,60,80))
    assert r.penalty==want and tried=={p:float(p not in good) for p in tried}

def test_noise_and_music(rec):
    torch.manual_seed(0)
    noise = AudioTensor(torch.randn(1,8000)*0.1, sr=8000)
    tone = AudioTensor(0.3*torch.sin(torch.arange(8000)*0.3)[None], sr=8000)
    assert all(isinstance(o, str) for o in rec.transcribe([noise, tone]))

@pytest.mark.parametrize('n', [40,200,300])
def test_short(rec, n):
    with pytest.raises(AudioError, match='expected at least 5, one a state'): rec.predict(AudioTensor(torch.randn(1,n), sr=8000))
    assert isinstance(rec.transcribe(AudioTensor(torch.randn(1,n), sr=8000)), str)

@pytest.mark.parametrize('bad', [np.full(8000, np.nan, np.float32), np.zeros(0, np.float32)])
def test_nan_and_empty(rec, bad):
    for f in (rec.predict, rec.transcribe):
        with pytest.raises(AudioError): f((bad, 8000))

def test_missing(rec):
    with pytest.raises(FileNotFoundError): rec.predict('no/such.wav')

def test_bad_fit(clips):
    r,f = HMMDigits(),clips[0][0]
    with pytest.raises(ValueError, match='1 sounds and 2 texts'): r.fit([f], ['zero','zero'])
    with pytest.raises(ValueError, match='0 sounds'): r.fit([], [])
    with pytest.raises(ValueError, match='empty text'): r.fit([f], [' '])
    with pytest.raises(AudioError, match='expected at least 80'): r.fit([f], ['zero '*8])
    with pytest.raises(ValueError, match='without words'): r.predict(f)
    with pytest.raises(ValueError, match='without words'): r.transcribe(f)

def test_bad_words(rec, clips):
    with pytest.raises(ValueError, match="'four'"): rec.fit([clips[0][0]], ['four'], fresh=False)

def test_bad_settings():
    for kw in (dict(n_states=0), dict(n_mix=0)):
        with pytest.raises(ValueError, match='expected at least 1'): HMMDigits(**kw)

def test_bad_split(clips):
    with pytest.raises(ValueError, match='0 to test'): digits_accuracy(clips[0], lambda f: False)

@pytest.mark.real
@pytest.mark.skipif(find_data('fsdd') is None, reason='needs FSDD')
def test_real_digits():
    "Two people, few takes: far above chance on takes that were not trained on"
    fs = [f for f in digit_files('fsdd') if digit_speaker(f) in ('theo','jackson')][::2]
    assert digits_accuracy(fs, is_digit_test, n_mix=1, warps=(1.,))['accuracy'] > 0.85

def test_words_are_a_list(tmp_path):
    "A folder is no vocabulary, and without words there is nothing to save"
    for o in 'models/hmm',tmp_path:
        with pytest.raises(ValueError, match='from_pretrained'): HMMDigits(o)
    with pytest.raises(ValueError, match='call `fit`'): HMMDigits().config()
