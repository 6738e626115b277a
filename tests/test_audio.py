"Sound in and out, and its metadata: references, properties, bad input"
import copy, io, os, pickle, struct, subprocess, sys, warnings
from pathlib import Path

import librosa, numpy as np, pytest, soundfile as sf, torch
from fastai.data.load import fa_collate
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy.signal import resample_poly
from torch.utils.data import DataLoader, default_collate

from fastaudio_lite.audio import (AudioError, AudioTensor, AudioWarning, audio_extensions, audio_info, audio_windows,
    dur2n, fit_dur, get_audio_files, is_silent, load_audio, pad_audio, resample, save_audio, to_mono, trim_silence)

def noise(n=800, c=1, sr=8000, amp=0.1): return AudioTensor(torch.randn(c, n).clamp(-5, 5)*amp, sr=sr)
def tone(dur=1., sr=16000, f=440.):
    t = torch.arange(dur2n(dur, sr))/sr
    return AudioTensor(torch.sin(2*torch.pi*f*t)[None]*0.5, sr=sr)


def encode(x, sr=8000, fmt='WAV', subtype=None):
    buf = io.BytesIO()
    sf.write(buf, np.asarray(x), sr, format=fmt, subtype=subtype)
    return buf.getvalue()

# libsndfile tries to seek before the beginning of damaged bytes
bad_seek = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
rates = [8000,11025,16000,22050,44100,48000]
few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

# --- metadata

copies = dict(clone=lambda w: w.clone(), deepcopy=copy.deepcopy, copy=copy.copy,
    pickle=lambda w: pickle.loads(pickle.dumps(w)), to=lambda w: w.to('cpu', copy=True), detach=lambda w: w.detach())
news = {o: lambda w, o=o: getattr(w, o)(w.shape) for o in ('new_zeros','new_empty','new_ones')}
maths = dict(mul=lambda w: w*2, rsub=lambda w: 1-w, plain_first=lambda w: torch.ones(w.shape)+w,
    inplace=lambda w: w.clone().mul_(2), where=lambda w: torch.where(w>0, w, 0.), clamp=lambda w: torch.clamp(w, -1, 1),
    double=lambda w: w.double(), like=torch.zeros_like, full=lambda w: w.new_full(w.shape, 1.))
ops = {**copies, **news, **maths}

@pytest.mark.parametrize('name', ops)
def test_metadata_survives(name):
    for w in noise(), pad_audio([noise(80), noise(50)]), pad_audio([noise(80), noise(50)])[1]:
        res = ops[name](w)
        assert type(res) is AudioTensor and res.sr==8000 and res.shape==w.shape
        if w.lens is None: assert res.lens is None
        else: assert torch.equal(torch.as_tensor(res.lens), torch.as_tensor(w.lens))

def test_copies_are_copies():
    w = noise()
    for o in w.clone(), copy.deepcopy(w):
        o.zero_()
        o.sr = 1
    assert w.abs().max()>0 and w.sr==8000
    v = AudioTensor(w, sr=16000)
    assert (w.sr, v.sr) == (8000, 16000) and v.data_ptr()==w.data_ptr() # a view, with a rate of its own
    s = w[:, :10]
    s.sr = 5
    assert w.sr==8000

def test_new_tensor_and_max_keep_rate(): assert noise().new_tensor([[1.]]).sr == noise().max(-1).values.sr == 8000

def test_save_load_weights_only(tmp_path):
    b = pad_audio([noise(80), noise(50)])
    torch.save(dict(b=b), tmp_path/'b.pt')
    res = torch.load(tmp_path/'b.pt', weights_only=True)['b']
    assert res.sr==8000 and res.lens.tolist()==[80,50] and torch.equal(res, b)

def test_indexing_indexes_lens():
    b = pad_audio([noise(80), noise(50), noise(20)])
    assert b[1].lens==50 and b[-1].lens==20 and [o.lens for o in b]==[80,50,20]
    mask,last = torch.tensor([False,True,True]),slice(1, None)
    for i in last, [1,2], torch.tensor([1,2]), mask, (last,), (last,...), np.array([1,2]):
        assert b[i].lens.tolist()==[50,20] and b[i].shape==(2,1,80), i
    assert b[...,10:60].lens.tolist()==[50,40,10] and b[:,:,::2].lens.tolist()==[40,25,10]
    assert b[2,:,10:].lens==10 and b[2][:,30:].lens==0
    assert b[b.lens>30].lens.tolist()==[80,50]
    assert b[None].lens is None and b[...,5].lens is None

@few
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 45), st.integers(1, 45), st.integers(1, 4))
def test_slices_of_padding_stay_padding(ns, i, j, k):
    b = pad_audio([AudioTensor(torch.ones(1, n), sr=8000) for n in ns])
    res = b[..., i:j:k]
    assert res.lens.tolist()==res.sum((-1,-2)).long().tolist()

def test_stack_cat_collate():
    items = [pad_audio([noise(80), noise(50)])[i] for i in (0,1)]
    for f in torch.stack, default_collate, fa_collate: assert f(items).lens.tolist()==[80,50] and f(items).sr==8000
    b = torch.stack(items)
    for res in torch.cat([b,b]),torch.cat(tensors=[b,b], dim=0): assert res.lens.tolist()==[80,50,80,50]
    assert torch.cat([b, b[..., :80].clone(), torch.stack([noise(80)])]).lens.tolist()==[80,50,80,50,80]
    assert torch.cat([b,b], dim=-1).lens is None and b.mean(0).lens is None
    assert torch.stack([noise(), noise()]).lens is None

