import warnings
from functools import partial

import librosa, numpy as np, pytest, soxr, torch
from fastai.callback.progress import ProgressCallback
from fastai.data.core import Datasets
from fastai.data.transforms import Categorize
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fasttransform import Pipeline
from hypothesis import given, settings, strategies as st
from scipy.signal import butter, fftconvolve, sosfreqz, welch
from torch import nn, tensor

from fastaudio_lite import augment
from fastaudio_lite.audio import AudioError, AudioTensor, AudioWarning, load_audio, pad_audio
from fastaudio_lite.augment import *
from fastaudio_lite.datasets import digit_files
from fastaudio_lite.spectrogram import AudioSpectrogram, AudioToSpec, FrontEnd

wav_tfms = [Gain, Polarity, Shift, partial(Shift, mode='roll'), AddNoise, partial(AddNoise, color=list(noise_colors)), SpeedPitch,
    TimeStretch, Reverb, RandomEQ, BandPass, Cutout]
spec_tfms = [VTLP, SpecStretch, partial(SpecStretch, mirror=True), SpecEQ, FreqMask, TimeMask]
drawn = [t for t in wav_tfms+spec_tfms if t is not Polarity]
def name(t): return getattr(t, '__name__', None) or f'{t.func.__name__}-{t.keywords}'
every = pytest.mark.parametrize('t', wav_tfms+spec_tfms, ids=name)

def plain(x): return x.as_subclass(torch.Tensor)
def seeded(t, x, seed=0):
    torch.manual_seed(seed)
    return t(x, split_idx=0)
def rms(x): return float(np.sqrt(np.square(np.asarray(x, dtype=float)).mean()))
def db(a, b): return 20*np.log10(rms(a)/rms(b))
def tone(hz, sr=8000, n=8000): return AudioTensor(torch.sin(2*torch.pi*hz*torch.arange(n)/sr)[None], sr=sr)
def pitch(x, sr=8000): return np.abs(np.fft.rfft(x*np.hanning(len(x)))).argmax()*sr/len(x)

