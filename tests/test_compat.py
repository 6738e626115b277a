"fastaudio's names on our modules: numbers of torchaudio, mended faults, the flow from files to a loaded learner"
import copy, importlib, io, warnings
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import pytest, torch
from fastai.vision.all import CategoryBlock, DataBlock, Pipeline, RandomSplitter, accuracy, load_learner, resnet18, vision_learner
from hypothesis import given, settings, strategies as st
from torchaudio import functional as taf, transforms as ta

import fastaudio_lite.compat
from fastaudio_lite.audio import AudioTensor as Wav, AudioWarning
from fastaudio_lite.compat.fastaudio import *
from fastaudio_lite.compat.augment import functional
from fastaudio_lite.compat.util import test_audio_tensor as tone
from fastaudio_lite.spectrogram import AudioToSpec as OurSpec, FrontEnd

del globals()['test_audio_tensor']  # a helper that looks like a test
places = 'util core.config core.signal core.spectrogram augment.functional augment.preprocess augment.signal augment.spectrogram'.split()

def plain(x): return x.as_subclass(torch.Tensor)

@pytest.fixture
def noise():
    torch.manual_seed(0)
    return AudioTensor(torch.randn(2, 8000)*0.1, sr=16000)

@pytest.fixture
def sg(noise): return AudioToSpec.from_cfg(dict(mel=True, to_db=True, n_mels=40, hop_length=200))(noise)

# Names
@pytest.mark.parametrize('name', places)
def test_places(name):
    mod = importlib.import_module(f'fastaudio_lite.compat.{name}')
    assert mod.AudioTensor is AudioTensor and mod._shift is functional.shift_signal

@pytest.mark.parametrize('name', ['all', 'core.all', 'augment.all'])
def test_stars(name):
    "What old notebooks took from a star"
    ns = {}
    exec(f'from fastaudio_lite.compat.{name} import *', ns)
    assert ns['AudioTensor'] is AudioTensor and {'Pipeline', 'Transform', 'RandTransform', 'Path', 'partial'} <= ns.keys()

def test_version(): assert fastaudio_lite.compat.__version__=='1.0.2'

def test_patched(sg):
    "A name replaced where fastaudio looked it up is replaced"
    rows = torch.zeros(1, 40, dtype=torch.bool)
    rows[:, 3:7] = True
    name = 'fastaudio_lite.compat.augment.functional.region_mask'
    with patch(name, return_value=rows): out = MaskFreqGPU(mask_val=5.)(sg)
    assert (plain(out)==5).all((0,2)).nonzero().flatten().tolist()==[3,4,5,6]

# Spectrograms
pads = st.sampled_from(['reflect', 'constant', 'replicate'])

@settings(max_examples=25, deadline=None)
@given(n_fft=st.sampled_from([256,400,510]), win=st.sampled_from([None,200,255]), hop=st.sampled_from([None,80,123]), pad=st.sampled_from([0,50]),
    power=st.sampled_from([1.,2.]), normalized=st.sampled_from([False,True,'frame_length']), center=st.booleans(), pad_mode=pads)