def test_a_sum_is_as_long_as_its_longest_part():
    x,y = pad_audio([noise(80), noise(50)]),pad_audio([noise(60), noise(80)])
    z = x.clone()
    z += y
    for res in x+y, y*x, torch.where(x>0, x, y), z: assert res.lens.tolist()==[80,80]
    assert (x[1]+y[0]).lens==60 and (x + torch.ones(80)).lens.tolist()==[80,50]
    assert (x/x.amax(-1, keepdim=True)).lens.tolist()==[80,50] # a factor for each item has no length
    assert (x + AudioTensor(torch.randn(2, 1, 80), sr=8000)).lens.tolist()==[80,50] # noise below a batch

def test_what_moves_samples_moves_lens():
    b = pad_audio([noise(80), noise(50)])
    for res in b.flip(0), torch.flip(b, (0,)), b.roll(1, 0), b.index_select(0, torch.tensor([1,0])): assert res.lens.tolist()==[50,80]
    for res in b.flip(1), b.roll(1, 1), b.repeat(1, 2, 1): assert res.lens.tolist()==[80,50]
    for res in b.flip(-1), b.roll(5, -1), b.sort(-1).values, b[1].flip(-1), torch.fliplr(b[1]): assert res.lens is None
    assert [o.lens.tolist() for o in b.split(1)]==[[80],[50]] and [o.lens for o in b.unbind()]==[80,50]

join_code = """
import torch
from fastaudio_lite.audio import AudioTensor, pad_audio
a,b = (pad_audio([AudioTensor(torch.ones(1, n), sr=8000) for n in ns]) for ns in ((80,50),(30,20)))
for res in torch.cat([a,b]), torch.cat(tensors=[a,b]), torch.concat((a,b), dim=-3):
    assert res.shape==(4,1,80) and res.lens.tolist()==[80,50,30,20] and res[2:,:,30:].abs().max()==0
"""

def test_batches_of_unequal_length_are_joined():
    "Whatever else was imported"
    subprocess.run([sys.executable, '-c', join_code], check=True)
    with pytest.raises(RuntimeError): torch.cat([torch.zeros(1,1,80), torch.zeros(1,1,30)])

@pytest.mark.parametrize('workers', [0, 2])
def test_workers(workers):
    items = [pad_audio([noise(80), noise(50)])[i] for i in (0,1)]
    b = next(iter(DataLoader(items, batch_size=2, num_workers=workers)))
    assert type(b) is AudioTensor and b.sr==8000 and b.lens.tolist()==[80,50] and torch.equal(b[1], items[1])

def test_lens_follow_the_device(): assert pad_audio([noise(80), noise(50)]).to('meta').lens.device.type=='meta'

def test_mixed_rates_are_an_error():
    a,b = noise(),noise(sr=16000)
    for f in (lambda: a+b, lambda: torch.stack([a,b]), lambda: torch.cat([a,b]), lambda: a.clone().add_(b),
        lambda: torch.where(a>0, a, b), lambda: pad_audio([a,b]), lambda: default_collate([a,b]),
        lambda: torch.add(a, other=b)):
        with pytest.raises(AudioError, match=r'\[8000, 16000\] Hz'): f()

def test_what_is_no_sound_is_a_plain_tensor():
    w = noise()
    spec = torch.stft(w[0], 64, return_complex=True, window=torch.ones(64))
    for o in spec, spec.abs(), torch.fft.rfft(w), w>0, w.argmax(-1), w.sum(), w.short(): assert type(o) is torch.Tensor
    assert tuple(w.shape)==(1,800) and type(w.shape) is torch.Size

def test_gradients_flow():
    w = noise().requires_grad_()
    (w*3).pow(2).sum().backward()
    assert torch.allclose(w.grad, 18*w.detach())

def test_subclass_is_kept():
    class Voice(AudioTensor): pass
    w = Voice(torch.zeros(1, 10), sr=8000)
    assert type(w*2) is type(w.clone()) is type(w[:, :3]) is Voice and (w*2).sr==8000

def test_repr_names_the_rate(): assert repr(AudioTensor([[0.5]], sr=8000))=='AudioTensor([[0.5000]], sr=8000)'

# --- loading against references

@pytest.mark.parametrize('ext', ['.wav','.flac','.ogg','.mp3','.aiff','.au'])
def test_load_equals_soundfile_and_librosa(tmp_path, ext):
    fn = save_audio(tone(0.3), tmp_path/f'a{ext}')
    x,sr = sf.read(fn, dtype='float32')
    wav = load_audio(fn)
    assert wav.sr==sr==16000 and wav.shape==(1,len(x)) and np.allclose(wav[0], x, atol=1e-7)
    assert np.allclose(librosa.load(fn, sr=8000)[0], load_audio(fn, sr=8000)[0], atol=1e-6)

def test_load_takes_all_kinds_of_source(tmp_path):
    w = tone(0.1)
    fn = save_audio(w, tmp_path/'a.wav')
    want,x = load_audio(fn),sf.read(fn, dtype='int16')[0]
    raw = fn.read_bytes()
    with open(fn, 'rb') as f:
        pairs = (x,16000),(16000,x),(torch.tensor(x),np.int64(16000))
        srcs = str(fn), fn, raw, bytearray(raw), memoryview(raw), io.BytesIO(raw), f, want, *pairs
        for src in srcs: assert torch.equal(load_audio(src), want) and load_audio(src).sr==16000
        assert f.read(4)!=b'' or not f.closed # still open
    assert load_audio([0.,0.5,-0.5], sr_in=8000).tolist()==[[0.,0.5,-0.5]]
    buf = io.BytesIO()
    sf.write(buf, x, 16000, format='WAV') # position is at the end now
    assert torch.equal(load_audio(buf), want)

def test_pipes_cannot_seek():
    r,w = os.pipe()
    os.write(w, encode(np.zeros(100)))
    os.close(w)
    with os.fdopen(r, 'rb') as f: assert load_audio(f).shape==(1,100)

