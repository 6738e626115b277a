"The front end against independent references, its properties, and what it does with bad input"
import copy, json, math, pickle, warnings
from pathlib import Path

import numpy as np, pytest, torch
from fastai.data.core import TfmdDL
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode

from fastaudio_lite.audio import AudioError, AudioTensor, AudioWarning, load_audio, pad_audio
from fastaudio_lite.spectrogram import (AudioSpectrogram, AudioToSpec, FrontEnd, deltas, griffin_lim, inverse_mel, mel_filters, mfcc, pcen,
    spec2wav, stft_power, to_db)

kinds = [dict(), dict(kind='linear', norm='clip'), dict(kind='mfcc', deltas=2, norm='bin'), dict(scale='log', norm='clip'),
    dict(scale='pcen', norm=None), dict(scale='none', norm=None), dict(power=1., norm=None, deltas=1), dict(center=False, norm='bin')]

def plain(x): return x.as_subclass(torch.Tensor)

def noise(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))*0.1

def clip(n, seed=0, sr=8000): return AudioTensor(noise(1, n, seed=seed), sr=sr)

def fitted(**kw):
    fe = FrontEnd(8000, **kw)
    return fe.fit([pad_audio([clip(4000, 1), clip(9000, 2)])]) if fe.norm=='data' else fe

def close(a, b, eps): assert (a-torch.as_tensor(b)).abs().max() < eps, (a-torch.as_tensor(b)).abs().max()

# References

@pytest.mark.parametrize('n_fft,hop,win,center,pad_mode', [(400,160,None,True,'constant'), (512,160,400,True,'reflect'),
    (256,300,256,True,'constant'), (200,80,150,False,'constant'), (2048,100,2048,True,'constant')])
def test_power_is_torch_stft(n_fft, hop, win, center, pad_mode):
    x,w = noise(3, 5000),torch.hann_window(win or n_fft)
    ref = torch.stft(x, n_fft, hop, win or n_fft, w, center=center, pad_mode=pad_mode, return_complex=True).abs()
    close(stft_power(x, n_fft, hop, win, center=center, pad_mode=pad_mode), ref**2, 1e-3)
    close(stft_power(x, n_fft, hop, win, 1., center, pad_mode), ref, 1e-4)

@pytest.mark.parametrize('htk', [False,True])
@pytest.mark.parametrize('norm', ['slaney',None])
def test_mel_filters(htk, norm):
    librosa = pytest.importorskip('librosa')
    ref = librosa.filters.mel(sr=22050, n_fft=1024, n_mels=60, fmin=50., fmax=9000., htk=htk, norm=norm)
    close(mel_filters(22050, 1024, 60, 50., 9000., norm, htk), ref, 1e-6)

def test_db_and_mfcc_are_librosa():
    librosa = pytest.importorskip('librosa')
    x = clip(12000, sr=16000)
    kw = dict(y=plain(x)[0].numpy(), sr=16000, n_fft=512, hop_length=160, win_length=400)
    mel = librosa.feature.melspectrogram(n_mels=64, **kw)
    close(plain(FrontEnd(norm=None, top_db=20.)(x))[0], librosa.power_to_db(mel, top_db=20.), 1e-3)
    close(plain(FrontEnd(norm=None, top_db=None, power=1.)(x))[0], librosa.amplitude_to_db(librosa.feature.melspectrogram(n_mels=64, power=1., **kw),
        top_db=None), 1e-3)
    close(plain(FrontEnd(norm=None, kind='mfcc', n_mfcc=13)(x))[0], librosa.feature.mfcc(n_mfcc=13, n_mels=64, **kw), 1e-2)

@pytest.mark.parametrize('order', [1,2])
@pytest.mark.parametrize('mode', ['interp','nearest'])
def test_deltas_are_librosa(order, mode):
    librosa = pytest.importorskip('librosa')
    x = noise(2, 5, 40)
    close(deltas(x, order, mode=mode), librosa.feature.delta(x.numpy(), order=order, mode=mode), 1e-5)