def test_spectrogram(n_fft, win, hop, pad, power, normalized, center, pad_mode):
    kw = dict(n_fft=n_fft, win_length=win, hop_length=hop, pad=pad, power=power, normalized=normalized, center=center, pad_mode=pad_mode)
    x = torch.randn(3, 2, 3000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(functional.spectrogram(x, **kw), ta.Spectrogram(**kw)(x), rtol=1e-3, atol=1e-4)

@pytest.mark.parametrize('kw', [{}, dict(norm='slaney', mel_scale='slaney'), dict(f_min=50., f_max=20000., n_mels=60), dict(window_fn=torch.hamming_window)])
@pytest.mark.parametrize('sr', [8000, 16000, 44100])
@pytest.mark.filterwarnings('ignore')
def test_mel(kw, sr):
    "torchaudio's numbers, when it is told the rate"
    x = torch.randn(1, sr//4)
    kw = dict(n_fft=1024, hop_length=256, n_mels=64)|kw
    ours = SpectrogramTransformer(True, True)(**kw)(AudioTensor(x, sr))
    ref = ta.AmplitudeToDB()(ta.MelSpectrogram(sr, **kw)(x))
    torch.testing.assert_close(plain(ours), ref, rtol=1e-3, atol=2e-2)

@pytest.mark.parametrize('stype', ['power', 'magnitude'])
@pytest.mark.parametrize('top_db', [None, 30.])
def test_db(stype, top_db):
    x = torch.rand(3, 2, 20, 30)**8*torch.tensor([1,1e-12,100]).view(3,1,1,1)
    torch.testing.assert_close(functional.amplitude_to_db(x, stype, top_db), ta.AmplitudeToDB(stype, top_db)(x), rtol=1e-4, atol=1e-3)

@pytest.mark.parametrize('kw', [dict(), dict(norm=None), dict(log_mels=True), dict(n_mfcc=13)])
def test_mfcc(kw, noise):
    kw['melkwargs'] = dict(n_fft=512, n_mels=60, hop_length=100)
    ours = AudioToMFCC(**kw)(noise)
    torch.testing.assert_close(plain(ours), ta.MFCC(16000, **kw)(plain(noise)), rtol=1e-3, atol=1e-2)
    assert (ours.n_mfcc, ours.hop_length, ours.sr) == (kw.get('n_mfcc', 40), 100, 16000)

def test_own_rate(noise):
    "The filters follow the sound, whatever `sample_rate` says"
    low = AudioTensor(plain(noise), sr=8000)
    t = SpectrogramTransformer()(sample_rate=16000, n_mels=30)
    assert not torch.allclose(plain(t(noise)), plain(t(low))) and t(low).f_max==4000
    torch.testing.assert_close(plain(t(low)), plain(SpectrogramTransformer()(sample_rate=8000, n_mels=30)(low)))

def test_foreign_pipe(noise):
    "A pipe of torch modules, as people built"
    pipe = torch.nn.Sequential(ta.Spectrogram(n_fft=256), ta.AmplitudeToDB())
    out = AudioToSpec(pipe, dict(n_fft=256, hop_length=128))(noise)
    assert type(out) is AudioSpectrogram and (out.hop_length, out.nchannels) == (128, 2)

@pytest.mark.parametrize('cfg', [AudioConfig.BasicSpectrogram, AudioConfig.BasicMelSpectrogram, AudioConfig.Voice])
@pytest.mark.filterwarnings('ignore')
def test_configs(cfg, noise):
    cfg = cfg()
    assert type(cfg.mel) is bool and type(cfg.to_db) is bool
    out = AudioToSpec.from_cfg(cfg)(noise)
    assert out.mel==cfg.mel and out.n_fft==cfg.n_fft
    torch.testing.assert_close(out, AudioToSpec.from_cfg(asdict(cfg))(noise))

def test_config_from_func():
    cfg = config_from_func(lambda a, b=2, c=(1,): 0, 'Mine', b=3, d=[1])
    assert asdict(cfg()) == dict(a=None, b=3, c=(1,), d=[1]) and cfg().d is not cfg().d and cfg.__name__=='Mine'

def test_bad_settings(noise):
    with pytest.warns(AudioWarning, match='n_mel=4'): SpectrogramTransformer()(n_mel=4)
    with pytest.raises(ValueError, match='power'): functional.spectrogram(noise, power=None)
    with pytest.raises(ValueError, match='dct_type'): AudioToMFCC(dct_type=3)(noise)

@pytest.mark.parametrize('kind', ['item', 'batch'])
def test_settings_survive(kind, noise):
    x = noise if kind=='item' else torch.stack([noise, noise])
    sg = SpectrogramTransformer()(n_fft=256, hop_length=100)(x)
    with io.BytesIO() as f:
        torch.save(sg, f)
        f.seek(0)
        saved = torch.load(f)
    for o in (saved, sg.clone(), copy.deepcopy(sg), sg[..., :5], sg*2, torch.stack([sg, sg])[0]):
        assert type(o) is AudioSpectrogram and o.settings==sg.settings and (o.sr, o.hop_length, o.win_length)==(16000, 100, 256)
    with pytest.raises(AttributeError, match='hop_size'): sg.hop_size

def test_sound_survives(noise):
    with io.BytesIO() as f:
        torch.save(noise, f)
        f.seek(0)
        saved = torch.load(f)
    for o in (saved, noise.clone(), copy.deepcopy(noise), noise[:, :5], noise*2, torch.stack([noise])[0], Resample(16000)(noise)):
        assert type(o) is AudioTensor and o.sr==16000 and o.nchannels==2

@pytest.mark.parametrize('f', [lambda a, b: a+b, lambda a, b: torch.cat([a, b]), lambda a, b: torch.maximum(a, b)])
def test_mixed_rates(f, noise):
    b = AudioTensor(plain(noise), sr=8000)
    with pytest.warns(AudioWarning, match='8000, 16000'): res = f(noise, b)
    assert res.sr==16000 and b.sr==8000 and type(res) is AudioTensor

# Transforms
random_wav = [SignalShifter(1.), SignalShifter(1., roll=True), AddNoise(p=1.), AddNoise(p=1., color=NoiseColor.Brown), AddNoiseGPU(min_level=0.1),
    ChangeVolume(1.), ChangeVolumeGPU(1.), SignalCutout(1., 0.5), SignalCutoutGPU(1., 0.2, 0.5), SignalLoss(1., 0.9), SignalLossGPU(1., 0.2, 0.9)]
random_spec = [SignalShifter(1.), AddNoiseGPU(min_level=0.1), MaskFreq(), MaskTime(2, 5), MaskFreqGPU(2), MaskTimeGPU(2), SGRoll()]
steady_spec = [CropTime(200), CropTime(900), Delta(), DeltaGPU(), TfmResize(20), TfmResizeGPU((10,20))]
steady_wav = [Resample(8000), DownmixMono(), ResizeSignal(200), ResizeSignal(900), RemoveSilence(), RemoveSilence(RemoveType.All)]
def _name(t): return type(t).__name__

@pytest.mark.parametrize('t', random_wav+random_spec, ids=_name)
@pytest.mark.parametrize('batch', [False, True])
def test_random(t, batch, noise, sg):
    "Changes training data, by hand too, each item its own way; neither validation data nor its input; a seed repeats it"
    for x in [noise]*(t in random_wav) + [sg]*(t in random_spec):
        x = torch.stack([x]*4) if batch else x
        old = x.clone()
        torch.manual_seed(1)
        out = t(x)
        torch.manual_seed(1)
        assert torch.equal(out, t(x, split_idx=0)) and not torch.equal(out, old)
        assert torch.equal(t(x, split_idx=1), old) and torch.equal(x, old)
        assert type(out) is type(x) and out.sr==x.sr and out.shape==x.shape
        if batch: assert not torch.equal(out[0], out[1])

@pytest.mark.parametrize('t', steady_spec+steady_wav, ids=_name)
def test_steady(t, noise, sg):
    "Applies to validation data too, always alike; settings stay"
    x = sg if t in steady_spec else noise
    old = x.clone()
    out = t(x, split_idx=1)
    assert torch.equal(out, t(x, split_idx=1)) and torch.equal(x, old) and type(out) is type(x)
    if t in steady_spec:
        assert out.settings==sg.settings
        torch.testing.assert_close(t(torch.stack([x, x]), split_idx=1)[1], out)

@pytest.mark.parametrize('t', [CropTime(1), Delta(), DeltaGPU(), MaskFreq(), MaskTime(), MaskFreqGPU(), SGRoll(), TfmResize(2)], ids=_name)
def test_wrong_kind(t, noise):
    with pytest.warns(AudioWarning, match='expected an AudioSpectrogram'): assert t(noise) is noise

def test_order():
    "The list's, as sounds and spectrograms may both get noise"
    fs = [AddNoiseGPU(), AudioToSpec.from_cfg(AudioConfig.Voice()), SignalShifter(), MaskFreq(), TfmResize(10), AddNoiseGPU()]
    assert list(Pipeline(fs).fs)==fs

@pytest.mark.parametrize('make', [lambda: SignalShifter(direction=-2), lambda: SGRoll(direction=2), lambda: AddNoise(color=3), lambda: AddNoiseGPU(color=-3),
    lambda: ResizeSignal(9, pad_mode='some'), lambda: RemoveSilence('some'), lambda: ChangeVolume(p=2.)])
def test_bad_arguments(make):
    with pytest.raises(ValueError): make()

def test_bad_use(sg, noise):
    with pytest.raises(ValueError): CropTime(100, pad_mode='mirror')(sg)
    for t in (MaskFreq(start=30), MaskFreq(start=-1), MaskTime(size=100)):
        with pytest.raises(ValueError, match='start='): t(sg)
    with pytest.raises(AttributeError): noise.hop_length
    with pytest.raises(FileExistsError): noise.save(__file__, overwrite=False)

@given(n=st.integers(1, 20), s=st.integers(-25, 25))
def test_shift(n, s):
    x = torch.arange(1, n+1)
    want = [x[i-s].item() if 0<=i-s<n else 0 for i in range(n)]
    assert functional._shift(x, s).tolist()==want and functional._shift(x, s, True).tolist()==x.roll(s).tolist()

@given(st.integers(1, 5), st.integers(0, 6), st.integers(0, 6), st.integers(12, 40))
def test_region_mask(n, lo, more, length):
    m = functional.region_mask(n, lo, lo+more, length)
    size = m.sum(1)
    assert m.shape==(n, length) and size.min()>=lo and size.max()<=lo+more
    assert ((m[:,1:]!=m[:,:-1]).sum(1)<=2).all()

@pytest.mark.parametrize('axis', [2, 3])
def test_mask_values(axis):
    "Zero is a value; none is the mean of what is covered, which leaves the whole mean as it was"
    x = torch.rand(8, 2, 30, 40)+1
    assert (functional.mask_along_axis_(x.clone(), 1, 4, 9, mask_val=0, axis=axis)==0).any()
    out = functional.mask_along_axis_(x, 3, 4, 9, axis=axis)
    torch.testing.assert_close(out.mean((2,3)), x.mean((2,3)))
    assert ((out!=x).any(1).any(4-axis).sum(1)>=4).all()

@pytest.mark.parametrize('color', range(-2, 3))
def test_noise_color(color):
    "Power falls with frequency to the color, around 0 and 1"
    x = functional.colored_noise((4, 2, 2**15), color)
    f = torch.fft.rfftfreq(2**15)[300:-300]
    p = torch.fft.rfft(x).abs().square().mean((0,1))[300:-300]
    slope = torch.linalg.lstsq(torch.stack([f.log(), f*0+1], 1), p.log()[:,None]).solution[0]
    assert abs(slope+color)<0.1 and 0.5<x.std()<2

def test_noise_level():
    x = AudioTensor(torch.randn(64, 1, 4000)*torch.rand(64, 1, 1), sr=16000)
    for t,lo,hi in (AddNoiseGPU(min_level=0.1, max_level=0.2),0.1,0.2), (AddNoise(0.1, p=1.),0.07,0.09):
        d = plain(t(x)-x)
        ratio = d.std((1,2))/plain(x).std((1,2))
        assert ratio.min()>lo*0.9 and ratio.max()<hi*1.1 and (d.mean((1,2))/d.std((1,2))).abs().max()<0.1

def test_deltas(sg):
    a,b = DeltaGPU(5, 'reflect')(sg),DeltaGPU(5)(sg)
    torch.testing.assert_close(plain(b[2:4]), taf.compute_deltas(plain(sg), 5), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(plain(a[2:4]), taf.compute_deltas(plain(sg), 5, 'reflect'), rtol=1e-3, atol=1e-4)
    from librosa.feature import delta
    ref = torch.from_numpy(delta(plain(sg).numpy(), order=2))
    torch.testing.assert_close(plain(Delta()(sg))[2::3], ref, rtol=1e-3, atol=1e-3)

def test_loss_is_shared():
    out = plain(SignalLossGPU(1., 0.4, 0.6)(AudioTensor(torch.ones(5, 2, 900), sr=16000)))
    assert torch.equal(out[:,0], out[:,1]) and not torch.equal(out[0], out[1])

@pytest.mark.parametrize('mode', list(AudioPadType))
@pytest.mark.parametrize('ms', [100, 2000, 4500])
def test_resize(mode, ms):
    "A crop is a piece, padding keeps the whole; spectrograms and sounds agree in length"
    x,t = tone(),SpectrogramTransformer()(hop_length=128)
    out = ResizeSignal(ms, mode)(x)
    assert out.nsamples==ms*16 and t(out).width==CropTime(ms, mode)(t(x)).width
    if ms<2000: assert any(torch.allclose(out, x[:, i:i+1600]) for i in range(40))
    elif mode==AudioPadType.Repeat: assert torch.equal(out[:, :32000], x)
    else: torch.testing.assert_close(plain(out).square().sum(), plain(x).square().sum())

def test_silence():
    x = tone(1)
    gap = torch.cat([x*0, x, x*0, x, x*0], -1)
    for kind,dur in (None,5), (RemoveType.Trim,3), (RemoveType.All,2), (RemoveType.Split,2):
        assert abs(RemoveSilence(kind)(gap).duration-dur)<0.2
        assert RemoveSilence(kind)(x).duration==1
        assert RemoveSilence(kind)(x*0).duration==1

# Files and loaders
@pytest.fixture
def folder(tmp_path):
    "Clips of two classes at two rates, of several lengths, in sub-folders"
    for i in range(12):
        fn = tmp_path/'clips'/'low high'.split()[i%2]/f'{i}.wav'
        fn.parent.mkdir(parents=True, exist_ok=True)
        wave,sr = create_sin_wave(0.5+0.05*i, [16000,22050][i%3==0], [200,3000][i%2])
        AudioTensor(wave[None]*0.5, sr).save(fn)
    return tmp_path/'clips'

def _loaders(folder, *tfms, block=AudioBlock, item_tfms=None):
    block = DataBlock((block, CategoryBlock), get_items=get_audio_files, get_y=lambda o: o.parent.name, splitter=RandomSplitter(0.34, seed=0),
        item_tfms=item_tfms, batch_tfms=list(tfms))
    return block.dataloaders(folder, bs=4)

def test_preprocess(folder):
    "Copies keep their sub-folders, and are read instead; a file without a copy is read itself"
    out = preprocess_audio_folder(str(folder), sample_rate=8000, crop_signal_to=300)
    assert out==folder.parent/'clips_cached' and len(get_audio_files(out))==12
    fn = get_audio_files(folder)[3]
    assert AudioTensor.create(fn, out).sr==8000 and AudioTensor.create(str(fn), out).duration==0.3
    tone().save(folder/'new.wav')
    assert AudioTensor.create(folder/'new.wav', out).sr==16000
    x,_ = _loaders(folder, block=AudioBlock.from_folder(folder, sample_rate=4000, crop_signal_to=200)).one_batch()
    assert x.sr==4000 and x.shape==(4,1,800)

def test_getter(folder):
    get = AudioGetter('high', recurse=False)
    assert len(get(folder))==len(get(str(folder)))==6 and len(AudioGetter()(folder))==12
    assert len(AudioGetter(folders=['low'])(folder))==6

def test_open(folder):
    files = get_audio_files(folder)
    t = OpenAudio(files)
    assert type(t(2)) is AudioTensor and t.decode(2)==files[2]
    assert OpenAudio([str(files[0])]).decode(0)==files[0]

def test_ragged(folder):
    "Clips of different lengths are one batch, and its spectrograms know how long each is"
    dls = _loaders(folder)
    x,_ = dls.one_batch()
    assert type(x) is AudioTensor and isinstance(x, Wav) and x.lens.min()<x.nsamples
    sg = SpectrogramTransformer()(hop_length=160)(x)
    assert torch.equal(sg.lens, x.lens//160+1) and sg.lens.max()==sg.width

@pytest.mark.parametrize('where', ['item', 'batch'])
def test_flow(where, folder, tmp_path):
    "Show, fit, predict from a str, export, load"
    spec = AudioToSpec.from_cfg(AudioConfig.BasicMelSpectrogram(n_fft=512, hop_length=256, n_mels=32))
    steps = [ResizeSignal(500), spec, MaskTimeGPU(), TfmResize(32)]
    dls = _loaders(folder, item_tfms=steps) if where=='item' else _loaders(folder, *steps[1:], item_tfms=steps[0])
    assert dls.one_batch()[0].shape==(4,1,32,32)
    dls.show_batch()
    learn = vision_learner(dls, resnet18, n_in=1, pretrained=False, metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn.show_results()
    fn = str(get_audio_files(folder)[5])
    learn.export(tmp_path/'m.pkl')
    with warnings.catch_warnings(action='ignore'): again = load_learner(tmp_path/'m.pkl')
    with learn.no_bar(), again.no_bar(): a,b,c = learn.predict(fn),again.predict(fn),again.predict(Path(fn))
    torch.testing.assert_close(a[2], b[2])
    assert torch.equal(b[2], c[2]) and a[0] in dls.vocab

def test_ours_beside(folder):
    "Our front end after older transforms of sounds"
    dls = _loaders(folder, ChangeVolumeGPU(1.), OurSpec(FrontEnd(sr=16000, n_mels=32)))
    x,_ = dls.one_batch()
    assert x.shape[:3]==(4,1,32) and x.hop==160

# Pictures and players
def test_show(noise, sg):
    from matplotlib import pyplot as plt
    with patch.object(AudioTensor, 'hear') as hear:
        noise.show()
        noise.show(hear=False)
        noise.show(ctx=plt.subplots()[1])
    assert hear.call_count==1
    ax = sg[:1].show(title='one')
    assert ax.get_title()=='one' and ax.get_ylim()[0]<ax.get_ylim()[1] and ax.images[0].origin=='lower'
    assert len(sg.show(title='two').child_axes)==2
    plt.close('all')

# Helpers
def test_helpers():
    x = tone(1, 8000, 3)
    assert (x.shape, x.sr, x.duration) == ((3,8000), 8000, 1)
    before,after = apply_transform(ChangeVolume(1.), x)
    assert torch.equal(before, x) and not torch.equal(after, x)
    class T:
        @auto_batch(2)
        def f(self, x): return x.sum((1,2))
    assert T().f(torch.ones(2,3))==6 and T().f(torch.ones(4,2,3)).tolist()==[6]*4

def test_usable_kwargs():
    def f(a=1, b=2, c=3): ...
    assert get_usable_kwargs(f, dict(b=5, z=1), ['c']) == dict(a=1, b=5)