def test_sounds_as_others_hold_them(tmp_path):
    fn = save_audio(tone(0.1), tmp_path/'a.wav')
    x = sf.read(fn, dtype='int16')[0]
    want = load_audio(fn)
    for src in dict(array=x, sampling_rate=16000), dict(bytes=fn.read_bytes(), path=None), dict(bytes=None, path=str(fn)), \
        (x.astype('>i2'), 16000): assert torch.equal(load_audio(src), want)
    assert torch.allclose(load_audio((want[0].numpy().astype('>f4'), 16000)), want)
    raises('got a dict of text', load_audio, dict(text='six'))
    raises('2 names', load_audio, np.array(['a.wav','b.wav']))
    for o in 'https://example.org/a.wav', Path('https://example.org/a.wav'): raises('address https://example.org/a.wav', load_audio, o)

def test_standard_input_and_pipes(tmp_path):
    fn = save_audio(tone(0.1), tmp_path/'a.wav')
    code = "from fastaudio_lite.audio import *; import sys; print(audio_info(sys.argv[1]).n_samples, load_audio(sys.argv[1]).n_samples)"
    for o in '-','/dev/stdin':
        res = subprocess.run([sys.executable, '-c', code, o], input=fn.read_bytes(), capture_output=True, check=True)
        assert res.stdout.split()==[b'1600',b'1600']

def test_channels_that_cancel():
    w = tone(0.5)
    both = AudioTensor(torch.cat([w, -0.9*w]), sr=16000)
    raw = encode(both.T.numpy(), 16000, subtype='FLOAT')
    for f in (lambda: to_mono(both), lambda: load_audio(both), lambda: load_audio(raw), lambda: torch.cat(list(audio_windows(raw, 0.1)), -1)):
        with pytest.warns(AudioWarning, match='cancel'): assert torch.allclose(f(), w)
    with pytest.warns(AudioWarning, match='cancel'): res = to_mono(torch.stack([both, both.abs()]))
    assert torch.allclose(res[0], w) and torch.allclose(res[1], w.abs()*0.95)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for o in noise(c=2), AudioTensor(torch.cat([w, -0.5*w]), sr=16000), AudioTensor(torch.zeros(2, 800), sr=8000): to_mono(o)

def test_many_channels_are_mixed_as_they_come(tmp_path):
    "255 channels for 20 s: 163 MB of floats, of which one block is held at a time"
    with sf.SoundFile(fn := tmp_path/'a.wav', 'w', 8000, 255, 'PCM_16') as f:
        for _ in range(20): f.write(np.full((8000,255), 8192, 'int16'))
    code = f"""if True:
        import resource
        from fastaudio_lite.audio import load_audio
        def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        load_audio({str(fn)!r}, dur=0.1)
        before = used()
        print(load_audio({str(fn)!r}).unique().tolist(), used()-before)"""
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.startswith('[0.25] ') and int(out.split()[1])<60_000

def test_overflow_is_an_error():
    loud = AudioTensor(torch.full((2, 4000), 3.4e38), sr=8000)
    steps = AudioTensor(torch.where(torch.arange(4000)%50<25, 3.4e38, -3.4e38)[None], sr=8000)
    raises('overflow', to_mono, loud)
    raises('overflow', resample, steps, 16000)
    for o in loud,steps,encode([0., 1e20], subtype='FLOAT'): raises(r'\[-1,1\]', load_audio, o)

def test_integers_are_scaled():
    for dt,lo,hi in ('int8',-128,127),('int16',-32768,32767),('int32',-2**31,2**31-1):
        x = load_audio(np.array([lo,0,hi], dt), sr_in=8000)[0]
        assert x[0]==-1 and x[1]==0 and 0.99<x[2]<=1
    assert load_audio(np.array([0,128,255], 'uint8'), sr_in=8000)[0].tolist()==[-1.,0.,127/128]
    assert load_audio(np.array([0,0.5], 'float64'), sr_in=8000).dtype==torch.float32

def test_short_axis_is_channels():
    for s,want in ((100,),(1,100)),((2,100),(2,100)),((100,2),(2,100)),((3,3),(3,3)),((1,1),(1,1)):
        x = np.random.rand(*s)
        assert load_audio(x, mono=False, sr_in=8000).shape==want
    x = np.random.rand(100, 2)
    assert np.allclose(load_audio(x, mono=False, sr_in=8000), x.T)
    assert np.allclose(load_audio(x, sr_in=8000)[0], x.mean(1), atol=1e-6)

def test_order_is_mono_then_resample():
    x = np.random.randn(2, 4000).astype('float32')*0.1
    want = resample(AudioTensor(x.mean(0, keepdims=True), sr=8000), 4000)
    assert np.allclose(load_audio(x, sr=4000, sr_in=8000), want, atol=1e-6)

def test_eight_channels(tmp_path):
    w = noise(c=8)
    fn = save_audio(w, tmp_path/'a.wav', 'FLOAT')
    assert torch.equal(AudioTensor.create(fn), w) and torch.allclose(load_audio(fn), w.mean(0, keepdim=True))

def test_one_sample():
    assert load_audio([0.5], sr_in=8000).shape==(1,1)
    for sr in 100,16000,44100: assert load_audio([0.5], sr=sr, sr_in=8000).n_samples>=1
    assert load_audio(encode([0.5])).shape==(1,1)