def test_pcen_is_librosa():
    librosa = pytest.importorskip('librosa')
    x = noise(3, 600).abs()*2**20
    close(pcen(x, 8000, 80, init=1.), librosa.pcen(x.numpy(), sr=8000, hop_length=80), 1e-3)

def test_torchaudio():
    T = pytest.importorskip('torchaudio.transforms', exc_type=(ImportError,OSError))
    x = noise(2, 1, 16000)
    ta = nn.Sequential(T.MelSpectrogram(16000, 400, hop_length=160, n_mels=80, norm='slaney', mel_scale='slaney', pad_mode='constant'),
        T.AmplitudeToDB(top_db=80.))
    close(plain(FrontEnd(n_fft=400, n_mels=80, norm=None)(x)), ta(x), 1e-3)
    F = pytest.importorskip('torchaudio.functional', exc_type=(ImportError,OSError))
    close(deltas(x[...,:300], width=5), F.compute_deltas(x[...,:300]), 1e-5)

real = sorted((Path(__file__).parent.parent/'data'/'starter').rglob('*.flac'))[::40]

def _librosa(x, sr, n_mels, power, ref, top_db, **kw):
    "Spectrum, mel spectrogram and decibels"
    librosa,x = pytest.importorskip('librosa'),x.numpy()
    spec = np.abs(librosa.stft(x, **kw))**power
    mel = librosa.feature.melspectrogram(S=spec, sr=sr, n_fft=kw['n_fft'], n_mels=n_mels, power=power)
    return spec, mel, (librosa.power_to_db if power==2 else librosa.amplitude_to_db)(mel, ref=ref, top_db=top_db)

def _torchaudio(x, sr, n_mels, power, ref, top_db, n_fft, hop_length):
    T = pytest.importorskip('torchaudio.transforms', exc_type=(ImportError,OSError))
    spec = T.Spectrogram(n_fft, hop_length=hop_length, power=power, pad_mode='constant')(x)
    mel = T.MelScale(n_mels, sr, n_stft=n_fft//2+1, norm='slaney', mel_scale='slaney')(spec)
    db = T.AmplitudeToDB('power' if power==2 else 'magnitude', top_db)(mel)
    return spec, mel, db - 20/power*math.log10(ref)

@pytest.mark.parametrize('peer', [_librosa,_torchaudio])
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(real), st.sampled_from([200,256,400,512,1024,2048]), st.integers(20, 600), st.integers(8, 100), st.sampled_from([1.,2.]),
    st.sampled_from([1e-3,1.,30.]), st.sampled_from([None,20.,80.]))
@pytest.mark.filterwarnings('ignore')
def test_parity(peer, fn, n_fft, hop, n_mels, power, ref, top_db):
    "Real clips: spectrum and mel to a 100,000th of the largest value, decibels to 0.02 in the 80 below it"
    wav = load_audio(fn)
    spec,mel,db = map(torch.as_tensor, peer(plain(wav)[0], wav.sr, n_mels, power, ref, top_db, n_fft=n_fft, hop_length=hop))
    ours = stft_power(plain(wav), n_fft, hop, power=power)[0]
    close(ours/spec.max(), spec/spec.max(), 1e-5)
    ours = mel_filters(wav.sr, n_fft, n_mels) @ ours
    close(ours/mel.max(), mel/mel.max(), 1e-5)
    fe = FrontEnd(wav.sr, n_fft, hop=hop, n_mels=n_mels, power=power, top_db=top_db, norm=None)
    ref_db = 20/power*math.log10(ref)
    seen = db > max(db.max()-80, -99-ref_db) # lower, torchaudio has another floor
    close((plain(fe(wav))[0]-ref_db)[seen], db[seen], 0.02)

# Properties

