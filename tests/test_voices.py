"What is heard of strangers: cepstra without the microphone, networks that know first from last, and their committee"
import math

import pytest, torch
from fastai.basics import FuncSplitter, MultiCategoryBlock, set_seed
from fastaudio_lite.all import *
from fastaudio_lite.augment import BetweenClass
from fastaudio_lite.cli import main
from fastaudio_lite.export import export_onnx, save_pretrained
from fastaudio_lite.spectrogram import AudioSpectrogram
from fastaudio_lite.voices import *
from hypothesis import given, settings, strategies as st # `settings` is ours otherwise

some_lens = st.lists(st.integers(1, 60), min_size=1, max_size=4)

def padded(lens, seed=0):
    "Log-mel spectrograms `(B,1,32,max(lens))` of noise, and `lens`"
    lens = torch.tensor(lens)
    x = torch.randn(len(lens), 1, 32, int(lens.max()), generator=torch.Generator().manual_seed(seed))
    return x*(torch.arange(x.shape[-1])<lens.view(-1,1,1,1)),lens

@settings(deadline=None, max_examples=40)
@given(some_lens)
def test_cepstra_of_padded_clips(lens):
    x,lens = padded(lens)
    c = cepstra(x, lens)
    assert c.shape==(len(lens),1,39,x.shape[-1]) and c.isfinite().all()
    for i,n in enumerate(lens.tolist()):
        assert not c[i,...,n:].any()
        torch.testing.assert_close(c[i:i+1,...,:n], cepstra(x[i:i+1,...,:n]), atol=1e-3, rtol=1e-3)

@settings(deadline=None, max_examples=40)
@given(some_lens, st.integers(1, 8))
def test_stretches(lens, k):
    "Weights of the real frames only; they sum to 1, or are 0 where a clip has no frame so near"
    lens = torch.tensor(lens)
    w = stretches(int(lens.max()), lens, k)
    total = w.sum(-1)
    assert (((total-1).abs()<1e-4) | (total==0)).all() and (total.sum(-1)>0).all()
    for o,n in zip(w, lens): assert not o[:,n:].any()

@settings(deadline=None, max_examples=20)
@given(some_lens)
def test_committee_of_padded_clips(lens):
    "A padded clip is answered as it would be alone"
    torch.manual_seed(0)
    com,(x,lens) = Committee(5).eval(),padded(lens)
    spec = AudioSpectrogram(x)
    spec.lens = lens
    with torch.no_grad():
        both = com(spec)
        for i,n in enumerate(lens.tolist()): torch.testing.assert_close(both[i:i+1], com(x[i:i+1,...,:n]), atol=2e-3, rtol=2e-3)
    assert both.shape==(len(lens),5)

def test_loss():
    "Each member learns from its own answer; the mean is what counts in the end"
    torch.manual_seed(0)
    com,y = Committee(5),torch.tensor([0,3])
    x,lens = padded([30,20])
    spec = AudioSpectrogram(x)
    spec.lens = lens
    out = com(spec)
    assert out.shape==(2,3,5)
    com.loss_func(out, y).backward()
    assert all(p.grad is not None and p.grad.abs().sum()>0 for n,p in com.named_parameters() if 'head' in n)
    one = CommitteeLoss('none')(out, y)
    assert one.shape==(2,) and math.isclose(one.mean().item(), com.loss_func(out, y).item(), rel_tol=1e-5)

clip_0 = get_audio_files(starter_path()/'digits'/'recordings')[0]

@pytest.fixture(scope='module')
def learn():
    "A committee that has been trained a little"
    set_seed(0)
    files = get_audio_files(starter_path()/'digits'/'recordings')[::9]
    dls = AudioDataLoaders.from_path_func('.', files, digit_label, splitter=FuncSplitter(lambda o: digit_take(o)==0), bs=16, num_workers=0,
        front_end=FrontEnd(8000, n_mels=32), item_tfms=TrimSilence(), batch_tfms=voice_tfms())
    learn = audio_learner(dls, Committee)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 5e-3)
    return learn