@pytest.mark.parametrize('sr', [8000, 22050, 44100, 96000, 192000])
def test_rates(sr): assert load_audio(encode(np.zeros(sr//10), sr)).dur==0.1

@pytest.mark.parametrize('fmt,subtype', [('WAV','PCM_16'),('FLAC','PCM_16'),('OGG','VORBIS'),('MP3',None)])
def test_start_and_dur(tmp_path, fmt, subtype):
    fn = tmp_path/'a.bin'
    fn.write_bytes(encode(np.random.randn(80000)*0.1, 16000, fmt, subtype))
    full = load_audio(fn)
    for start,dur in (0,0.5),(1.25,0.5),(4.75,2.),(2.,None):
        i = dur2n(start, 16000)
        want = full[:, i:] if dur is None else full[:, i:i+dur2n(dur, 16000)]
        for src in fn,full: assert torch.allclose(load_audio(src, start=start, dur=dur), want, atol=1e-6)
    for src in fn,full:
        with pytest.raises(AudioError, match='start=9'): load_audio(src, start=9.)

def test_padded_item_loads_its_valid_samples(): assert load_audio(pad_audio([noise(80), noise(50)])[1]).shape==(1,50)

# --- properties

@few
@given(st.sampled_from([('wav','PCM_U8',8),('wav','PCM_16',16),('wav','PCM_24',24),('wav','PCM_32',25),
    ('wav','FLOAT',25),('wav','DOUBLE',25),('flac','PCM_S8',8),('flac','PCM_16',16),('flac','PCM_24',24),
    ('aiff','PCM_16',16),('au','PCM_16',16)]),
    st.integers(1, 500), st.sampled_from([1,2,8]), st.sampled_from([8000,22050,44100,192000]), st.integers(0, 1000))
def test_round_trip_within_quantisation(tmp_path, f, n, c, sr, s):
    ext,subtype,bits = f
    g = torch.Generator().manual_seed(s)
    w = AudioTensor(torch.rand(c, n, generator=g)*2-1, sr=sr)
    res = AudioTensor.create(save_audio(w, tmp_path/f'a.{ext}', subtype))
    assert res.sr==sr and res.shape==w.shape and (res-w).abs().max() <= 1/2**(bits-1)
    again = AudioTensor.create(save_audio(res, tmp_path/f'b.{ext}', subtype))
    assert torch.equal(again, res)

@few
@given(st.integers(1, 3000), st.sampled_from(rates), st.sampled_from(rates), st.integers(1, 3))
def test_resample_length(n, a, b, c):
    w = noise(n, c, a)
    res = resample(w, b)
    assert abs(res.n_samples - n*b/a) <= 1 and res.n_samples>=1
    assert res.sr==b and res.n_channels==c and res.isfinite().all()

@pytest.mark.parametrize('a,b', [(44100,16000),(16000,8000),(8000,16000),(48000,22050)])
def test_resample_against_librosa_and_scipy(a, b):
    w = tone(0.5, a)
    x = resample(w, b)[0].numpy()
    ref = librosa.resample(w[0].numpy(), orig_sr=a, target_sr=b, res_type='soxr_hq')
    assert np.allclose(x, ref[:len(x)], atol=1e-6)
    g = np.gcd(a, b)
    y,mid = resample_poly(w[0].numpy().astype('float64'), b//g, a//g),slice(500, 3000) # the ends depend on the filter
    assert np.abs(x[mid]-y[mid]).max() < 2e-3

def test_resample_removes_what_cannot_be_held():
    w = tone(1., 16000, 7000.)
    assert resample(w, 8000)[:, 500:-500].abs().max() < 5e-3 < 0.4 < w[:, ::2].abs().max()

def test_resample_batch_scales_lens():
    b = pad_audio([noise(800), noise(500)])
    r = resample(b, 16000)
    assert r.shape==(2,1,1600) and r.lens.tolist()==[1600,1000]
    assert torch.allclose(r[0], resample(b[0], 16000), atol=1e-6)
    assert resample(b[1], 4000).lens==250 and resample(b, 8000) is b

# --- bad input: one sentence each

def raises(match, f, *args, err=AudioError, **kwargs):
    with pytest.raises(err, match=match) as e: f(*args, **kwargs)
    assert '\n' not in str(e.value) and len(str(e.value))<400

def test_missing_file(tmp_path):
    save_audio(noise(), tmp_path/'7_jackson_0.wav')
    raises('did you mean 7_jackson_0.wav', load_audio, tmp_path/'7_jakson_0.wav', err=FileNotFoundError)
    raises('there is no folder', load_audio, tmp_path/'no'/'a.wav', err=FileNotFoundError)
    raises('look into', load_audio, tmp_path/'zzzzzzzz', err=FileNotFoundError)

def test_folder_empty_and_text(tmp_path):
    raises('got the folder', load_audio, tmp_path)
    (tmp_path/'empty.wav').touch()
    raises('0 bytes', load_audio, tmp_path/'empty.wav')
    (tmp_path/'text.wav').write_text('dear diary '*100)
    raises('damaged, or no sound', load_audio, tmp_path/'text.wav')
    raises('damaged, or no sound', load_audio, b'')
    with open(tmp_path/'text.wav') as f: raises("mode 'rb'", load_audio, f)

@pytest.mark.parametrize('fmt', ['WAV','AIFF','AU','FLAC','OGG'])
@pytest.mark.parametrize('keep', [0.3, 0.6, 0.95])
def test_cut_off_files(tmp_path, fmt, keep):
    raw = encode(np.random.randn(16000)*0.1, 16000, fmt)
    fn = tmp_path/f'a.{fmt.lower()}'
    fn.write_bytes(raw[:int(len(raw)*keep)])
    for src in fn,fn.read_bytes(): raises('cut off|damaged', load_audio, src)
    raises('cut off|damaged', lambda: list(audio_windows(fn, 0.1)))

@pytest.mark.parametrize('fmt', ['WAV','AIFF','AU','FLAC','OGG','MP3'])
@bad_seek
def test_headers_alone(fmt):
    for n in 4,20,44,60: raises('.', load_audio, encode(np.random.randn(16000)*0.1, 16000, fmt)[:n])

def test_mp3_without_an_index(tmp_path):
    "Its length is a guess from the first bit rate: better an error than a quarter of the sound"
    sf.write(tmp_path/'a.mp3', np.random.randn(441000)*0.1, 44100, bitrate_mode='VARIABLE', compression_level=0.5)
    raw = (tmp_path/'a.mp3').read_bytes()
    assert load_audio(raw).n_samples==load_audio(tmp_path/'a.mp3').n_samples==441000
    bare = raw[raw.find(b'\xff\xfb', raw.find(b'Xing')):]
    (tmp_path/'b.mp3').write_bytes(bare)
    for src in bare,tmp_path/'b.mp3': raises('without an index', load_audio, src)
    assert load_audio(bare, dur=1.).dur==1

def wav_with(at, value, fmt='<I'):
    raw = bytearray(encode(np.random.randn(800)*0.1))
    struct.pack_into(fmt, raw, raw.index(b'data')+4 if at=='data' else at, value)
    return bytes(raw)

def test_lying_headers():
    assert load_audio(wav_with('data', 0xffffffff)).n_samples==800 # what a stream writes: size unknown
    raises('cut off', load_audio, wav_with('data', 0x70000000))
    for sr in 0,1,99,2**31,4_000_000_000: raises('.', load_audio, wav_with(24, sr))
    for c in 0,60000: raises('.', load_audio, wav_with(22, c, '<H'))
    flac = bytearray(encode(np.random.randn(800)*0.1, fmt='FLAC'))
    flac[21] |= 0x0f
    flac[22:26] = b'\x7f'*4 # 66 billion samples
    raises('cut off|damaged', load_audio, bytes(flac))

@bad_seek
@few
@given(st.binary(max_size=300), st.sampled_from([b'', b'RIFF\x24\0\0\0WAVEfmt ', b'fLaC\0\0\0\x22', b'OggS',
    b'FORM\0\0\0\x20AIFF', b'\xff\xfb\x90']))
def test_any_bytes_are_sound_or_an_audio_error(junk, head):
    try: assert load_audio(head+junk).isfinite().all()
    except AudioError: pass

@bad_seek
@few
@given(st.sampled_from(['WAV','FLAC','OGG','AIFF']), st.integers(0, 10**6), st.integers(0, 255))
def test_one_damaged_byte(fmt, at, value):
    raw = bytearray(encode(np.sin(np.arange(2000)/9), fmt=fmt))
    raw[at%len(raw)] = value
    try: assert load_audio(bytes(raw)).isfinite().all()
    except AudioError: pass

def with_size(fmt, name, value, at=0):
    "0.1 s of sound whose header says that they have `value` bytes"
    raw = bytearray(encode(tone(0.1)[0], 16000, fmt))
    struct.pack_into(dict(WAV='<I', RF64='<Q', W64='<Q', CAF='>Q', AIFF='>I', AU='>I')[fmt], raw, raw.index(name)+at, value)
    return bytes(raw)

sizes = dict(WAV=(b'data',4,0), RF64=(b'ds64',16,0), W64=(b'data',16,24), CAF=(b'data',4,4), AIFF=(b'SSND',4,8), AU=(b'.snd',8,0))

@pytest.mark.parametrize('fmt', sizes)
def test_unknown_and_wrong_sizes(fmt):
    "Nothing, all ones and the largest number mean: to the end of the file"
    name,at,none = sizes[fmt]
    bits = 64 if fmt in ('RF64','W64','CAF') else 32
    for size in 0,none,2**bits-1,2**(bits-1)-1: assert load_audio(with_size(fmt, name, size, at)).n_samples==1600
    with pytest.warns(AudioWarning, match='36 bytes'): assert load_audio(with_size(fmt, name, 3200+none+36, at)).n_samples==1600
    raw = encode(tone(0.1)[0], 16000, fmt)
    raises('cut off', audio_info, raw[:-1500])

def test_what_lies_behind_the_sound():
    raw = encode(tone(0.1)[0], 16000)
    with pytest.warns(AudioWarning, match='passed over 2200 bytes'): assert load_audio(with_size('WAV', b'data', 1000, 4)).n_samples==500
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for more in bytes(100), b'LIST' + struct.pack('<I', 2000) + bytes(2000): assert load_audio(raw+more).n_samples==1600
        raises('no samples', load_audio, encode([])+b'LIST' + struct.pack('<I', 20) + bytes(20))

def test_sphere_cut_off():
    raw = encode(tone(0.1)[0], 16000, 'NIST', 'PCM_16')
    assert load_audio(raw).n_samples==1600
    raises('cut off', load_audio, raw[:-1000])

def test_flac_of_unknown_length():
    raw = bytearray(encode(tone(0.5)[0], 16000, 'FLAC'))
    raw[21] &= 0xf0
    raw[22:26] = bytes(4)
    assert load_audio(bytes(raw)).n_samples==audio_info(bytes(raw)).n_samples==8000
    assert load_audio(bytes(raw), start=0.3).n_samples==3200 and sum(o.lens for o in audio_windows(bytes(raw), 0.2))==8000
    raises('damaged|cut off', load_audio, bytes(raw[:len(raw)//2]))

@pytest.mark.parametrize('fmt,subtype', [('OGG','VORBIS'),('OGG','OPUS'),('FLAC','PCM_16')])
def test_recordings_in_a_row(tmp_path, fmt, subtype):
    one,two = (encode(tone(0.5, f=f)[0], 16000, fmt, subtype) for f in (300,900))
    (fn := tmp_path/'a.bin').write_bytes(one+two)
    parts = torch.cat([load_audio(one), load_audio(two)], -1)
    for src in fn,one+two: assert torch.equal(load_audio(src), parts) and audio_info(src).n_samples==parts.n_samples
    assert torch.equal(load_audio(fn, start=0.6), parts[:, 9600:]) and sum(o.lens for o in audio_windows(fn, 0.3))==parts.n_samples
    raises('different kinds', load_audio, one+encode(tone(0.5, 8000)[0], 8000, fmt, subtype))

@pytest.mark.parametrize('subtype', ['GSM610','G721_32','NMS_ADPCM_16','IMA_ADPCM'])
def test_codecs_that_cannot_seek(subtype):
    raw = encode(tone(0.5, 8000)[0], 8000, subtype=subtype)
    n = audio_info(raw).n_samples
    assert n>=4000 and load_audio(raw).n_samples==n and torch.equal(load_audio(raw, start=0.25), load_audio(raw)[:, 2000:])

def test_the_content_decides(tmp_path, monkeypatch):
    "An mp3 is one under any name, and beside files that a Mac leaves"
    monkeypatch.chdir(tmp_path)
    raw = encode(tone(0.5)[0], 16000, 'MP3')
    for o in '._','._a.wav','._b.mp3': Path(o).write_bytes(b'junk'*30)
    for o in 'a.wav','b.mp3','c': Path(o).write_bytes(raw)
    for src in 'a.wav','b.mp3','c',raw: assert load_audio(src).n_samples==8000
    bare = bytearray(encode(np.random.randn(441000)*np.linspace(0, 0.1, 441000), 44100, 'MP3'))
    for o in b'Xing',b'Info': bare = bare.replace(o, bytes(4))
    Path('d.wav').write_bytes(bare + bare)
    raises('without an index', load_audio, 'd.wav')

def test_no_samples(tmp_path):
    raises('no samples', load_audio, encode(np.zeros(0)))
    raises('no samples', lambda: list(audio_windows(encode(np.zeros(0)), 1.)))
    raises('no samples', load_audio, [], sr_in=8000)
    raises('no samples', load_audio, np.zeros((0,2)), sr_in=8000)
    raises('no samples', load_audio, AudioTensor(torch.zeros(1, 0), sr=8000))
    raises('no sounds', pad_audio, [])

def test_nan_and_infinity(tmp_path):
    for bad in np.nan,np.inf,-np.inf:
        x = np.zeros(100, 'float32')
        x[7] = bad
        raises('first at 7', load_audio, x, sr_in=8000)
        raises('first at 7', load_audio, encode(x, subtype='FLOAT'))
        raises('first at 7', save_audio, AudioTensor(x[None], sr=8000), tmp_path/'a.wav')
    assert not list(tmp_path.iterdir())

def test_bad_arrays():
    raises('without a sample rate', load_audio, np.zeros(10))
    raises('without a sample rate', load_audio, AudioTensor(torch.zeros(1, 10)))
    raises('int64', load_audio, [1,2,3], sr_in=8000)
    raises('shape', load_audio, np.zeros((2,3,4)), sr_in=8000)
    raises('picture', load_audio, np.zeros((128,300)), sr_in=8000)
    raises('no list of samples', load_audio, ['a','b'], sr_in=8000)
    raises('no list of samples', load_audio, None, sr_in=8000)
    raises('complex', load_audio, np.zeros(4, complex), sr_in=8000)
    raises('index a batch', load_audio, pad_audio([noise()]))
    for sr in 0,-1,8000.5,'8000',True,None: raises('sample rate', load_audio, np.zeros(10), sr_in=sr)
    raises('sample rate', load_audio, noise(), sr=5)
    raises('sr_in=16000 for a sound at 8000', load_audio, noise(), sr_in=16000)
    raises('start=-1', load_audio, noise(), start=-1)
    for dur in 0,-1,float('nan'): raises('dur=', load_audio, noise(), dur=dur)

def test_forgotten_scale_is_a_warning():
    with pytest.warns(AudioWarning, match='32768'): load_audio(np.array([0.,20000.]), sr_in=8000)

def test_silence_is_no_error_and_no_nan():
    w = load_audio(np.zeros((2,8000), 'int16'), sr=16000, sr_in=8000)
    assert is_silent(w) and not is_silent(noise()) and w.isfinite().all() and trim_silence(w).shape==w.shape
    with pytest.warns(AudioWarning, match='silence'): assert is_silent(w, warn=True)
    faint = noise(amp=1e-6)
    assert is_silent(faint) and not is_silent(faint, floor_db=-140)
    assert is_silent(AudioTensor(torch.zeros(1,0), sr=8000))

def test_a_constant_is_silence():
    assert is_silent(AudioTensor(torch.full((1, 8000), 0.01), sr=8000)) and not is_silent(noise()+0.5)
    assert is_silent(pad_audio([AudioTensor(torch.full((1, n), 0.01), sr=8000) for n in (800,500)])[1])
    w = torch.cat([torch.zeros(1, 8000), tone(1., 8000), torch.zeros(1, 8000)], -1)
    for c in 0.02,-0.3: assert trim_silence(AudioTensor(w+c, sr=8000)).shape==trim_silence(AudioTensor(w, sr=8000)).shape

# --- info and windows

def test_info(tmp_path):
    fn = save_audio(noise(c=2), tmp_path/'a.flac')
    assert audio_info(fn)==audio_info(fn.read_bytes())==(8000, 800, 2, 0.1, 'FLAC')
    raises('.', audio_info, b'nothing', err=AudioError)

@few
@given(st.integers(1, 30000), st.floats(0.01, 1.5), st.floats(0.005, 2.), st.sampled_from([None,*rates]), st.booleans())
def test_windows_tile_the_sound(n, win, hop, sr, is_bytes):
    w = AudioTensor(torch.rand(2, n)-0.5, sr=8000)
    full = load_audio(w, sr)
    src = encode(w.T, subtype='FLOAT') if is_bytes else w
    ws = list(audio_windows(src, win, hop, sr))
    for a,b in zip(ws, audio_windows(src, win, hop, sr, mono=False)): assert b.n_channels==2 and torch.allclose(a, b.mean(0, keepdim=True), atol=1e-5)
    nw,nh = dur2n(win, full.sr),dur2n(hop, full.sr)
    assert all(o.shape==(1,nw) and o.sr==full.sr for o in ws)
    for k,o in enumerate(ws): assert torch.allclose(o.trimmed(), full[:, k*nh:k*nh+nw], atol=1e-5)
    assert not ws[-1][:, ws[-1].lens:].any()
    assert (len(ws)-1)*nh + nw >= full.n_samples or nh>nw
    assert len(ws)==1 or (len(ws)-2)*nh + nw < full.n_samples # no window without new samples

def test_bad_windows(tmp_path):
    for durs in (0,None),(1,0),(-1,None): raises('expected more than 0 s', lambda: next(audio_windows(noise(), *durs)))
    raises('existing file', lambda: next(audio_windows(tmp_path/'a.wav', 1)), err=FileNotFoundError)

# --- out

def test_save_is_atomic(tmp_path, monkeypatch):
    fn = save_audio(noise(), tmp_path/'a.wav')
    before = fn.read_bytes()
    def broken(f, *a, **k):
        Path(f).write_bytes(b'half')
        raise OSError('disk full')
    monkeypatch.setattr(sf, 'write', broken)
    raises('disk full', save_audio, noise(), fn)
    assert fn.read_bytes()==before and [o.name for o in tmp_path.iterdir()]==['a.wav']

def test_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def stop(f, *a, **k):
        Path(f).write_bytes(b'half')
        raise KeyboardInterrupt
    monkeypatch.setattr(sf, 'write', stop)
    with pytest.raises(KeyboardInterrupt): save_audio(noise(), tmp_path/'a.wav')
    assert not list(tmp_path.iterdir())

def test_bad_saves(tmp_path):
    raises('expected it to end in one of', save_audio, noise(), tmp_path/'a.xyz')
    raises('expected its folder to exist', save_audio, noise(), tmp_path/'no'/'a.wav', err=FileNotFoundError)
    raises('expected one of PCM', save_audio, noise(), tmp_path/'a.wav', subtype='PCM_12')
    raises('cannot write', save_audio, noise(sr=12345), tmp_path/'a.opus')
    raises('without a sample rate', save_audio, torch.zeros(1, 10), tmp_path/'a.wav')
    raises('expected an item|expected \\(C,T\\)', save_audio, pad_audio([noise(), noise()]), tmp_path/'a.wav')
    assert not list(tmp_path.iterdir())

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid()==0, reason='the superuser may write anywhere')
def test_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    raises('cannot write', save_audio, noise(), tmp_path/'a.wav')

def test_clipping_is_a_warning(tmp_path):
    loud = AudioTensor([[2.,-2.,0.]], sr=8000)
    with pytest.warns(AudioWarning, match='clipped'): fn = save_audio(loud, tmp_path/'a.wav')
    assert load_audio(fn).abs().max()<=1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert load_audio(save_audio(loud, tmp_path/'b.wav', 'FLOAT')).max()==2

@pytest.mark.parametrize('ext', ['wav','flac','aiff'])
def test_saving_rounds_to_nearest(tmp_path, ext):
    w = noise(4000, amp=0.2)
    err = load_audio(save_audio(w, tmp_path/f'a.{ext}'))-w
    assert err.abs().max()<=0.501/2**15 and abs(err.mean())<0.03/2**15

def test_saved_padded_item_is_trimmed(tmp_path):
    fn = save_audio(pad_audio([noise(80), noise(50)])[1], tmp_path/'a.wav')
    assert audio_info(fn).n_samples==50

# --- shape

def test_pad_audio():
    b = pad_audio([noise(80), noise(50)], n=100)
    assert b.shape==(2,1,100) and b.lens.tolist()==[80,50] and not b[1,:,50:].any()
    raises('none longer', pad_audio, [noise(80)], n=10)
    raises('channels', pad_audio, [noise(), noise(c=2)])
    assert torch.equal(pad_audio(list(b)), b[..., :80]) # padding is not padded again

@few
@given(st.integers(1, 300), st.floats(0.001, 0.04), st.sampled_from(['center','start','random']),
    st.sampled_from(['zeros','repeat']))
def test_fit_dur(n, dur, mode, pad):
    w = AudioTensor(torch.arange(1., n+1)[None], sr=8000)
    res,k = fit_dur(w, dur, mode, pad),dur2n(dur, 8000)
    assert res.shape==(1,k) and res.sr==8000
    if n>=k: assert torch.equal(res, w[:, int(res[0,0])-1:][:, :k]) and res.lens is None
    elif pad=='zeros': assert res.lens==n and torch.equal(res.trimmed(), w) and not res[:, n:].any()
    else: assert torch.equal(res[0], w[0].repeat(k)[:k])

def test_fit_dur_random_repeats_with_the_seed_and_differs_by_item():
    b = torch.stack([AudioTensor(torch.arange(8000.)[None], sr=8000)]*8)
    def draw(): return fit_dur(b, 0.1, 'random')[:, 0, 0].tolist()
    torch.manual_seed(1)
    one = draw()
    torch.manual_seed(1)
    assert one==draw() and len(set(one))>4
    raises('mode=', fit_dur, b, 0.1, 'centre')
    raises('at least one sample', fit_dur, b[0], 0.)

@pytest.mark.parametrize('top_db', [20, 40, 60])
def test_trim_equals_librosa(top_db):
    faint,rise = torch.full((900,), 1e-4),torch.linspace(0, 1, 1000)
    env = torch.cat([faint, rise, rise.flip(0), faint])
    w = noise(3800)*env
    want = librosa.effects.trim(w[0].numpy(), top_db=top_db, frame_length=200, hop_length=40)[0] # 25 and 5 ms at 8 kHz
    assert np.array_equal(trim_silence(w, top_db, pad_ms=0)[0], want)

def test_trim_pads_and_keeps_channels():
    w = torch.zeros(2, 8000)
    w[1, 3000:5000] = 0.5
    res = trim_silence(AudioTensor(w, sr=8000))
    assert res.n_channels==2 and 2000<=res.n_samples<2000+2*(160+200+40)

def test_to_mono(): assert to_mono(noise(c=2)).shape==(1,800) and to_mono(torch.stack([noise(c=2)])).shape==(1,1,800)

def test_methods():
    w = noise(c=2)
    assert (w.n_samples, w.n_channels, w.dur)==(800,2,0.1)
    assert w.resample(16000).sr==16000 and w.mono().n_channels==1

# --- see, hear, find

def test_show():
    import matplotlib.pyplot as plt
    ax = noise().show(title='hiss')
    assert ax.get_title()=='hiss' and ax.get_xlabel()=='time (s)' and abs(ax.lines[0].get_xdata()[-1]-799/8000)<1e-6
    assert noise(c=3).show(ctx=ax) is ax and len(ax.lines)==4
    long = noise(1_000_000).show().lines[0]
    assert len(long.get_xdata())<5000 and long.get_xdata()[-1]<=125
    assert AudioTensor(torch.zeros(1, 10)).show().get_xlabel()=='sample'
    plt.close('all')

def test_hear_takes_half_precision():
    for w in noise().half(), noise().bfloat16().requires_grad_(): assert '<audio' in w.hear()._repr_html_()

def test_hear():
    def heard(p): return load_audio(p.data)
    p = tone(0.5, 44100).hear()
    assert heard(p).sr==16000 and abs(heard(p).dur-0.5)<1e-3 and '<audio' in p._repr_html_()
    p = noise(c=2, n=80000).hear(max_dur=2., title='hiss')
    assert heard(p).shape==(1,16000) and 'hiss (first 2 of 10.0 s)' in p._repr_html_()
    assert heard(AudioTensor([[3.,-3.]], sr=8000).hear()).abs().max()<=1

def test_get_audio_files(tmp_path):
    others = '.hidden.wav','.git/f.wav','notes.txt','song.mid','list.m3u'
    for o in 'b.wav','a.FLAC','x/c.mp3','x/y/d.ogg','z/e.wav',*others:
        (tmp_path/o).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/o).touch()
    (tmp_path/'x'/'loop').symlink_to(tmp_path)
    def names(*a, **k): return [str(o.relative_to(tmp_path)) for o in get_audio_files(tmp_path, *a, **k)]
    assert names()==['a.FLAC','b.wav','x/c.mp3','x/y/d.ogg','z/e.wav']
    assert names(recurse=False)==['a.FLAC','b.wav'] and names(folders=['x'])==['x/c.mp3','x/y/d.ogg']
    raises('existing folder', get_audio_files, tmp_path/'no', err=FileNotFoundError)
    assert {'.wav','.flac','.ogg','.mp3'} <= set(audio_extensions)

def test_folders_with_other_kinds_of_files(tmp_path):
    raw = encode([0.,0.5])
    kinds = dict(oga='OGG', wave='WAV', aifc='AIFF', caf='CAF', w64='W64', snd='AU', sph='NIST')
    for k,v in kinds.items(): (tmp_path/f'x.{k}').write_bytes(encode(tone(0.1)[0], 16000, v, 'PCM_16' if v=='NIST' else None))
    assert [o.suffix[1:] for o in get_audio_files(tmp_path)]==sorted(kinds) and all(load_audio(o).n_samples for o in get_audio_files(tmp_path))
    for o,x in {'no_suffix':raw, 'wav.m4a':raw, 'LICENSE':b'free', 'notes.txt':raw, 'a.m4a':b'....ftypM4A ', 'b.WMA':b'0&'}.items(): (tmp_path/o).write_bytes(x)
    with pytest.warns(AudioWarning, match='passed over 1 .m4a, 1 .wma files'): found = {o.name for o in get_audio_files(tmp_path)}
    assert {'no_suffix','wav.m4a'} <= found and len(found)==len(kinds)+2

def test_dur2n(): assert dur2n(0.5, 8000)==4000 and dur2n(1/3, 3)==1 and [dur2n(i+0.5, 1) for i in range(4)]==[1,2,3,4]

# --- a fresh process

fresh_code = """
import resource, sys, numpy as np, soundfile as sf
from fastaudio_lite.audio import audio_windows
print([o for o in ('fastai.vision','torchvision','torchaudio','librosa','IPython') if o in sys.modules])
def n_windows(fn): return sum(1 for _ in audio_windows(fn, 1., sr=8000))
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss # KB
def write(fn, minutes):
    with sf.SoundFile(fn, 'w', 44100, 2, 'PCM_U8') as f:
        for _ in range(minutes): f.write(np.zeros((44100*60,2), 'int16'))
for fn,minutes in ((sys.argv[1],1),(sys.argv[2],8)):
    write(fn, minutes)
    print(n_windows(fn), used())
"""

def test_light_import_and_bounded_memory(tmp_path):
    "8 minutes at 44.1 kHz stereo are 169 MB as floats; windows of them need no more than those of one minute"
    cmd = [sys.executable, '-c', fresh_code, str(tmp_path/'1.wav'), str(tmp_path/'8.wav')]
    heavy,one,eight = subprocess.run(cmd, capture_output=True, text=True, check=True).stdout.splitlines()
    (n1,kb1),(n8,kb8) = map(int, one.split()),map(int, eight.split())
    assert heavy=='[]' and (n1,n8)==(60,480) and kb8-kb1<30_000