def batch(lens, sr=8000, T=None, C=1, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return pad_audio([AudioTensor((torch.rand(C,n,generator=g)*2-1).to(dtype)*0.3, sr=sr) for n in lens], n=T)
def given_to(t, x): return FrontEnd(sr=x.sr, n_mels=20, n_fft=256, hop=64, norm=None)(x) if t in spec_tfms else x

@pytest.fixture(scope='module')
def digits(): return pad_audio([load_audio(o, sr=8000) for o in digit_files('starter')[::60]], n=8000)

@every
@settings(max_examples=8, deadline=None)
@given(lens=st.lists(st.integers(800, 4000), min_size=1, max_size=4), extra=st.integers(0, 999), sr=st.sampled_from([8000,16000]), C=st.sampled_from([1,2]))
def test_keeps(t, lens, extra, sr, C):
    x = given_to(t, batch(lens, sr, max(lens)+extra, C))
    a,meta = plain(x).clone(),dict(x.__dict__)
    y = t(p=1.)(x, split_idx=0)
    assert type(y) is type(x) and y.shape==x.shape and y.dtype==x.dtype
    assert {k:v for k,v in y.__dict__.items() if k!='lens'} == {k:v for k,v in meta.items() if k!='lens'}
    assert torch.equal(plain(x), a) and x.__dict__.keys()==meta.keys() and torch.equal(x.lens, meta['lens'])
    assert torch.isfinite(plain(y)).all()
    assert ((0<y.lens) & (y.lens<=y.shape[-1])).all()
    pad = torch.arange(y.shape[-1]) >= y.lens.view(-1, *[1]*(y.ndim-1))
    assert not (plain(y)*pad).any()

@every
def test_not_drawn(t, digits):
    x = given_to(t, digits)
    assert torch.equal(plain(t(p=0.)(x, split_idx=0)), plain(x))
    assert t(p=1.)(x, split_idx=1) is x

@every
def test_seed(t, digits):
    x,f = given_to(t, digits),t(p=1.)
    assert torch.equal(plain(seeded(f, x)), plain(seeded(f, x)))
    if t in drawn: assert not torch.equal(plain(seeded(f, x)), plain(seeded(f, x, 1)))

@pytest.mark.parametrize('t', drawn, ids=name)
def test_own_draw(t):
    x = given_to(t, batch([4000]*8))
    y = t(p=1.)(x[:1].repeat(8, *[1]*(x.ndim-1)), split_idx=0)
    assert len({o.numpy().tobytes() for o in plain(y)}) > 4

@every
def test_item(t, digits):
    x = given_to(t, digits)[2]
    y = t(p=1.)(x, split_idx=0)
    assert type(y) is type(x) and y.shape==x.shape and y.sr==x.sr and 0 < int(y.lens) <= y.shape[-1]
    whole = given_to(t, tone(440))
    assert t(p=1.)(whole, split_idx=0).shape==whole.shape

@every
def test_p_is_a_share(t):
    x = given_to(t, batch([1200]*200))
    y = seeded(t(p=0.3), x)
    n = (plain(x)!=plain(y)).flatten(1).any(1).sum()
    assert 20 < n < 90

@pytest.mark.parametrize('t', [SpeedPitch, TimeStretch, SpecStretch], ids=name)
def test_lens_follow(t, digits):
    x,y = given_to(t, digits),t(1.25, p=1.)(given_to(t, digits), split_idx=0)
    assert torch.equal(y.lens, (x.lens/1.25).round().long())
    slow = t(0.5, p=1.)(x, split_idx=0)
    assert torch.equal(slow.lens, (x.lens*2).clamp(max=x.shape[-1]))

@settings(max_examples=10, deadline=None)
@given(snr=st.floats(-10, 40), color=st.sampled_from(list(noise_colors)), pad=st.integers(0, 5000))
def test_snr(snr, color, pad):
    x = batch([3000,1500], T=3000+pad)
    y = AddNoise(snr, color)(x, split_idx=0)
    for a,b in zip(x, y): assert abs(db(a.trimmed(), (b-a).trimmed())-snr) < 0.05

@pytest.mark.parametrize('color', noise_colors)
def test_color(color):
    z = color_noise(torch.zeros(1,1,2**17), 16000, tensor([[[noise_colors[color]]]]))[0,0]
    f,p = welch(z, 16000, nperseg=1024)
    assert abs(np.polyfit(np.log10(f[8:-8]), 10*np.log10(p[8:-8]), 1)[0] - 10*noise_colors[color]) < 0.7
    assert abs(rms(z)-1) < 0.1

def test_silence_stays():
    x = AudioTensor(torch.zeros(3,1,2000), sr=8000)
    for t in wav_tfms: assert not plain(t(p=1.)(x, split_idx=0)).any()

def test_shift_in_valid_part():
    x = batch([1000,500], T=2000)
    y = Shift(0.02, 'roll')(x, split_idx=0)
    for a,b in zip(x, y): assert torch.equal(plain(b.trimmed()), plain(a.trimmed()).roll(160, -1))
    y = Shift(-0.02)(x, split_idx=0)[1]
    assert torch.equal(plain(y[:,:340]), plain(x[1][:,160:500])) and not plain(y[:,340:]).any()
    far = Shift(5.)(x, split_idx=0)[1]
    assert torch.equal(plain(far[:,250:500]), plain(x[1][:,:250]))

@pytest.mark.parametrize('f', [0.7,0.85,0.95])
def test_speed_soxr(f, digits):
    for o in digits[:5]:
        x = o.trimmed()
        y,ref = SpeedPitch(f)(x, split_idx=0)[0].numpy(),soxr.resample(x[0].numpy(), f, 1.)
        assert db(y[100:-100]-ref[100:len(y)-100], ref[100:]) < -30

def test_speed_tones():
    assert abs(pitch(SpeedPitch(1.5)(tone(440), split_idx=0)[0,:5300].numpy())-660) < 2
    assert db(SpeedPitch(1.5)(tone(3000), split_idx=0)[0,200:5000], tone(3000)) < -50
    assert abs(pitch(TimeStretch(1.5)(tone(440), split_idx=0)[0,:5300].numpy())-440) < 2

def test_positions_in_long_clips():
    y = SpeedPitch(0.9)(tone(1000, 16000, 16000*30), split_idx=0)[0,-16000:]
    assert abs(pitch(y.numpy(), 16000)-900) < 1 and abs(rms(y)-rms(tone(1000))) < 1e-3

@pytest.mark.parametrize('rate', [0.8,1.2])
def test_stretch_librosa(rate, digits):
    x = digits[0].trimmed()
    with warnings.catch_warnings(action='ignore'): S = librosa.phase_vocoder(librosa.stft(x[0].numpy(), n_fft=256, hop_length=64), rate=rate, hop_length=64)
    ref,y = librosa.istft(S, n_fft=256, hop_length=64),TimeStretch(rate)(x, split_idx=0)[0].numpy()
    n = min(len(ref), len(y))-400
    assert np.abs(ref[:n]-y[:n]).max() < 1e-3

@pytest.mark.parametrize('n', [2999,3000])
def test_reverb_scipy(n):
    x,t = batch([n]),Reverb((0.1,0.5), (-5,10), p=1)
    torch.manual_seed(3)
    h = t.room(plain(x), 8000)[0,0]
    torch.manual_seed(3)
    y,ref = t.aug(plain(x), tensor([n]), x)[0,0],fftconvolve(x[0,0].numpy(), h.numpy())[:n]
    assert np.abs(y.numpy()-ref*rms(x)/rms(ref)).max() < 1e-4

def test_bandpass_butterworth():
    f = np.array([100,300,700,2000,3000,3500])
    edges = [butter(4, hz, k, fs=192000, output='sos') for hz,k in ((400,'high'),(2800,'low'))]
    ref = sum(40*np.log10(np.abs(sosfreqz(o, f, fs=192000)[1])) for o in edges)
    got = [db(BandPass(400, 2800, p=1)(tone(o), split_idx=0)[0,1000:-1000], tone(o)[0,1000:-1000]) for o in f]
    assert np.abs(np.array(got)-ref)[1:].max() < 0.2

def test_eq_is_in_its_range():
    for o in (100,500,2000,3500):
        gains = [db(seeded(RandomEQ((-6,3), p=1), tone(o), s)[0,1000:-1000], tone(o)[0,1000:-1000]) for s in range(5)]
        assert -6.1 < min(gains) and max(gains) < 3.1 and np.ptp(gains) > 1

def test_cutout_is_one_stretch():
    ones = AudioTensor(torch.ones(50,1,1000), sr=8000)
    y = plain(Cutout((0.1,0.2), p=1)(ones, split_idx=0))[:,0]
    n = (y==0).sum(1)
    assert ((100<=n) & (n<=200)).all() and (y.diff(dim=1)!=0).sum(1).max() <= 2

@pytest.mark.parametrize('kind', ['linear','mel'])
@pytest.mark.parametrize('alpha', [0.8,1.2])
def test_vtlp_moves_resonances(kind, alpha):
    s = FrontEnd(sr=8000, n_fft=1024, n_mels=128, kind=kind, norm=None, f_min=50, f_max=3900)(tone(1000))
    hz,y = augment._row_hz(s),VTLP(alpha)(s, split_idx=0)
    assert abs(hz[y[0,:,40].argmax()]-1000*alpha) < 20
    assert torch.allclose(plain(VTLP(1.)(s, split_idx=0)), plain(s), atol=1e-2)

def test_vtlp_knows_its_rows():
    s = FrontEnd(sr=8000, n_fft=1024, n_mels=32, norm=None)(tone(1000))
    assert torch.allclose(augment._row_hz(s), torch.tensor(librosa.mel_frequencies(n_mels=34, fmin=0, fmax=4000)[1:-1]).float(), rtol=1e-4)
    with pytest.raises(ValueError, match="mfcc"): VTLP()(FrontEnd(sr=8000, kind='mfcc')(tone(1000)), split_idx=0)

def test_spec_stretch_interp(digits):
    s = given_to(SpecStretch, digits)
    y = SpecStretch(0.8)(s, split_idx=0)
    for i in range(len(s)):
        n,m = int(s.lens[i]),int(y.lens[i])
        ref = [np.interp(np.arange(m)*0.8, np.arange(n), o[:n]) for o in plain(s)[i,0].numpy()]
        assert np.abs(plain(y)[i,0,:,:m].numpy()-ref).max() < 1e-3

@pytest.mark.parametrize('rate', [0.7,1.3,2.])
def test_spec_stretch_mirror(digits, rate):
    s = given_to(SpecStretch, digits)
    y = SpecStretch(rate, mirror=True)(s, split_idx=0)
    assert torch.equal(y.lens, s.lens)
    for i,n in enumerate(s.lens.tolist()):
        both = np.concatenate([plain(s)[i,0,:,:n], plain(s)[i,0,:,:n-1].flip(-1)], -1)
        ref = [np.interp(np.arange(n)*rate, np.arange(2*n-1), o) for o in both]
        assert np.abs(plain(y)[i,0,:,:n].numpy()-ref).max() < 1e-2

def test_spec_eq(digits):
    s = given_to(SpecEQ, digits)
    y = seeded(SpecEQ((-2.,3.), 2, p=1.), s)
    for i,n in enumerate(s.lens):
        d = (plain(y)-plain(s))[i,0,:,:n]
        assert d.std(1).max() < 1e-4 and d.diff(n=2, dim=0).abs().max() < 1e-4 and -2<=d.min() and d.max()<=3

def test_masks_cover_at_most(digits):
    s = given_to(FreqMask, digits)
    for seed in range(10):
        y = seeded(TimeMask(0.3, n=2, fill=-500.), s, seed)
        for i,n in enumerate(s.lens): assert (plain(y)[i]==-500).all(1).sum() <= 0.6*n
        assert (plain(seeded(FreqMask(0.3, n=2, fill=-500.), s, seed))==-500).all(-1).sum((1,2)).max() <= 0.6*s.shape[2]

def test_mask_is_the_valid_mean(digits):
    s = given_to(FreqMask, digits)
    y = plain(FreqMask(1., n=1)(s, split_idx=0))
    for i,n in enumerate(s.lens):
        changed = y[i,0,:,:n][(y[i,0]!=plain(s)[i,0])[:,:n]]
        if len(changed): assert torch.allclose(changed, plain(s)[i,0,:,:n].mean(), atol=1e-2)

def test_mask_widths_like_torchaudio():
    F = pytest.importorskip('torchaudio.functional')
    x = torch.ones(1000,1,40,50)
    torch.manual_seed(0)
    ref = (F.mask_along_axis_iid(x, 12, 0., 2)==0)[:,0,:,0].float()
    s = AudioSpectrogram(x, sr=8000, hop=80, scale='mel', f_min=0., f_max=4000.)
    y = (plain(FreqMask(0.3, n=1, fill=0.)(s, split_idx=0))==0)[:,0,:,0].float()
    assert abs(ref.sum(1).mean()-y.sum(1).mean()) < 0.7
    assert (ref.mean(0)-y.mean(0)).abs().max() < 0.06

def test_wrong_type_warns():
    wav = tone(440)
    spec = FrontEnd(sr=8000)(wav)
    for t in spec_tfms:
        with pytest.warns(AudioWarning, match=f'{getattr(t, "func", t).__name__} got AudioTensor'): assert t()(wav, split_idx=0) is wav
    with pytest.warns(AudioWarning, match='place it before AudioToSpec'): Gain()(spec, split_idx=0)
    with warnings.catch_warnings(action='error'): assert Gain()(tensor(3), split_idx=0)==3

@pytest.mark.parametrize('f,msg', [(lambda: Gain(p=1.5), 'p=1.5'), (lambda: Shift(p=-1), 'p=-1'), (lambda: Gain((3,-3)), 'min <= max'),
    (lambda: AddNoise(color='green'), 'white'), (lambda: AddNoise(color=[]), 'white'), (lambda: AddNoise(color=['pink','sky']), 'sky'),
    (lambda: Shift(mode='loop'), 'roll'), (lambda: SpeedPitch(0), 'factor=0'), (lambda: Cutout((0,2)), 'frac'), (lambda: FreqMask(1.5), 'max_frac'),
    (lambda: BandPass((100,3000), (2000,3800)), 'below'), (lambda: RandomEQ(n_bands=1), 'n_bands'), (lambda: SpecEQ(n_bands=1), 'n_bands'),
    (lambda: SpecStretch(3., mirror=True), 'rate'), (lambda: BetweenClass(0), 'alpha'), (lambda: VTLP(f_hi=2), 'f_hi'),
    (lambda: aug_tfms(-1), 'strength'), (lambda: AudioMixUp(on='text'), "'wav' or 'spec'"), (lambda: AudioMixUp(0), 'alpha')])
def test_errors(f, msg):
    with pytest.raises(ValueError, match=msg) as e: f()
    assert '\n' not in str(e.value)

def test_no_rate():
    with pytest.raises(AudioError, match='without a rate'): Gain()(AudioTensor(torch.zeros(1,100)), split_idx=0)

def make_dls(tfms, y='category'):
    def wav(i): return tone(300+300*(i%4), n=2000+50*(i%16))
    def collate(b): return pad_audio([o[0] for o in b]), torch.stack([o[1] for o in b])
    def one_hot(i): return torch.eye(4)[i%4]
    def category(i): return i%4
    y = [category, Categorize(vocab=[0,1,2,3])] if y=='category' else [one_hot]
    ds = Datasets(list(range(48)), [[wav],y], splits=(list(range(32)), list(range(32,48))))
    fe = FrontEnd(sr=8000, n_mels=20, norm='clip')
    return ds.dataloaders(bs=16, num_workers=0, create_batch=collate, after_batch=tfms+[AudioToSpec(fe)], device='cpu')

def test_pipeline_of_fastai():
    dls = make_dls(aug_tfms(1.5, room=True))
    orders = [t.order for t in dls.train.after_batch.fs]
    assert orders==sorted(orders) and max(orders[:-4]) < 20 < min(orders[-3:])
    (x,y),(x2,y2) = [dls.train.new(shuffle=False).one_batch() for _ in range(2)]
    assert torch.equal(y, y2) and y.tolist()==[i%4 for i in range(16)]
    assert (plain(x)!=plain(x2)).flatten(1).any(1).all()
    (x,y),(x2,y2) = dls.valid.one_batch(),make_dls([]).valid.one_batch()
    assert torch.equal(plain(x), plain(x2)) and torch.equal(x.lens, x2.lens) and torch.equal(y, y2)

def test_strength_0_is_nothing():
    x = pad_audio([tone(440, n=2000), tone(900, n=1000)], n=2500)
    with warnings.catch_warnings(action='ignore'): y = Pipeline(aug_tfms(0), split_idx=0)(x)
    assert torch.allclose(plain(x), plain(y), atol=2e-3)

class Net(nn.Module):
    "Mean over time, one layer; counts what it sees"
    def __init__(self):
        super().__init__()
        self.l,self.n = nn.Linear(20, 4),0
    def forward(self, x):
        self.n += 1
        return self.l(plain(x).mean((1,3)))

@pytest.mark.parametrize('loss,y', [(CrossEntropyLossFlat,'category'), (BCEWithLogitsLossFlat,'one_hot')])
@pytest.mark.parametrize('on', ['wav','spec'])
@pytest.mark.parametrize('cb', [AudioMixUp,AudioCutMix])
def test_mix_trains(cb, on, loss, y):
    torch.manual_seed(0)
    dls,lf = make_dls([], y),loss()
    learn = Learner(dls, Net(), loss_func=lf, cbs=cb(on=on), lr=0.1)
    learn.remove_cb(ProgressCallback)
    before = list(dls.train.after_batch.fs)
    with learn.no_logging(): learn.fit(3)
    assert learn.loss_func is lf and list(dls.train.after_batch.fs)==before and learn.model.n==3*3
    assert learn.recorder.values[-1][1] < learn.recorder.values[0][1]

def test_mix_needs_its_type():
    with pytest.raises(ValueError, match='nothing to mix'):
        dls = make_dls([])
        dls.train.after_batch.fs = dls.train.after_batch.fs.filter(lambda t: not isinstance(t, AudioToSpec))
        learn = Learner(dls, Net(), loss_func=CrossEntropyLossFlat(), cbs=AudioMixUp(on='spec'))
        learn.remove_cb(ProgressCallback)
        learn.fit(1)

def test_mix_is_the_sum(digits):
    m = AudioMixUp().mixer
    y,lam = m(digits, split_idx=0),m.lam.view(-1,1,1)
    assert torch.allclose(plain(y), plain(digits)*lam + plain(digits)[m.perm]*(1-lam), atol=1e-6)
    assert torch.equal(y.lens, torch.maximum(digits.lens, digits.lens[m.perm])) and (m.lam>=0.5).all()

def test_cutmix_pastes_no_padding():
    x = batch([4000,1000,2500,3000], T=5000) + AudioTensor(torch.zeros(4,1,5000), sr=8000)
    m = AudioCutMix().mixer
    for seed in range(20):
        torch.manual_seed(seed)
        y = m(x, split_idx=0)
        own = torch.stack([(plain(y)[i,0,:n]==plain(x)[i,0,:n]).float().mean() for i,n in enumerate(x.lens)])
        moved = m.perm!=torch.arange(4)
        assert torch.allclose(own[moved], m.lam[moved], atol=2e-3) and torch.equal(y.lens, x.lens)
        assert all((plain(y)[i,0,:n]!=0).all() for i,n in enumerate(x.lens))

@settings(max_examples=20, deadline=None)
@given(gain=st.floats(-40, 40), lam=st.floats(0, 1))
def test_between_class_weighs_loudness(gain, lam):
    x,o = batch([4000,3000], seed=1),batch([2000,4000], seed=2)
    y,n,w = BetweenClass().mix(*map(plain, (x, o*10**(gain/20))), x.lens, o.lens, torch.full((2,), lam))
    assert torch.equal(n, tensor([4000,4000])) and torch.allclose(w, torch.full((2,), max(lam, 1-lam)))
    for i in range(2):
        a,b = torch.linalg.lstsq(torch.stack([plain(x)[i,0], plain(o)[i,0]], 1).double(), y[i,0].double()).solution
        loud = [augment._peak(plain(v)[i:i+1]).item() for v in (x,o)]
        assert abs(a*loud[0]*(1-w[i]) - b*loud[1]*w[i]) < 1e-3*abs(a*loud[0])

def test_between_class_trains_and_takes_silence():
    torch.manual_seed(0)
    learn = Learner(make_dls([]), Net(), loss_func=CrossEntropyLossFlat(), cbs=BetweenClass(), lr=0.1)
    learn.remove_cb(ProgressCallback)
    with learn.no_logging(): learn.fit(3)
    assert learn.recorder.values[-1][1] < learn.recorder.values[0][1]
    x,n = torch.zeros(2,1,100),torch.full((2,), 100)
    assert torch.equal(BetweenClass().mix(x, x, n, n, torch.rand(2))[0], x)

@pytest.mark.parametrize('x,o', ((0.,0.1), (0.1,0.), (1e-6,0.1)))
def test_between_class_leaves_a_clip_beside_silence_as_loud_as_it_was(x, o):
    noise,n = torch.randn(2,1,4000),torch.full((2,), 4000)
    y = BetweenClass().mix(x*noise, o*noise.flip(-1), n, n, torch.full((2,), 0.7))[0]
    assert (0.03 < y.square().mean(-1).sqrt()).all() and (y.square().mean(-1).sqrt() < 0.12).all()

def test_between_class_ignores_padding():
    (x,o),n = torch.randn(2, 3, 1, 9000),torch.full((3,), 9000)
    pad = torch.nn.functional.pad
    y,z = (BetweenClass().mix(pad(x, (0,k)), pad(o, (0,k)), n, n, torch.full((3,), 0.7))[0] for k in (0,50_000))
    assert torch.equal(pad(y, (0,50_000)), z)