def test_travels(learn, tmp_path):
    "Saved and loaded it trims and answers as before"
    clf,clip = Classifier(learn),learn.dls.valid_ds.items[0]
    again = Classifier.from_pretrained(save_pretrained(learn, tmp_path/'m'))
    assert (again.arch,again.trim)==('Committee',40.)
    quiet = load_audio(clip, 8000)
    quiet = AudioTensor(torch.cat([torch.zeros(1,2000), quiet, torch.zeros(1,2000)], 1), sr=8000)
    probs = [torch.tensor(list(o.predict(w).probs.values())) for o in (clf, again) for w in (clip, quiet)]
    for p in probs[1:]: torch.testing.assert_close(p, probs[0], atol=0.02, rtol=0)
    for o in (clf, again): assert torch.equal(next(iter(o.windows(quiet)))[2], trim_silence(quiet, 40.))

def test_trims_everywhere():
    "Silence is cut in training, in validation and in what is asked later, and the saved config says so"
    quiet = torch.zeros(1,2000)
    clips = [AudioTensor(torch.cat([quiet, load_audio(o, 8000)[:,:n], quiet], 1), sr=8000) for n,o in zip((1600,2000,2400,2800), 4*[clip_0])]
    dls = AudioDataLoaders.from_lists('.', clips, list('abab'), splitter=lambda o: ([0,1],[2,3]), bs=2, num_workers=0,
        front_end=FrontEnd(8000, n_mels=32), item_tfms=TrimSilence())
    for dl in dls.loaders:
        x = next(iter(dl.new(after_batch=[])))[0]
        assert x.shape[-1]<=4200 # A moment of silence stays at both ends
    test = next(iter(dls.test_dl(clips[:2]).new(after_batch=[])))[0]
    assert test.shape[-1]<=4200
    clf = Classifier(audio_learner(dls, Committee))
    assert (clf.config()['trim'],clf.config()['arch'])==(40.,'Committee')

def test_refused():
    "What a committee cannot be, and silence that is none"
    for db in (0, -3, 201, math.nan):
        with pytest.raises(ValueError, match='top_db'): TrimSilence(db)
    files = get_audio_files(starter_path()/'digits'/'recordings')[:40]
    dls = AudioDataLoaders.from_lists('.', list(files), [['a','b']]*40, y_block=MultiCategoryBlock, sr=8000, bs=8, num_workers=0)
    with pytest.raises(ValueError, match='several labels'): audio_learner(dls, Committee)

def test_mixed(learn):
    "A committee trains on mixtures too"
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(BetweenClass()): learn.fit(1, 1e-3)
    assert learn.recorder.losses[-1].isfinite()

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_numbers(dtype):
    "Networks in other floats train and answer"
    x,lens = padded([30,20])
    for net in (AudioCNN(4), Committee(4)):
        out = net.to(dtype).train()(x.to(dtype), lens) if isinstance(net, AudioCNN) else net.to(dtype).eval()(x.to(dtype))
        assert out.dtype==dtype and out.isfinite().all()

def test_onnx(learn, tmp_path):
    "A committee counts its frames in ONNX too, alone and padded"
    pytest.importorskip('onnxscript')
    fn,wav = export_onnx(learn, tmp_path/'m.onnx'),pad_audio([load_audio(f, 8000) for f in learn.dls.valid_ds.items[:3]])
    got = pytest.importorskip('onnxruntime').InferenceSession(fn).run(None, dict(wav=wav.numpy(), lens=wav.lens.numpy()))[0]
    with torch.no_grad(): torch.testing.assert_close(torch.from_numpy(got), Classifier(learn)(wav).as_subclass(torch.Tensor), atol=1e-4, rtol=0)

def test_command(tmp_path, capsys):
    "The command line trains one too, whatever loss it would take for others"
    for k in '17':
        (tmp_path/'clips'/k).mkdir(parents=True)
        for o in list((starter_path()/'digits'/'recordings').glob(f'{k}_*'))[::12]: (tmp_path/'clips'/k/o.name).write_bytes(o.read_bytes())
    assert main(['train', str(tmp_path/'clips'), '--arch', 'Committee', '--epochs', '1', '--out', str(tmp_path/'m')])==0
    assert Classifier(tmp_path/'m').arch=='Committee' and 'Right on' in capsys.readouterr().out