@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=4), st.sampled_from(kinds))
def test_padded_is_alone(ns, kw):
    fe,wavs = fitted(**kw),[clip(n, i) for i,n in enumerate(ns)]
    batch = pad_audio(wavs)
    junk = batch.clone()
    for w,o in zip(wavs, plain(junk)): o[:,w.shape[-1]:] = 1.
    specs = fe(junk)
    assert specs.isfinite().all()
    assert specs.lens.tolist()==[fe.n_frames(n) for n in ns]
    for w,s in zip(wavs, specs):
        alone = plain(fe(w))
        assert s.lens==alone.shape[-1]
        close(plain(s)[...,:s.lens], alone, 2e-3 if kw.get('kind')=='mfcc' or 'norm' in kw else 1e-4) # A clip of one tone or none has next to no spread
        assert not plain(s)[...,s.lens:].any()

@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 10), st.sampled_from(['mel','linear']))
def test_linear_in_gain(gain, kind):
    fe,x = FrontEnd(8000, kind=kind, scale='none', norm=None),clip(2000)
    close(plain(fe(x*gain))/gain**2, plain(fe(x)), 1e-4)
    db = FrontEnd(8000, kind=kind, norm=None, top_db=None)
    close(plain(db(x*gain)), plain(db(x))+20*math.log10(gain), 1e-2)

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3000), st.integers(1, 300), st.booleans(), st.integers(0, 2))
def test_shapes(bs, c, n, hop, center, order):
    fe = FrontEnd(8000, n_fft=256, hop=hop, n_mels=30, center=center, deltas=order, norm='clip')
    x = AudioTensor(noise(bs, c, n), sr=8000)
    res = fe(x)
    assert res.shape==(bs, c*(1+order), 30, fe.n_frames(n)) and res.dtype==torch.float32 and res.isfinite().all()
    close(plain(fe(x[0])), plain(res[0]), 1e-3)
    if center: assert fe.n_frames(n)==1 + n//hop

@pytest.mark.parametrize('kw', kinds)
@pytest.mark.parametrize('n', [1,10,5000])
def test_silence(kw, n): assert fitted(**kw)(AudioTensor(torch.zeros(2,1,n), sr=8000, lens=torch.tensor([n,1]))).isfinite().all()

def test_top_db_ignores_padding():
    fe = FrontEnd(8000, norm=None, top_db=10.)
    quiet = pad_audio([clip(500)*1e-3, clip(4000)])
    s = fe(quiet)[0]
    valid = plain(s)[...,:s.lens]
    assert abs(valid.max()-valid.min()-10) < 1e-3

def test_input_unchanged_and_deterministic():
    x = pad_audio([clip(800), clip(2000)])
    before,fe = x.clone(),FrontEnd(8000)
    a,b = fe(x),fe(x)
    assert torch.equal(plain(a), plain(b)) and torch.equal(plain(x), plain(before))

def test_lens_beyond_the_end():
    fe,x = FrontEnd(8000, deltas=1, norm='clip'),noise(2, 1, 1000)
    res = fe(x, torch.tensor([10**9,500]))
    assert res.lens.tolist()==[13,7] and torch.equal(plain(res), plain(fe(x, torch.tensor([1000,500]))))

def test_plain_for_a_compiler(monkeypatch):
    "A compiler gets tensors, and the same numbers"
    fe,x = fitted(deltas=1),pad_audio([clip(800), clip(1600)])
    want = fe(x)
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    got,n = fe(plain(x), x.lens)
    assert type(got) is torch.Tensor and torch.equal(got, plain(want)) and torch.equal(n, want.lens)

def test_fit_is_mean_and_std_of_valid_frames():
    wavs = [clip(3000, 1), clip(900, 2)*0.1]
    fe = FrontEnd(8000, deltas=1).fit([(pad_audio(wavs[:1]),0), pad_audio(wavs)])
    raw = FrontEnd(8000, deltas=1, norm=None)
    x = torch.cat([plain(raw(w)) for w in (wavs[0], *wavs)], -1)
    close(fe.mean[...,0], x.mean(-1), 1e-3)
    close(fe.std[...,0], x.std(-1, correction=0), 1e-3)
    assert fe.fitted and not raw.fitted

def test_saved_with_the_model():
    fe = fitted(deltas=1)
    other = FrontEnd.from_config(json.loads(json.dumps(fe.config())))
    assert set(fe.state_dict())=={'mean','std'}
    other.load_state_dict(fe.state_dict())
    assert torch.equal(plain(other(clip(2000))), plain(fe(clip(2000))))

def test_gradient():
    x = (noise(1, 1, 500)*3).requires_grad_()
    for kw in kinds:
        x.grad = None
        FrontEnd(8000, n_fft=64, n_mels=20, **kw)(x).square().sum().backward()
        assert x.grad.isfinite().all() and x.grad.any()
    y = noise(1, 300).double().requires_grad_()
    f = lambda o: (stft_power(o, 64, 16)**0.5).sum()
    g, = torch.autograd.grad(f(y), y)
    w = torch.hann_window(64)
    ref, = torch.autograd.grad(torch.stft(y.float(), 64, 16, window=w, pad_mode='constant', return_complex=True).abs().sum(), y)
    close(g, ref, 1e-3)

def test_autocast_is_float32():
    fe,x = FrontEnd(8000, norm=None),clip(3000)
    with torch.autocast('cpu', dtype=torch.bfloat16): res = fe(x)
    assert res.dtype==torch.float32 and torch.equal(plain(res), plain(fe(x)))

@pytest.mark.parametrize('kw', kinds)
@pytest.mark.parametrize('cast', [nn.Module.half, nn.Module.bfloat16, nn.Module.double, lambda m: m.to(torch.float16), lambda m: m.type(torch.bfloat16)])
def test_stays_in_float32(cast, kw):
    "A model is rounded, its front end is not, and any sound will do"
    fe,x = fitted(**kw),clip(3000)
    want = plain(fe(x))
    net = cast(nn.Sequential(fe, nn.Linear(2, 2)))
    assert net[1].weight.dtype!=torch.float32 and {o.dtype for o in fe.buffers()}=={torch.float32}
    assert torch.equal(plain(fe(x)), want)
    assert fe(AudioTensor(plain(x).half(), sr=8000)).dtype==fe(AudioTensor(plain(x).double(), sr=8000)).dtype==torch.float32

def test_fit_in_mixed_precision():
    x = [clip(4000, 1)[None]]
    want = FrontEnd(8000, kind='mfcc').fit(x)
    with torch.autocast('cpu', dtype=torch.bfloat16): got = FrontEnd(8000, kind='mfcc').fit(x)
    assert torch.equal(got.mean, want.mean) and torch.equal(got.std, want.std)

@pytest.mark.parametrize('kw', kinds)
def test_sound_goes_to_the_front_end(kw):
    "`meta` stands for another device: it has shapes and no numbers"
    fe,x = fitted(**kw),pad_audio([clip(800), clip(1600)])
    want,got = fe(x),fe.to('meta', torch.float16)(x)
    assert got.device.type==got.lens.device.type=='meta' and got.shape==want.shape and got.dtype==torch.float32

class NoDouble(TorchFunctionMode):
    "Like a Mac's GPU: numbers of 64 bits only where `cpu` brought them"
    def __torch_function__(self, func, types, args=(), kwargs=None):
        res = func(*args, **(kwargs or {}))
        if isinstance(res, torch.Tensor):
            ins = [o for o in args if isinstance(o, torch.Tensor)]
            res.here = func is torch.Tensor.cpu or not ins or any(getattr(o, 'here', False) for o in ins)
            assert res.dtype!=torch.float64 or res.here, f'{func.__name__} made float64'
        return res

@pytest.mark.parametrize('kw', kinds)
def test_no_double_on_the_device(kw):
    fe,x = FrontEnd(8000, **kw),pad_audio([clip(800), clip(1600)])
    x.here = x.lens.here = False
    for o in fe.buffers(): o.here = False
    with NoDouble(): fe.fit([x])
    assert fe.fitted and fe(x).isfinite().all()

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_cuda():
    x = pad_audio([clip(3000), clip(9000)])
    for kw in kinds:
        fe = fitted(**kw)
        close(plain(fe.cuda()(x.cuda())).cpu(), plain(fe.cpu()(x)), 1e-2)
        assert fe.cuda()(x).device.type=='cuda'

# Back to sound

def test_back_to_sound():
    torch.manual_seed(0)
    t = torch.arange(8000)/8000
    x = AudioTensor((0.3*torch.sin(2*math.pi*(300*t+400*t**2)))[None], sr=8000)
    for kw,eps in ((dict(kind='linear'),2), (dict(),4), (dict(scale='log'),4), (dict(kind='mfcc', n_mfcc=64, n_mels=64, deltas=1),4)):
        fe = FrontEnd(8000, norm='data', top_db=60., **kw).fit([x[None]])
        y = spec2wav(fe(x), fe)
        assert isinstance(y, AudioTensor) and y.sr==8000 and y.shape==(1,8000)
        a,b = (plain(FrontEnd(8000, norm=None, top_db=40.)(o))[...,5:-5] for o in (x,y))
        assert (a-b).abs().mean() < eps, (kw, (a-b).abs().mean())

def test_griffin_lim_one_frame(): assert griffin_lim(torch.rand(1,129,1), 80).isfinite().all()

def test_inverse_mel():
    fb = mel_filters(8000, 256, 40)
    p = noise(129, 7).abs()
    res = inverse_mel(fb@p, fb)
    assert (res>=0).all()
    close(fb@res/(fb@p), torch.ones(40,7), 0.05)

def test_spec2wav_batch_keeps_lens():
    fe = FrontEnd(8000, norm=None)
    assert spec2wav(fe(pad_audio([clip(800), clip(1600)])), fe, n_iter=2).lens.tolist()==[800,1600]

@pytest.mark.parametrize('kw', [dict(norm='clip'), dict(scale='pcen', norm=None), dict(center=False, norm=None)])
def test_cannot_go_back(kw):
    fe = FrontEnd(8000, **kw)
    with pytest.raises(AudioError, match='expected'): spec2wav(fe(clip(2000)), fe)

# The type

def test_meta_survives():
    fe = FrontEnd(8000, norm=None)
    s = fe(pad_audio([clip(800), clip(1600)]))
    for o in (s.clone(), s+1, pickle.loads(pickle.dumps(s)), copy.deepcopy(s), s.to(torch.float64), s.new_ones(s.shape)):
        assert isinstance(o, AudioSpectrogram) and (o.sr,o.hop,o.scale,o.f_max)==(8000,80,'mel',4000.) and o.lens.tolist()==[11,21]
    assert s[0].lens==11 and s[1:].lens.tolist()==[21] and s[...,15:].lens.tolist()==[0,6]
    assert torch.stack([s[0],s[1]]).lens.tolist()==[11,21] and torch.cat([s,s]).lens.tolist()==[11,21]*2
    assert s.mean().lens is None and s.dur==21*80/8000
    assert [o.lens for o in s]==[11,21]

@pytest.mark.parametrize('kw', [dict(), dict(htk=True), dict(kind='linear'), dict(kind='mfcc'), dict(deltas=2)])
def test_show(kw):
    plt = pytest.importorskip('matplotlib.pyplot')
    plt.switch_backend('agg')
    s = FrontEnd(8000, **kw)(pad_audio([clip(800), clip(1600)]))
    ax = s[0].show(title='a', cbar=True)
    assert ax.get_title()=='a' and abs(ax.get_xlim()[1]-0.11) < 1e-6
    assert s[0].show(ctx=ax) is ax
    plt.close('all')

# In fastai

def batches(): return [(clip(2000, i),torch.tensor(i)) for i in range(8)]

def test_audio_to_spec_in_a_dataloader():
    dl = TfmdDL(batches(), bs=4, num_workers=0, after_batch=[AudioToSpec(FrontEnd(8000))])
    x,y = dl.one_batch()
    assert type(x) is AudioSpectrogram and x.shape==(4,1,64,26) and y.tolist()==[0,1,2,3]
    tfm = dl.after_batch.fs[0]
    assert tfm.order==20 and tfm.front_end.fitted
    assert abs(x.mean().item()) < 0.1 and abs(x.std().item()-1) < 0.1

def test_audio_to_spec_types():
    tfm = AudioToSpec(FrontEnd(8000))
    x,y,z = tfm((clip(800),torch.tensor(3),torch.rand(2,3)))
    assert type(x) is AudioSpectrogram and x.shape==(1,64,11) and y==3 and z.shape==(2,3)
    with pytest.raises(AudioError, match='once|one `AudioToSpec`'): tfm(x)

# Bad input

@pytest.mark.parametrize('bad', [dict(n_mels=200), dict(f_max=5000.), dict(win=300, n_fft=256), dict(hop=0), dict(hop=-1), dict(n_fft=0), dict(sr=0),
    dict(f_min=4000.), dict(f_min=-1.), dict(kind='Mel'), dict(scale='dB'), dict(norm='none'), dict(deltas=3), dict(kind='mfcc', n_mfcc=65), dict(top_db=0),
    dict(power=0), dict(mel_norm='area'), dict(hop=80.5)])
def test_impossible_settings(bad):
    with pytest.raises(AudioError, match='got .*expected') as e: FrontEnd(**{**dict(sr=8000), **bad})
    assert '\n' not in str(e.value)

def test_unknown_settings():
    with pytest.raises(AudioError, match='nfft.*expected'): FrontEnd.from_config(dict(sr=8000, nfft=256))

def test_wrong_rate():
    with pytest.raises(AudioError, match='16000 Hz.*8000 Hz'): FrontEnd(8000)(clip(800, sr=16000))
    with pytest.raises(AudioError, match='16000 Hz.*8000 Hz'): FrontEnd(8000).fit([clip(800, sr=16000)[None]])

def test_wrong_shapes():
    for shape in ((800,), (1,1,1,800), (1,0)):
        with pytest.raises(AudioError, match='shape'): FrontEnd(8000)(torch.zeros(shape))
    with pytest.raises(AudioError, match='no batches'): FrontEnd(8000).fit([])
    with pytest.raises(AudioError, match='interp'): deltas(torch.zeros(2,5), mode='interp')

def test_empty_filters_warn():
    with pytest.warns(AudioWarning, match='empty'): FrontEnd(44100, n_fft=512, n_mels=128)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for sr in (8000,11025,16000,22050,44100,48000): FrontEnd(sr)

def test_mfcc_shape(): assert mfcc(torch.rand(2,1,40,9), 13).shape==(2,1,13,9)

def test_db_per_clip():
    x = torch.tensor([1.,1e-6]).view(2,1,1,1).expand(2,1,1,2)*torch.tensor([1.,1e-5])
    assert np.allclose(to_db(x, 30).flatten(), [0,-30,-60,-90], atol=1e-3)

def test_lens_of_sums_moves_and_joins():
    def batch(*lens): return AudioSpectrogram(torch.rand(len(lens), 1, 4, max(lens)), sr=8000, hop=80, lens=torch.tensor(lens))
    x,y,z = batch(9,5),batch(7,9),batch(4,3)
    assert (x+y).lens.tolist()==[9,9] and x.flip(0).lens.tolist()==[5,9] and x.flip(2).lens.tolist()==[9,5]
    assert x.flip(-1).lens is None and x.roll(1, -1).lens is None
    both = torch.cat([x,z])
    assert both.shape==(4,1,4,9) and both.lens.tolist()==[9,5,4,3] and both[2:,...,4:].abs().max()==0
